"""What a folder or repository is whose weights don't lie there as a checkpoint, and what makes one
of it.

Told by the names of its files alone, two folders deep: what trainers and their sharding write, a
folder for each part of a model, and the formats of other programs.
"""

from __future__ import annotations

import os
import re
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path, PurePosixPath

from llava_remap.checkpoint.adapter import ADAPTER_CONFIG
from llava_remap.checkpoint.errors import AbsentError
from llava_remap.checkpoint.form import choose_form
from llava_remap.core.escaped import quote
from llava_remap.core.problem import Problem, RemapError, refuse
from llava_remap.core.wording import quoted, several

#: Files that are looked at. A training folder has some thousand at the most.
_MOST = 20_000
#: Folders with the parts of one model, as VILA, xtuner and TinyLLaVA write them, and the sources
#: that they are for.
_PARTS = {
    "llm": "model", "language_model": "model", "vision_tower": "vision_tower",
    "visual_encoder": "vision_tower",
    "mm_projector": "projector", "projector": "projector", "connector": "projector",
    "llm_adapter": "adapter",
}  # fmt: skip
#: DeepSpeed's ZeRO-1 and 2 have the whole model in this file, in the dtype of the training.
_WHOLE = "mp_rank_00_model_states.pt"
_SCRIPT = "zero_to_fp32.py"
_DEEPSPEED = re.compile(r"[\w-]*(?:mp_rank_\d+_(?:model|optim)|model_\d+-model)_states\.pt")
#: What one rank has of ZeRO's, and of verl's.
_RANK = re.compile(r"\w*zero_pp_rank_\d+_mp_rank_\d+_(?:model|optim)_states\.pt")
_WORLD = re.compile(r"model_world_size_\d+_rank_\d+\.pt")
#: A file of another program: what it is, and what to do.
_PROGRAMS = (
    (r".*\.gguf", "a GGUF file, which llama.cpp reads; it doesn't lead back to a training "
                  "checkpoint", ""),
    (r"(flax_model|model).*\.msgpack", "the weights of a Flax model",
     "Load it in transformers 4 (`from_pretrained(DIR, from_flax=True)`), save it with "
     "`save_pretrained` and give that."),
    (r"tf_model.*\.h5", "the weights of a TensorFlow model",
     "Load it in transformers 4 (`from_pretrained(DIR, from_tf=True)`), save it with "
     "`save_pretrained` and give that."),
    (r".*\.npz", "an archive of NumPy, as MLX's first versions wrote", ""),
    (r".*\.onnx", "an ONNX graph, made to run and not to be loaded", ""),
    (r"openvino_.*\.xml", "a model of OpenVINO, made to run and not to be loaded", ""),
    (r".*\.engine", "an engine of TensorRT, made to run and not to be loaded", ""),
    (r".*\.nemo", "a checkpoint of NeMo", "Export it with NeMo's own converter to Hugging Face and "
                                          "give that."),
    (r"latest_checkpointed_iteration\.txt|model_optim_rng\.pt", "a checkpoint of Megatron-LM, cut "
                                                                "up by ranks",
     "Convert it with the converter of the code that trained it (Megatron Bridge, or "
     "tools/checkpoint) to Hugging Face."),
    (r".*\.pdparams", "the weights of a Paddle model", "Convert them to PyTorch with the code that "
                                                       "trained them."),
)  # fmt: skip
_MADE_FROM = "Give the checkpoint that it was made from."


class PartsApartError(AbsentError):
    """A folder has no checkpoint, and its sub-folders hold the parts of one.

    Attributes:
        parts: where the checkpoint of each source lies.
    """

    def __init__(self, problem: Problem, parts: Mapping[str, str]) -> None:
        super().__init__(problem)
        self.parts = dict(parts)


