"""The plan: for every tensor of the target, where it comes from and how. Pure data, and its JSON
form.

Field names are those of the JSON (`llava-remap/plan`, version 1); every list is sorted and
complete.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from math import isfinite
from typing import Any, Literal

from llava_remap.checkpoint import Tensor
from llava_remap.core.dtypes import DTYPE_BITS, FLOATS, HELD_BY
from llava_remap.core.problem import Problem
from llava_remap.post_load import Change
from llava_remap.routing import SourceName
from llava_remap.target_model import ChosenTemplate

FORMAT = "llava-remap/plan"
FORMAT_VERSION = 1

Shape = tuple[int, ...]


def written_dtype(stored: str, wanted: str | None) -> str:
    """The dtype that a tensor is written in: the one `wanted` for all parameters, or, where that
    is None, its own.
    """
    return wanted if wanted is not None and stored in FLOATS else stored


@dataclass(frozen=True, slots=True)
class Merge:
    """What an adapter adds to a tensor: `scale` times B times A, of rank `rank`.

    Attributes:
        scale: None where a manifest doesn't tell it.
    """

    rank: int
    scale: float | None

    @classmethod
    def from_json(cls, entry: Mapping[str, Any]) -> Merge:
        """As it stands in a record.

        Raises:
            KeyError, TypeError, ValueError: for anything else.
        """
        rank, scale = entry["rank"], entry["scale"]
        if (
            type(rank) is not int
            or rank < 1
            or type(scale) not in (int, float)
            or not isfinite(scale)
        ):
            raise ValueError(f"rank {rank!r} and scale {scale!r}")
        return cls(rank, float(scale))


@dataclass(frozen=True, slots=True)
class Mapped:
    """A target tensor and its origin.

    Attributes:
        dtype, shape: as written.
        from_: one source tensor; where an adapter is merged, that of the base and the adapter's A
            and B; where a post-load rule makes the tensor, none.
        rules: the rules that took the name there.
        op: None when the bytes are only copied; `tied`: not written, since another name has the
            tensor; `gather`: the elements are put in row-major, little-endian order; `cast`: that,
            and they are written in another dtype; `merge_adapter`: computed as `merge` says, and
            written in whatever dtype; else the name of the post-load rule that makes it, or changes
            it, after an adapter was merged, if one is; it may come with another dtype, too.
        tied_to: the name that has the tensor, where `op` is `tied`.
        merge: what an adapter adds.
        cast_from: the dtype that the source has it in, where another one is written.
    """

    target: str
    dtype: str
    shape: Shape
    from_: tuple[SourceName, ...]
    rules: tuple[str, ...]
    op: str | None
    tied_to: str | None = None
    merge: Merge | None = None
    cast_from: str | None = None

    @property
    def stored_dtype(self) -> str:
        """The dtype that the source has it in."""
        return self.cast_from or self.dtype

    @property
    def is_rounded(self) -> bool:
        """Whether it is stored in a dtype that has numbers which the one written hasn't."""
        return self.dtype not in HELD_BY.get(self.stored_dtype, (self.stored_dtype,))

    @property
    def is_made(self) -> bool:
        """Whether no source has it, and a post-load rule makes it."""
        return not self.from_

    @property
    def nbytes(self) -> int:
        """Bytes written."""
        return Tensor(self.target, self.dtype, self.shape, None).nbytes

    def to_json(self) -> dict[str, Any]:
        return {
            "target": self.target,
            "dtype": self.dtype,
            "stored_dtype": self.stored_dtype,
            "shape": list(self.shape),
            "from": _names(self.from_),
            "rules": list(self.rules),
            "op": self.op,
            **({"tied_to": self.tied_to} if self.op == "tied" else {}),
            **(
                {"merge": {"rank": self.merge.rank, "scale": self.merge.scale}}
                if self.merge is not None
                else {}
            ),
        }

    @classmethod
    def from_json(cls, entry: Mapping[str, Any]) -> Mapped:
        """The inverse of `to_json`.

        Raises:
            KeyError, TypeError, ValueError: for anything else.
        """
        origins = tuple(
            SourceName(str(origin["source"]), str(origin["name"])) for origin in entry["from"]
        )
        merge = Merge.from_json(entry["merge"]) if "merge" in entry else None
        op = entry["op"] if entry["op"] is None else str(entry["op"])
        wanted = (
            (3,)
            if merge is not None
            else (1,)
            if op in (None, "gather", "cast", "tied")
            else (0, 1)
        )
        if len(origins) not in wanted:
            raise ValueError(f"`{entry['target']}` comes from {len(origins)} tensors")
        shape = tuple(int(size) for size in entry["shape"])
        if merge is not None and (op in (None, "gather", "tied") or len(shape) != 2):
            raise ValueError(
                f"`{entry['target']}` is merged, of shape {list(shape)} and with op {op!r}"
            )
        tied_to = str(entry["tied_to"]) if op == "tied" else None
        dtype, rules = str(entry["dtype"]), tuple(map(str, entry["rules"]))
        stored = str(entry.get("stored_dtype", dtype))  # records of an earlier day have none
        cast_from = stored if stored != dtype else None
        return cls(
            str(entry["target"]), dtype, shape, origins, rules, op, tied_to, merge, cast_from
        )


