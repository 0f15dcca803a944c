"""Why a plan is not complete: one problem for each kind, with every name of that kind."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Iterable, Mapping, Sequence
from itertools import pairwise
from typing import Any

from llava_remap.core.dtypes import FLOATS
from llava_remap.core.problem import Problem
from llava_remap.core.wording import counted
from llava_remap.planning.mapped import Alias, Mapped, written_dtype
from llava_remap.planning.model import Collision, Mismatched, Missing, Unmapped
from llava_remap.rewrite import Program
from llava_remap.routing import Routed, RoutedPair, Routes

_NONE: Mapping[str, Sequence[RoutedPair]] = {}
#: The most keys of a config with the same number. If there are more, it may be chance.
_BY_CHANCE = 3
#: The axes of PyTorch's convolutions in the order in which MLX has them.
_MLX = (0, 2, 3, 1)


def unmapped_problems(
    unmapped: Sequence[Unmapped], target_is_known: bool, draft: str
) -> list[Problem]:
    """Source tensors without a parameter, one problem for each kind.

    Args:
        draft: command that infers a rule file for the first source.
    """
    problems = []
    if names := tuple(u.name for u in unmapped if u.produced is None):
        cause = f"{counted(len(names), 'tensor')} that no rule maps."
        fix = (
            "Add a rule that maps them. Drop only tensors that the model doesn't compute with. To "
            f"infer a rule file: {draft}"
        )
        problems.append(Problem("LR301", cause, fix, names))
    if not target_is_known:
        return problems
    for code, broken in (("LR307", True), ("LR303", False)):
        found = [u for u in unmapped if u.produced is not None and _broken(u.produced) is broken]
        if found:
            what = "with an empty or doubled segment" if broken else "that the model doesn't have"
            rules = ", ".join(dict.fromkeys(u.rules[-1] for u in found))
            cause = f"{counted(len(found), 'name')} {what}, made by {rules}."
            fix = (
                "Correct the rules that made them."
                if broken
                else "Check whether the config is for a model of another size, and whether a rule "
                "takes too many names."
            )
            problems.append(Problem(code, cause, fix, tuple(str(u.produced) for u in found)))
    return problems


def coverage_problems(
    missing: Sequence[Missing],
    mismatched: Sequence[Mismatched],
    collisions: Sequence[Collision],
    routes: Routes,
    layers_wanted: int,
    layers_there: int,
    there: set[str],
    config: Mapping[str, Any],
    *,
    as_source: bool,
) -> list[Problem]:
    """Parameters that are missing, have another shape or get two tensors: one problem for each
    kind, with every name of that kind.

    Args:
        there: the model's components (`vision_tower`, …) for which the sources have tensors.
        config: the first source's config, which may explain a shape.
        as_source: whether the source is in a layout of transformers already, so no rule could
            help.
    """
    problems = []
    if missing:
        sources = "".join(
            f" The `select` of source `{name}` takes none of its tensors."
            for name in routes.unselected
        )
        fix = "Give the source that has them, or add a rule for the nearest names."
        if as_source:
            fix = "Give the whole model: transformers would fill missing parameters at random."
        if any(m.target.endswith("lm_head.weight") for m in missing):
            fix += (
                " If the model ties lm_head to embed_tokens, its config.json has to say "
                "tie_word_embeddings: true."
            )
        cause = (
            f"{counted(len(missing), 'parameter')} of the model that no source provides.{sources}"
        )
        if absent := sorted({component(m.target) for m in missing} - there):
            cause += f" The sources have no tensor of {', '.join(absent)}."
        if 0 < layers_there < layers_wanted:
            cause += (
                f" The config says that the language model has {layers_wanted} layers; the "
                f"sources have {layers_there}."
            )
        problems.append(
            Problem("LR302", cause, fix, tuple(m.target for m in missing), side="target")
        )
    mismatched, other_rows = _of_other_tables(mismatched, routes)
    problems += other_rows
    if mismatched:
        problems.append(_shape_problem(mismatched, config))
    if collisions:
        first = collisions[0]
        origins = " and ".join(f"`{origin.name}` ({origin.source})" for origin in first.from_)
        becomes = f"both become `{first.target}`"
        if first.made_by is not None:
            becomes = (
                f"become{'s' if len(first.from_) == 1 else ''} `{first.target}`, which "
                f"`{first.made_by}` makes"
            )
        more = (
            f", and so for {counted(len(collisions) - 1, 'other name')}"
            if len(collisions) > 1
            else ""
        )
        names = tuple(origin.name for collision in collisions for origin in collision.from_)
        cause = f"{origins} {becomes}{more}."
        fix = "Remove one of the two from the checkpoint."
        if first.made_by is not None:
            fix = f"Remove it from the checkpoint, or remove `{first.made_by}` from `post_load`."
        problems.append(Problem("LR304", cause, fix, names))
    return problems


def _of_other_tables(
    mismatched: Sequence[Mismatched], routes: Routes
) -> tuple[list[Mismatched], list[Problem]]:
    """Separate mismatches that a replaced embedding explains.

    Returns:
        The mismatches without this explanation; and LR401 for tensors with as many rows as the
        replaced embedding.
    """
    left, problems = list(mismatched), []
    produced = routes.produced
    for old, by in routes.replaced:
        table = str(old.rewrite.target)
        before, after = old.tensor.shape[:1], produced[table].shape[:1]
        if before != after and (
            odd := [m for m in left if m.source_shape[:1] == before and m.target_shape[:1] == after]
        ):
            left = [m for m in left if m not in odd]
            names = tuple(m.target for m in odd)
            problems.append(
                Problem(
                    "LR401",
                    f"`{by}` has a `{table}` of {after[0]} rows, in place of one with {before[0]} "
                    "rows. It doesn't have the other tensors with a row for each token, and those "
                    f"of `{old.source}` have {before[0]} rows.",
                    f"Give the model with {after[0]} rows, as it was saved after the training of "
                    f"`{by}`: --source {old.source}=DIR.",
                    names,
                    side="target",
                )
            )
    return left, problems


def _shape_problem(mismatched: Sequence[Mismatched], config: Mapping[str, Any]) -> Problem:
    """LR401 with an explanation of the shapes: another order of axes, or keys of the config that
    have the sizes.
    """
    rows = tuple(
        (
            m.target,
            f"{list(m.source_shape)} in the checkpoint, {list(m.target_shape)} in the model",
        )
        for m in mismatched
    )
    names = tuple(m.target for m in mismatched)
    cause = f"{counted(len(mismatched), 'tensor')} with another shape than in the model."
    turned = [m for m in mismatched if sorted(m.source_shape) == sorted(m.target_shape)]
    if turned:
        mlx = any(
            m.source_shape == tuple(m.target_shape[axis] for axis in _MLX)
            for m in turned
            if len(m.target_shape) == 4
        )
        cause += (
            f" {counted(len(turned), 'tensor')} of them "
            f"{'has' if len(turned) == 1 else 'have'} the axes in another order"
        )
        cause += ", as MLX stores convolutions: [out, height, width, in]." if mlx else "."
    here = _keys_with(
        {
            n
            for m in mismatched
            if m not in turned
            for n in _differing(m.source_shape, m.target_shape)
        },
        config,
    )
    there = _keys_with(
        {
            n
            for m in mismatched
            if m not in turned
            for n in _differing(m.target_shape, m.source_shape)
        },
        config,
    )
    if here:
        cause += f" The config agrees with the checkpoint: {here}."
    if there:
        cause += f" The config agrees with the model: {there}."
    if len(turned) == len(mismatched):
        fix = "Give the checkpoint from which this one was made, with the axes in PyTorch's order."
        if any(len(m.source_shape) == 2 for m in turned):
            fix += (
                " Or transpose matrices with rules of `tensors`. Square matrices beside them may "
                "be transposed as well; their sizes don't show it."
            )
    elif here and not there:
        fix = (
            "The config belongs to these weights. The target class has another size there, so it "
            "computes something else."
        )
    else:
        fix = "Check whether the config.json belongs to these weights."
    return Problem("LR401", cause, fix, names, rows, side="target")


def _differing(one: Sequence[int], other: Sequence[int]) -> set[int]:
    """The sizes of one shape that differ from another's."""
    return (
        set(one) - set(other)
        if len(one) != len(other)
        else {n for n, m in zip(one, other, strict=True) if n != m}
    )


