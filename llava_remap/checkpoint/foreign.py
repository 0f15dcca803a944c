"""Recognises folders and repositories that are no checkpoints, and says how to make a checkpoint of
them.

The names of their files are enough, two folders deep: files of trainers and their sharding, a
folder for each part of a model, and the formats of other programs.
"""

from __future__ import annotations

import os
import re
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path, PurePosixPath

from llava_remap.checkpoint.catalog import ADAPTER_CONFIG
from llava_remap.checkpoint.form import choose_form
from llava_remap.checkpoint.source_file import AbsentError
from llava_remap.core import Problem, RemapError, quote, quoted, refuse, several

#: Names that trainers give to the folder of a step.
TRAINING_STEP = re.compile(r"(?:checkpoint|global_step|step|epoch|iter)[-_]?\d+", re.IGNORECASE)
#: The most files to look at. A training folder has some thousand.
_MOST = 20_000
#: Folder with a part of a model, as VILA, xtuner and TinyLLaVA write them → source.
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
#: The files of one rank, as ZeRO and verl name them.
_RANK = re.compile(r"\w*zero_pp_rank_\d+_mp_rank_\d+_(?:model|optim)_states\.pt")
_WORLD = re.compile(r"model_world_size_\d+_rank_\d+\.pt")
#: For each pattern of another program's files: a description, and the advice.
_PROGRAMS = (
    (r".*\.gguf", "a GGUF file for llama.cpp, which can't be turned back into a training "
                  "checkpoint", ""),
    (r"(flax_model|model).*\.msgpack", "the weights of a Flax model",
     "Load the model in transformers 4 (`from_pretrained(DIR, from_flax=True)`), save it with "
     "`save_pretrained` and give the saved model."),
    (r"tf_model.*\.h5", "the weights of a TensorFlow model",
     "Load the model in transformers 4 (`from_pretrained(DIR, from_tf=True)`), save it with "
     "`save_pretrained` and give the saved model."),
    (r".*\.npz", "a NumPy archive, as early versions of MLX wrote it", ""),
    (r".*\.onnx", "an ONNX graph, which is for inference and can't be converted", ""),
    (r"openvino_.*\.xml", "an OpenVINO model, which is for inference and can't be converted", ""),
    (r".*\.engine", "a TensorRT engine, which is for inference and can't be converted", ""),
    (r".*\.nemo", "a checkpoint of NeMo", "Export it with NeMo's own converter to Hugging Face and "
                                          "give the export."),
    (r"latest_checkpointed_iteration\.txt|model_optim_rng\.pt", "a checkpoint of Megatron-LM, "
                                                                "divided by ranks",
     "Convert it with the converter of the code that trained it (Megatron Bridge, or "
     "tools/checkpoint) to Hugging Face."),
    (r".*\.pdparams", "the weights of a Paddle model", "Convert them to PyTorch with the code that "
                                                       "trained them."),
)  # fmt: skip
_MADE_FROM = "Give the checkpoint from which it was made."


class PartsApartError(AbsentError):
    """A folder holds no checkpoint, but its sub-folders hold the parts of a model.

    Attributes:
        parts: source → path of its checkpoint.
    """

    def __init__(self, problem: Problem, parts: Mapping[str, str]) -> None:
        super().__init__(problem)
        self.parts = dict(parts)


class StepsError(AbsentError):
    """A folder holds no checkpoint itself, but the checkpoints of a training's steps.

    Attributes:
        newest: path of the newest checkpoint.
        download: the beginning of a command that downloads the repository; empty for a folder.
    """

    def __init__(self, problem: Problem, newest: str, download: str) -> None:
        super().__init__(problem)
        self.newest, self.download = newest, download


