"""Turns the conversion of a model into rules. Tensors whose names differ only in numbers become one
rule or one operation. Pure.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import chain, count
from typing import Any

from llava_remap.rewrite.infer import INDEX, InferredRule, Segments, make_rules
from llava_remap.target_model import Moved, Step

#: The marks in a pattern: for a number, and for the number of a tensor in a list.
_COUNTED, _EACH = "\0", "\1"
_EACH_FIELD = "{e:each}"
_NUMBER = re.compile(r"0|[1-9][0-9]*")
#: A number at the end of a segment.
_ENDING = re.compile(r"(?<=_)(?:0|[1-9][0-9]*)(?=\.|$)")
_FIELDS = ("n", "m", "k", "l")
#: The fewest members from which a computed number is inferred (a number that a template computes
#: from another number).
_LEAST_COMPUTED = 3
#: The fewest numbers at the ends of segments that count as numbering.
_LEAST_LISTED = 3
#: A free size in a view.
_REST = "*"


class InexpressibleError(Exception):
    """A conversion that rules can't express, with the reason."""


@dataclass(frozen=True, slots=True)
class Folded:
    """Tensors with the same templates and steps.

    Attributes:
        sources, targets: templates.
        steps: the steps of the operation; empty for a rename.
        members: the tensors, each with its own numbers.
        plain: whether names keep their numbers in the same order.
    """

    sources: tuple[Segments, ...]
    targets: tuple[Segments, ...]
    steps: tuple[Step, ...]
    members: tuple[Moved, ...]
    plain: bool


@dataclass(frozen=True, slots=True)
class OperationDraft:
    """A rule of `tensors`, as values of YAML.

    Attributes:
        members: the tensors for which the operation was made, with old and new names.
    """

    id: str
    from_: Any
    to: Any
    how: Mapping[str, Any]
    let: Mapping[str, str]
    members: tuple[Moved, ...]


@dataclass(frozen=True, slots=True)
class Rules:
    """The rules of a conversion, in their order."""

    names: tuple[InferredRule, ...]
    tensors: tuple[OperationDraft, ...]


def conversion_rules(moved: Sequence[Moved], *, save: bool, exact: bool = False) -> Rules:
    """The rules for all tensors of a model.

    Args:
        save: whether the rules lead from the model's names to the checkpoint's names.
        exact: whether every template gets its own rule.

    Raises:
        InexpressibleError: for an operation that the rule language can't express.
    """
    renames = [one for one in moved if not one.steps]
    operated = [one for one in moved if one.steps]
    if save:
        renames = [Moved((one.targets,), one.sources[0]) for one in renames]
    folded = _fold(renames)
    operations = _fold(operated, save=save)
    ids = _Ids()
    tensors = tuple(_operation(one, ids, save=save) for one in operations)
    mixed = _mixed(folded)
    special = [one for one in folded if exact or not one.plain or one.sources[0] in mixed]
    special.sort(key=lambda one: sum(part.count("{") for part in one.sources[0]))
    first = [
        InferredRule("", ".".join(one.sources[0]), ".".join(one.targets[0]), False, ())
        for one in special
    ]
    moves: dict[Segments, Segments | None] = {
        _pattern(one.sources[0]): _pattern(one.targets[0]) for one in folded if one not in special
    }
    # No rule may take a name that an operation takes. No rule may take a new name either: the way
    # back from it would be ambiguous.
    taken = [one for of_one in operations for one in (of_one.targets if save else of_one.sources)]
    others = {_pattern(one) for one in taken} | {to for to in moves.values() if to is not None}
    others |= {_pattern(one.targets[0]) for one in special}
    rules = [*first, *(make_rules(moves, sorted(others - {*moves})) if moves else [])]
    return Rules(tuple(ids.given(rules)), tensors)


def _pattern(template: Segments) -> Segments:
    return tuple(INDEX if _is_field(part) else part for part in template)


def _is_field(part: str) -> bool:
    return part.startswith("{")


def _mixed(folded: Sequence[Folded]) -> set[Segments]:
    """Templates with a number where another template has a field."""
    lists = {
        one.sources[0][:at]
        for one in folded
        for at, part in enumerate(one.sources[0])
        if _is_field(part)
    }
    return {
        one.sources[0]
        for one in folded
        if any(
            _NUMBER.fullmatch(part) and one.sources[0][:at] in lists
            for at, part in enumerate(one.sources[0])
        )
    }


