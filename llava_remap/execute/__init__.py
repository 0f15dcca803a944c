"""Plan to weight files. Decides nothing; value checks first, then byte ranges."""

from llava_remap.execute.digests import FileDigest, digest_files
from llava_remap.execute.files import (
    Folder,
    Resumable,
    fresh_folder,
    refuse_changed_job,
    refuse_filled,
)
from llava_remap.execute.needs import computes, working_nbytes
from llava_remap.execute.pieces import Range, Recipe, blocks, gathered
from llava_remap.execute.unfinished import CLAIM, PLAN, Facts, Unfinished, is_held, read_claim
from llava_remap.execute.value_checks import equal, nbytes_to_check, run_value_checks
from llava_remap.execute.values import chunks, find, too_short
from llava_remap.execute.write import (
    INDEX,
    JOBS,
    shard_nbytes,
    write_index,
    write_shards,
)

__all__ = [
    "CLAIM",
    "Facts",
    "FileDigest",
    "Folder",
    "INDEX",
    "JOBS",
    "PLAN",
    "Range",
    "Recipe",
    "Resumable",
    "Unfinished",
    "blocks",
    "chunks",
    "computes",
    "digest_files",
    "equal",
    "find",
    "fresh_folder",
    "gathered",
    "is_held",
    "nbytes_to_check",
    "read_claim",
    "refuse_changed_job",
    "refuse_filled",
    "run_value_checks",
    "shard_nbytes",
    "too_short",
    "working_nbytes",
    "write_index",
    "write_shards",
]
