"""Keys a stream, and takes a side output, in the JVM.

``DataStream.key_by`` adds a Python operator that computes the key of every element, and
``get_side_output`` one that hands it on: each batch would go to Python and back once more. Here the
key is an element's first field already.
"""

from __future__ import annotations

from pyflink.common import TypeInformation, Types
from pyflink.datastream import DataStream, KeyedStream, OutputTag
from pyflink.java_gateway import get_gateway


def by_first_field(stream: DataStream, value_type: TypeInformation) -> KeyedStream:
    """Key a stream of ``Row(INT, value)`` by its first field; functions get the second one.

    What follows is the end of PyFlink 2.3's own ``key_by``.
    """
    selector = get_gateway().jvm.KeyByKeySelector()
    key_type = Types.ROW([Types.INT()]).get_java_type_info()
    return KeyedStream(stream._j_data_stream.keyBy(selector, key_type), value_type, stream)


def side_output(stream: DataStream, tag: OutputTag) -> DataStream:
    """What an operator gave away under that tag."""
    return DataStream(stream._j_data_stream.getSideOutput(tag.get_java_output_tag()))
