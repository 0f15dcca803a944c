"""The checks of a plan that need bytes. They run before the first output file exists."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import zip_longest
from math import prod

from llava_remap.checkpoint import Checkpoint, Tensor
from llava_remap.core import Problem
from llava_remap.core.dtypes import cast, few_floats, is_finite, to_float64
from llava_remap.execute.values import chunks, find
from llava_remap.planning import Plan

#: The weights of a norm whose mean size is smaller count as about 0. In a model, some norms have
#: such weights, but never all norms. Fine-tuning changes weights by less.
_ABOUT_ZERO = 0.2


def nbytes_to_check(plan: Plan, checkpoints: Mapping[str, Checkpoint]) -> int:
    """The bytes that `run_value_checks` reads and reports as progress."""
    return sum(
        find(checkpoints, origin).nbytes for check in plan.value_checks for origin in check.from_
    )


def run_value_checks(
    plan: Plan,
    checkpoints: Mapping[str, Checkpoint],
    on_progress: Callable[[int], None] = lambda nbytes: None,
) -> tuple[list[Problem], list[Problem]]:
    """Run every value check of a plan.

    Args:
        on_progress: called with the number of bytes read since the last call, `nbytes_to_check` in
            all, or fewer if two tensors differ.

    Returns:
        problems: LR106 for delta weights, LR405 if tied tensors differ, LR406 for inf or NaN and
        for values that are too large for the dtype that is written. Notes: LR310 with the number of
        tensors that differ.
    """
    problems = []
    pairs: dict[str, int] = Counter()  # by the source that isn't used
    differing: dict[str, list[str]] = defaultdict(list)
    # By dtype, each tensor and its values that don't fit.
    beyond: dict[str, list[tuple[str, str]]] = defaultdict(list)
    dtypes = {entry.target: entry.dtype for entry in plan.mapped}
    for check in plan.value_checks:
        if check.check == "norms":
            problems += _delta([find(checkpoints, origin) for origin in check.from_], on_progress)
            continue
        if check.check == "range":
            dtype = dtypes[check.target]
            if found := _beyond(find(checkpoints, check.from_[0]), dtype, on_progress):
                beyond[dtype].append((check.from_[0].name, found))
            continue
        if check.check == "finite":
            if bad := _non_finite(find(checkpoints, check.from_[0]), on_progress):
                problems.append(
                    Problem(
                        "LR406",
                        f"{bad} values of `{check.from_[0].name}` are inf or NaN, and other "
                        "values would be computed from them.",
                        "Find out why the training produced them; a checkpoint with them is "
                        "broken.",
                        (check.from_[0].name,),
                    )
                )
            continue
        one, other = (find(checkpoints, origin) for origin in check.from_)
        same = equal(one, other, on_progress)
        if check.check == "compare":
            pairs[check.from_[1].source] += 1
            differing[check.from_[1].source] += [] if same else [check.from_[1].name]
        elif not same:
            problems.append(
                Problem(
                    "LR405",
                    f"the config ties `{one.name}` and `{other.name}`, but their values differ.",
                    "If both were trained, set tie_word_embeddings to false in the source's "
                    "config.json, and in its text_config if it has one.",
                    (one.name, other.name),
                )
            )
    for dtype, rows in beyond.items():
        problems.append(
            Problem(
                "LR406",
                f"values of {len(rows)} tensor{'s' if len(rows) > 1 else ''} don't fit into "
                f"{dtype}.",
                "Choose another --dtype: bfloat16 holds numbers as large as float32 does. No "
                "dtype can repair inf and NaN.",
                tuple(name for name, _ in rows),
                tuple(rows),
            )
        )
    notes = [
        Problem(
            "LR310",
            f"{len(names)} of {pairs[source]} tensors differ from those of `{source}`.",
            names=tuple(names),
        )
        for source, names in differing.items()
    ]
    return problems, notes


def _read(tensor: Tensor, on_progress: Callable[[int], None]) -> Iterator[bytes]:
    for chunk in chunks(tensor):
        on_progress(len(chunk))
        yield chunk


def _delta(norms: Sequence[Tensor], on_progress: Callable[[int], None]) -> list[Problem]:
    """LR106 if the weights of all norms are about 0: these are differences to a base."""

    def mean_size(norm: Tensor) -> float:
        return sum(
            sum(map(abs, few_floats(chunk, norm.dtype))) for chunk in _read(norm, on_progress)
        ) / prod(norm.shape)

    largest = max(map(mean_size, norms))
    if not largest < _ABOUT_ZERO:
        return []
    return [
        Problem(
            "LR106",
            "these look like delta weights, the differences to a base: the weights of all "
            f"{len(norms)} norms of the language model are about 0 (at most {largest:.2g} in the "
            "mean), while in a model they are about 1.",
            "Add the base first, and give the result: python -m llava.model.apply_delta --base "
            "BASE "
            "--target DIR --delta SRC, of the "
            "research code.",
            tuple(norm.name for norm in norms),
        )
    ]


def _non_finite(tensor: Tensor, on_progress: Callable[[int], None]) -> int:
    chunks_read = _read(tensor, on_progress)
    return sum(int((~is_finite(chunk, tensor.dtype)).sum()) for chunk in chunks_read)


def _beyond(tensor: Tensor, dtype: str, on_progress: Callable[[int], None]) -> str:
    """The values of a tensor that can't be written in another dtype, in words; empty if all can."""
    broken, large, largest = 0, 0, 0.0
    for chunk in _read(tensor, on_progress):
        fits = is_finite(cast(chunk, tensor.dtype, dtype), dtype)
        if fits.all():
            continue
        finite = is_finite(chunk, tensor.dtype)
        broken += int((~finite).sum())
        large += int((finite & ~fits).sum())
        values = to_float64(chunk, tensor.dtype)[finite]
        largest = max(largest, float(abs(values).max(initial=0.0)))
    numbers = f"of {prod(tensor.shape):,} values"
    too_large = [f"{large:,} {numbers} too large, the largest {largest:.6g}"] * bool(large)
    return "; ".join([*too_large, *[f"{broken:,} {numbers} inf or NaN"] * bool(broken)])


def equal(
    one: Tensor, other: Tensor, on_progress: Callable[[int], None] = lambda nbytes: None
) -> bool:
    """Whether two tensors of one shape have the same bytes, or, with different dtypes, the same
    values.
    """
    pairs = zip_longest(_read(one, on_progress), _read(other, on_progress))
    if one.dtype == other.dtype:
        return all(left == right for left, right in pairs)
    return all(
        to_float64(left, one.dtype).tobytes() == to_float64(right, other.dtype).tobytes()
        for left, right in pairs
    )
