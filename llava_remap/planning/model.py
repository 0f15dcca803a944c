"""The plan: where every tensor of the target comes from, and how it is made. Pure data, and its
JSON form.

The JSON has the same field names (`llava-remap/plan`, version 2). Every list is sorted and
complete.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from llava_remap.core.problem import Problem
from llava_remap.planning.boxes import Box, Shape
from llava_remap.planning.mapped import Alias, Mapped, source_names
from llava_remap.post_load import Change
from llava_remap.routing import SourceName
from llava_remap.target_model import ChosenTemplate

FORMAT = "llava-remap/plan"
FORMAT_VERSION = 2


@dataclass(frozen=True, slots=True)
class Dropped:
    """A source tensor that is left out; with `box`, only a region of it is."""

    source: str
    name: str
    rule: str
    reason: str
    box: Box | None = None

    def to_json(self) -> dict[str, Any]:
        whole = {
            "source": self.source,
            "name": self.name,
            "rule": self.rule,
            "reason": self.reason,
        }
        return whole if self.box is None else {**whole, "box": self.box.to_json()}

    @classmethod
    def from_json(cls, entry: Mapping[str, Any]) -> Dropped:
        """The inverse of `to_json`.

        Raises:
            KeyError, TypeError, ValueError: for anything else.
        """
        source, name, rule, reason = (entry[key] for key in ("source", "name", "rule", "reason"))
        if not all(isinstance(text, str) for text in (source, name, rule, reason)):
            raise ValueError(f"what is dropped of {name!r} isn't text alone")
        box = Box.from_json(name, entry["box"]) if "box" in entry else None
        return cls(source, name, rule, reason, box)


@dataclass(frozen=True, slots=True)
class Unmapped:
    """A source tensor without a parameter.

    Attributes:
        produced: the name that `rules` gave it, which the target doesn't have; None if no rule
            matched.
    """

    source: str
    name: str
    dtype: str
    shape: Shape
    produced: str | None
    rules: tuple[str, ...]
    suggestions: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Missing:
    target: str
    shape: Shape
    suggestions: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Mismatched:
    target: str
    source_shape: Shape
    target_shape: Shape


@dataclass(frozen=True, slots=True)
class Collision:
    """A parameter with several source tensors, or with a source tensor although the post-load rule
    `made_by` makes it.
    """

    target: str
    from_: tuple[SourceName, ...]
    made_by: str | None = None


@dataclass(frozen=True, slots=True)
class PostLoadChange:
    """A change with the post-load rule that makes it. Its JSON form is enough to repeat the change,
    without rule file or tokenizer.

    Attributes:
        use: name of the plug-in.
        options: as the rule file gives them.
    """

    use: str
    options: dict[str, Any]
    change: Change

    def to_json(self) -> dict[str, Any]:
        return {
            "use": self.use,
            "with": self.options,
            "target": self.change.target,
            "dtype": self.change.dtype,
            "shape_before": None
            if self.change.shape_before is None
            else list(self.change.shape_before),
            "shape_after": list(self.change.shape_after),
            "reads": list(self.change.reads),
            "facts": dict(self.change.facts),
        }

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> PostLoadChange:
        """The inverse of `to_json`.

        Raises:
            KeyError: for a missing field.
            ValueError: for a field of another form.
        """
        forms = {
            "use": str,
            "with": dict,
            "target": str,
            "dtype": str,
            "reads": list,
            "facts": dict,
        }
        forms |= (
            {"shape_after": list}
            if data["shape_before"] is None
            else {"shape_before": list, "shape_after": list}
        )
        for field, form in forms.items():
            if not isinstance(data[field], form):
                raise ValueError(f"`{field}` is not a {form.__name__}")
        before = None if data["shape_before"] is None else tuple(data["shape_before"])
        after, reads = tuple(data["shape_after"]), tuple(data["reads"])
        if not all(type(size) is int and size >= 0 for size in (before or ()) + after):
            raise ValueError("a size in a shape is not a whole number")
        if not all(isinstance(name, str) for name in reads):
            raise ValueError("a name in `reads` is not text")
        return cls(
            data["use"],
            data["with"],
            Change(data["target"], data["dtype"], before, after, reads, data["facts"]),
        )


@dataclass(frozen=True, slots=True)
class ValueCheck:
    """A check of tensor values. It runs before the first output file exists.

    Attributes:
        check: `finite`: no number is inf or NaN. `range`: like `finite`, and no number is too large
            for the dtype that is written. `equal`: two tensors that become one have the same bytes.
            `compare`: count the differences between the tensor used and one given beside it.
            `norms`: the weights of the language model's norms are about 1; in delta weights all are
            about 0.
        target: the target tensor; for `norms` the first one.
        from_: one source tensor, the two to compare, or all norms.
    """

    check: Literal["finite", "range", "equal", "compare", "norms"]
    target: str
    from_: tuple[SourceName, ...]


@dataclass(frozen=True, slots=True)
class Shard:
    """An output file: its name, and the target names of its tensors in the order of the file."""

    file: str
    tensors: tuple[str, ...]

    @classmethod
    def numbered(cls, files: Collection[Sequence[str]]) -> tuple[Shard, ...]:
        """The output files for these lists of tensors, named like transformers' shards."""
        return tuple(
            cls(f"model-{number:05d}-of-{len(files):05d}.safetensors", tuple(tensors))
            for number, tensors in enumerate(files, 1)
        )