@dataclass(frozen=True)
class Listing:
    """The files of a folder, or of a repository.

    Attributes:
        where: the folder or repository as the user named it.
        files: relative paths with slashes, at most two folders deep.
        root: the folder of the files; for a repository, the folder after the download.
        download: the command that downloads the repository; empty for a folder.
        latest: the content of DeepSpeed's file `latest`; empty without it.
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
        step = latest.read_bytes()[:200].decode(errors="replace") if latest.is_file() else ""
        return Listing(str(folder), frozenset(files[:_MOST]), folder, latest=step.strip())

    @staticmethod
    def of_repository(name: str, revision: str | None, files: Iterable[str]) -> Listing:
        """The files of a repository, `ORG/NAME`."""
        root = Path(name.rpartition("/")[2])
        option = f" --revision {quote(revision)}" if revision else ""
        return Listing(
            name,
            frozenset(file for file in files if file.count("/") <= 2),
            root,
            f"hf download {name}{option} --local-dir {quote(str(root))} && ",
        )

    @cached_property
    def folders(self) -> Mapping[str, frozenset[str]]:
        """The names of the files in each folder; the top is the empty string."""
        folders: dict[str, set[str]] = defaultdict(set)
        for file in sorted(self.files):
            folder, _, name = file.rpartition("/")
            folders[folder].add(name)
        return {folder: frozenset(names) for folder, names in folders.items()}

    def near(self, is_form: Callable[[frozenset[str]], object]) -> list[str]:
        """The top and its sub-folders, if `is_form` is true for the names of their files."""
        return [
            folder for folder, names in self.folders.items() if "/" not in folder and is_form(names)
        ]


def whole_states(listing: Listing) -> str:
    """The file with the whole model, in the current step of a DeepSpeed checkpoint; empty if there
    is none.
    """
    steps = _steps(listing)
    if listing.latest not in steps and (listing.latest or len(steps) != 1):
        return ""
    step = _last(listing, steps)
    names = listing.folders[step]
    # Further files of DeepSpeed mean that the model is divided among several ranks.
    is_cut = any(
        _DEEPSPEED.fullmatch(name) and not name.endswith("optim_states.pt")
        for name in names - {_WHOLE}
    )
    return f"{step}/{_WHOLE}".lstrip("/") if _WHOLE in names and not is_cut else ""


def is_states(name: str) -> bool:
    """Whether a file of this name holds the whole model of a step."""
    return PurePosixPath(name).name == _WHOLE


def explain_folder(listing: Listing) -> RemapError | None:
    """The refusal of a folder that is no checkpoint, with the way to make one; None if the folder
    isn't recognised.
    """
    forms = (_deepspeed, _distributed, _verl, _parts, _programs, _below)
    return next(filter(None, (explain(listing) for explain in forms)), None)


def explain_file(path: Path) -> RemapError | None:
    """Like `explain_folder`, for a file of such a folder; None for any other file."""
    if (
        _RANK.fullmatch(path.name)
        or _WORLD.fullmatch(path.name)
        or path.suffix == ".distcp"
        or path.name == ".metadata"
    ):
        return explain_folder(Listing.of(path.parent))
    return _program(path.name, str(path))


def parts_of(listing: Listing) -> dict[str, str]:
    """The parts of a model that have sub-folders of their own, and a model at the top: source →
    path.
    """
    parts = {"model": str(listing.root)} if choose_form(listing.folders.get("", ())) else {}
    for folder, source in _PARTS.items():
        names = listing.folders.get(folder, frozenset())
        if choose_form(names) or (source == "adapter" and ADAPTER_CONFIG in names):
            parts.setdefault(source, str(listing.root / folder))
    return parts


def parts_beside(folder: Path) -> dict[str, str]:
    """The parts in sub-folders beside the weights of a model: source → path."""
    return {
        source: place for source, place in parts_of(Listing.of(folder)).items() if source != "model"
    }


def gather_command(folder: Path) -> str:
    """The command that makes whole weights from DeepSpeed's files in a training's folder; empty if
    there are none.
    """
    listing = Listing.of(folder)
    steps = [step for step in _steps(listing) if step]
    return _zero_to_fp32(listing, _last(listing, steps)) if steps else ""


def _steps(listing: Listing) -> list[str]:
    """The folders with DeepSpeed's files, one for each saved step, in order."""
    return sorted(listing.near(lambda names: any(map(_DEEPSPEED.fullmatch, names))), key=_by_number)


