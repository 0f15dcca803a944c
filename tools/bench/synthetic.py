"""Checkpoints of any size to measure with: LLaVA-1.5's real names, widths and dtypes, and seeded
random values.

Names, shapes, dtypes and config are those of the manifest of LLaVA-1.5-7B; smaller checkpoints have
fewer layers and nothing else changed. With the one of its two tokenizers the vocabulary grows from
32000 to 32064, with the other one it stays.

    python synthetic.py FOLDER NBYTES bin|safetensors [OPERATION]
"""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Mapping
from itertools import islice
from math import prod
from pathlib import Path
from typing import TYPE_CHECKING, Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))  # it is run as a file

from tools.bench.operations import KINDS, Shapes

if TYPE_CHECKING:
    import torch

_MANIFESTS = Path(__file__).resolve().parents[2] / "tests" / "data" / "manifests"
MANIFEST = _MANIFESTS / "llava-v1.5-7b.json"
MANIFEST_72B = _MANIFESTS / "llava-next-qwen1.5-72b.released.json"
FORMS = ("safetensors", "bin")

#: What the trainer's config.json says beside what the manifest holds.
_CONFIG = {
    "model_type": "llava",
    "hidden_act": "silu",
    "rope_scaling": None,
    "torch_dtype": "float16",
    "use_cache": True,
    "initializer_range": 0.02,
    "transformers_version": "4.31.0",
}
#: Subfolder with the tower's own config: one with fewer layers than the stock tower is nobody's
#: preset.
TOWER_CONFIG = "tower"
#: Subfolders with a tokenizer each. The first has as many words as embed_tokens has rows, so new
#: tokens need new rows; the other has a few less, so they don't, and the whole job is a rename.
FULL_TOKENIZER, SPARE_TOKENIZER = "tokenizer", "tokenizer-with-room"
#: Words that the second one lacks: room for the image token and the pad token.
_SPARE = 2
_TOWER = {
    "model_type": "clip_vision_model",
    "hidden_size": 1024,
    "intermediate_size": 4096,
    "num_attention_heads": 16,
    "image_size": 336,
    "patch_size": 14,
}
_TEXT_LAYER = re.compile(r"model\.layers\.(\d+)\.")
_TOWER_LAYER = re.compile(r"model\.vision_tower\..*\.layers\.(\d+)\.")
#: LLaVA-1.5 takes the features of the last layer but one, so a tower has at least two.
_MIN_TOWER_LAYERS = 2
_ITEM_NBYTES = {"F16": 2, "F32": 4}
#: The usual bound on a shard.
_SHARD_NBYTES = 5 * 10**9
#: Random numbers that are made.
_BLOCK = (1 << 24) + 1


def shapes_for(nbytes: int) -> Shapes:
    """The tensors of a checkpoint of about `nbytes`, at the least 1.08 GB, at the most the whole
    model (14.7 GB).

    One text layer (405 MB) and two tower layers (50 MB each, F32) stay always. Room beyond goes to
    the tower first, up to its 24 layers, then to the text model, up to its 32.
    """
    whole = {
        name: (entry["dtype"], tuple(entry["shape"]))
        for name, entry in _manifest()["tensors"].items()
    }
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