@dataclass(slots=True)
class _Ids:
    """The ids of rules, each unique and made of words of the new name."""

    taken: set[str] = field(default_factory=set)

    def new(self, text: str) -> str:
        parts = [part for part in re.sub(r"\{[^}]*\}", "", text).split(".") if part]
        words = re.findall(r"[a-z]+|[0-9]+", "-".join(parts[-3:]).lower())
        plain = "-".join([word for word in dict.fromkeys(words) if word != "weight"] or ["rule"])
        free = (one for one in chain([plain], (f"{plain}-{n}" for n in count(2))))
        found = next(one for one in free if one not in self.taken)
        self.taken.add(found)
        return found

    def given(self, rules: Sequence[InferredRule]) -> Iterator[InferredRule]:
        self.taken = set()
        for rule in rules:
            text = rule.to or rule.match
            yield InferredRule(self.new(text), rule.match, rule.to, rule.is_regex, rule.patterns)


def _fold(moved: Sequence[Moved], *, save: bool = False) -> list[Folded]:
    """Group the tensors with the same templates and steps."""
    groups: dict[Any, list[tuple[tuple[int, ...], Moved]]] = defaultdict(list)
    counted = _counted(
        name for one in moved for names in (*one.sources, one.targets) for name in names
    )
    for one in moved:
        slots = [_slot(names, counted, one.steps) for names in one.sources]
        if any(step.kind == "split" and step.key for step in one.steps):
            slots.append(_slot(one.targets, counted, one.steps))
        else:
            slots += [_slot((name,), counted) for name in one.targets]
        if save:
            slots = [*slots[len(one.sources) :], *slots[: len(one.sources)]]
        patterns = tuple(pattern for pattern, _ in slots)
        numbers = tuple(number for _, of_one in slots for number in of_one)
        taken = len(slots) - len(one.sources) if save else len(one.sources)
        groups[patterns, taken, one.steps].append((numbers, one))
    found = []
    for (patterns, taken, steps), members in sorted(groups.items(), key=lambda item: item[0][0]):
        for filled, of_these, plain in _filled(patterns, taken, members):
            taken_slots, made_slots = filled[:taken], filled[taken:]
            sides = (made_slots, taken_slots) if save else (taken_slots, made_slots)
            found.append(Folded(*sides, steps, of_these, plain))
    return found


def _slot(
    names: Sequence[str], counted: Collection[str], steps: Sequence[Step] = ()
) -> tuple[str, list[int]]:
    """The pattern and the numbers of a name, or of the names of a list.

    Args:
        counted: the beginnings of segments that end in a number (`_counted`).
    """
    split = [name.split(".") for name in names]
    pattern = [_COUNTED if _NUMBER.fullmatch(part) else part for part in split[0]]
    if _is_list(names, steps):
        numbers = [at for at, part in enumerate(pattern) if part == _COUNTED]
        varying = [at for at, parts in enumerate(zip(*split, strict=True)) if len({*parts}) > 1]
        [each, *more] = varying or numbers[-1:] or [-1]
        stem = split[0][each].removesuffix("0")
        if each < 0 or more or any(p[each] != f"{stem}{at}" for at, p in enumerate(split)):
            raise InexpressibleError(
                f"`{names[0]}` and the other tensors of its list aren't numbered from 0"
            )
        pattern[each] = stem + _EACH
    found = []
    for at, part in enumerate(pattern):
        if part == _COUNTED:
            found.append(int(split[0][at]))
        elif (ending := _ENDING.search(part)) and _stem(split[0], at, ending) in counted:
            found.append(int(ending[0]))
            pattern[at] = part[: ending.start()] + _COUNTED
    return ".".join(pattern), found


def _is_list(names: Sequence[str], steps: Sequence[Step]) -> bool:
    stacked = any(one.kind == "stack" or (one.key and one.kind == "concat") for one in steps)
    return bool(steps) and (len(names) > 1 or stacked)


def _stem(segments: Sequence[str], at: int, ending: re.Match[str]) -> str:
    before = [_COUNTED if _NUMBER.fullmatch(part) else part for part in segments[:at]]
    return ".".join([*before, segments[at][: ending.start()]])