def _keys_with(numbers: set[int], config: Mapping[str, Any]) -> str:
    """The keys of a config, and of mappings in it, whose value is one of these numbers. Empty if
    there are so many keys that it may be chance.
    """
    pairs = [(key, value) for key, value in config.items() if not isinstance(value, Mapping)]
    pairs += [
        (f"{key}.{inner}", n)
        for key, part in config.items()
        if isinstance(part, Mapping)
        for inner, n in part.items()
    ]
    found = [f"{key}: {value}" for key, value in pairs if type(value) is int and value in numbers]
    return ", ".join(found) if len(found) <= _BY_CHANCE else ""


def pair_problems(
    pairs: Sequence[RoutedPair],
    shapes: Mapping[str, tuple[int, ...]],
    tied: Collection[str],
    transposed: Collection[str] = (),
    unfit: Collection[str] = (),
    before: Mapping[str, Sequence[RoutedPair]] = _NONE,
) -> list[Problem]:
    """Why an adapter's pairs can't be merged.

    LR313: a pair has no tensor to change. LR115: the tensor isn't a linear layer's. LR401: the
    tensor has another shape. LR304: another pair changes the same tensor.

    Args:
        shapes: parameter → shape of the source tensor for it. If operations take the tensors,
            `shapes`, `tied` and `transposed` have the names under which the tensors are taken.
        tied: parameters that share a tensor. A pair that changes one of them would change the
            others too.
        transposed: matrices that are stored as [inputs, outputs]. PEFT adds the transposed product
            to these; the shape of a square matrix doesn't show it.
        unfit: parameters of operations that don't fit.
        before: by parameter, the pairs that change the tensors from which an operation makes it.
    """
    problems = []
    rows = [
        (
            pair.b.name,
            f"`{pair.rewrite.target}` is tied"
            if pair.rewrite.target in tied
            else f"the operation that makes `{pair.rewrite.target}` doesn't fit"
            if pair.rewrite.target in unfit
            else "no source has it",
        )
        for pair in pairs
        if pair.rewrite.target not in shapes or pair.rewrite.target in tied
    ]
    if rows:
        cause = (
            f"{counted(len(rows), 'LoRA pair')} of {len(pairs)} can't be merged into a tensor "
            "of the base."
        )
        fix = "Give the base on which the adapter was trained, with a rule file for it."
        problems.append(Problem("LR313", cause, fix, tuple(name for name, _ in rows), tuple(rows)))
    if turned := tuple(pair.b.name for pair in pairs if pair.rewrite.target in transposed):
        cause = (
            f"{counted(len(turned), 'LoRA pair')} of {len(pairs)} change matrices that are "
            "stored transposed (GPT-2's Conv1D)."
        )
        fix = (
            "Merge the adapter into its base with PEFT (`merge_and_unload`), save the model and "
            "give the saved model."
        )
        problems.append(Problem("LR115", cause, fix, turned))
    rows = [
        (
            pair.b.name,
            f"{[pair.b.shape[0], pair.a.shape[1]]} in the adapter, {list(shape)} in the base",
        )
        for pair in pairs
        if pair.rewrite.target not in transposed
        and (shape := shapes.get(str(pair.rewrite.target)))
        not in (None, (pair.b.shape[0], pair.a.shape[1]))
    ]
    if rows:
        cause = (
            f"{counted(len(rows), 'LoRA pair')} with another shape than the tensors that they "
            "change."
        )
        fix = "Give the base on which the adapter was trained."
        problems.append(
            Problem(
                "LR401", cause, fix, tuple(name for name, _ in rows), tuple(rows), side="target"
            )
        )
    changed: dict[str, list[RoutedPair]] = {}
    for pair in pairs:
        target = str(pair.rewrite.target)
        changed.setdefault(target, [*before.get(target, ())]).append(pair)
    if twice := {
        target: found for target, found in changed.items() if target in shapes and len(found) > 1
    }:
        target, (one, other, *_) = next(iter(twice.items()))
        cause = (
            f"`{one.b.name}` ({one.source}) and `{other.b.name}` ({other.source}) both change "
            f"`{target}`."
        )
        names = tuple(pair.b.name for found in twice.values() for pair in found)
        problems.append(
            Problem(
                "LR304",
                cause,
                "Merge one of the adapters first, and give the result as its base.",
                names,
            )
        )
    return problems


