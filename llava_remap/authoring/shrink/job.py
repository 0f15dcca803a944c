"""From a large checkpoint, or its manifest, to the folder of a small one."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from llava_remap.authoring.shrink.config import of_text, small_config, tower_config
from llava_remap.authoring.shrink.forms import Form, Stored, weight_files
from llava_remap.authoring.shrink.tokenizer import small_vocabulary, tokenizer_files
from llava_remap.authoring.shrink.twin import Twin, make_twin
from llava_remap.authoring.shrink.values import values
from llava_remap.checkpoint import Tensor
from llava_remap.core.libraries import import_asked
from llava_remap.core.problem import RemapError, refuse
from llava_remap.execute import fresh_folder
from llava_remap.folder.json_file import json_bytes
from llava_remap.folder.processor import stock_image_processor
from llava_remap.jobs.output import output_folder, output_problems
from llava_remap.source.sources import open_source
from llava_remap.target_model import Tower

#: Folder inside the output with the tower's own config, and its tensors where the checkpoint has
#: none.
TOWER = "vision_tower"
#: Of every class that was trained before the key existed.
_ROPE_THETA = 10000.0


@dataclass(frozen=True, slots=True)
class Shrunk:
    """What was written.

    Attributes:
        output: the folder.
        tower: the folder of the tower's own checkpoint or config; None where the checkpoint's
            config describes its tower.
        location: where the large checkpoint is.
        tensors_before: how many tensors that one has.
        twin: what the small one consists of.
        nbytes: of the files together.
    """

    output: Path
    tower: Path | None
    location: str
    tensors_before: int
    twin: Twin
    nbytes: int


def shrink(
    source: str | Path,
    output: str | Path,
    *,
    form: Form | str = Form.safetensors,
    seed: int = 0,
    layers: int = 2,
    tower_layers: int | None = None,
    offline: bool = False,
) -> Shrunk:
    """Write a small checkpoint with a large one's names, dtypes and ties, fewer layers and small
    sizes.

    Of the large one only headers and config are read, so a manifest will do. The values are made:
    seeded normal numbers.

    Args:
        source: a folder, a file, a manifest or a hub id.
        output: a new or empty folder.
        form: how the weights are stored. The tensors are the same in every form.
        seed: another one gives other values.
        layers: how many layers of the language model stay: the first ones.
        tower_layers: how many of the vision tower; by default 3, or as many as the features are
            taken from.

    Raises:
        RemapError: as `open_checkpoint`; LR112 where config and tensors don't say enough, LR211 for
            numbers of layers that can't be, LR409 for tensors in a dtype without arithmetic, LR510
            where a library doesn't work, LR502, LR503 and LR508 for an output that can't be
            written.
    """
    if form not in list(Form):
        raise refuse(
            "LR211",
            f"there is no form `{form}`; there are {', '.join(known.value for known in Form)}.",
            "Give one of them.",
        )
    if layers < 1:
        raise refuse("LR211", f"--layers {layers}: a model has at least one.", "Give 1 or more.")
    import_asked(("numpy", "tokenizers", "torch"))
    checkpoint = open_source(
        "model", str(source), ("tensors", "config"), first=True, offline=offline
    )
    if checkpoint.config is None:
        raise refuse(
            "LR112",
            f"{checkpoint.location} has no config.json, which says how many heads there are.",
            "Put the config.json of the checkpoint beside it.",
        )
    config = of_text(checkpoint.config)
    twin = make_twin(checkpoint, config, layers, tower_layers)
    folder, described = (
        output_folder(output),
        "vision_config" in checkpoint.config and not twin.tower_apart,
    )
    vocabulary = small_vocabulary(
        checkpoint.config, twin.text.before["vocab_size"], twin.text.after["vocab_size"]
    )
    tower = tower_config(checkpoint.config, twin)
    beside = {
        "config.json": json_bytes(
            {
                "model_type": tower["model_type"].removesuffix("_vision_model"),
                "vision_config": tower,
            }
        ),
        "preprocessor_config.json": json_bytes(stock_image_processor(Tower({}, tower, ()))),
    }
    if described:  # the checkpoint's own config is the one that says it
        del beside["config.json"]
    if twin.tower_apart:
        beside |= weight_files(Form.safetensors, _stored(twin.tower_apart, seed, config), ())
    files = {
        **{name if described else f"{TOWER}/{name}": data for name, data in beside.items()},
        "config.json": json_bytes(small_config(checkpoint.config, twin, vocabulary.ids)),
        **tokenizer_files(vocabulary),
        **weight_files(Form(form), _stored(twin.tensors, seed, config), twin.aliases),
    }
    nbytes = sum(map(len, files.values()))
    if problems := output_problems(folder, nbytes, {"model": checkpoint}):
        raise RemapError(problems)
    with fresh_folder(folder, () if described else (TOWER,)) as written:
        for name, data in files.items():
            written.put(name, data)
    return Shrunk(
        folder,
        None if described else folder / TOWER,
        checkpoint.location,
        len(checkpoint.catalog),
        twin,
        nbytes,
    )


def _stored(tensors: Mapping[str, Tensor], seed: int, config: Mapping[str, Any]) -> Stored:
    theta = config.get("rope_theta")
    theta = theta if isinstance(theta, (int, float)) and theta > 0 else _ROPE_THETA
    return {
        name: (tensor.dtype, tensor.shape, values(tensor, seed, theta))
        for name, tensor in tensors.items()
    }
