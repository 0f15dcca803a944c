"""Snapshots: the outcome of every name of a checkpoint under a rule file, as a JSON file. Later
versions of the rule file are compared with it.

The snapshots of `mine.yaml` lie beside it in the folder `mine.snapshots`.
"""

from __future__ import annotations

import errno
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from llava_remap.authoring.in_file_tests import UNMAPPED, Status
from llava_remap.authoring.name_set import NameSet
from llava_remap.core.problem import refuse
from llava_remap.rewrite import compile_rules, contradictions
from llava_remap.rulefile import RuleFile

FORMAT, FORMAT_VERSION = "llava-remap/snapshot", 1
_FIX = (
    "Restore the file from version control, or delete it and make it again: rules test RULES "
    "--source SRC --update."
)

_AGAIN = (
    "If the new result is right, delete the file and run `rules test RULES --source SRC --update`."
)
#: The new name or None (for an operation, its new names and its description), and the rule that
#: dropped the name or None.
Outcome = tuple[str | None, str | None]


@dataclass(frozen=True, slots=True)
class Snapshot:
    """A name set, and the outcomes of its names.

    Attributes:
        names: its `config` has the keys for which rules asked at that time, absent keys as None.
        outcomes: by source and name.
        fits: whether the rule file's `detect` held.
    """

    names: NameSet
    outcomes: Mapping[str, Mapping[str, Outcome]]
    fits: bool


class Difference(NamedTuple):
    """A name whose outcome differs from the snapshot."""

    source: str
    name: str
    wanted: str
    got: str


@dataclass(frozen=True, slots=True)
class SnapshotResult:
    """The result of a snapshot.

    Attributes:
        names: how many names it has.
        differences: the names for which it failed.
        why: why the snapshot is missing or was written, or how to go on after a failure.
    """

    file: Path
    status: Status
    names: int
    differences: tuple[Difference, ...] = ()
    why: str = ""

    def to_json(self) -> dict[str, Any]:
        return {
            "file": str(self.file), "status": self.status, "names": self.names, "why": self.why,
            "differences": [difference._asdict() for difference in self.differences],
        }  # fmt: skip


def snapshot_folder(rules: RuleFile) -> Path:
    """Where the snapshots of a rule file are; it needn't exist."""
    stem = rules.path.name.removesuffix(".yaml").removesuffix(".yml")
    return rules.path.with_name(f"{stem}.snapshots")


def run_snapshots(rules: RuleFile, live: NameSet | None, *, update: bool) -> list[SnapshotResult]:
    """Compare a rule file with its snapshots, without the checkpoints that they were made from.

    Args:
        live: names that must all be in one snapshot.
        update: whether that snapshot is written, or its missing names are added. Other names stay.

    Raises:
        RemapError: LR113 for a snapshot that can't be read, LR508 for one that can't be written.
    """
    folder = snapshot_folder(rules)
    files = _files(folder, update=update)
    wanted = folder / _file_name(live) if live is not None else None
    results = [
        _compared(rules, file, live if file == wanted else None, update=update) for file in files
    ]
    if live is not None and wanted is not None and wanted not in files:
        if update:
            _write(wanted, rules, _taken(rules, live))
        status: Status = "written" if update else "missing"
        why = "" if update else "the snapshot is missing; --update writes it"
        count = sum(map(len, live.names.values()))
        results.append(SnapshotResult(wanted, status, count, why=why))
    return results


def _compared(rules: RuleFile, file: Path, live: NameSet | None, *, update: bool) -> SnapshotResult:
    old = _read(file)
    count = sum(map(len, old.outcomes.values()))
    unknown = sorted(_asked(rules) - set(old.names.config)) if old.names.config is not None else []
    asked = (
        f"rules read `{'`, `'.join(unknown)}` of the config, which the snapshot lacks; --source "
        "SRC --update adds it"
    )
    if unknown and live is None:
        return SnapshotResult(file, "missing", count, why=asked)
    differences = [] if unknown else _differences(old, _taken(rules, old.names))
    new = old if live is None else _taken(rules, live)
    if live is not None:
        differences += [
            Difference("", f"(config {key})", repr(value), repr(live.config.get(key)))
            for key, value in (old.names.config or {}).items()
            if live.config is not None and live.config.get(key) != value
        ]
        differences += [d for d in _differences(old, new) if d not in differences]
        differences += [
            Difference(source, name, _in_words(outcome), "(not in the checkpoint)")
            for source, names in old.outcomes.items()
            for name, outcome in names.items()
            if source in new.outcomes and name not in new.outcomes[source]
        ]
    if differences:
        return SnapshotResult(file, "failed", count, tuple(differences), _AGAIN)
    added = {
        source: {**new.outcomes.get(source, {}), **old.outcomes.get(source, {})}
        for source in {**old.outcomes, **new.outcomes}
    }
    missing = sum(map(len, added.values())) - count
    if not missing and not unknown:
        return SnapshotResult(file, "passed", count)
    if not update:
        why = f"the snapshot lacks {missing} names of the source; --update adds them"
        return SnapshotResult(file, "missing", count, why=why if missing else asked)
    sources = {**old.names.sources, **new.names.sources}
    _write(file, rules, Snapshot(NameSet(sources, {}, (), new.names.config, {}), added, new.fits))
    return SnapshotResult(file, "written", count + missing, why=f"{missing} names added")


