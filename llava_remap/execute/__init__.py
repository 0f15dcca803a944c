"""Plan to weight files. Decides nothing; value checks first, then byte ranges."""

from llava_remap.execute.value_checks import run_value_checks
from llava_remap.execute.write import INDEX, write_index, write_shards

__all__ = ["INDEX", "run_value_checks", "write_index", "write_shards"]
