"""Files to a catalog: headers only, with nothing but the standard library."""

from llava_remap.checkpoint.catalog import (
    BESIDE,
    Catalog,
    Checkpoint,
    Location,
    LoraPair,
    Piece,
    Stamp,
    Tensor,
)
from llava_remap.checkpoint.errors import AbsentError, UnreadableError, unreadable
from llava_remap.checkpoint.foreign import PartsApartError, gather_command, parts_beside
from llava_remap.checkpoint.open import open_checkpoint, tensor_names
from llava_remap.checkpoint.purpose import PartOnlyError
from llava_remap.checkpoint.shards import read_weight_map
from llava_remap.checkpoint.small_file import has_file, read_file, read_object, read_text

__all__ = [
    "AbsentError",
    "BESIDE",
    "Catalog",
    "Checkpoint",
    "Location",
    "LoraPair",
    "PartOnlyError",
    "PartsApartError",
    "Piece",
    "Stamp",
    "Tensor",
    "UnreadableError",
    "gather_command",
    "has_file",
    "open_checkpoint",
    "parts_beside",
    "read_file",
    "read_object",
    "read_text",
    "read_weight_map",
    "tensor_names",
    "unreadable",
]
