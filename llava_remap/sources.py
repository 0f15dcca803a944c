"""Sources as a user names them: which checkpoint is meant, on this disk or on the hub."""

from __future__ import annotations

import difflib
from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from llava_remap.checkpoint import Checkpoint, open_checkpoint
from llava_remap.errors import Problem, RemapError, refuse
from llava_remap.hub import download, parse_repository
from llava_remap.rulefile import NamedDefault, RuleFile


def given_sources(rules: RuleFile, given: Sequence[str | Path]) -> dict[str, str]:
    """The SRC of each source of a rule file that `--source` arguments give, and the first source's default where they don't.

    Raises:
        RemapError: as `name_sources`; LR211 where the first source is not given and has no default.
    """
    first = rules.first_source
    sources = name_sources(list(rules.text.sources), given)
    if first not in sources:
        default = rules.text.sources[first].default
        if not isinstance(default, str):
            cause = f"no checkpoint is given for source `{first}`, and {rules.name} has no default."
            raise refuse("LR211", cause, "Give it: --source DIR.")
        sources[first] = default
    return sources


def open_given(rules: RuleFile, given: Mapping[str, str], offline: bool) -> dict[str, Checkpoint]:
    """The checkpoints of the sources that are given, in the rule file's order."""
    return {
        name: open_source(
            name,
            given[name],
            source.use,
            first=name == rules.first_source,
            part=source.overrides,
            offline=offline,
            default=given[name] == source.default,
        )
        for name, source in rules.text.sources.items()
        if name in given
    }


def open_needed(
    rules: RuleFile,
    checkpoints: Mapping[str, Checkpoint],
    needed: Sequence[str],
    config: Mapping[str, Any] | None,
    offline: bool,
) -> tuple[dict[str, Checkpoint], list[Problem]]:
    """The checkpoints, with the defaults of those that are needed and not given.

    The problems say why one can't be had: LR302 where it has no default, else whatever keeps that from being opened.

    Args:
        config: the one that describes the language model; it may name a default.
    """
    found, problems = dict(checkpoints), []
    for name in needed:
        source, why = rules.text.sources[name], _not_given(rules, name)
        default, named = source.default, ""
        if isinstance(default, NamedDefault):
            key, default = default.from_, (config or {}).get(default.from_)
            named = (
                f" The config names it, {key}: {default!r}" if default is not None else f" The config has no {key} to name it."
            )
            if default is not None and (not isinstance(default, str) or parse_repository(default) is None):
                default, named = None, f"{named}, and that is no repository of the hub."
        if default is None:
            problems.append(Problem("LR302", f"{why}.{named}", f"Give it: --source {name}=DIR."))
            continue
        try:
            found[name] = open_source(
                name, default, source.use, first=False, part=source.overrides, offline=offline, default=True
            )
        except RemapError as error:
            wanted = f"{why}.{named}" if named else f"{why}, so its default is wanted"
            problems += [replace(problem, cause=f"{wanted}: {problem.cause}") for problem in error.problems]
    return {name: found[name] for name in rules.text.sources if name in found}, problems


def name_sources(names: Sequence[str], given: Sequence[str | Path], option: str = "--source") -> dict[str, str]:
    """The SRC of each source from `[NAME=]SRC` arguments; a bare SRC is the first name's.

    Args:
        names: the sources that there are.
        option: the command line's option, for messages.

    Raises:
        RemapError: LR211 for a name that isn't there, one given twice, or one without a SRC.
    """
    sources: dict[str, str] = {}
    for text in map(str, given):  # from Python, a path will do
        name, equals, rest = text.partition("=")
        if not equals or (name not in names and _exists(Path(text))):
            name, rest = names[0], text
        if name not in names:
            near = difflib.get_close_matches(name, names, 1)
            raise refuse(
                "LR211",
                f"there is no source `{name}`; there are {', '.join(names)}.",
                f"Did you mean `{near[0]}={rest}`?" if near else f"Write {option} NAME=SRC.",
            )
        if name in sources:
            raise refuse("LR211", f"source `{name}` is given twice: {sources[name]} and {rest}.", "Give it once.")
        if not rest:
            raise refuse("LR211", f"source `{name}` is given without a path.", f"Write {option} {name}=DIR.")
        sources[name] = rest
    return sources


