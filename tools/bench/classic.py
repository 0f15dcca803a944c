"""What people did before: everything into memory, names replaced piece by piece, new rows from a
covariance matrix, one save.

It leaves out what the scripts of that kind also do (importing transformers, building the model,
saving a processor), so its figures are a lower bound.

    python classic.py SOURCE OUTPUT [--rename-only]
"""

from __future__ import annotations

import sys
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch.distributions import MultivariateNormal

#: Replaced wherever they occur, in this order, each in what the one before it left.
SUBSTITUTIONS = (
    ("model.vision_tower.", ""),
    ("model.mm_projector", "multi_modal_projector"),
    ("model", "model.model"),
    ("vision_model.model", "vision_model"),
    ("lm_head", "language_model.lm_head"),
    ("model.model", "language_model.model"),
    ("multi_modal_projector.0", "multi_modal_projector.linear_1"),
    ("multi_modal_projector.2", "multi_modal_projector.linear_2"),
)
EMBEDDING, HEAD = "language_model.model.embed_tokens.weight", "language_model.lm_head.weight"
#: Rows that each matrix gets: the two new tokens, and padding to a multiple of 64.
NEW_ROWS = 64
#: Factor on the covariance of the old rows.
SCALE = 1e-5


def load(source: Path) -> dict[str, torch.Tensor]:
    """Every tensor of every weight file in a folder."""
    state: dict[str, torch.Tensor] = {}
    for file in sorted([*source.glob("*.bin"), *source.glob("*.safetensors")]):
        state.update(
            torch.load(file, map_location="cpu", weights_only=True)
            if file.suffix == ".bin"
            else load_file(file)
        )
    return state


def rename(name: str) -> str:
    for old, new in SUBSTITUTIONS:
        name = name.replace(old, new)
    return name


def grow(state: dict[str, torch.Tensor]) -> None:
    """Append rows to both matrices, drawn from the normal distribution of the rows [vocabulary,
    hidden] of embed_tokens.
    """
    rows = state[EMBEDDING].float()
    mean = rows.mean(dim=0)
    centred = rows - mean
    covariance = centred.T @ centred / len(rows)
    distribution = MultivariateNormal(mean, covariance_matrix=SCALE * covariance)
    for name in (EMBEDDING, HEAD):
        new = torch.stack(
            [distribution.sample() for _ in range(NEW_ROWS)]
        )  # all in one call is many times slower
        state[name] = torch.cat([state[name], new.to(state[name].dtype)])


def main() -> None:
    source, output = map(Path, sys.argv[1:3])
    state = {
        rename(name): tensor
        for name, tensor in load(source).items()
        if not name.endswith(".inv_freq")
    }
    if "--rename-only" not in sys.argv:
        grow(state)
    output.mkdir()
    save_file(state, output / "model.safetensors", metadata={"format": "pt"})


if __name__ == "__main__":
    main()
