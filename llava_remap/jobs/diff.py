"""`llava-remap diff`: compares two checkpoints, or two plans, in every respect."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

from llava_remap.checkpoint import Checkpoint, InMemory, Tensor, has_file
from llava_remap.core.escaped import quote
from llava_remap.core.problem import RemapError, refuse
from llava_remap.core.wording import several
from llava_remap.execute import equal
from llava_remap.jobs.output import refuse_changed
from llava_remap.source.hub import HubError
from llava_remap.source.sources import AnySource, as_source, open_source, shown
from llava_remap.verification.compare_files import compare_files, files_not_compared
from llava_remap.verification.compare_headers import Headers, compare_headers
from llava_remap.verification.compare_plans import PlanFile, compare_plans, read_plan
from llava_remap.verification.compare_templates import compare_templates
from llava_remap.verification.compare_tokenizers import compare_tokenizers
from llava_remap.verification.compare_values import compare_values
from llava_remap.verification.difference import Difference, Side, Tie
from llava_remap.verification.record import RECORD

#: The parts of a checkpoint that are read.
_USE = ("tensors", "config", "tokenizer", "processor")


def diff(
    a: AnySource,
    b: AnySource,
    *,
    values: bool = True,
    offline: bool = False,
    on_progress: Callable[[int], None] = lambda nbytes: None,
    on_phase: Callable[[str], None] = lambda what: None,
) -> Difference:
    """Compare two checkpoints or two plans.

    >>> diff("llava-v1.5-7b", "llava-v1.5-7b").equal
    True

    Memory doesn't grow with the checkpoints: values are read a chunk at a time.

    Args:
        a, b: two checkpoints (a folder, a file, a manifest, ORG/NAME[@REVISION] on the hub, or
            tensors in memory), or two plans (the JSON of `--report`, or a record,
            llava_remap.json).
        values: whether the values of tensors are compared, if both sides have values.
        offline: whether only earlier downloads are taken from the hub.
        on_progress: called with the number of bytes read since the last call.
        on_phase: called with the name of each phase when it begins.

    Raises:
        RemapError: as `open_source`; LR113 for a plan or a small file that can't be read, LR211 for
            a checkpoint and a plan.
    """
    return prepare(a, b, values=values, offline=offline).run(on_progress, on_phase)


def prepare(
    a: AnySource, b: AnySource, *, values: bool = True, offline: bool = False
) -> Comparison | PlanComparison:
    """Open both sides and compare their headers. Arguments and errors as for `diff`."""
    given = [as_source(side) for side in (a, b)]
    plans = [read_plan(Path(side)) if isinstance(side, str) else None for side in given]
    if plans[0] is not None and plans[1] is not None:
        return PlanComparison(plans[0], plans[1])
    sides = [
        _open(name, side, offline)
        for name, side, plan in zip("AB", given, plans, strict=True)
        if plan is None
    ]
    if len(sides) == 1:
        which = {True: "a plan", False: "a checkpoint"}
        of_a, of_b = (which[plan is not None] for plan in plans)
        raise refuse(
            "LR211",
            f"A ({shown(given[0])}) is {of_a}, and B ({shown(given[1])}) is {of_b}.",
            "Give two checkpoints or two plans. A folder's own plan is the llava_remap.json in it.",
        )
    manifests = (
        f"{name} is a manifest" for name, s in zip("AB", sides, strict=True) if s.is_manifest
    )
    reason = next(manifests, "" if values else "only headers were asked for")
    return Comparison(sides[0], sides[1], compare_headers(*sides), reason)


def _open(name: str, side: str | InMemory, offline: bool) -> Checkpoint:
    """Open one side."""
    try:
        return open_source(name, side, _USE, first=True, part=True, offline=offline)
    except HubError as error:  # its advice is for --source
        fix = f"Download it elsewhere, and give its folder as {name}."
        raise RemapError(replace(problem, fix=fix) for problem in error.problems) from None


@dataclass(frozen=True, slots=True)
class PlanComparison:
    """Two plans, opened."""

    a: PlanFile
    b: PlanFile
    nbytes: int = 0

    def run(
        self,
        on_progress: Callable[[int], None] = lambda nbytes: None,
        on_phase: Callable[[str], None] = lambda what: None,
    ) -> Difference:
        return compare_plans(self.a, self.b)


@dataclass(frozen=True, slots=True)
class Comparison:
    """Two checkpoints, opened and compared by their headers.

    Attributes:
        reason: why values aren't compared; empty if they are.
    """

    a: Checkpoint
    b: Checkpoint
    headers: Headers
    reason: str

    @property
    def nbytes(self) -> int:
        """The bytes that `run` reads of tensors and reports as progress."""
        if self.reason:
            return 0
        both = (
            tensor
            for name in self.headers.comparable
            for tensor in (self.headers.a[name], self.headers.b[name])
        )
        heads = (tensor for pair in self._perhaps_tied().values() for tensor in pair)
        return sum(tensor.nbytes for tensor in (*both, *heads))

    def run(
        self,
        on_progress: Callable[[int], None] = lambda nbytes: None,
        on_phase: Callable[[str], None] = lambda what: None,
    ) -> Difference:
        """Compare values, configs, tokenizers and chat templates."""
        headers, ties, found, compared = self.headers, list(self.headers.ties), [], 0
        if not self.reason:
            on_phase("comparing values")
            for name in headers.comparable:
                values = compare_values(name, headers.a[name], headers.b[name], on_progress)
                found += [] if values is None else [values]
                compared += 1
            for name, pair in self._perhaps_tied().items():
                if equal(*pair, on_progress):
                    which, table = headers.perhaps_tied[name]
                    names = tuple(sorted((name, table)))
                    in_a = which == "a"
                    ties.append(
                        Tie(names, "equal", "alone") if in_a else Tie(names, "alone", "equal")
                    )
        on_phase("comparing configs and tokenizers")
        tied = {name for tie in ties for name in tie.names}
        difference = Difference(
            "checkpoints",
            _side(self.a),
            _side(self.b),
            sum(name in headers.b for name in headers.a),
            headers.layout,
            headers.only_in("a", tied),
            headers.only_in("b", tied),
            headers.shapes,
            headers.dtypes,
            tuple(ties),
            compared,
            self.reason,
            tuple(found),
            tuple(compare_files(self.a, self.b)),
            compare_tokenizers(self.a, self.b),
            tuple(compare_templates(self.a, self.b)),
            notes=tuple(self._notes()),
        )
        refuse_changed({"a": self.a, "b": self.b})
        return difference

    def _notes(self) -> Iterator[str]:
        """What was not compared; and for two sides with few common names, a better command."""
        sides = (self.a, self.b)
        for name, side in zip("AB", sides, strict=True):
            if side.passed_over:
                yield f"weights in {name} that are not read: {several(side.passed_over)}"
        folders = [side.folder for side in sides if side.folder is not None and not side.origin]
        if len(folders) == 2 and (others := files_not_compared(*folders)):
            yield f"files that differ, and that were not compared: {several(others)}"
        for name, side, other in zip("AB", sides, reversed(sides), strict=True):
            if side.folder is None:
                why = "a manifest" if side.is_manifest else "in memory, without a folder"
                config = "config, " * any(s.folder is None and s.config is None for s in sides)
                yield (
                    f"{config}generation config, tokenizer, processor and chat template were not "
                    f"compared: {name} is {why}."
                )
                return
            common = sum(tensor in self.headers.b for tensor in self.headers.a)
            are_few = self.headers.layout is None and common < len(other.catalog) // 2
            if are_few and side.path.is_dir() and has_file(side.folder / RECORD):
                yield (
                    f"A and B have different names. If {name} was made from the other: "
                    f"llava-remap verify {quote(side.location)} --against {quote(other.location)}"
                )

    def _perhaps_tied(self) -> dict[str, tuple[Tensor, Tensor]]:
        """For the head of one side, that head and the table of embeddings beside it."""
        catalog = self.headers.catalog
        return {
            name: (catalog(which)[name], catalog(which)[table])
            for name, (which, table) in self.headers.perhaps_tied.items()
        }


def _side(checkpoint: Checkpoint) -> Side:
    return Side(checkpoint.location, checkpoint.form, len(checkpoint.catalog), checkpoint.nbytes)
