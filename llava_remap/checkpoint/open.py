"""Reads folders, files, manifests and tensors in memory as a `Checkpoint`."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Set
from dataclasses import replace
from pathlib import Path
from typing import Any

from llava_remap.checkpoint.adapter import lora_pairs
from llava_remap.checkpoint.catalog import (
    ADAPTER_CONFIG,
    ADAPTER_FILES,
    BESIDE,
    BESIDE_ADAPTER,
    Catalog,
    Checkpoint,
    LoraPair,
    Stamp,
    Tensor,
)
from llava_remap.checkpoint.foreign import (
    Listing,
    explain_file,
    explain_folder,
    is_states,
    whole_states,
)
from llava_remap.checkpoint.form import (
    Form,
    choose_form,
    every_form,
    has_fixed_name,
    is_trainers,
    no_form,
)
from llava_remap.checkpoint.manifest import ADAPTER, FORMAT, parse_manifest
from llava_remap.checkpoint.memory import IN_MEMORY, InMemory, catalog_of
from llava_remap.checkpoint.purpose import (
    adapter_only,
    has_pairs,
    is_unmerged,
    named_base,
)
from llava_remap.checkpoint.source_file import (
    LARGEST,
    AbsentError,
    has_file,
    json_beside,
    nearest_entry,
    read_object,
    readable,
)
from llava_remap.checkpoint.weight_file import read_form, read_index, read_weight_file
from llava_remap.core import counted, quoted, refuse, several

#: The most characters of a name. Released models stay below 150; the time for comparing names
#: grows with the square of their length.
LONGEST_NAME = 500
#: The folder in which some trainings (Prismatic's) keep the weights of their steps.
_STEPS = "checkpoints"


def open_checkpoint(path: Path, *, weights: bool = True, part: bool = False) -> Checkpoint:
    """The checkpoint at `path`, read from headers alone: a folder, one file of weights, an index or
    a manifest.

    If a folder holds several forms, `choose_form` decides which is read; the others are named in
    `passed_over`.

    Args:
        weights: whether its tensors are needed. If not, a folder needs only config and tokenizer.
        part: whether a part of a model is enough: an adapter or a projector.

    Raises:
        RemapError: LR100 to LR103, LR105 to LR108, LR113, LR115.
    """
    with readable(path):
        if not weights and path.is_dir():
            form, config = "only config and tokenizer", json_beside(path, "config.json")
            return Checkpoint(path, form, {}, config, path, stamps=_stamps(path, ()))
        return _open(path, part)


def open_in_memory(name: str, given: InMemory, *, part: bool = False) -> Checkpoint:
    """The checkpoint of tensors in memory.

    Args:
        name: the name of the tensors in messages.
        part: as for `open_checkpoint`.

    Raises:
        RemapError: LR100 if the folder doesn't exist, and as `catalog_of` and `open_checkpoint`.
    """
    folder = None if given.folder is None else Path(given.folder).expanduser()
    if folder is not None and not folder.is_dir():
        raise AbsentError.of(
            "LR100",
            f"the folder {quoted(str(folder))} doesn't exist.",
            "Give the tokenizer's folder.",
        )
    file = Path(f"{name} ({IN_MEMORY})")
    catalog = catalog_of(file, given.tensors)
    _refuse_unless_sound(file, catalog)
    paired = has_pairs(file, catalog, folder, part=part)
    adapter = json_beside(folder, ADAPTER_CONFIG) if paired else None
    pairs = _pairs(folder or file, file.name, catalog, adapter) if paired else ()
    stamps = {} if folder is None else _stamps(folder, [folder / ADAPTER_CONFIG] * bool(pairs))
    if (config := given.read_config()) is None:
        config = json_beside(folder, "config.json")
    elif folder is not None:
        stamps.pop(folder / "config.json", None)
    groups: dict[object, list[str]] = {}
    for tensor in catalog.values():
        if tensor.nbytes and tensor.location is not None and tensor.location.memory is not None:
            groups.setdefault(tensor.location.memory.key, []).append(tensor.name)
    beside = "" if folder is None else f", with the files of {folder}"
    return Checkpoint(
        folder or file,
        IN_MEMORY,
        catalog,
        config,
        folder,
        aliases=tuple(tuple(names) for names in groups.values() if len(names) > 1),
        pairs=pairs,
        stamps=stamps,
        origin=IN_MEMORY + beside,
        base=named_base(adapter if pairs else None, config),
        in_memory=True,
    )


def tensor_names(file: Path) -> list[str]:
    """The names of the tensors in one file of weights, of a model or of any part.

    Raises:
        RemapError: LR100 to LR102, LR105.
    """
    with readable(file):
        return [tensor.name for tensor in read_weight_file(file).tensors]


def _open(path: Path, part: bool) -> Checkpoint:
    if path.is_dir():
        return _open_folder(path, part)
    if has_file(path):
        return _open_file(path, part)
    near = nearest_entry(path)
    raise AbsentError.of(
        "LR100",
        f"{quoted(str(path))} doesn't exist.",
        f"Did you mean {quoted(str(near))}?" if near else "Give a checkpoint's folder or file.",
    )


def _open_file(path: Path, part: bool) -> Checkpoint:
    if foreign := explain_file(path):
        raise foreign
    if is_trainers(path.name):
        raise refuse(
            "LR106",
            f"{quoted(path.name)} is the trainer's own file, not weights.",
            "Give the checkpoint's folder.",
        )
    if not _is_json(path):
        left = (
            {BESIDE_ADAPTER}
            if path.name in ADAPTER_FILES and has_file(path.parent / BESIDE_ADAPTER)
            else set()
        )
        return _checkpoint(path, *_with_config(path.parent, Form((path.name,))), part, left)
    content = read_object(path, "LR102", "Download or copy it again.")
    if content.get("format") == FORMAT:
        manifest = parse_manifest(path, content)
        _refuse_unless_sound(path, manifest.catalog)
        if has_pairs(path, manifest.catalog, None, part=part):
            pairs = lora_pairs(path.name, manifest.catalog, content.get(ADAPTER))
            return replace(manifest, pairs=pairs)
        return manifest
    if "weight_map" in content:
        return _checkpoint(path, path.parent, Form((path.name,), is_index=True), part)
    raise refuse(
        "LR106",
        f"{quoted(path.name)} is JSON, but neither a manifest nor the index of a sharded "
        "checkpoint.",
        "Give a checkpoint's folder, a file of weights, an index or a manifest.",
    )


def _is_json(path: Path) -> bool:
    """Whether a file can only be JSON. A header of weights that begins with `{` has zero bytes."""
    with path.open("rb") as stream:
        head = stream.read(64)
    return path.suffix == ".json" or (head.lstrip().startswith(b"{") and b"\0" not in head)


def _open_folder(folder: Path, part: bool) -> Checkpoint:
    every = [entry.name for entry in folder.iterdir()]
    # Broken links and pipes count as files. They are refused when they are read, rather than passed
    # over for another form.
    files = {name for name in every if has_fixed_name(name) or not (folder / name).is_dir()}
    if form := choose_form(files):
        return _checkpoint(folder, *_with_config(folder, form), part, every_form(files))
    if ADAPTER_CONFIG in files:
        raise adapter_only(folder, {}, folder)
    listing = Listing.of(folder)
    if states := whole_states(listing):
        return _checkpoint(folder, folder, Form((states,)), part, every_form(files))
    raise explain_folder(listing) or no_form(str(folder), files, every)


def _with_config(folder: Path, form: Form) -> tuple[Path, Form]:
    """The folder with config and tokenizer, and the form relative to it. For a step of DeepSpeed,
    and for a run's folder `checkpoints`, it is the folder above.
    """
    above, is_below = folder.resolve().parent, folder.resolve().name == _STEPS
    if (
        has_file(folder / "config.json")
        or not (is_states(form.file) or is_below)
        or not has_file(above / "config.json")
    ):
        return folder, form
    return above, Form((f"{folder.resolve().name}/{form.file}",))


def _checkpoint(
    path: Path, folder: Path, form: Form, part: bool, forms: Set[str] = frozenset()
) -> Checkpoint:
    read = read_index(folder / form.file) if form.is_index else read_form(folder, form)
    catalog = {tensor.name: tensor for file in read.values() for tensor in file.tensors}
    _refuse_unless_sound(folder / form.file, catalog)
    paired = has_pairs(folder / form.file, catalog, folder, part=part)
    adapter = json_beside(folder, ADAPTER_CONFIG) if paired else None
    pairs = _pairs(folder, form.file, catalog, adapter) if paired else ()
    if part:
        _refuse_half(path, folder, form, bool(pairs))
    kind = " and ".join(sorted({file.kind for file in read.values()}))
    which = f" ({' and '.join(form.files)})"
    if is_states(form.file):
        which = (
            "; of DeepSpeed's files, the model states are read, in the dtype of the training: "
            f"{form.file}"
        )
    if form.is_index or form.total is not None:
        index = which if form.is_index else " without an index"
        which = f", {counted(len(read), 'shard')}{index}"
    inside = sorted({" / ".join(file.inside) for file in read.values() if file.inside})
    passed_over = sorted(forms - {form.file} - {file.name for file in read})
    config = json_beside(folder, "config.json")
    stamped = [folder / form.file] * form.is_index + [folder / ADAPTER_CONFIG] * bool(pairs)
    return Checkpoint(
        path,
        kind + which + (f", inside {several(inside)}" if inside else ""),
        catalog,
        config,
        folder,
        (*passed_over, *(key for file in read.values() for key in file.passed_over)),
        _aliases(catalog.values()),
        pairs,
        _stamps(folder, [*read, *stamped]),
        base=named_base(adapter if pairs else None, config),
    )


def _refuse_half(path: Path, folder: Path, form: Form, paired: bool) -> None:
    """LR115 for one half of a LoRA training's result: the model would be neither the base nor the
    trained model.
    """
    file = quoted(form.file)
    if not paired and has_file(folder / ADAPTER_CONFIG):
        raise refuse(
            "LR115",
            f"{quoted(str(folder))} has an {ADAPTER_CONFIG}, and {file} has no LoRA pairs: "
            "the adapter itself isn't read.",
            f"Give the folder with {' or '.join(ADAPTER_FILES)}. If no folder has such a file, "
            "copy the adapter again.",
        )
    if (
        paired
        and not path.is_dir()
        and has_file(folder / BESIDE_ADAPTER)
        and form.file != BESIDE_ADAPTER
    ):
        raise refuse(
            "LR115",
            f"only the file {file} is given, but {BESIDE_ADAPTER}, which was trained with it, is "
            "beside it.",
            f"Give the whole folder, {quoted(str(folder))}.",
        )


def _pairs(
    folder: Path, file: str, catalog: Catalog, config: Mapping[str, Any] | None
) -> tuple[LoraPair, ...]:
    if config is None and is_unmerged(catalog):
        raise refuse(
            "LR115",
            f"{quoted(file)} is the state of a PEFT model that wasn't merged. It has LoRA pairs "
            f"beside the layers that they change, but no {ADAPTER_CONFIG} gives their alpha.",
            f"Put the {ADAPTER_CONFIG} of the training into {quoted(str(folder))}, and the pairs "
            "are merged. Or let PEFT merge them (`merge_and_unload`), save the model and give the "
            "saved model.",
            catalog,
        )
    if config is None:
        raise refuse(
            "LR115",
            f"{quoted(file)} is an adapter, but no {ADAPTER_CONFIG} beside it gives its alpha.",
            f"Put the {ADAPTER_CONFIG} that was saved with the adapter beside it.",
        )
    return lora_pairs(file, catalog, config)


def _stamps(folder: Path, weights: Iterable[Path]) -> dict[Path, Stamp]:
    beside = [folder / name for names in BESIDE.values() for name in names]
    paths = (*weights, *filter(has_file, beside))
    stamps = {path: stamp for path in paths if (stamp := Stamp.of(path)) is not None}
    for path in beside:
        if path in stamps and (nbytes := stamps[path].nbytes) > LARGEST:
            raise refuse(
                "LR113",
                f"{quoted(path.name)} has {nbytes} bytes; at most {LARGEST} are read of such a "
                "file.",
                "Download or copy it again.",
            )
    return stamps


def _aliases(tensors: Iterable[Tensor]) -> tuple[tuple[str, ...], ...]:
    groups: dict[tuple[object, ...], list[str]] = {}
    for tensor in tensors:
        if tensor.nbytes:  # empty tensors share no bytes
            groups.setdefault((tensor.dtype, tensor.shape, tensor.location), []).append(tensor.name)
    return tuple(tuple(names) for names in groups.values() if len(names) > 1)


def _refuse_unless_sound(file: Path, catalog: Catalog) -> None:
    long = [name for name in catalog if len(name) > LONGEST_NAME]
    # JSON and pickles can hold unpaired surrogates. No UTF-8 file, report or header can.
    broken = [name for name in catalog if any("\ud800" <= letter <= "\udfff" for letter in name)]
    for names, what in (
        (long, f"longer than {LONGEST_NAME} characters"),
        (broken, "not valid Unicode"),
    ):
        if names:
            raise refuse(
                "LR102",
                f"{len(names)} tensor names in {quoted(file.name)} are {what}: {several(names)}.",
                "Download or copy it again.",
            )
