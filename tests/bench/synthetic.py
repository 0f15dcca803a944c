"""Checkpoints of any size to measure with: LLaVA-1.5's real names, widths and dtypes, and seeded random values.

Names, shapes, dtypes and config are those of the manifest of LLaVA-1.5-7B; smaller checkpoints have fewer layers and nothing
else changed. There are no tokenizer files, so the ids of new tokens follow the rows of embed_tokens, and the vocabulary grows
from 32000 to 32064.

    python synthetic.py FOLDER NBYTES bin|safetensors
"""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Mapping
from math import prod
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch

MANIFEST = Path(__file__).resolve().parents[1] / "data" / "manifests" / "llava-v1.5-7b.json"
FORMS = ("bin", "safetensors")

#: What the trainer's config.json says beside what the manifest holds.
_CONFIG = {"model_type": "llava", "hidden_act": "silu", "rope_scaling": None, "torch_dtype": "float16", "use_cache": True,
           "initializer_range": 0.02, "transformers_version": "4.31.0"}  # fmt: skip
#: Subfolder with the tower's own config: one with fewer layers than the stock tower is nobody's preset.
TOWER_CONFIG = "tower"
_TOWER = {"model_type": "clip_vision_model", "hidden_size": 1024, "intermediate_size": 4096, "num_attention_heads": 16,
          "image_size": 336, "patch_size": 14}  # fmt: skip
_TEXT_LAYER = re.compile(r"model\.layers\.(\d+)\.")
_TOWER_LAYER = re.compile(r"model\.vision_tower\..*\.layers\.(\d+)\.")
#: LLaVA-1.5 takes the features of the last layer but one, so a tower has at least two.
_MIN_TOWER_LAYERS = 2
_ITEM_NBYTES = {"F16": 2, "F32": 4}
#: The usual bound on a shard; it also bounds the memory that making one takes.
_SHARD_NBYTES = 5 * 10**9

#: Tensor name to dtype ("F16", "F32") and shape.
Shapes = Mapping[str, tuple[str, tuple[int, ...]]]


def shapes_for(nbytes: int) -> Shapes:
    """The tensors of a checkpoint of about `nbytes`, at the least 1.08 GB, at the most the whole model (14.7 GB).

    One text layer (405 MB) and two tower layers (50 MB each, F32) stay always. Room beyond goes to the tower first, up to its
    24 layers, then to the text model, up to its 32.
    """
    whole = {name: (entry["dtype"], tuple(entry["shape"])) for name, entry in _manifest()["tensors"].items()}
    text, tower = _layer_nbytes(whole, _TEXT_LAYER), _layer_nbytes(whole, _TOWER_LAYER)
    room = nbytes - (total_nbytes(whole) - sum(text) - sum(tower)) - text[0]
    towers = min(max(room // tower[0], _MIN_TOWER_LAYERS), len(tower))
    texts = 1 + min(max(round((room - towers * tower[0]) / text[0]), 0), len(text) - 1)
    return {
        name: entry for name, entry in whole.items()
        if _layer(_TEXT_LAYER, name) < texts and _layer(_TOWER_LAYER, name) < towers
    }  # fmt: skip


def total_nbytes(shapes: Shapes) -> int:
    """Bytes of the tensors, without any header."""
    return sum(_ITEM_NBYTES[dtype] * prod(shape) for dtype, shape in shapes.values())


def make_checkpoint(folder: Path, nbytes: int, form: str) -> None:
    """Write a checkpoint of about `nbytes` into a new folder: weights in shards of 5 GB, their index, config.json, the tower's.

    Every tensor has a storage of its own. All of one dtype start with the same random values; the rows of embed_tokens are
    distinct, so that their covariance is positive definite and the classic way can be run.

    Args:
        form: `bin` (torch.save) or `safetensors`.
    """
    folder.mkdir(parents=True)
    shapes = shapes_for(nbytes)
    layers = 1 + max(_layer(_TEXT_LAYER, name) for name in shapes)
    config = {**_CONFIG, **_manifest()["config"], "num_hidden_layers": layers}
    (folder / "config.json").write_text(json.dumps(config, indent=2, sort_keys=True) + "\n", encoding="utf-8")
    (folder / TOWER_CONFIG).mkdir()
    towers = 1 + max(_layer(_TOWER_LAYER, name) for name in shapes)
    tower = {**_TOWER, "num_hidden_layers": towers}
    (folder / TOWER_CONFIG / "config.json").write_text(json.dumps(tower) + "\n", encoding="utf-8")
    values = _values(shapes)
    shards = _split(shapes)
    stem, suffix = ("pytorch_model", "bin") if form == "bin" else ("model", "safetensors")
    weight_map = {}
    for number, names in enumerate(shards, 1):
        part = f"-{number:05}-of-{len(shards):05}" if len(shards) > 1 else ""
        file = folder / f"{stem}{part}.{suffix}"
        _save(file, {name: values[shapes[name][0]][: prod(shapes[name][1])].clone().view(shapes[name][1]) for name in names})
        weight_map.update(dict.fromkeys(names, file.name))
    if len(shards) > 1:
        index = {"metadata": {"total_size": total_nbytes(shapes)}, "weight_map": weight_map}
        (folder / f"{stem}.{suffix}.index.json").write_text(json.dumps(index, indent=2) + "\n", encoding="utf-8")


def _manifest() -> Any:
    return json.loads(MANIFEST.read_text(encoding="utf-8"))


def _layer(pattern: re.Pattern[str], name: str) -> int:
    """The number of the layer that a tensor belongs to, -1 for one that belongs to none."""
    found = pattern.match(name)
    return int(found[1]) if found else -1


def _layer_nbytes(shapes: Shapes, pattern: re.Pattern[str]) -> list[int]:
    """Bytes of each layer, by its number."""
    count = 1 + max(_layer(pattern, name) for name in shapes)
    return [total_nbytes({n: e for n, e in shapes.items() if _layer(pattern, n) == number}) for number in range(count)]


def _values(shapes: Shapes) -> dict[str, torch.Tensor]:
    """For each dtype a run of random values as long as its largest tensor; 0.02 is `initializer_range`."""
    import torch

    generator = torch.Generator().manual_seed(0)
    sizes = {kind: max(prod(shape) for dtype, shape in shapes.values() if dtype == kind) for kind in _ITEM_NBYTES}
    dtypes = {"F16": torch.float16, "F32": torch.float32}
    return {kind: (torch.randn(size, generator=generator) * 0.02).to(dtypes[kind]) for kind, size in sizes.items()}


def _split(shapes: Shapes) -> list[list[str]]:
    """Names by shard, in order; none holds more than `_SHARD_NBYTES`."""
    shards: list[list[str]] = [[]]
    filled = 0
    for name, entry in shapes.items():
        nbytes = total_nbytes({name: entry})
        if shards[-1] and filled + nbytes > _SHARD_NBYTES:
            shards.append([])
            filled = 0
        shards[-1].append(name)
        filled += nbytes
    return shards


def _save(file: Path, tensors: dict[str, torch.Tensor]) -> None:
    import torch
    from safetensors.torch import save_file

    if file.suffix == ".bin":
        torch.save(tensors, file)
    else:
        save_file(tensors, file, metadata={"format": "pt"})


if __name__ == "__main__":
    make_checkpoint(Path(sys.argv[1]), int(sys.argv[2]), sys.argv[3])
