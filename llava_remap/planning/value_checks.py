"""The checks of a plan that need the bytes."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence

from llava_remap.checkpoint import Checkpoint
from llava_remap.planning.mapped import Alias, Mapped, holds
from llava_remap.planning.model import PostLoadChange, ValueCheck
from llava_remap.routing import Routed, Routes, SourceName, in_place_of, is_one_tensor


def value_checks(
    mapped: Sequence[Mapped],
    aliases: Sequence[Alias],
    single: Mapping[str, Routed],
    placed: Mapping[str, Sequence[Routed]],
    checkpoints: Mapping[str, Checkpoint],
    post_load: Sequence[PostLoadChange],
    routes: Routes,
    norms_about_one: Collection[str],
) -> list[ValueCheck]:
    """The checks of a plan.

    Args:
        single: by parameter, the tensor that is renamed to it.
        placed: by parameter, the tensors from which an operation makes it.
        norms_about_one: the parameters of the language model if its norms multiply by their
            weights, else none.
    """
    checks = []
    norms = [entry for entry in mapped if entry.target in norms_about_one and _is_norm(entry)]
    if norms:
        origins = tuple(origin for entry in norms for origin in entry.origins)
        checks.append(ValueCheck("norms", norms[0].target, origins))
    for name in sorted({read for change in post_load for read in change.change.reads}):
        tensors = [single[name]] if name in single else placed.get(name, ())
        checks += [ValueCheck("finite", name, (routed.origin,)) for routed in tensors]
    # A tensor that is divided becomes several parameters.
    rounded: dict[tuple[SourceName, str], str] = {}
    for entry in mapped:
        for origin in entry.origins:
            if not holds(entry.dtype, entry.dtype_of(origin)):
                rounded.setdefault((origin, entry.dtype), entry.target)
    checks += [ValueCheck("range", target, (origin,)) for (origin, _), target in rounded.items()]
    matrices: dict[SourceName, str] = {}
    for entry in mapped:
        for lora in entry.loras:
            for matrix in (lora.a, lora.b):  # a divided tensor's pair is in several parameters
                matrices.setdefault(matrix, entry.target)
    checks += [ValueCheck("finite", target, (matrix,)) for matrix, target in matrices.items()]
    for alias in aliases:
        other = single.get(alias.of)
        if other is not None and not is_one_tensor(checkpoints, alias.source, other.origin):
            checks.append(ValueCheck("equal", alias.target, (alias.source, other.origin)))
    for routed in routes.beside:
        used = in_place_of(routed, single, routes)
        if used is not None and used.tensor.shape == routed.tensor.shape:
            checks.append(
                ValueCheck("compare", str(routed.rewrite.target), (used.origin, routed.origin))
            )
    return checks


def _is_norm(entry: Mapped) -> bool:
    """Whether an entry is the weight of a norm, by the module's name."""
    *_, module, kind = ("", *entry.target.split("."))
    return kind == "weight" and "norm" in module and len(entry.shape) == 1 and not entry.is_made
