"""Opens the sources that a user names, on this disk or on the hub, as checkpoints."""

from __future__ import annotations

import contextlib
import difflib
import errno
import os
import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeAlias, overload

from llava_remap.checkpoint import (
    IN_MEMORY,
    TRAINING_STEP,
    AbsentError,
    Checkpoint,
    InMemory,
    has_file,
    is_tensor,
    nearest_entry,
    open_checkpoint,
    open_in_memory,
)
from llava_remap.core import quoted, refuse
from llava_remap.rulefile import RuleFile
from llava_remap.source.hub import download, parse_repository, repository_of_cache

#: One source in Python: a path or hub id, tensors in memory with their config, or {tensor name:
#: tensor} alone.
AnySource: TypeAlias = str | Path | InMemory | Mapping[str, Any]
#: The sources of a job: only the first source, a list of `[NAME=]SRC`, or {source name: source}.
Sources: TypeAlias = AnySource | Sequence[AnySource] | Mapping[str, AnySource]
#: The word in the names of models that were released in 2023 as differences to LLaMA.
_DELTA = re.compile(r"(?:^|[-_.])delta(?:[-_.]|$)", re.IGNORECASE)


def open_given(
    rules: RuleFile, given: Mapping[str, str | InMemory], offline: bool
) -> dict[str, Checkpoint]:
    """The checkpoints of the sources that are given, in the rule file's order."""
    return {
        name: open_source(
            name,
            given[name],
            source.use,
            first=name == rules.first_source,
            part=source.overrides,
            offline=offline,
        )
        for name, source in rules.text.sources.items()
        if name in given
    }


def as_source(given: object) -> str | InMemory:
    """One SRC given in Python: a path or hub id, or tensors in memory.

    Raises:
        RemapError: LR211 for anything else.
    """
    if isinstance(given, str | Path):
        return str(given)
    if isinstance(given, InMemory):
        return given
    if isinstance(given, Mapping) and any(map(is_tensor, given.values())):
        return InMemory(given)
    what = f"of type {type(given).__name__}"
    if isinstance(given, Mapping):
        what = "a dict without a tensor" if given else "an empty dict"
    raise refuse(
        "LR211",
        f"a source is {what}.",
        "Give a path, a hub id, a dict {tensor name: tensor}, or InMemory(tensors, config, "
        "folder).",
    )


@overload
def name_sources(
    names: Sequence[str], given: Sequence[str], option: str = ...
) -> Mapping[str, str]: ...


@overload
def name_sources(
    names: Sequence[str], given: Sources, option: str = ...
) -> Mapping[str, str | InMemory]: ...


def name_sources(
    names: Sequence[str], given: Sources, option: str = "--source"
) -> Mapping[str, str | InMemory]:
    """The SRC of each source. A SRC without a name belongs to the first name.

    Args:
        names: the names of all sources.
        given: the sources, see `Sources`.
        option: the command line's option, for messages.

    Raises:
        RemapError: LR211 for an unknown name, a name given twice, a name without a SRC, and as
            `as_source`.
    """
    sources: dict[str, str | InMemory] = {}
    for name, source in _named(names, given):
        rest = as_source(source)
        if name not in names:
            ends = [known for known in names if known.endswith(f"_{name}")]
            near = ends or difflib.get_close_matches(name, names, 1)
            raise refuse(
                "LR211",
                f"there is no source `{name}`; the sources are {', '.join(names)}.",
                f"Did you mean `{near[0]}={shown(rest)}`?" if near else f"Write {option} NAME=SRC.",
            )
        if name in sources:
            raise refuse(
                "LR211",
                f"source `{name}` is given twice: {shown(sources[name])} and {shown(rest)}.",
                "Give it once.",
            )
        if not rest:
            raise refuse(
                "LR211", f"source `{name}` is given without a path.", f"Write {option} {name}=DIR."
            )
        sources[name] = rest
    return sources


def _named(names: Sequence[str], given: Sources) -> Iterator[tuple[str, object]]:
    """The name and the SRC of each source."""
    if isinstance(given, str | Path | InMemory) or (
        isinstance(given, Mapping) and any(map(is_tensor, given.values()))
    ):
        given = [given]
    if isinstance(given, Mapping):
        if not given:  # a state dict without tensors; defaults weren't asked for
            raise refuse(
                "LR211",
                "the sources are an empty dict.",
                "Leave out `sources` to use the sources that the rule file names, or give tensors "
                "or sources.",
            )
        yield from given.items()
        return
    if not isinstance(given, Sequence):
        raise refuse(
            "LR211",
            f"the sources are of type {type(given).__name__}.",
            "Give a path, a list of [NAME=]SRC, a dict {name: source}, or a dict {tensor name: "
            "tensor}.",
        )
    for source in given:
        name, equals, rest = str(source).partition("=") if _is_text(source) else ("", "", "")
        if not equals or (name not in names and is_there(Path(str(source)))):
            yield names[0], source
        else:
            yield name, rest


def _is_text(source: object) -> bool:
    return isinstance(source, str | Path)


def shown(source: str | InMemory) -> str:
    """A source in a message."""
    return source if isinstance(source, str) else IN_MEMORY


