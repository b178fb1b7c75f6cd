"""Feature logic and Flink functions of streamscore.

Imports go one way: ``jobs -> udfs -> model_server``. Only ``operators`` and ``scoring`` import
Flink; they adapt the other modules to it.
"""

from udfs.runtime import restore_print

restore_print()
