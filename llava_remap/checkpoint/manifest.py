"""Reads and writes manifests: a catalog and its config as one JSON file, without tensors' bytes.

`{"format": "llava-remap/manifest", "format_version": 1, "name": …, "config": {…}, "aliases":
[[name, name]], "adapter_config": {…}, "tensors": {name: {"dtype": "F16", "shape": [32000,
4096]}}}`. `config`, `aliases` and `adapter_config` (of a LoRA adapter) may be absent.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from llava_remap.checkpoint.catalog import ADAPTER_CONFIG, Checkpoint, Tensor, is_shape
from llava_remap.checkpoint.purpose import named_base
from llava_remap.checkpoint.source_file import json_beside, read_object, unknown_dtype
from llava_remap.core import DTYPE_BITS, RemapError, quoted, refuse

FORMAT = "llava-remap/manifest"
VERSION = 1
#: The key of an adapter's own config.
ADAPTER = "adapter_config"


def parse_manifest(path: Path, content: dict[str, Any]) -> Checkpoint:
    """The checkpoint that the JSON object `content` of the file `path` describes.

    Raises:
        RemapError: LR106 for an unknown version or dtype, LR102 if the content isn't a manifest's.
    """
    version = content.get("format_version")
    if type(version) is not int or version != VERSION:
        shown = quoted(str(version)) if isinstance(version, (int, float, str)) else "missing"
        raise refuse(
            "LR106",
            f"the format_version of {quoted(path.name)} is {shown}; the only known version is "
            f"{VERSION}.",
            "Update llava-remap, or make the manifest again.",
        )
    config, tensors = content.get("config"), content.get("tensors")
    if not isinstance(config, (dict, type(None))) or not isinstance(tensors, dict):
        raise _broken(path, "`tensors` or `config` is not an object")
    catalog = {name: _tensor(path, name, entry) for name, entry in tensors.items()}
    adapter = content.get(ADAPTER)
    if not isinstance(adapter, (dict, type(None))):
        raise _broken(path, f"`{ADAPTER}` is not an object")
    aliases = content.get("aliases", [])
    if not isinstance(aliases, list) or not all(_is_group(group, catalog) for group in aliases):
        raise _broken(path, "`aliases` is not a list of lists of its tensors' names")
    return Checkpoint(
        path,
        f"manifest ({path.name})",
        catalog,
        config,
        None,
        aliases=tuple(map(tuple, aliases)),
        base=named_base(adapter, config),
    )


def manifest_text(checkpoint: Checkpoint) -> str:
    """The manifest of a checkpoint, with one line for each tensor. `parse_manifest` reads it."""
    head: dict[str, Any] = {"format": FORMAT, "format_version": VERSION}
    head["name"] = checkpoint.origin or checkpoint.path.resolve().name
    if checkpoint.config is not None:
        head["config"] = checkpoint.config
    if checkpoint.aliases:
        head["aliases"] = checkpoint.aliases
    if (adapter := _adapter_config(checkpoint)) is not None:
        head[ADAPTER] = adapter
    lines = [
        f"{json.dumps(name)}: {json.dumps({'dtype': tensor.dtype, 'shape': tensor.shape})}"
        for name, tensor in checkpoint.catalog.items()
    ]
    whole = json.dumps(head).removesuffix("}")
    return f'{whole}, "tensors": {{\n' + ",\n".join(lines) + "\n}}\n"


def _adapter_config(checkpoint: Checkpoint) -> Any:
    if not checkpoint.pairs:
        return None
    if checkpoint.is_manifest:
        return read_object(checkpoint.path, "LR102", "Make it again.").get(ADAPTER)
    return json_beside(checkpoint.folder, ADAPTER_CONFIG)


def _is_group(group: object, catalog: dict[str, Tensor]) -> bool:
    return isinstance(group, list) and all(
        isinstance(name, str) and name in catalog for name in group
    )


def _tensor(path: Path, name: str, entry: Any) -> Tensor:
    dtype = entry.get("dtype") if isinstance(entry, dict) else None
    shape = entry.get("shape") if isinstance(entry, dict) else None
    if not isinstance(dtype, str) or not isinstance(shape, list) or not is_shape(shape):
        raise _broken(path, f"the entry of {quoted(name)} has no dtype and shape")
    if dtype not in DTYPE_BITS:
        raise unknown_dtype(path, name, dtype)
    return Tensor.of(name, dtype, tuple(shape), None)


def _broken(path: Path, why: str) -> RemapError:
    return refuse("LR102", f"the manifest {quoted(path.name)} is broken: {why}.", "Make it again.")
