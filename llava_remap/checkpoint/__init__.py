"""Files to a catalog: headers only, with nothing but the standard library."""

from llava_remap.checkpoint.beside import BESIDE
from llava_remap.checkpoint.catalog import DTYPE_BITS, Catalog, Checkpoint, Location, Tensor
from llava_remap.checkpoint.open import open_checkpoint
from llava_remap.checkpoint.strict_json import read_object

__all__ = ["BESIDE", "DTYPE_BITS", "Catalog", "Checkpoint", "Location", "Tensor", "open_checkpoint", "read_object"]