def open_source(
    name: str,
    text: str,
    use: Collection[str],
    *,
    first: bool,
    part: bool = False,
    offline: bool = False,
    default: bool = False,
) -> Checkpoint:
    """Open a source: a folder, a file or a manifest on this disk, or else a repository on the hub, which is downloaded.

    Args:
        text: the SRC.
        use: what is wanted of it, as in a rule file's `use`.
        first: whether it is the source that a job is about. A further one may be a folder with a config alone, for a part
            that the first has already.
        part: whether less than a model will do, an adapter or a projector; but not a config alone.
        offline: whether only what was downloaded before is taken from the hub.
        default: whether it is what a rule file says, so that it is no path with a mistake in it.

    Raises:
        RemapError: as `open_checkpoint` and `download`; LR211 for a home folder that isn't known.
    """
    try:
        path = Path(text).expanduser()
    except RuntimeError as error:
        raise refuse("LR211", f"source `{name}`: {error}", "Write the path out.") from None
    repository = parse_repository(text)
    if repository is None or _exists(path):
        return _open(path, "tensors" in use, first, part)
    if not default and _exists(path.parent):  # more likely a slip of the pen than a hub id
        fix = f"Check the path. If the hub's {text} is meant, start the command where there is no folder {path.parent}."
        raise refuse("LR100", f"there is no {text} in the folder {path.parent}.", fix)
    snapshot = download(repository, use, offline=offline, name=name)
    checkpoint = _open(snapshot.folder, "tensors" in use, first, part)
    form = checkpoint.form + ("; downloaded before, the hub was not asked or didn't answer" if snapshot.cached else "")
    return replace(checkpoint, form=form, origin=f"{repository.id}@{snapshot.commit}")


def open_again(
    locations: Mapping[str, str], given: Sequence[str | Path], *, unused: Sequence[str] = (), offline: bool = False
) -> dict[str, Checkpoint]:
    """The sources that a folder was made from, as given again by `[NAME=]SRC` arguments.

    Args:
        locations: where they were, by name.
        unused: further sources that may be given and aren't opened, as no tensor was taken from them.

    Raises:
        RemapError: as `name_sources` and `open_source`; LR111 for a manifest, LR211 where one isn't given.
    """
    texts = name_sources([*locations, *unused], given, "--against")
    if absent := [name for name in locations if name not in texts]:
        cause = f"the folder was also made from {', '.join(f'`{name}` ({locations[name]})' for name in absent)}."
        raise refuse("LR211", cause, f"Give it too: --against {absent[0]}=DIR.")
    sources = {
        name: open_source(name, text, ("tensors",), first=True, part=True, offline=offline)
        for name, text in texts.items()
        if name in locations
    }
    if manifests := [str(source.path) for source in sources.values() if source.is_manifest]:
        cause = f"{', '.join(manifests)}: names and shapes only, there are no values to compare."
        raise refuse("LR111", cause, "Give the checkpoint itself.")
    return sources


def short_name(text: str) -> str:
    """The last part of a SRC, without a hub id's revision: what an output is named after."""
    repository = None if _exists(Path(text)) else parse_repository(text)
    return repository.id.rpartition("/")[2] if repository else Path(text).expanduser().resolve().name


def _not_given(rules: RuleFile, name: str) -> str:
    absent = rules.text.sources[name].used_if_absent
    return f"source `{name}` is not given" + (f", and `{rules.first_source}` has no `{absent}`" if absent else "")


def _open(path: Path, weights: bool, first: bool, part: bool) -> Checkpoint:
    try:
        return open_checkpoint(path, weights=weights, part=part)
    except RemapError as error:
        if first or part or error.problems[0].code != "LR100" or not (path / "config.json").is_file():
            raise
        return open_checkpoint(path, weights=False)


def _exists(path: Path) -> bool:
    try:
        return path.exists()
    except (OSError, ValueError):  # a name too long, or with a zero byte
        return False