def tie_problems(aliases: Sequence[Alias]) -> list[Problem]:
    """LR405 for tensors that the model ties to parameters made by operations: their values aren't
    compared.
    """
    if not aliases:
        return []
    return [
        Problem(
            "LR405",
            f"the model ties {counted(len(aliases), 'tensor')} to a parameter that an operation "
            "makes, so it is unknown whether the values are equal.",
            "Make sure that they are equal, and drop these tensors by a rule of `names`.",
            tuple(alias.source.name for alias in aliases),
        )
    ]


def dtype_problems(
    mapped: Sequence[Mapped],
    aliases: Sequence[Alias],
    dtype: str | None,
    integers: Collection[str] = (),
) -> list[Problem]:
    """LR409 for tensors that don't hold floating-point numbers. A loader would convert them
    silently.

    Args:
        integers: names of tensors that hold whole numbers of 64 bits in the target's class.
    """
    dtypes = {entry.target: entry.dtype for entry in mapped}
    dtypes |= {alias.target: written_dtype(alias.dtype, dtype) for alias in aliases}
    odd = {
        name: of
        for name, of in sorted(dtypes.items())
        if (of != "I64" if name in integers else of not in FLOATS)
    }
    if not odd:
        return []
    return [
        Problem(
            "LR409",
            f"{counted(len(odd), 'tensor')} of dtype {', '.join(sorted(set(odd.values())))} for "
            "parameters of the model.",
            f"A parameter must be {', '.join(FLOATS)}. If the checkpoint is quantised or packed, "
            "give the unquantised one.",
            tuple(odd),
            side="target",
        )
    ]