@dataclass(frozen=True)
class Listing:
    """The files of a folder, or of a repository.

    Attributes:
        where: as the user named it.
        files: paths from there, with slashes, of two folders' depth at the most.
        root: where they lie; of a repository, where it will lie once it is downloaded.
        download: the command that downloads it; empty for a folder.
        latest: what the file `latest`, DeepSpeed's, says; empty without it.
    """

    where: str
    files: frozenset[str]
    root: Path
    download: str = ""
    latest: str = ""

    @staticmethod
    def of(folder: Path) -> Listing:
        """The files of a folder on this disk."""
        files: list[str] = []
        for place, below, names in os.walk(folder, followlinks=True):
            inside = Path(place).relative_to(folder)
            below[:] = (
                sorted(name for name in below if not name.startswith("."))
                if len(inside.parts) < 2
                else []
            )
            files += [(inside / name).as_posix() for name in sorted(names)]
            if len(files) > _MOST:
                break
        latest = folder / "latest"
        said = (
            latest.read_bytes()[:200].decode(errors="replace").strip() if latest.is_file() else ""
        )
        return Listing(str(folder), frozenset(files[:_MOST]), folder, latest=said)

    @staticmethod
    def of_repository(name: str, revision: str | None, files: Iterable[str]) -> Listing:
        """The files of a repository, `ORG/NAME`."""
        root = Path(name.rpartition("/")[2])
        command = (
            f"hf download {name}{f' --revision {quote(revision)}' if revision else ''} "
            f"--local-dir {quote(str(root))}"
        )
        return Listing(
            name, frozenset(file for file in files if file.count("/") <= 2), root, f"{command} && "
        )

    @cached_property
    def folders(self) -> Mapping[str, frozenset[str]]:
        """The names of the files in each folder; the top is the empty string."""
        found: dict[str, set[str]] = defaultdict(set)
        for file in sorted(self.files):
            folder, _, name = file.rpartition("/")
            found[folder].add(name)
        return {folder: frozenset(names) for folder, names in found.items()}

    def near(self, is_form: Callable[[frozenset[str]], object]) -> list[str]:
        """The top, or those of its sub-folders, whose files are of a form."""
        return [
            folder for folder, names in self.folders.items() if "/" not in folder and is_form(names)
        ]


def whole_states(listing: Listing) -> str:
    """The file with the whole model of a DeepSpeed checkpoint, of the step that counts; empty
    where there is none.
    """
    steps = _steps(listing)
    step = (
        listing.latest
        if listing.latest in steps
        else steps[0]
        if len(steps) == 1 and not listing.latest
        else None
    )
    names = frozenset() if step is None else listing.folders[step]
    return f"{step}/{_WHOLE}".lstrip("/") if _WHOLE in names and not _is_cut(names) else ""


def is_states(name: str) -> bool:
    """Whether a file of this name has the whole model of a step."""
    return PurePosixPath(name).name == _WHOLE


def explain_folder(listing: Listing) -> RemapError | None:
    """What is there in place of a checkpoint and what makes one of it; None for what isn't
    known.
    """
    for known in (_deepspeed, _distributed, _verl, _parts, _programs, _below):
        if error := known(listing):
            return error
    return None


def explain_file(path: Path) -> RemapError | None:
    """The same for a file that is a piece of such a form; None for any other."""
    if (
        _RANK.fullmatch(path.name)
        or _WORLD.fullmatch(path.name)
        or path.suffix == ".distcp"
        or path.name == ".metadata"
    ):
        return explain_folder(Listing.of(path.parent))
    return _program(path.name, str(path))


def parts_of(listing: Listing) -> dict[str, str]:
    """Where the parts of a model lie that has a sub-folder for each, by source; a model that
    lies on top is among them.
    """
    parts = {"model": str(listing.root)} if choose_form(listing.folders.get("", ())) else {}
    for folder, source in _PARTS.items():
        names = listing.folders.get(folder, frozenset())
        if choose_form(names) or (source == "adapter" and ADAPTER_CONFIG in names):
            parts.setdefault(source, str(listing.root / folder))
    return parts


def parts_beside(folder: Path) -> dict[str, str]:
    """Where further parts of the model lie whose weights are in a folder, by source."""
    return {
        source: place for source, place in parts_of(Listing.of(folder)).items() if source != "model"
    }


def gather_command(folder: Path) -> str:
    """The command that makes whole weights of the DeepSpeed files in a training's folder; empty
    where there are none.
    """
    listing = Listing.of(folder)
    steps = [step for step in _steps(listing) if step]
    return (
        _zero_to_fp32(listing, listing.latest if listing.latest in steps else steps[-1])
        if steps
        else ""
    )