def _last(listing: Listing, steps: Sequence[str]) -> str:
    return listing.latest if listing.latest in steps else steps[-1]


def _deepspeed(listing: Listing) -> RemapError | None:
    """DeepSpeed's files: no file holds the whole model, or the current step is unknown."""
    steps = _steps(listing)
    if not steps:
        return None
    step = _last(listing, steps)
    names, at = listing.folders[step], str(listing.root / step)
    cause = f"{quoted(listing.where)} is a DeepSpeed checkpoint"
    if listing.latest and listing.latest not in steps:
        return refuse(
            "LR106",
            f"{cause}; its file `latest` names the step {quoted(listing.latest)}, which doesn't "
            f"exist. Existing steps: {several(steps)}.",
            f"If you mean that step, give it: {quoted(at)}.",
        )
    if listing.latest not in steps and len(steps) > 1:
        return refuse(
            "LR106",
            f"{cause} of {len(steps)} steps ({several(steps)}), without the file `latest` that "
            "names the right step.",
            f"Give the right step, such as {quoted(at)}.",
        )
    ranks = sorted(filter(_RANK.fullmatch, names))
    if not ranks:
        return refuse(
            "LR106",
            f"{cause}, and its model is divided by layers or tensors: "
            f"{several(sorted(filter(_DEEPSPEED.fullmatch, names)), 2)}.",
            "Save the whole model with the training code, and give the saved model.",
        )
    cause += f" (ZeRO), divided by ranks: {several(ranks, 2)}."
    if not any(name.endswith("optim_states.pt") for name in ranks):
        return refuse(
            "LR106",
            f"{cause} The values are in files `…_optim_states.pt`, which are missing.",
            f"Copy those files into {quoted(at)}, from every machine of the training.",
        )
    made = str(listing.root if step else _above(listing.root))
    return refuse(
        "LR106",
        cause,
        f"Merge the ranks where DeepSpeed is installed, then give {quoted(made)}: "
        f"{_zero_to_fp32(listing, step)}",
    )


def _zero_to_fp32(listing: Listing, step: str) -> str:
    """DeepSpeed's command that makes whole weights from a step's files, run in the training's
    folder.
    """
    root = listing.root if step else _above(listing.root)
    latest = listing.latest if step or listing.download else Listing.of(root).latest
    script = root / _SCRIPT
    program, target = "python -m deepspeed.utils.zero_to_fp32", "."
    if not listing.download and script.is_file():  # a downloaded script must not be run
        # Up to DeepSpeed 0.15, the script writes a file; since then, a folder.
        text = script.read_text(errors="replace")
        is_folder = "output_dir" in text or "output_file" not in text
        program, target = f"python {_SCRIPT}", "." if is_folder else "pytorch_model.bin"
    name = step or root.joinpath(listing.root).resolve().name
    tag = "" if latest == name else f" --tag {quote(name)}"
    return f"{listing.download}cd {quote(str(root))} && {program} . {target}{tag}"


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
        f"{quoted(str(at))} is a checkpoint of torch.distributed, as FSDP writes it, divided by "
        f"ranks: {files}."
    )
    if ".metadata" not in names:
        return refuse(
            "LR106",
            f"{cause} Its file `.metadata` is missing, which says where each tensor is.",
            f"Copy that file into {quoted(str(at))}.",
        )
    on_top = "config.json" in names or not (above / "config.json").is_file()
    home = at if not folder and on_top else above
    return refuse(
        "LR106",
        cause,
        f"Merge the ranks with torch, then give {quoted(str(home))}: {listing.download}python -m "
        f"torch.distributed.checkpoint.format_utils dcp_to_torch {quote(str(at))} "
        f"{quote(str(home / 'pytorch_model.bin'))}",
    )