def _counted(names: Iterable[str]) -> set[str]:
    """Beginnings of segments that end in numbers from 0 without gaps: `linear_0`, `linear_1`,
    `linear_2`. Two such names alone don't count.
    """
    found: dict[str, set[int]] = defaultdict(set)
    for name in names:
        segments = name.split(".")
        for at, part in enumerate(segments):
            if ending := _ENDING.search(part):
                found[_stem(segments, at, ending)].add(int(ending[0]))
    return {
        stem for stem, numbers in found.items() if len(numbers) == max(numbers) + 1 >= _LEAST_LISTED
    }


_Members = Sequence[tuple[tuple[int, ...], Moved]]


def _filled(
    patterns: Sequence[str], taken: int, members: _Members
) -> Iterator[tuple[tuple[Segments, ...], tuple[Moved, ...], bool]]:
    """The patterns with fields and numbers in place of the marks. If no choice of fields fits all
    members, the members are divided into groups.
    """
    columns = [*zip(*(numbers for numbers, _ in members), strict=True)]
    sizes = [pattern.count(_COUNTED) for pattern in patterns]
    own = columns[: sizes[0]]
    varying = [at for at, column in enumerate(own) if len(set(column)) > 1]
    names = {at: _FIELDS[number] for number, at in enumerate(varying[: len(_FIELDS)])}
    spelt: list[Segments] = []
    start, plain, fits = 0, True, len(varying) <= len(_FIELDS)
    for number, (pattern, size) in enumerate(zip(patterns, sizes, strict=True)):
        parts: list[str] = []
        used: list[int] = []
        for column in columns[start : start + size]:
            at, text = _spelt(column, own, names, used, number, computes=number >= taken)
            parts.append(text)
            used += [at] if at is not None else []
            plain &= not re.search("[*+-]", text)
            fits &= bool(text)
        fits &= sorted(used) == varying
        texts = pattern.replace(_EACH, _EACH_FIELD).split(_COUNTED)
        filled = "".join(chain.from_iterable(zip(texts, [*parts, ""], strict=True)))
        segments = tuple(filled.split("."))
        plain &= used == sorted(used) and all(_is_field(part) for part in segments if "{" in part)
        spelt.append(segments)
        start += size
    if fits:
        yield tuple(spelt), tuple(moved for _, moved in members), plain
        return
    by = min(varying, key=lambda at: (len(set(own[at])), -at))
    parts_of: dict[int, list[tuple[tuple[int, ...], Moved]]] = defaultdict(list)
    for member in members:
        parts_of[member[0][by]].append(member)
    for value in sorted(parts_of):
        yield from _filled(patterns, taken, parts_of[value])


def _spelt(
    column: tuple[int, ...],
    own: Sequence[tuple[int, ...]],
    names: Mapping[int, str],
    used: Sequence[int],
    number: int,
    *,
    computes: bool,
) -> tuple[int | None, str]:
    """How a template writes a number: the field that gives the number (None for a constant), and
    the text. The text is empty if no field gives the number.
    """
    if len(set(column)) == 1:
        return None, str(column[0])
    free = [at for at in names if at not in used]
    for at in free:
        if own[at] == column:
            return at, f"{{{names[at]}:int}}" if number == 0 else f"{{{names[at]}}}"
    for at in free if computes else ():
        pairs = sorted(set(zip(own[at], column, strict=True)))
        (x, y), (x2, y2) = pairs[0], pairs[1]
        if x == x2 or len(pairs) < _LEAST_COMPUTED:
            continue
        times, rest = divmod(y2 - y, x2 - x)
        plus = y - times * x
        if times >= 1 and not rest and all(b == times * a + plus for a, b in pairs):
            factor = f"{times}*" if times > 1 else ""
            return at, f"{{{factor}{names[at]}{f'{plus:+d}' if plus else ''}}}"
    return None, ""


