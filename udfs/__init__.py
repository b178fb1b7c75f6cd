"""Feature logic and Flink functions of streamscore.

Imports go one way: ``jobs -> udfs -> model_server.client``. The modules ``spec``, ``windows``,
``events``, ``tabular`` and ``offline`` import no engine; ``operators`` and ``scoring`` adapt them
to Flink.
"""

from udfs.runtime import restore_print

restore_print()