def _verl(listing: Listing) -> RemapError | None:
    """verl's checkpoints: a file of torch with the shards of each rank."""
    found = listing.near(lambda names: any(map(_WORLD.fullmatch, names)))
    if not found:
        return None
    at = listing.root / found[0]
    made = f"{at}-merged"
    return refuse(
        "LR106",
        f"{quoted(str(at))} is a checkpoint of verl, divided by ranks: "
        f"{several(sorted(filter(_WORLD.fullmatch, listing.folders[found[0]])), 2)}.",
        f"Merge the ranks where verl is installed, then give {quoted(made)}: "
        f"{listing.download}python -m verl.model_merger merge --backend fsdp --local_dir "
        f"{quote(str(at))} --target_dir {quote(made)}",
    )


def _parts(listing: Listing) -> RemapError | None:
    """A folder for each part of a model."""
    parts = parts_of(listing)
    if not parts or parts.get("model") == str(listing.root):
        return None
    cause = (
        f"{quoted(listing.where)} has no weights itself; its folders hold the parts of a model: "
        f"{several(parts.values(), len(parts))}."
    )
    if listing.download:
        cause += f" Download it: {listing.download.removesuffix(' && ')}."
    given = " ".join(f"--source {quote(f'{source}={place}')}" for source, place in parts.items())
    return PartsApartError(Problem("LR100", cause, f"Give each part as its source: {given}"), parts)


def _programs(listing: Listing) -> RemapError | None:
    names = sorted(listing.folders.get("", ()))
    return next(filter(None, (_program(name, listing.where) for name in names)), None)


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
        return (
            choose_form(top) is not None
            or ADAPTER_CONFIG in top
            or any(form(below) for form in (_steps, _distributed, _verl, _parts))
        )

    every = {file.partition("/")[0] for file in listing.files if "/" in file}
    found = sorted((folder for folder in every if holds(inside(folder))), key=_by_number)
    if not found:
        return None
    cause = f"{quoted(listing.where)} has no weights itself; they are in {several(found, 6)}."
    steps = [folder for folder in found if TRAINING_STEP.fullmatch(folder)]
    if len({folder.rstrip("0123456789") for folder in steps}) == 1:  # else nothing orders them
        newest = inside(steps[-1]) if listing.download else Listing.of(listing.root / steps[-1])
        return _newest(listing, cause, newest)
    return AbsentError.of(
        "LR100",
        cause,
        f"Give one of these folders: {listing.download}llava-remap inspect "
        f"{quote(str(listing.root / found[-1]))}",
    )


def _newest(listing: Listing, cause: str, newest: Listing) -> RemapError:
    """The refusal of a folder with the steps of a training. It says how to convert the newest."""
    names = newest.folders.get("", frozenset())
    is_whole = choose_form(names) is not None or ADAPTER_CONFIG in names or whole_states(newest)
    if not is_whole and (cut := explain_folder(newest)) is not None and cut.problems[0].fix:
        [problem] = cut.problems
        told = f"{cause} The newest of these steps of a training: {problem.cause}"
        return refuse(problem.code, told, problem.fix)
    kind = "an adapter" if ADAPTER_CONFIG in names else "a checkpoint"
    told = (
        f"{cause} These are steps of a training; the newest, {quoted(newest.root.name)}, is {kind}."
    )
    command = f"{listing.download}llava-remap convert {quote(str(newest.root))}"
    fix = f"Convert the newest: {command}"
    return StepsError(Problem("LR100", told, fix), str(newest.root), listing.download)


def _by_number(name: str) -> tuple[str | int, ...]:
    """A sort key that orders numbers by value: 500 before 1000."""
    return tuple(int(part) if part.isdecimal() else part for part in re.split(r"(\d{1,18})", name))
