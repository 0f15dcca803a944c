"""`ask_transformers.py` with a mistake of llama.cpp: CLIP's class token comes last.

llama.cpp puts the class token behind the patches, gives all of them positions in that order, and
leaves out the first one: so each patch has its neighbour's position, the first patch is lost, and
the class token is taken for the last patch.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import ask_transformers  # type: ignore[import-not-found]
import torch
from transformers.models.clip.modeling_clip import CLIPVisionEmbeddings


def class_token_last(self: Any, pixel_values: torch.Tensor, **_: Any) -> torch.Tensor:
    patches = self.patch_embedding(pixel_values).flatten(2).transpose(1, 2)
    first = self.class_embedding.expand(len(patches), 1, -1)
    positions: torch.Tensor = self.position_embedding(self.position_ids)
    return torch.cat([patches, first], 1) + positions


if __name__ == "__main__":
    CLIPVisionEmbeddings.forward = class_token_last
    ask_transformers.main(*map(Path, sys.argv[1:]))
