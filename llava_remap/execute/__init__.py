"""Plan to weight files. Decides nothing; value checks first, then byte ranges."""

from llava_remap.execute.digests import FileDigest, digest_files
from llava_remap.execute.files import fresh_folder, whole_file, write_all
from llava_remap.execute.needs import computes, working_nbytes
from llava_remap.execute.pieces import Range, Recipe
from llava_remap.execute.value_checks import equal, nbytes_to_check, run_value_checks
from llava_remap.execute.values import too_short
from llava_remap.execute.write import INDEX, shard_header, write_index, write_shards

__all__ = [
    "FileDigest",
    "INDEX",
    "Range",
    "Recipe",
    "computes",
    "digest_files",
    "equal",
    "fresh_folder",
    "nbytes_to_check",
    "run_value_checks",
    "shard_header",
    "too_short",
    "whole_file",
    "working_nbytes",
    "write_all",
    "write_index",
    "write_shards",
]