def _steps(listing: Listing) -> list[str]:
    """The folders with DeepSpeed's files, one for each step that was saved, the last one at the
    end.
    """
    return sorted(listing.near(lambda names: any(map(_DEEPSPEED.fullmatch, names))), key=_by_number)


def _is_cut(names: frozenset[str]) -> bool:
    """Whether DeepSpeed's files are those of several ranks of one model."""
    return any(
        _DEEPSPEED.fullmatch(name) and not name.endswith("optim_states.pt")
        for name in names - {_WHOLE}
    )


def _deepspeed(listing: Listing) -> RemapError | None:
    """DeepSpeed's files where none has the whole model, or nothing says which of several steps
    is meant.
    """
    steps = _steps(listing)
    if not steps:
        return None
    step = listing.latest if listing.latest in steps else steps[-1]
    names, at = listing.folders[step], str(listing.root / step)
    cause = f"{quoted(listing.where)} is a DeepSpeed checkpoint"
    if listing.latest in steps or (len(steps) == 1 and not listing.latest):
        pass
    elif listing.latest:
        cause += (
            f"; its file `latest` names the step {quoted(listing.latest)}, which isn't "
            "there. "
            f"There is {several(steps)}."
        )
        return refuse("LR106", cause, f"If that is the one, give it: {quoted(at)}.")
    else:
        cause += (
            f" of {len(steps)} steps ({several(steps)}), without the file `latest` that says "
            "which counts."
        )
        return refuse("LR106", cause, f"Give the one that is meant, such as {quoted(at)}.")
    ranks = sorted(name for name in names if _RANK.fullmatch(name))
    if not ranks:
        cause += (
            ", and its model is cut up by layers or tensors: "
            f"{several(sorted(filter(_DEEPSPEED.fullmatch, names)), 2)}."
        )
        return refuse("LR106", cause, "Save it whole with the code that trained it, and give that.")
    cause += f" (ZeRO), cut up by ranks: {several(ranks, 2)}."
    if not any(name.endswith("optim_states.pt") for name in ranks):
        cause += " The values are in files `…_optim_states.pt`, and there are none."
        return refuse(
            "LR106",
            cause,
            f"Copy those files into {quoted(at)}, from every machine of the training.",
        )
    made = str(listing.root if step else _above(listing.root))
    return refuse(
        "LR106",
        cause,
        f"DeepSpeed puts it together, where that is installed: {_zero_to_fp32(listing, step)}. "
        f"Then give {quoted(made)}.",
    )


def _zero_to_fp32(listing: Listing, step: str) -> str:
    """The command with which DeepSpeed makes whole weights of the files of a step, in the folder
    of its training.
    """
    training = (
        listing
        if step
        else Listing(listing.where, frozenset(), _above(listing.root), listing.download)
    )
    if not step and not listing.download:
        training = Listing.of(training.root)
    script = training.root / _SCRIPT
    if listing.download or not script.is_file():  # a script of strangers is not to be run
        program, target = "python -m deepspeed.utils.zero_to_fp32", "."
    else:
        # It was written to make a file up to DeepSpeed 0.15, and a folder since.
        text = script.read_text(errors="replace")
        program, target = (
            f"python {_SCRIPT}",
            "." if "output_dir" in text or "output_file" not in text else "pytorch_model.bin",
        )
    name = step or training.root.joinpath(listing.root).resolve().name
    tag = "" if training.latest == name else f" --tag {quote(name)}"
    return f"{listing.download}cd {quote(str(training.root))} && {program} . {target}{tag}"


def _above(folder: Path) -> Path:
    return (folder if folder.name not in ("", "..") else folder.resolve()).parent


