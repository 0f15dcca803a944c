"""The protocol of a post-load rule: it plans its changes from shapes alone, and computes them
later.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Protocol, overload

from llava_remap.core.problem import Problem

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray


@dataclass(frozen=True, slots=True)
class Change:
    """One tensor of the target that a post-load rule changes, or makes.

    Attributes:
        target: its name.
        dtype: the dtype to write: the source's, or that of --dtype. The rule doesn't change it.
        shape_before: the shape in the source; None for a tensor that no source has and the rule
            makes.
        shape_after: the shape to write.
        reads: the target tensors whose values it depends on. They are first checked to be finite.
        facts: other results of the planning, as JSON values. The written bytes depend only on the
            rule's options, this change and the tensors read. The plug-in then gets nothing else,
            for example no tokenizer.
    """

    target: str
    dtype: str
    shape_before: tuple[int, ...] | None
    shape_after: tuple[int, ...]
    reads: tuple[str, ...]
    facts: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Effect:
    """All that a post-load rule will do.

    Attributes:
        changes: the tensors that it changes or makes.
        notes: what the user has to know.
        moved: target name → the other target name that its tensor gets first. `changes` has the
            names after the move.
        config: values of the target's config that the changes need, by key: texts, numbers, true
            or false.
    """

    changes: tuple[Change, ...]
    notes: tuple[Problem, ...] = ()
    moved: Mapping[str, str] = field(default_factory=dict)
    config: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Before:
    """The planned model before a post-load rule.

    Attributes:
        tensors: name → dtype and shape to write, for every target tensor that comes from a source.
        missing: name → shape, for every parameter of the target that no source has, except tied
            parameters.
        rows_needed: rows that the vocabulary needs: one more than the largest token id.
        token_ids: the id of every token, including new tokens; None if no source has a tokenizer.
        embedding: name of the table of token embeddings, in the target's class.
        head: name of the matrix that turns hidden states into logits, in the target's class.
        config: the target's config.
    """

    tensors: Mapping[str, tuple[str, tuple[int, ...]]]
    rows_needed: int
    missing: Mapping[str, tuple[int, ...]] = field(default_factory=dict)
    token_ids: Mapping[str, int] | None = None
    embedding: str = ""
    head: str = ""
    config: Mapping[str, Any] = field(default_factory=dict)

    def after(self, moved: Mapping[str, str]) -> Before:
        """The same model after tensors are renamed."""
        stay = {name: tensor for name, tensor in self.tensors.items() if name not in moved}
        tensors = stay | {moved[name]: self.tensors[name] for name in moved}
        left = {name: self.tensors[name][1] for name in moved}
        missing = {n: shape for n, shape in {**self.missing, **left}.items() if n not in tensors}
        return replace(self, tensors=tensors, missing=missing)


@dataclass(frozen=True, slots=True)
class OldBytes:
    """A run of the tensor's old bytes, row-major, in the dtype to write.

    Attributes:
        offset: bytes from the tensor's first byte.
        nbytes: bytes of whole elements.
        negated: whether each number is negated.
    """

    offset: int
    nbytes: int
    negated: bool = False


class Reader(Protocol):
    """Reads rows of target tensors as they were before the change."""

    @overload
    def __call__(self, target: str, start: int, stop: int) -> NDArray[np.float64]: ...
    @overload
    def __call__(
        self, target: str, start: int, stop: int, *, as_stored: bool
    ) -> NDArray[np.floating[Any]]:
        """The source's rows from `start` to `stop` along the first dimension, [stop - start, …], as
        float64.

        `as_stored`: in the numpy dtype of the stored numbers, with BF16 as float32. Sums of such
        numbers overflow earlier than sums of float64.
        """
        ...


class PostLoadRule(Protocol):
    """A plug-in of the entry point group `llava_remap.post_load`: a pydantic model whose fields
    are its options.
    """

    def plan(self, before: Before) -> Effect:
        """The changes, from shapes alone. The result must be the same every time."""
        ...

    def pieces(
        self, changes: Sequence[Change], read: Reader
    ) -> Mapping[str, Iterator[OldBytes | bytes]]:
        """Target name → the pieces of the changed tensor, in order: runs of old bytes, and new
        values in the tensor's dtype, little-endian.

        A job calls this once with all changes of the rule. It then consumes each tensor at most
        once, in any order, possibly several tensors at the same time in several threads. Results
        that tensors share, such as a mean, belong into an object that their iterators share.

        New values that are inf or NaN are refused when they are written (LR406).
        """
        ...