@dataclass(frozen=True, slots=True)
class Dropped:
    source: str
    name: str
    rule: str
    reason: str


@dataclass(frozen=True, slots=True)
class Unmapped:
    """A source tensor that goes nowhere. `produced`: the name that `rules` gave it, which the
    target doesn't have.
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
    """Several source tensors for one parameter; or one, where a post-load rule makes it too,
    whose name is `made_by` then.
    """

    target: str
    from_: tuple[SourceName, ...]
    made_by: str | None = None


@dataclass(frozen=True, slots=True)
class PostLoadChange:
    """A change with the rule that makes it. Its JSON form is enough to make it again: no rule file,
    no tokenizer is needed.

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
            KeyError: for a field that isn't there.
            ValueError: for one of another form.
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
                raise ValueError(f"`{field}` is no {form.__name__}")
        before = None if data["shape_before"] is None else tuple(data["shape_before"])
        after, reads = tuple(data["shape_after"]), tuple(data["reads"])
        if not all(type(size) is int and size >= 0 for size in (before or ()) + after):
            raise ValueError("a size in a shape is no whole number")
        if not all(isinstance(name, str) for name in reads):
            raise ValueError("a name in `reads` is no text")
        return cls(
            data["use"],
            data["with"],
            Change(data["target"], data["dtype"], before, after, reads, data["facts"]),
        )


@dataclass(frozen=True, slots=True)
class ValueCheck:
    """A check that needs the bytes; run before the first output file exists.

    Attributes:
        check: `finite`: no inf or NaN in it; `range`: none, and no number too large for the dtype
            that is written; `equal`: two tensors that become one have the same bytes; `compare`:
            only count the differences between the tensor used and one given beside it; `norms`: the
            weights of the language model's norms are about 1, not all about 0, as in delta weights.
        target: the target tensor it is about; of `norms` the first.
        from_: one source tensor, the two to compare, or all norms.
    """

    check: Literal["finite", "range", "equal", "compare", "norms"]
    target: str
    from_: tuple[SourceName, ...]


@dataclass(frozen=True, slots=True)
class Shard:
    """An output file: its name, and its tensors by target name in the order in which they lie in
    it.
    """

    file: str
    tensors: tuple[str, ...]

    @classmethod
    def numbered(cls, files: Collection[Sequence[str]]) -> tuple[Shard, ...]:
        """The output files for these lists of tensors, under the names that transformers gives
        to shards.
        """
        return tuple(
            cls(f"model-{number:05d}-of-{len(files):05d}.safetensors", tuple(tensors))
            for number, tensors in enumerate(files, 1)
        )


def aligned(entries: Sequence[Mapped]) -> list[Mapped]:
    """In this order, if each tensor of a file then starts at a multiple of its elements' size; else
    the wider elements first.

    Readers that map the file want it so.
    """
    at = 0
    for entry in entries:
        if at * 8 % DTYPE_BITS[entry.dtype]:
            return sorted(entries, key=lambda entry: -DTYPE_BITS[entry.dtype])
        at += entry.nbytes
    return list(entries)


@dataclass(frozen=True, slots=True)
class SourceSummary:
    """A source in short.

    Attributes:
        taken: how many of its tensors the job uses, drops or can't place; the others were not
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
    """All that `execute` needs to know, and all that a person asks before letting it.

    Attributes:
        target_names: every parameter wanted.
        suggested_rules: lines for a rule file, which would map what is unmapped to what is missing;
            guesses, to be looked at.
        tied_absent: those that no source has and none needs to have, since another parameter's
            tensor is theirs.
        values_checked: whether the value checks were run; what they found is in `problems` and
            `notes`.
        chat_template: the one that is written, and why; None without one.
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

    @property
    def target_tensors(self) -> int:
        return len(self.target_names)

    @property
    def complete(self) -> bool:
        """Whether it may be executed: nothing unmapped, missing, mismatched or colliding, no
        problem of any other kind.
        """
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
            "dropped": [
                {"source": d.source, "name": d.name, "rule": d.rule, "reason": d.reason}
                for d in self.dropped
            ],
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
                    "from": _names(c.from_),
                    **({"made_by": c.made_by} if c.made_by else {}),
                }
                for c in self.collisions
            ],
            "post_load": [change.to_json() for change in self.post_load],
            "value_checks": [
                {
                    "check": v.check,
                    "target": v.target,
                    "from": _names(v.from_),
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


def _names(names: tuple[SourceName, ...]) -> list[dict[str, str]]:
    return [{"source": n.source, "name": n.name} for n in names]
