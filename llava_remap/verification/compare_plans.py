"""Two plans, read from the JSON of a plan or from a record, compared entry by entry."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, ValidationError

from llava_remap.checkpoint import has_file, read_object
from llava_remap.core.problem import refuse
from llava_remap.planning.boxes import Box, shape_of
from llava_remap.planning.model import FORMAT, FORMAT_VERSION
from llava_remap.planning.regions import in_words
from llava_remap.rulefile import shipped_layouts
from llava_remap.target_model import layout_program
from llava_remap.verification.compare_files import refuse_depth, rows
from llava_remap.verification.difference import Difference, Entry, Layouts, Row, Side, Which
from llava_remap.verification.record import FORMAT as RECORD_FORMAT
from llava_remap.verification.record import FORMAT_VERSION as RECORD_VERSION

_FIX = "Make the plan again with this version of llava-remap."
#: For each list of a plan, the keys whose values identify an entry.
_NAMED: Mapping[str, tuple[str, ...]] = {
    "mapped": ("target",),
    "aliases": ("target",),
    "dropped": ("source", "name"),
    "unmapped": ("source", "name"),
    "missing": ("target",),
    "mismatched": ("target",),
    "collisions": ("target",),
    "post_load": ("use", "target"),
    "value_checks": ("check", "target"),
    "problems": ("code", "message"),
    "notes": ("code", "message"),
    "shards": ("file",),
}
#: Keys of an entry that aren't compared: whether a value check was run.
_PASSING = ("checked",)
#: Keys of an entry whose values are names of the target, or lists of them.
_TARGETS = ("target", "of", "reads", "tensors")


class _Plan(BaseModel):
    """The parts of a plan that are compared; a plan may have others, such as a result."""

    model_config = ConfigDict(strict=True, defer_build=True)

    rules: dict[str, Any]
    sources: dict[str, dict[str, Any]]
    target: dict[str, Any]
    chat_template: dict[str, Any] | None
    complete: bool
    mapped: list[dict[str, Any]]
    aliases: list[dict[str, Any]]
    dropped: list[dict[str, Any]]
    unmapped: list[dict[str, Any]]
    missing: list[dict[str, Any]]
    suggested_rules: list[str]
    suggested_operations: list[str]
    mismatched: list[dict[str, Any]]
    collisions: list[dict[str, Any]]
    post_load: list[dict[str, Any]]
    value_checks: list[dict[str, Any]]
    problems: list[dict[str, Any]]
    notes: list[dict[str, Any]]
    shards: list[dict[str, Any]]
    nbytes: dict[str, int]


@dataclass(frozen=True, slots=True)
class PlanFile:
    """A plan from a file.

    Attributes:
        form: whether the file is a plan or a record.
        lists: the lists of the plan, by their keys.
        values: the other values of the plan.
    """

    path: Path
    form: str
    lists: Mapping[str, Sequence[Mapping[str, Any]]]
    values: Mapping[str, Any]

    @property
    def layout(self) -> str:
        return str(self.values["target"].get("layout"))

    @property
    def side(self) -> Side:
        nbytes = self.values["nbytes"].get("write", 0)
        return Side(str(self.path), self.form, len(self.lists["mapped"]), nbytes)


def read_plan(path: Path) -> PlanFile | None:
    """The plan in the JSON file of a plan or a record; None for any other or a missing file.

    Raises:
        RemapError: LR113 for another version, and for a file that contradicts its format.
    """
    if path.suffix != ".json" or not has_file(path):
        return None
    content = read_object(path, "LR113", _FIX, halves=True)
    found, version = content.get("format"), content.get("format_version")
    known = {FORMAT: FORMAT_VERSION, RECORD_FORMAT: RECORD_VERSION}
    if found not in known:
        return None
    if version != known[found]:
        raise refuse(
            "LR113",
            f"{path} is of the format {found!r}, version {version!r}; this version reads version "
            f"{known[found]}. A command that was refused before it had a plan writes a file "
            "without a plan.",
            _FIX,
        )
    refuse_depth(path.name, content)
    form = "record of a conversion" if found == RECORD_FORMAT else "plan"
    try:
        plan = _Plan.model_validate(content["plan"] if found == RECORD_FORMAT else content)
        values = plan.model_dump()
        lists = {part: values.pop(part) for part in _NAMED}
        for part, entries in lists.items():
            for entry in entries:
                for key in _NAMED[part]:
                    entry[key]
        shapes = {
            (part["source"], part["name"]): part["shape"]
            for entry in lists["mapped"]
            for part in entry["from"]
            if "taken" in part
        }
        lists["mapped"] = [_in_words(entry) for entry in lists["mapped"]]
        lists["dropped"] = [_dropped_in_words(entry, shapes) for entry in lists["dropped"]]
    except (KeyError, TypeError, ValueError) as error:  # a ValidationError is a ValueError
        said = f"it has no {error}" if isinstance(error, KeyError) else str(error)
        said = _first(error) if isinstance(error, ValidationError) else said
        raise refuse("LR113", f"{path}: the plan in it can't be read: {said}.", _FIX) from None
    return PlanFile(path, form, lists, values)


def _in_words(entry: dict[str, Any]) -> dict[str, Any]:
    """An entry of `mapped`, with the boxes of its parts in words.

    Raises:
        KeyError, TypeError, ValueError: a box isn't one.
    """
    before = [step["post_load"]["before"] for step in entry["then"] if "post_load" in step]
    shape = shape_of((before or [entry["shape"]])[0] or [])

    def told(part: dict[str, Any]) -> dict[str, Any]:
        if "taken" not in part:
            return part
        taken = Box.from_json(part["name"], part["taken"])
        placed = Box.from_json(entry["target"], part["placed"])
        words = in_words(taken, shape_of(part["shape"]), "it"), in_words(placed, shape, "it")
        return {**part, "taken": words[0], "placed": words[1]}

    return {**entry, "from": [told(part) for part in entry["from"]]}


def _dropped_in_words(
    entry: dict[str, Any], shapes: Mapping[tuple[str, str], Any]
) -> dict[str, Any]:
    """An entry of `dropped`, with the box of a part that is dropped in words.

    Args:
        shapes: source and name → shape, of tensors of which parts are mapped.
    """
    if "box" not in entry:
        return entry
    box = Box.from_json(entry["name"], entry["box"])
    shape = shape_of(shapes[entry["source"], entry["name"]])
    return {**entry, "box": in_words(box, shape, "it")}


def _first(error: ValidationError) -> str:
    first = error.errors()[0]
    return f"`{'.'.join(map(str, first['loc']))}`: {first['msg']}"


def compare_plans(a: PlanFile, b: PlanFile) -> Difference:
    """Compare two plans entry by entry. If their layouts differ, names are compared as classic
    ones.
    """
    lists_a, lists_b, layout = a.lists, b.lists, None
    if a.layout != b.layout:
        lists_a, lists_b = _classic(a), _classic(b)
        pairs = (
            zip(before["mapped"], after["mapped"], strict=True)
            for before, after in ((a.lists, lists_a), (b.lists, lists_b))
        )
        written = [{new["target"]: old["target"] for old, new in side} for side in pairs]
        common = written[0].keys() & written[1].keys()
        renamed = sum(written[0][name] != written[1][name] for name in common)
        layout = Layouts(a.layout, b.layout, renamed)
    every = [
        Entry("plan", key, None, found)
        for key in a.values
        if (found := _rows(key, a.values[key], b.values[key], layout is not None))
    ]
    for part in _NAMED:
        named_a, named_b = _named(part, lists_a[part]), _named(part, lists_b[part])
        for name in dict.fromkeys((*named_a, *named_b)):
            one, other = named_a.get(name), named_b.get(name)
            only_in: Which | None = "b" if one is None else "a" if other is None else None
            if found := rows(one or {}, other or {}):
                every.append(Entry(part, name, only_in, found))
    tensors = [{entry["target"] for entry in lists["mapped"]} for lists in (lists_a, lists_b)]
    return Difference(
        "plans",
        a.side,
        b.side,
        len(tensors[0] & tensors[1]),
        layout,
        values_reason="plans have no values",
        entries=tuple(every),
    )


def _rows(key: str, a: Any, b: Any, layouts_differ: bool) -> tuple[Row, ...]:
    """The values that differ, except those that differ by the layout."""
    if layouts_differ and key == "target":
        a, b = ({k: v for k, v in side.items() if k != "layout"} for side in (a, b))
    return rows({key: a}, {key: b})


def _classic(plan: PlanFile) -> dict[str, list[dict[str, Any]]]:
    """The lists of a plan with classic names; unchanged for an unknown layout."""
    if plan.layout not in shipped_layouts():
        return {part: [dict(entry) for entry in entries] for part, entries in plan.lists.items()}
    program = layout_program(plan.layout)

    def spell(found: Any) -> Any:
        if isinstance(found, list):
            return [spell(one) for one in found]
        return (program.rewrite(found).target or found) if isinstance(found, str) else found

    return {
        part: [
            {key: spell(value) if key in _TARGETS else value for key, value in entry.items()}
            for entry in entries
        ]
        for part, entries in plan.lists.items()
    }


def _named(part: str, entries: Sequence[Mapping[str, Any]]) -> dict[str, Mapping[str, Any]]:
    """The entries of a list by name; entries with the same name are numbered."""
    named: dict[str, Mapping[str, Any]] = {}
    seen: Counter[str] = Counter()
    for entry in entries:
        name = " ".join(str(entry[key]) for key in _NAMED[part])
        seen[name] += 1
        name = f"{name} ({seen[name]})" if seen[name] > 1 else name
        named[name] = {key: value for key, value in entry.items() if key not in _PASSING}
    return named