def _distributed(listing: Listing) -> RemapError | None:
    """torch's distributed checkpoint, as FSDP's sharded state dicts are saved."""
    found = listing.near(lambda names: any(name.endswith(".distcp") for name in names))
    found = [folder for folder in found if not folder.startswith("optim")] or found
    if not found:
        return None
    folder, names = found[0], listing.folders[found[0]]
    at, above = listing.root / folder, listing.root if folder else _above(listing.root)
    files = several(sorted(name for name in names if name.endswith(".distcp")), 2)
    cause = (
        f"{quoted(str(at))} is a checkpoint of torch.distributed, as FSDP writes it, cut up "
        f"by ranks: {files}."
    )
    if ".metadata" not in names:
        cause += " Its file `.metadata` is missing, which says what lies where."
        return refuse("LR106", cause, f"Copy that file into {quoted(str(at))}.")
    home = (
        at
        if not folder and ("config.json" in names or not (above / "config.json").is_file())
        else above
    )
    made = home / "pytorch_model.bin"
    command = (
        f"python -m torch.distributed.checkpoint.format_utils dcp_to_torch {quote(str(at))} "
        f"{quote(str(made))}"
    )
    return refuse(
        "LR106",
        cause,
        f"torch puts it together: {listing.download}{command}. Then give {quoted(str(home))}.",
    )


def _verl(listing: Listing) -> RemapError | None:
    """verl's checkpoints: a file of torch with the shards of each rank."""
    found = listing.near(lambda names: any(map(_WORLD.fullmatch, names)))
    if not found:
        return None
    at = listing.root / found[0]
    made = f"{at}-merged"
    ranks = sorted(filter(_WORLD.fullmatch, listing.folders[found[0]]))
    cause = f"{quoted(str(at))} is a checkpoint of verl, cut up by ranks: {several(ranks, 2)}."
    command = (
        f"python -m verl.model_merger merge --backend fsdp --local_dir {quote(str(at))} "
        f"--target_dir {quote(made)}"
    )
    return refuse(
        "LR106",
        cause,
        f"verl puts it together, where that is installed: {listing.download}{command}. Then give "
        f"{quoted(made)}.",
    )


def _parts(listing: Listing) -> RemapError | None:
    """A folder for each part of a model."""
    parts = parts_of(listing)
    if not parts or parts.get("model") == str(listing.root):
        return None
    places = several(parts.values(), len(parts))
    cause = (
        f"{quoted(listing.where)} has no weights on top; its folders hold the parts of a "
        f"model: {places}."
    )
    if listing.download:
        cause += f" Download it: {listing.download.removesuffix(' && ')}."
    given = " ".join(f"--source {quote(f'{source}={place}')}" for source, place in parts.items())
    return PartsApartError(Problem("LR100", cause, f"Give each for what it is: {given}"), parts)


def _programs(listing: Listing) -> RemapError | None:
    return next(
        (
            error
            for name in sorted(listing.folders.get("", ()))
            if (error := _program(name, listing.where))
        ),
        None,
    )


def _program(name: str, where: str) -> RemapError | None:
    for pattern, what, fix in _PROGRAMS:
        if re.fullmatch(pattern, name):
            there = "" if PurePosixPath(where).name == name else f" in {quoted(where)}"
            return refuse("LR106", f"{quoted(name)}{there} is {what}.", fix or _MADE_FROM)
    return None


def _below(listing: Listing) -> RemapError | None:
    """Checkpoints in sub-folders, such as the steps of a training."""

    def inside(folder: str) -> Listing:
        files = frozenset(
            file.removeprefix(f"{folder}/")
            for file in listing.files
            if file.startswith(f"{folder}/")
        )
        return Listing(folder, files, listing.root / folder, listing.download)

    def holds(below: Listing) -> bool:
        top = below.folders.get("", frozenset())
        forms = (_steps, _distributed, _verl, _parts)
        return (
            choose_form(top) is not None
            or ADAPTER_CONFIG in top
            or any(form(below) for form in forms)
        )

    every = {file.partition("/")[0] for file in listing.files if "/" in file}
    found = sorted((folder for folder in every if holds(inside(folder))), key=_by_number)
    if not found:
        return None
    cause = f"{quoted(listing.where)} has no weights on top; they lie in {several(found, 6)}."
    command = f"{listing.download}llava-remap inspect {quote(str(listing.root / found[-1]))}"
    return AbsentError.of("LR100", cause, f"Give the folder that is meant: {command}")


def _by_number(name: str) -> tuple[str | int, ...]:
    """An order in which 1000 comes behind 500."""
    return tuple(int(part) if part.isdecimal() else part for part in re.split(r"(\d{1,18})", name))
