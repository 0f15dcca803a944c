"""Checks of tensor operations: operations that take tensors from each other, operations that get no
tensors, and lists of tensors with gaps.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Iterator

from llava_remap.authoring.lint.trial import Finding, Ground, Trial
from llava_remap.checkpoint import Tensor
from llava_remap.core.problem import Problem
from llava_remap.rewrite import CompiledOperation
from llava_remap.routing import Applied, Routed, operations_on
from llava_remap.rulefile import Operation


def chained(trial: Trial) -> Iterator[Finding]:
    """LR203: a new tensor that an operation would take again. A tensor that keeps its name while
    its axes change order is not an error.
    """
    found: dict[tuple[str, str], tuple[CompiledOperation, list[tuple[str, str]]]] = {}
    for compiled in trial.program.tensors:
        program = trial.program.assuming(compiled.when)
        for name, made in _made(compiled.operation):
            again = program.operate(made)
            if again is not None and made != name:
                key = (compiled.label, again.rule.label)
                found.setdefault(key, (compiled, []))[1].append((name, f"→ {made}"))
    for (label, other), (compiled, chains) in found.items():
        cause = f"`{label}` takes its own new names."
        fix = "Let the operation take only names of tensors that it didn't make."
        if other != label:
            cause = (
                f"`{other}` would take the new tensors of `{label}`, but only one operation "
                "applies to a tensor."
            )
            fix = (
                "Write one operation that does what both do (a part can have its own view), or "
                "give each operation a `when` for its checkpoints."
            )
        names = tuple(dict.fromkeys(name for name, _ in chains))
        yield Finding(compiled.mark, Problem("LR203", cause, fix, names, tuple(chains)))


def _made(operation: Operation) -> Iterator[tuple[str, str]]:
    """Names made from the templates of `from`, each with every new name."""
    for end in operation.sources:
        for name in end.names.examples if end.names is not None else ():
            taken = operation.take(name)
            if taken is None:
                continue
            for number in range(len(operation.targets)):
                if (new := operation.made(number, taken.fields, taken.number)) is not None:
                    yield name, new


def shadowed_operations(trial: Trial) -> Iterator[Finding]:
    """LR204: an operation that never gets one of its tensors, since other operations, or another
    entry of its own `from`, take all names made from the template.
    """
    for compiled in trial.program.tensors:
        program = trial.program.assuming(compiled.when)
        for number, end in enumerate(compiled.operation.sources):
            takers: dict[str, None] = {}
            names = end.names.examples if end.names is not None else []
            for name in names:
                operated = program.operate(name)
                if operated is None or (operated.rule, operated.taken.end) == (compiled, number):
                    break  # an operation takes no name from which it can't compute a new one
                takers[operated.rule.label] = None
            else:
                by = " and ".join(f"`{label}`" for label in takers)
                cause = f"`{compiled.label}` gets no `{end.names}`: {by} takes these names first."
                fix = f"Put it before {by}, make {by} narrower, or remove it."
                if [*takers] == [compiled.label]:
                    cause = (
                        f"`{compiled.label}` takes the names of `{end.names}` for another entry "
                        "of `from`."
                    )
                    fix = "Make the entry before it narrower."
                yield Finding(compiled.mark, Problem("LR204", cause, fix, tuple(names)))


def incomplete(trial: Trial) -> Iterator[Finding]:
    """LR321: real names of an operation that gets only some of the tensors that belong together. If
    the sizes are known, `misfits` reports the problem instead.
    """
    if trial.real is None or trial.names.complete:
        return
    lacking: dict[str, list[tuple[str, str]]] = defaultdict(list)
    for applied in applied_to(trial.real):
        first = next(applied.tensors).tensor.name
        for number, end in enumerate(applied.rule.operation.sources):
            numbers = {each for at, each in applied.sources if at == number}
            absent = min({*range(len(numbers) + 1)} - numbers)
            if absent <= max(numbers, default=0):
                fact = f"number {absent} of" if end.each else "there is no"
                lacking[applied.rule.label].append((first, f"{fact} `{end.names}`"))
    for label, rows in lacking.items():
        yield Finding(
            trial.file.marks[label],
            Problem(
                "LR321",
                f"`{label}` doesn't get all tensors that belong together: beside `{rows[0][0]}`, "
                f"{rows[0][1]} is missing.",
                "Correct its templates: fields say which tensors belong together, and {x:each} "
                "numbers a list from 0 without gaps.",
                tuple(name for name, _ in rows),
                tuple(rows),
            ),
        )


def misfits(trial: Trial) -> Iterator[Finding]:
    """LR321 and similar: problems of rules for which `apply` would refuse the given sources."""
    for problem in trial.names.misfits:
        yield Finding.of(problem)


def applied_to(ground: Ground) -> tuple[Applied, ...]:
    """The operations that apply to names whose sizes are unknown."""
    return operations_on(
        [
            Routed(
                "model",
                Tensor.of(name, "", (), None),
                ground.rewrites[name]._replace(operated=operated),
            )
            for name, operated in ground.operated.items()
        ]
    )


def made_of(ground: Ground, wanted: Collection[str]) -> set[str]:
    """The parameters that operations make."""
    return {
        name
        for applied in applied_to(ground)
        for name in applied.made_of(wanted).values()
        if name in wanted
    }