@dataclass(slots=True)
class _Form:
    """The form of an operation, collected from its steps.

    Attributes:
        axis, view, axes: the view of the whole tensor.
        along, stacked: the axes of the join.
        parts: number of a part → its view and axes.
    """

    axis: int = 0
    view: tuple[int | str, ...] = ()
    axes: tuple[int, ...] = ()
    along: int | None = None
    stacked: int | None = None
    parts: dict[int, dict[str, Any]] = field(default_factory=dict)
    let: dict[str, str] = field(default_factory=dict)

    def see(self, axis: int, view: tuple[int | str, ...], axes: tuple[int, ...]) -> None:
        if self.view or self.axes:
            raise InexpressibleError("two of its steps divide or reorder axes")
        self.axis, self.view, self.axes = axis, view, axes

    @property
    def seen(self) -> dict[str, Any]:
        found: dict[str, Any] = {"view": list(self.view)} if self.view else {}
        found |= {"axis": self.axis} if self.view and self.axis else {}
        return found | ({"axes": list(self.axes)} if self.axes else {})


def _operation(folded: Folded, ids: _Ids, *, save: bool) -> OperationDraft:
    joins = len(folded.sources) > 1 or any(_EACH_FIELD in one for one in folded.sources)
    form = _form(folded, joins=joins)
    sources, targets = (
        [".".join(one) for one in side] for side in (folded.sources, folded.targets)
    )
    parts = sources if joins else targets
    single = len(sources) == len(targets) == 1 and form.along is form.stacked is None
    how: dict[str, Any] = {}
    divides = joins is save
    if form.along is not None:
        how["split" if divides else "concat"] = form.along
    if form.stacked is not None:
        how["unstack" if divides else "stack"] = form.stacked
    seen_parts: list[Any] = [
        {"name": part, **form.parts[number]} if number in form.parts else part
        for number, part in enumerate(parts)
    ]
    old: list[Any]
    new: list[Any]
    old, new = (seen_parts, [*targets]) if joins else ([*sources], seen_parts)
    if single and save:  # the whole is the old tensor, the parameter
        old = [{"name": sources[0], **form.seen}]
    else:
        how |= form.seen
    from_, to = (new, old) if save else (old, new)
    return OperationDraft(
        ids.new((targets if joins or single else sources)[0]),
        from_[0] if len(from_) == 1 else from_,
        to[0] if len(to) == 1 else to,
        how,
        form.let,
        folded.members,
    )


def _form(folded: Folded, *, joins: bool) -> _Form:
    """
    Raises:
        InexpressibleError: if the steps aren't one operation of the rule language.
    """
    form = _Form()
    steps = [*folded.steps]
    for number, step in enumerate(steps):
        after = steps[number + 1] if number + 1 < len(steps) else None
        match step.kind:
            case "stack" if joins and form.stacked is form.along is None:
                form.stacked = step.axes[0]
            case "concat" if joins and not step.key and form.along is None:
                form.along = step.axes[0]
            case "split" if not joins and not step.key and form.along is None:
                if form.stacked is None:
                    form.along = step.axes[0]
            case "concat" | "split" if step.key and form.stacked is None:
                form.see(step.axes[0], ("parts", _REST), ())
                form.stacked = step.axes[0]
                form.let["parts"] = f"target.{step.key}"
            case "swap":
                one, other = sorted(step.axes)
                axes = [*range(other + 1)]
                axes[one], axes[other] = other, one
                form.see(0, (), tuple(axes))
            case "interleave" if not joins:
                axis = step.axes[0]
                view = (2, _REST) if step.back else (_REST, 2)
                halves = after is not None and after == Step("split", (axis,))
                if halves and len(folded.targets) == 2 and not step.back:
                    form.see(axis, view, ())
                    form.stacked = axis + 1
                else:
                    form.see(axis, view, (*range(axis), axis + 1, axis))
            case "rope" if not joins:
                form.let["heads"] = f"target.{step.key}"
                pairs, halves_view = ("heads", _REST, 2), ("heads", 2, _REST)
                before, made = (halves_view, pairs) if step.back else (pairs, halves_view)
                if len(folded.targets) == 1:
                    form.see(0, before, (0, 2, 1))
                else:
                    seen = {"view": list(made), "axes": [0, 2, 1]}
                    form.parts |= dict.fromkeys(step.parts, seen)
            case "other":
                raise InexpressibleError(f"the rule language has no operation like `{step.name}`")
            case _:
                raise InexpressibleError(
                    f"its steps aren't one operation: {', '.join(one.kind for one in steps)}"
                )
    return form