def drop_problems(
    program: Program, taken: Sequence[Routed], missing: set[str], names: Mapping[str, str]
) -> list[Problem]:
    """LR306 for a drop that takes tensors which would provide missing parameters.

    Args:
        names: name of a parameter by the program → its name in `missing`.
    """
    stolen: dict[str, list[str]] = defaultdict(list)
    for routed in taken if missing else ():
        if routed.rewrite.reason is not None:
            rule = routed.rewrite.rules[-1]
            instead = program.rewrite(routed.rewrite.source, without=rule).renamed(names)
            if instead.target in missing:
                stolen[rule].append(routed.tensor.name)
    return [
        Problem(
            "LR306",
            f"the drop `{rule}` takes tensors that the model needs.",
            "Make its pattern narrower.",
            tuple(found),
        )
        for rule, found in stolen.items()
    ]


def layers(names: Iterable[str], prefix: str) -> int:
    """Number of layers among target names: the largest number behind `prefix`, plus 1."""
    numbers = (
        name.removeprefix(prefix).partition(".")[0]
        for name in names
        if prefix and name.startswith(prefix)
    )
    return max((int(number) + 1 for number in numbers if number.isdecimal()), default=0)


def component(name: str) -> str:
    """The part of the model to which a parameter belongs: `vision_tower`, `language_model`, …"""
    first = name.removeprefix("model.").split(".")[0]
    return "language_model" if first == "lm_head" else first


def _broken(name: str) -> bool:
    segments = name.split(".")
    return "" in segments or any(one == other for one, other in pairwise(segments))