def open_source(
    name: str,
    text: str | InMemory,
    use: Collection[str],
    *,
    first: bool,
    part: bool = False,
    offline: bool = False,
    default: bool = False,
) -> Checkpoint:
    """Open a source: a folder, a file or a manifest on this disk, tensors in memory, or else a
    repository on the hub, which is downloaded.

    Args:
        text: the SRC.
        use: the uses of the source, as in a rule file's `use`.
        first: whether it is the job's main source. Another source may be a folder with only a
            config, for a part that the first source already has.
        part: whether a part of a model is enough: an adapter or a projector. A config isn't enough.
        offline: whether to use only earlier downloads from the hub.
        default: whether a rule file names the source, so that it is no mistyped path.

    Raises:
        RemapError: as `open_checkpoint` and `download`; LR106 for delta weights, LR211 for an
            unknown home folder.
    """
    if isinstance(text, InMemory):
        return open_in_memory(name, text, part=part)
    try:
        path = Path(text).expanduser()
    except RuntimeError as error:
        raise refuse("LR211", f"source `{name}`: {error}", "Write the whole path.") from None
    repository = parse_repository(text)
    if repository is None or is_there(path):
        return _open(path, "tensors" in use, first, part)
    if "tensors" in use and _DELTA.search(repository.id):
        raise refuse(
            "LR106",
            f"by its name, {repository} holds delta weights: differences to a base, not a model.",
            "Add the base (python -m llava.model.apply_delta, of the research code) and give "
            f"the result: --source {name}=DIR.",
        )
    if not default and is_there(path.parent):  # more likely a mistyped path than a hub id
        near = nearest_entry(path)
        mean = f"Did you mean {quoted(str(near))}?" if near else "Check the path."
        raise AbsentError.of(
            "LR100",
            f"the folder {path.parent} has no {text}.",
            f"{mean} If you mean the hub's {text}, start the command in a folder that has no "
            f"folder {path.parent}.",
        )
    snapshot = download(repository, use, offline=offline, name=name)
    checkpoint = _open(snapshot.folder, "tensors" in use, first, part)
    form = checkpoint.form + (
        "; downloaded earlier: the hub wasn't asked or didn't answer" if snapshot.cached else ""
    )
    return replace(checkpoint, form=form, origin=f"{repository.id}@{snapshot.commit}")


def open_again(
    locations: Mapping[str, str],
    given: Sources,
    *,
    unused: Sequence[str] = (),
    offline: bool = False,
) -> dict[str, Checkpoint]:
    """The sources that a folder was made from, given again by `[NAME=]SRC` arguments.

    Args:
        locations: name → earlier location.
        unused: further sources that may be given. They aren't opened, since no tensor is from them.

    Raises:
        RemapError: as `name_sources` and `open_source`; LR111 for a manifest, LR211 for a source
            that isn't given.
    """
    texts = name_sources([*locations, *unused], given, "--against")
    if absent := [name for name in locations if name not in texts]:
        raise refuse(
            "LR211",
            "the folder was also made from "
            f"{', '.join(f'`{name}` ({locations[name]})' for name in absent)}.",
            f"Give this source too: --against {absent[0]}=DIR.",
        )
    sources = {
        name: open_source(name, text, ("tensors",), first=True, part=True, offline=offline)
        for name, text in texts.items()
        if name in locations
    }
    if manifests := [str(source.path) for source in sources.values() if source.is_manifest]:
        raise refuse(
            "LR111",
            f"{', '.join(manifests)}: a manifest has only names and shapes, so there are no "
            "values to compare.",
            "Give the checkpoint itself.",
        )
    return sources


def last_part(text: str) -> str:
    """The last part of a hub id or a path; for a path inside a hub's cache, the repository's
    name.

    >>> last_part("/home/me/hub/models--openai--clip-vit-large-patch14-336/snapshots/ce19dc9/")
    'clip-vit-large-patch14-336'
    """
    parts = [part for part in re.split(r"[/\\]", repository_of_cache(text) or text) if part]
    return parts[-1].partition("@")[0] if parts else ""


def short_name(text: str) -> str:
    """The last part of a SRC, without a hub id's revision, for the name of an output. The name of a
    training's step (`checkpoint-500`) gets the name of the training's folder as prefix.
    """
    repository = None if is_there(Path(text)) else parse_repository(text)
    if repository:
        return repository.id.rpartition("/")[2]
    path = Path(text)
    with contextlib.suppress(RuntimeError):  # an unknown home folder
        path = path.expanduser()
    # Unlike `Path.resolve`, `realpath` accepts links that lead in a circle.
    path = Path(os.path.realpath(path))
    training = path.parent.name if TRAINING_STEP.fullmatch(path.name) else ""
    return f"{training}-{path.name}" if training else path.name


def _open(path: Path, weights: bool, first: bool, part: bool) -> Checkpoint:
    try:
        return open_checkpoint(path, weights=weights, part=part)
    except AbsentError:
        if first or part or not has_file(path / "config.json"):
            raise
        return open_checkpoint(path, weights=False)


def is_there(path: Path) -> bool:
    """Whether a path exists here, even as a broken link or without permission to read. It is then
    not taken as a hub id.
    """
    try:
        path.lstat()
    except (FileNotFoundError, NotADirectoryError, ValueError):  # ValueError: a zero byte
        return False
    except OSError as error:
        return error.errno != errno.ENAMETOOLONG
    return True