def make_checkpoint(folder: Path, nbytes: int, form: str, operation: str = "") -> None:
    """Write a checkpoint of about `nbytes` into a new folder: weights in shards of 5 GB, their
    index, config.json; the tower's config and two tokenizers in folders of their own.

    Every tensor has a storage of its own in the file. All of one dtype start with the same random
    values, so that no more than the largest tensor is ever in memory; the rows of embed_tokens are
    distinct, so that their covariance is positive definite and the classic way can be run.

    Args:
        form: `bin` (torch.save) or `safetensors`.
        operation: the name of an operation that the checkpoint's matrices need; empty for none.
    """
    folder.mkdir(parents=True)
    shapes = shapes_for(nbytes)
    for kind in KINDS:
        shapes = kind.shapes(shapes) if kind.name == operation else shapes
    config = {
        **_CONFIG,
        **_manifest()["config"],
        "num_hidden_layers": _layer_count(shapes, _TEXT_LAYER),
    }
    _write_json(folder / "config.json", config)
    (folder / TOWER_CONFIG).mkdir()
    _write_json(
        folder / TOWER_CONFIG / "config.json",
        {**_TOWER, "num_hidden_layers": _layer_count(shapes, _TOWER_LAYER)},
    )
    _make_tokenizer(folder / FULL_TOKENIZER, config["vocab_size"])
    _make_tokenizer(folder / SPARE_TOKENIZER, config["vocab_size"] - _SPARE)
    values, shards = _values(shapes), _split(shapes)
    stem, suffix = ("pytorch_model", "bin") if form == "bin" else ("model", "safetensors")
    weight_map = {}
    for number, names in enumerate(shards, 1):
        part = f"-{number:05}-of-{len(shards):05}" if len(shards) > 1 else ""
        file = folder / f"{stem}{part}.{suffix}"
        save = _save_torch if form == "bin" else _save_safetensors
        save(file, {name: shapes[name] for name in names}, values)
        weight_map.update(dict.fromkeys(names, file.name))
    if len(shards) > 1:
        index = {"metadata": {"total_size": total_nbytes(shapes)}, "weight_map": weight_map}
        _write_json(folder / f"{stem}.{suffix}.index.json", index)


def make_manifest_110b(file: Path) -> None:
    """A manifest of LLaVA-NeXT on Qwen1.5-110B: that of the 72B with the other model's widths,
    which are those of its config.
    """
    manifest = json.loads(MANIFEST_72B.read_text(encoding="utf-8"))
    manifest["config"] |= {"intermediate_size": 49152, "num_key_value_heads": 8}
    hidden, heads = manifest["config"]["hidden_size"], manifest["config"]["num_attention_heads"]
    for name, entry in manifest["tensors"].items():
        if re.search(r"^model\.layers\..*[kv]_proj", name):
            entry["shape"][0] = hidden // heads * 8
        elif re.search(r"^model\.layers\..*(gate|up)_proj", name):
            entry["shape"][0] = 49152
        elif re.search(r"^model\.layers\..*down_proj", name):
            entry["shape"][1] = 49152
    manifest |= {
        "name": "llava-next-qwen1.5-110b",
        "origin": {"how": f"{MANIFEST_72B.name} with the widths of Qwen1.5-110B"},
    }
    _write_json(file, manifest)


def make_manifest_of_experts(file: Path) -> None:
    """A manifest of 71,000 tensors: LLaVA-1.5-7B with layers of experts, which no parameter of a
    Llama is for.
    """
    manifest = json.loads(MANIFEST.read_text(encoding="utf-8"))
    experts = (
        (f"model.layers.{layer}.mlp.experts.{expert}.{name}.weight", shape)
        for layer in range(94)
        for expert in range(256)
        for name, shape in (
            ("gate_proj", [1536, 4096]),
            ("up_proj", [1536, 4096]),
            ("down_proj", [4096, 1536]),
        )
    )
    for name, shape in islice(experts, 71_000 - len(manifest["tensors"])):
        manifest["tensors"][name] = {"dtype": "BF16", "shape": shape}
    _write_json(
        file, manifest | {"name": "experts", "origin": {"how": f"{MANIFEST.name} with experts"}}
    )


def make_rules(file: Path) -> None:
    """A rule file with a rule for each of 3,000 layers, as one writes them who has no numbers in
    templates; it has no tests.
    """
    rules = "".join(
        f"  - {{id: r{n}, from: 'model.layers.{n}.{{rest...}}', to: 'text.layers.{n}.{{rest}}'}}\n"
        for n in range(3000)
    )
    file.write_text(f"schema: 1\nnames:\n{rules}", encoding="utf-8")