def _taken(rules: RuleFile, names: NameSet) -> Snapshot:
    """The present outcome of every name."""
    program = compile_rules(rules, names.stored, names.config)
    outcomes: dict[str, dict[str, Outcome]] = {
        source: dict.fromkeys(own, ("(no such source)", None))
        for source, own in names.names.items()
    }
    prepared = []
    for source, name, rewrite in names.rewrites(rules, program):
        select = rules.text.sources[source].selected
        taken = not select or any(
            template.match(program.rewrite(name).prepared) is not None for template in select
        )
        dropped_by = rewrite.rules[-1] if rewrite.reason is not None else None
        target = rewrite.target
        if (operated := rewrite.operated) is not None:
            target = f"{', '.join(operated.makes)} ({operated.rule.operation})"
        outcomes[source][name] = (target, dropped_by) if taken else ("(not selected)", None)
        if source == rules.first_source:
            prepared.append(rewrite.prepared)
    return Snapshot(names, outcomes, not contradictions(rules.text.detect, prepared, names.config))


def _in_words(outcome: Outcome) -> str:
    target, dropped_by = outcome
    return target or (UNMAPPED if dropped_by is None else f"(dropped by {dropped_by})")


def _differences(old: Snapshot, new: Snapshot) -> list[Difference]:
    found = [
        Difference(source, name, _in_words(wanted), _in_words(got))
        for source, names in old.outcomes.items()
        for name, wanted in names.items()
        if (got := new.outcomes.get(source, {}).get(name, wanted)) != wanted
    ]
    if old.fits != new.fits:
        words = {True: "fits", False: "is contradicted"}
        found.append(Difference("", "(detect)", words[old.fits], words[new.fits]))
    return found


def _asked(rules: RuleFile) -> set[str]:
    """The keys of the config that `detect` and the rules ask for."""
    listed = (rules.text.prepare, rules.text.names, rules.text.tensors)
    conditions = [rule.when for rules_of_one in listed for rule in rules_of_one]
    said = [rules.text.detect, *filter(None, conditions)]
    return {key for condition in said for key in (*condition.config, *condition.config_not)}


def _file_name(names: NameSet) -> str:
    """The name of the checkpoints' snapshot: first source first."""
    parts = (part.removesuffix(".json") or "checkpoint" for part in names.sources.values())
    return "+".join(parts) + ".json"


def _write(file: Path, rules: RuleFile, snapshot: Snapshot) -> None:
    from llava_remap.core.files import replace_file

    config = snapshot.names.config
    outcomes = {source: dict(sorted(names.items())) for source, names in snapshot.outcomes.items()}
    content = {
        "format": FORMAT,
        "format_version": FORMAT_VERSION,
        "rules": rules.name,
        "sources": dict(snapshot.names.sources),
        "config": None
        if config is None
        else {key: config.get(key) for key in sorted(_asked(rules))},
        "fits": snapshot.fits,
        "mapping": {
            s: {n: to for n, (to, rule) in names.items() if rule is None}
            for s, names in outcomes.items()
        },
        "dropped": {
            s: {n: rule for n, (_, rule) in names.items() if rule is not None}
            for s, names in outcomes.items()
        },
    }
    try:
        file.parent.mkdir(exist_ok=True)
    except OSError as error:
        raise refuse(
            "LR508",
            f"{file.parent} can't be created: {error.strerror}.",
            "Put the rule file into a folder that you may write to.",
        ) from None
    replace_file(file, (json.dumps(content, indent=1) + "\n").encode())


def _files(folder: Path, *, update: bool) -> list[Path]:
    """The snapshots in a folder; none without the folder. With `update`, a file in the
    folder's place is only reported when the snapshots are written.

    Raises:
        RemapError: LR113 for a folder that exists and can't be read.
    """
    try:
        return sorted(path for path in folder.iterdir() if path.suffix == ".json")
    except OSError as error:
        if (error.errno == errno.ENOENT and not folder.is_symlink()) or (
            update and error.errno == errno.ENOTDIR
        ):
            return []
        raise refuse("LR113", f"{folder} can't be read: {error.strerror}.", _FIX) from None


def _read(file: Path) -> Snapshot:
    """A snapshot from its file.

    Raises:
        RemapError: LR113 for a file in another form.
    """
    from llava_remap.checkpoint import read_object  # only snapshots need it

    content = read_object(file, "LR113", _FIX)
    head = content.get("format"), content.get("format_version")
    if head != (FORMAT, FORMAT_VERSION):
        raise refuse(
            "LR113",
            f"{file} says format {head[0]!r}, version {head[1]!r}, not {FORMAT!r}, version "
            f"{FORMAT_VERSION}.",
            _FIX,
        )
    sources, config, fits = content.get("sources"), content.get("config"), content.get("fits")
    mapping, dropped = content.get("mapping"), content.get("dropped")
    if not (
        isinstance(sources, dict)
        and _is_texts(sources)
        and (config is None or isinstance(config, dict))
        and isinstance(fits, bool)
        and isinstance(mapping, dict)
        and isinstance(dropped, dict)
        and all(_is_texts(names, or_null=True) for names in mapping.values())
        and all(_is_texts(names) for names in dropped.values())
    ):
        raise refuse(
            "LR113",
            f"{file}: `sources`, `config`, `fits`, `mapping` or `dropped` has a value of the "
            "wrong kind.",
            _FIX,
        )
    outcomes: dict[str, dict[str, Outcome]] = {source: {} for source in {**mapping, **dropped}}
    for source, own in outcomes.items():
        own |= {name: (target, None) for name, target in mapping.get(source, {}).items()}
        own |= {name: (None, rule) for name, rule in dropped.get(source, {}).items()}
    names = {source: tuple(own) for source, own in outcomes.items()}
    stored = next(iter(names.values()), ())
    return Snapshot(NameSet(sources, names, stored, config, {}), outcomes, fits)


def _is_texts(value: Any, *, or_null: bool = False) -> bool:
    return isinstance(value, dict) and all(
        isinstance(text, str) or (or_null and text is None) for text in value.values()
    )
