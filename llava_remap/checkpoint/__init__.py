"""Reads checkpoints' headers into a catalog, with the standard library alone."""

from llava_remap.checkpoint.catalog import (
    ADAPTER_CONFIG,
    BESIDE,
    Catalog,
    Checkpoint,
    Location,
    LoraPair,
    Piece,
    Stamp,
    Tensor,
    files_for,
)
from llava_remap.checkpoint.foreign import (
    TRAINING_STEP,
    Listing,
    PartsApartError,
    StepsError,
    explain_folder,
    gather_command,
    parts_beside,
    whole_states,
)
from llava_remap.checkpoint.form import Form, choose_form, is_trainers, no_form
from llava_remap.checkpoint.manifest import manifest_text
from llava_remap.checkpoint.memory import IN_MEMORY, InMemory, is_tensor
from llava_remap.checkpoint.open import open_checkpoint, open_in_memory, tensor_names
from llava_remap.checkpoint.purpose import PartOnlyError, is_projector_alone
from llava_remap.checkpoint.source_file import (
    LARGEST,
    AbsentError,
    DamagedError,
    UnreadableError,
    has_file,
    nearest_entry,
    read_file,
    read_object,
    read_text,
    readable,
)
from llava_remap.checkpoint.weight_file import read_weight_map, shards_beside

__all__ = [
    "ADAPTER_CONFIG",
    "AbsentError",
    "StepsError",
    "TRAINING_STEP",
    "BESIDE",
    "Catalog",
    "Checkpoint",
    "DamagedError",
    "Form",
    "IN_MEMORY",
    "InMemory",
    "LARGEST",
    "Listing",
    "Location",
    "LoraPair",
    "PartOnlyError",
    "PartsApartError",
    "Piece",
    "Stamp",
    "Tensor",
    "UnreadableError",
    "choose_form",
    "explain_folder",
    "files_for",
    "gather_command",
    "has_file",
    "nearest_entry",
    "is_projector_alone",
    "is_tensor",
    "is_trainers",
    "manifest_text",
    "no_form",
    "open_checkpoint",
    "open_in_memory",
    "parts_beside",
    "read_file",
    "read_object",
    "read_text",
    "read_weight_map",
    "readable",
    "shards_beside",
    "tensor_names",
    "whole_states",
]