def _make_tokenizer(folder: Path, words: int) -> None:
    """A byte-level tokenizer of so many words; those beside Llama's first three and the bytes
    are made up.
    """
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

    special = ["<unk>", "<s>", "</s>"]
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    made_up = (f"word{number}" for number in range(words - len(special) - len(letters)))
    tokenizer = Tokenizer(
        models.BPE({word: number for number, word in enumerate([*special, *letters, *made_up])}, [])
    )
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(
        [AddedToken(word, normalized=False, special=True) for word in special]
    )
    folder.mkdir()
    tokenizer.save(str(folder / "tokenizer.json"))
    roles = {"unk_token": "<unk>", "bos_token": "<s>", "eos_token": "</s>"}
    _write_json(
        folder / "tokenizer_config.json", {**roles, "tokenizer_class": "PreTrainedTokenizerFast"}
    )


def _write_json(file: Path, content: object) -> None:
    file.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


def _manifest() -> Any:
    return json.loads(MANIFEST.read_text(encoding="utf-8"))


def _layer(pattern: re.Pattern[str], name: str) -> int:
    """The number of the layer that a tensor belongs to, -1 for one that belongs to none."""
    found = pattern.match(name)
    return int(found[1]) if found else -1


def _layer_count(shapes: Shapes, pattern: re.Pattern[str]) -> int:
    return 1 + max(_layer(pattern, name) for name in shapes)


def _layer_nbytes(shapes: Shapes, pattern: re.Pattern[str]) -> list[int]:
    """Bytes of each layer, by its number."""
    count = _layer_count(shapes, pattern)
    return [
        total_nbytes({n: e for n, e in shapes.items() if _layer(pattern, n) == number})
        for number in range(count)
    ]


def _values(shapes: Shapes) -> dict[str, torch.Tensor]:
    """For each dtype a run as long as its largest tensor: one random block again and again; 0.02 is
    `initializer_range`.

    The block's length is odd and the widths are powers of two, so no two of as many rows as it has
    numbers are the same.
    """
    import torch

    sizes = {
        kind: max(prod(shape) for dtype, shape in shapes.values() if dtype == kind)
        for kind in _ITEM_NBYTES
    }
    block = torch.empty(_BLOCK).normal_(0, 0.02, generator=torch.Generator().manual_seed(0))
    block[: max(shape[0] for _, shape in shapes.values() if len(shape) == 1)] += (
        1  # each begins with it: norms are about 1
    )
    dtypes = {"F16": torch.float16, "F32": torch.float32}
    return {
        kind: block.to(dtypes[kind]).repeat(-(-size // _BLOCK))[:size]
        for kind, size in sizes.items()
    }


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


def _save_torch(file: Path, shapes: Shapes, values: Mapping[str, torch.Tensor]) -> None:
    import torch

    data = {kind: run.numpy() for kind, run in values.items()}
    # Each is a storage of its own to torch, though all of them lie on the same memory.
    tensors = {
        name: torch.frombuffer(data[kind], dtype=values[kind].dtype, count=prod(shape)).view(shape)
        for name, (kind, shape) in shapes.items()
    }
    torch.save(tensors, file)


def _save_safetensors(file: Path, shapes: Shapes, values: Mapping[str, torch.Tensor]) -> None:
    """As the format's own writer does: the widest dtype first, then by name, behind a header
    padded to 8 bytes.
    """
    data = {kind: run.numpy().data.cast("B") for kind, run in values.items()}
    ordered = sorted(shapes, key=lambda name: (-_ITEM_NBYTES[shapes[name][0]], name))
    entries: dict[str, object] = {"__metadata__": {"format": "pt"}}
    end = 0
    for name in ordered:
        kind, shape = shapes[name]
        start, end = end, end + total_nbytes({name: shapes[name]})
        entries[name] = {"dtype": kind, "shape": shape, "data_offsets": [start, end]}
    header = json.dumps(entries, separators=(",", ":")).encode()
    header += b" " * (-len(header) % 8)
    with file.open("wb") as opened:
        opened.write(len(header).to_bytes(8, "little") + header)
        for name in ordered:
            opened.write(data[shapes[name][0]][: total_nbytes({name: shapes[name]})])


if __name__ == "__main__":
    make_checkpoint(Path(sys.argv[1]), int(sys.argv[2]), *sys.argv[3:])
