"""Opens sources that a job needs but the user doesn't give. A rule file, a config or an adapter
names them.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from llava_remap.checkpoint import AbsentError, Checkpoint, DamagedError, UnreadableError
from llava_remap.core import Problem, RemapError, quoted, refuse
from llava_remap.rulefile import NamedDefault, RuleFile, Source
from llava_remap.source.hub import HubError, parse_repository, repository_of_cache
from llava_remap.source.sources import is_there, last_part, open_source


def open_first(
    rules: RuleFile, checkpoints: Mapping[str, Checkpoint], offline: bool
) -> dict[str, Checkpoint]:
    """The checkpoints, with the first source opened if it isn't given.

    The first source is then the model that a given adapter or projector was trained from, according
    to its own files. Without adapter and projector, it is the rule file's default.

    Raises:
        RemapError: LR211 if nothing names the first source; any error from opening it.
    """
    first = rules.first_source
    if first in checkpoints:
        return dict(checkpoints)
    source = rules.text.sources[first]
    give = f"Give it: --source {first}=DIR."
    parts = [name for name in reversed(list(checkpoints)) if rules.text.sources[name].overrides]
    if not parts:
        if not isinstance(source.default, str):
            raise refuse(
                "LR211",
                f"no checkpoint is given for source `{first}`, and {rules.name} has no default.",
                give,
            )
        return {
            first: _open_named(
                first, source.default, source, offline, "the rule file's default", first=True
            ),
            **checkpoints,
        }
    part = next((name for name in parts if checkpoints[name].base), None)
    if part is None:
        raise refuse(
            "LR211",
            f"`{parts[0]}` is given without the model that it was trained from, and its own "
            "files don't name it.",
            give,
        )
    base = checkpoints[part].base
    with _wanted(
        f"source `{first}` is not given. By its own files, `{part}` was trained from "
        f"{quoted(base)}",
        give,
    ):
        return {
            first: _open_named(
                first, _repository_or_path(base), source, offline, f"named by `{part}`", first=True
            ),
            **checkpoints,
        }


def open_needed(
    rules: RuleFile,
    checkpoints: Mapping[str, Checkpoint],
    needed: Sequence[str],
    config: Mapping[str, Any] | None,
    offline: bool,
) -> tuple[dict[str, Checkpoint], list[Problem], list[Problem]]:
    """The checkpoints, with defaults for needed sources that aren't given; problems; notes.

    A problem says why a default can't be opened, or (LR302) that a source has no default. A note
    (LR316) says that the config names another checkpoint, and that the default of the same name is
    used instead.

    Args:
        config: the config that describes the language model; it may name a default.
    """
    opened = dict(checkpoints)
    problems: list[Problem] = []
    notes: list[Problem] = []
    for name in needed:
        try:
            opened[name], note = _open_default(rules, name, config, offline)
            notes += note
        except RemapError as error:
            problems += error.problems
    return {name: opened[name] for name in rules.text.sources if name in opened}, problems, notes


def named_by_config(rules: RuleFile, name: str, config: Mapping[str, Any] | None) -> str | None:
    """The repository or path that a config names for a source; None if it names none."""
    key = _named_default(rules, rules.text.sources[name])
    named = (config or {}).get(key.from_) if key else None
    return key.map.get(named, named) if key and isinstance(named, str) and named else None


def named_for(rules: RuleFile, name: str, config: Mapping[str, Any] | None) -> str:
    """The repository or path that a config names for a source, else the rule file's default; empty
    without either.
    """
    default = rules.text.sources[name].default
    stock = default.default if isinstance(default, NamedDefault) else default
    return named_by_config(rules, name, config) or stock or ""


def named_tower(rules: RuleFile, config: Mapping[str, Any] | None) -> str:
    """The repository or path that a config names for the tower; empty if it names none."""
    key = next(iter(rules.target.towers.values()))
    value = (config or {}).get(key.from_) if key.from_ else None
    value = value[0] if isinstance(value, list) and value else value
    return value if isinstance(value, str) else ""


def taken_by_default(
    rules: RuleFile, name: str, config: Mapping[str, Any] | None
) -> tuple[str, str]:
    """The repository or path that is used if a source isn't given, and the reason in words.

    The repository is empty if the user must give the source: nothing names one, or the path in the
    config doesn't exist. Whether a repository exists shows only in the download.

    Args:
        config: the config that describes the language model; it may name a default.
    """
    source = rules.text.sources[name]
    key = _named_default(rules, source)
    default = source.default if isinstance(source.default, str) else key.default if key else None
    value = (config or {}).get(key.from_) if key else None
    value = value[0] if isinstance(value, list) and value else value
    if key is None or value in (None, ""):
        return (default, "it is the rule file's default") if default else ("", "")
    who = f"the config names it ({key.from_})"
    if not isinstance(value, str):
        return "", f"{key.from_} of the config is neither a repository of the hub nor a path"
    named = _repository_or_path(key.map.get(value, value))
    if is_there(Path(named)) or parse_repository(named) is not None:
        return named, who
    if default is not None and last_part(named) == last_part(default):
        return default, f"the config names {quoted(named)}, which has the same name but isn't here"
    return "", f"the config names {quoted(named)}, which isn't here"


def other_than_default(source: Source, config: Mapping[str, Any] | None) -> str | None:
    """The repository or path that a config names for a source, if its last part differs from the
    last part of the rule file's default; else None.
    """
    default = source.default
    if not isinstance(default, NamedDefault) or default.default is None:
        return None
    named = (config or {}).get(default.from_)
    if not isinstance(named, str) or not named:
        return None
    return named if last_part(default.map.get(named, named)) != last_part(default.default) else None


def _open_default(
    rules: RuleFile, name: str, config: Mapping[str, Any] | None, offline: bool
) -> tuple[Checkpoint, list[Problem]]:
    """The checkpoint that the config names for a source, or else the rule file's default. If the
    default replaces the named checkpoint, a note says so.
    """
    source, give = rules.text.sources[name], f"Give it: --source {name}=DIR."
    why = f"source `{name}` is not given"
    if source.used_if_absent:
        why += f", and `{rules.first_source}` has no `{source.used_if_absent}`"
    key = _named_default(rules, source)
    default = source.default if isinstance(source.default, str) else key.default if key else None
    value = (config or {}).get(key.from_) if key else None
    value = value[0] if isinstance(value, list) and value else value
    if key is None or value in (None, ""):
        if default is None:
            raise refuse(
                "LR302",
                f"{why}.{f' The config has no {key.from_} to name it.' if key else ''}",
                give,
            )
        with _wanted(f"{why}, so its default is needed", give):
            return _open_named(name, default, source, offline, "the rule file's default"), []
    why = f"{why}. The config names it, {key.from_}: {quoted(str(value))}"
    if not isinstance(value, str):
        raise refuse(
            "LR302", f"{why}, and this value is neither a repository of the hub nor a path.", give
        )
    called = key.map.get(value, value)
    named = _repository_or_path(called)
    alike = (
        default is not None and last_part(named) == last_part(default) and not is_there(Path(named))
    )
    own = (
        f" Only if the named checkpoint is {default}, the rule file's default: --source "
        f"{name}={default}."
        if default and not alike
        else ""
    )
    with _wanted(why, give + own):
        try:
            checkpoint = _open_named(
                name, named, source, offline, f"named by the config, {key.from_}"
            )
        except (AbsentError, UnreadableError) as error:
            if default is None or not alike or isinstance(error, DamagedError):
                raise
            named = default
            checkpoint = _open_named(name, named, source, offline, "the rule file's default")
    if named == called:
        return checkpoint, []
    return checkpoint, [
        Problem(
            "LR316",
            f"the config names {quoted(value)} for `{name}`, which isn't here; {named}, which has "
            "the same name, is taken instead.",
            f"If the named checkpoint was trained further, give it: --source {name}=DIR.",
        )
    ]


def _named_default(rules: RuleFile, source: Source) -> NamedDefault | None:
    """The config key that names a source. For a tower with only a repository as default, it is the
    key that `target.towers` reads.
    """
    if isinstance(source.default, NamedDefault):
        return source.default
    key = next(iter(rules.target.towers.values())).from_ if source.used_if_absent else None
    return (
        None
        if key is None
        else NamedDefault.model_validate({"from": key, "default": source.default})
    )


def _repository_or_path(named: str) -> str:
    """A path or repository from a config, for this machine. A path in another machine's hub cache
    becomes the repository.
    """
    return named if is_there(Path(named)) else repository_of_cache(named) or named


def _open_named(
    name: str, text: str, source: Source, offline: bool, why: str, *, first: bool = False
) -> Checkpoint:
    """Open a path on this disk or a repository that a rule file or a config names.

    Args:
        why: why this checkpoint is used, for the report.
    """
    if not is_there(Path(text)) and parse_repository(text) is None:
        raise AbsentError.of(
            "LR100",
            f"there is no {quoted(text)} on this disk, and a repository of the hub can't have "
            "this name.",
            f"Give it: --source {name}=DIR.",
        )
    checkpoint = open_source(
        name, text, source.use, first=first, part=source.overrides, offline=offline, default=True
    )
    return replace(checkpoint, form=f"{checkpoint.form}; {why}", named_by=why)


@contextlib.contextmanager
def _wanted(why: str, give: str) -> Iterator[None]:
    """Add to an error of opening a source why the source is needed, and how to give it."""
    try:
        yield
    except RemapError as error:
        of_hub = isinstance(error, HubError)
        raise RemapError(
            replace(p, cause=f"{why}: {p.cause}", fix=p.fix if of_hub else give)
            for p in error.problems
        ) from None
