"""The job that writes the folder of a small checkpoint from a large one or its manifest."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from llava_remap.authoring.shrink.config import small_config, small_tokenizer, tower_config
from llava_remap.authoring.shrink.forms import Form, made_up, weight_files
from llava_remap.authoring.shrink.twin import Twin, make_twin
from llava_remap.core.libraries import import_asked
from llava_remap.core.problem import RemapError, refuse
from llava_remap.execute import fresh_folder
from llava_remap.folder.processor import stock_image_processor
from llava_remap.folder.scratch import json_bytes
from llava_remap.jobs.output import output_folder, output_problems
from llava_remap.source.sources import open_source
from llava_remap.target_model import Tower

#: The folder inside the output with the tower's own config. It also holds the tower's tensors if
#: the checkpoint has none.
TOWER = "vision_tower"


@dataclass(frozen=True, slots=True)
class Shrunk:
    """A small checkpoint that was written.

    Attributes:
        output: its folder.
        tower: the folder of the tower's own checkpoint or config; None if the checkpoint's config
            describes its tower.
        location: where the large checkpoint is.
        tensors_before: how many tensors the large checkpoint has.
        twin: the tensors and sizes of the small checkpoint.
        nbytes: the size of all files together.
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
    """Write a small checkpoint with the names, dtypes and ties of a large one, but fewer layers and
    small sizes.

    Only headers and config of the large checkpoint are read, so a manifest is enough. The values
    are seeded normal numbers.

    Args:
        source: a folder, a file, a manifest or a hub id.
        output: a new or empty folder.
        form: how the weights are stored. The tensors are the same in every form.
        seed: another seed gives other values.
        layers: how many of the language model's first layers stay.
        tower_layers: how many layers of the vision tower stay; by default as many as the features
            are taken from, and at least 3.

    Raises:
        RemapError: as `open_checkpoint`; LR112 if config and tensors don't say enough, LR211 for
            impossible numbers of layers, LR409 for tensors in a dtype without arithmetic, LR510 if
            a library doesn't work, LR502, LR503 and LR508 for an output that can't be written.
    """
    if form not in list(Form):
        raise refuse(
            "LR211",
            f"there is no form `{form}`; the forms are {', '.join(known.value for known in Form)}.",
            "Give one of them.",
        )
    if layers < 1:
        raise refuse(
            "LR211", f"--layers {layers}: a model has at least one layer.", "Give 1 or more."
        )
    import_asked(("numpy", "tokenizers", "torch"))
    checkpoint = open_source(
        "model", str(source), ("tensors", "config"), first=True, offline=offline
    )
    config = checkpoint.config
    if config is None:
        raise refuse(
            "LR112",
            f"{checkpoint.location} has no config.json, so the number of attention heads is "
            "unknown.",
            "Put the config.json of the checkpoint beside the weights.",
        )
    twin = make_twin(checkpoint, config, layers, tower_layers)
    folder = output_folder(output)
    tower = tower_config(config, twin)
    tokenizer, ids = small_tokenizer(
        config, twin.text.before["vocab_size"], twin.text.after["vocab_size"]
    )
    processor = {
        "preprocessor_config.json": json_bytes(stock_image_processor(Tower({}, tower, ())))
    }
    files = {
        "config.json": json_bytes(small_config(config, twin, ids)),
        **tokenizer,
        **weight_files(Form(form), made_up(twin.tensors, seed, config), twin.aliases),
    }
    apart = "vision_config" not in config or bool(twin.tower_apart)
    if apart:
        kind = tower["model_type"].removesuffix("_vision_model")
        beside = {
            "config.json": json_bytes({"model_type": kind, "vision_config": tower}),
            **processor,
        }
        if twin.tower_apart:
            beside |= weight_files(
                Form.safetensors, made_up(twin.tower_apart, seed, config), aliases=()
            )
        files |= {f"{TOWER}/{name}": content for name, content in beside.items()}
    else:
        files |= processor
    nbytes = sum(map(len, files.values()))
    if problems := output_problems(folder, nbytes, {"model": checkpoint}):
        raise RemapError(problems)
    with fresh_folder(folder, (TOWER,) if apart else ()) as written:
        for name, content in files.items():
            written.put(name, content)
    return Shrunk(
        folder,
        folder / TOWER if apart else None,
        checkpoint.location,
        len(checkpoint.catalog),
        twin,
        nbytes,
    )