@dataclass(frozen=True, slots=True)
class SourceSummary:
    """A source in short.

    Attributes:
        taken: number of its tensors that the job uses, drops or can't place. The others were not
            selected, or were replaced.
    """

    location: str
    form: str
    passed_over: tuple[str, ...]
    tensors: int
    taken: int
    nbytes: int


@dataclass(frozen=True, slots=True)
class Plan:
    """Everything that `execute` needs, and that a person wants to know before it runs.

    Attributes:
        target_names: every parameter of the target.
        suggested_rules: lines for a rule file that would map unmapped tensors to missing
            parameters: guesses, for a person to judge.
        suggested_operations: lines of `tensors` that would make missing parameters of unmapped
            tensors; guesses too.
        tied_absent: parameters that no source has or needs to have, because they share another
            parameter's tensor.
        values_checked: whether the value checks ran. Their findings are in `problems` and `notes`.
        chat_template: the chat template that is written, and why; None without one.
    """

    rules_name: str
    rules_version: str
    rules_sha256: str
    sources: dict[str, SourceSummary]
    target_class: str
    layout: str
    target_names: tuple[str, ...]
    tied_absent: tuple[str, ...]
    mapped: tuple[Mapped, ...]
    aliases: tuple[Alias, ...]
    dropped: tuple[Dropped, ...]
    unmapped: tuple[Unmapped, ...]
    missing: tuple[Missing, ...]
    suggested_rules: tuple[str, ...]
    mismatched: tuple[Mismatched, ...]
    collisions: tuple[Collision, ...]
    post_load: tuple[PostLoadChange, ...]
    value_checks: tuple[ValueCheck, ...]
    problems: tuple[Problem, ...]
    notes: tuple[Problem, ...]
    shards: tuple[Shard, ...]
    nbytes_read: int
    nbytes_write: int
    values_checked: bool = False
    chat_template: ChosenTemplate | None = None
    suggested_operations: tuple[str, ...] = ()

    @property
    def target_tensors(self) -> int:
        return len(self.target_names)

    @property
    def complete(self) -> bool:
        """Whether the plan may be executed: there is no problem of any kind."""
        return not self.problems

    def to_json(self) -> dict[str, Any]:
        return {
            "format": FORMAT,
            "format_version": FORMAT_VERSION,
            "rules": {
                "name": self.rules_name,
                "version": self.rules_version,
                "sha256": self.rules_sha256,
            },
            "sources": {
                name: {
                    "location": s.location,
                    "form": s.form,
                    "passed_over": list(s.passed_over),
                    "tensors": s.tensors,
                    "taken": s.taken,
                    "nbytes": s.nbytes,
                }
                for name, s in self.sources.items()
            },
            "chat_template": self.chat_template and self.chat_template.to_json(),
            "target": {
                "class": self.target_class,
                "layout": self.layout,
                "tensors": self.target_tensors,
            },
            "complete": self.complete,
            "mapped": [entry.to_json() for entry in self.mapped],
            "aliases": [alias.to_json() for alias in self.aliases],
            "dropped": [entry.to_json() for entry in self.dropped],
            "unmapped": [
                {
                    "source": u.source,
                    "name": u.name,
                    "dtype": u.dtype,
                    "shape": list(u.shape),
                    "produced": u.produced,
                    "rules": list(u.rules),
                    "suggestions": list(u.suggestions),
                }
                for u in self.unmapped
            ],
            "missing": [
                {"target": m.target, "shape": list(m.shape), "suggestions": list(m.suggestions)}
                for m in self.missing
            ],
            "suggested_rules": list(self.suggested_rules),
            "suggested_operations": list(self.suggested_operations),
            "mismatched": [
                {
                    "target": m.target,
                    "source_shape": list(m.source_shape),
                    "target_shape": list(m.target_shape),
                }
                for m in self.mismatched
            ],
            "collisions": [
                {
                    "target": c.target,
                    "from": source_names(c.from_),
                    **({"made_by": c.made_by} if c.made_by else {}),
                }
                for c in self.collisions
            ],
            "post_load": [change.to_json() for change in self.post_load],
            "value_checks": [
                {
                    "check": v.check,
                    "target": v.target,
                    "from": source_names(v.from_),
                    "checked": self.values_checked,
                }
                for v in self.value_checks
            ],
            "problems": [problem.to_json() for problem in self.problems],
            "notes": [note.to_json() for note in self.notes],
            "shards": [
                {"file": shard.file, "tensors": list(shard.tensors)} for shard in self.shards
            ],
            "nbytes": {"read": self.nbytes_read, "write": self.nbytes_write},
        }
