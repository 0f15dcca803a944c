"""Calls plug-ins, which are other people's code, and checks their plans and bytes."""

from __future__ import annotations

import contextlib
import difflib
import json
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import lru_cache
from heapq import heappop, heappush
from importlib.metadata import EntryPoint, entry_points
from math import isfinite, prod
from threading import Lock
from typing import TYPE_CHECKING, Any

from pydantic import ValidationError

from llava_remap.core.dtypes import DTYPE_BITS, FLOATS, is_finite
from llava_remap.core.limits import limit_reached
from llava_remap.core.problem import RemapError, refuse
from llava_remap.post_load.protocol import Before, Change, Effect, OldBytes, PostLoadRule, Reader

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

GROUP = "llava_remap.post_load"
#: Keys of the config that decide what the model is.
_CLASS_KEYS = ("architectures", "model_type", "text_config", "vision_config")


def load_post_load_rule(use: str, options: Mapping[str, Any]) -> PostLoadRule:
    """The installed plug-in of a name, with its options validated.

    Raises:
        RemapError: LR212 if no plug-in of this name is installed, or if its options are invalid.
    """
    with _own_faults(use):
        try:
            # As JSON, like a plan: an array then becomes a list or a tuple, as the model has it.
            rule: PostLoadRule = _entry(use).load().model_validate_json(json.dumps(options))
        except ValidationError as error:
            reasons = "; ".join(
                (f"`{'.'.join(map(str, e['loc']))}`: " if e["loc"] else "") + e["msg"]
                for e in error.errors()
            )
            raise refuse(
                "LR212", f"options of `{use}`: {reasons}.", _options(use, options)
            ) from None
    return rule


def takes(use: str, option: str) -> bool:
    """Whether a plug-in has an option of this name.

    Raises:
        RemapError: LR212 if no plug-in of this name is installed.
    """
    with _own_faults(use):
        return option in getattr(_entry(use).load(), "model_fields", ())


def plan_changes(use: str, options: Mapping[str, Any], before: Before) -> Effect:
    """The changes that a plug-in plans. Their facts have passed through JSON, as in a record from
    which the changes are made again.

    Raises:
        RemapError: LR212 as `load_post_load_rule`, and for tensors that the model doesn't have. The
            plan checks that no source has a tensor that the plug-in makes (LR304).
    """
    with _own_faults(use):
        effect = load_post_load_rule(use, options).plan(before)
        changes = tuple(
            replace(change, facts=json.loads(json.dumps(dict(change.facts))))
            for change in effect.changes
        )
        _check_config(use, effect)
        before = _moved(use, effect.moved, before)
    for change in changes:
        have = before.tensors.get(change.target)
        if change.shape_before is None:
            _check_makes(use, change, before)
        elif have != (change.dtype, change.shape_before):
            said = "has no such tensor" if have is None else f"has it as {have[0]} {list(have[1])}"
            raise _fault(
                use,
                f"wants to change `{change.target}` as {change.dtype} {list(change.shape_before)}, "
                f"and the model {said}",
            )
        if unknown := [name for name in change.reads if name not in before.tensors]:
            raise _fault(use, f"wants to read `{unknown[0]}`, which the model doesn't have")
    return replace(effect, changes=changes)


def _check_config(use: str, effect: Effect) -> None:
    """LR212 for config values that decide the class or aren't plain values. Also for an effect
    without a changed tensor, since the record wouldn't show it.
    """
    for key, value in effect.config.items():
        plain = isinstance(value, (str, int)) or (isinstance(value, float) and isfinite(value))
        if not isinstance(key, str) or key in _CLASS_KEYS or "." in key or not plain:
            raise _fault(
                use, f"wants to set `{key}` of the config to {value!r}, which isn't possible"
            )
    if (effect.moved or effect.config) and not effect.changes:
        raise _fault(use, "moves tensors or sets the config, but changes no tensor")


def _moved(use: str, moved: Mapping[str, str], before: Before) -> Before:
    """The model with its tensors moved.

    Raises:
        RemapError: LR212 for an unknown tensor or parameter. The plan checks that no other tensor
            has the new name (LR304).
    """
    for name, place in moved.items():
        if name not in before.tensors or place not in {**before.missing, **before.tensors}:
            raise _fault(
                use, f"wants to move `{name}` to `{place}`, but the model doesn't have both"
            )
    return before.after(moved)


def make_pieces(
    use: str, options: Mapping[str, Any], changes: Sequence[Change], read: Reader
) -> dict[str, Iterator[OldBytes | bytes]]:
    """Target name → the pieces of a changed tensor from a plug-in, checked: as many bytes as
    planned, existing old bytes, finite new values. Each tensor can be consumed once.

    Raises:
        RemapError: LR212 as `load_post_load_rule`, and if the plug-in makes anything else; LR406
            for inf or NaN.
    """
    with _own_faults(use):
        made = load_post_load_rule(use, options).pieces(changes, read)
        pieces = {change.target: iter(made[change.target]) for change in changes}
    return {change.target: _checked(use, change, pieces[change.target]) for change in changes}


def _checked(
    use: str, change: Change, pieces: Iterator[OldBytes | bytes]
) -> Iterator[OldBytes | bytes]:
    width = DTYPE_BITS[change.dtype] // 8
    old = 0 if change.shape_before is None else prod(change.shape_before) * width
    planned, made = prod(change.shape_after) * width, 0
    while made <= planned:
        with _own_faults(use):
            piece = next(pieces, None)
        if piece is None:
            break
        if isinstance(piece, OldBytes):
            if not 0 <= piece.offset <= piece.offset + piece.nbytes <= old:
                raise _fault(
                    use,
                    f"wants bytes {piece.offset} to {piece.offset + piece.nbytes} of "
                    f"`{change.target}`, which has {old}",
                )
            whole = not (piece.offset % width or piece.nbytes % width)
            if piece.negated and not (whole and change.dtype in FLOATS):
                raise _fault(
                    use, f"wants to negate bytes of `{change.target}` that aren't whole elements"
                )
            made += piece.nbytes
        else:
            _check_made(use, piece, change)
            made += len(piece)
        if made <= planned:
            yield piece
    if made != planned:
        raise _fault(
            use,
            f"makes {'more' if made > planned else made} bytes for `{change.target}`; {planned} "
            "were planned",
        )


class PostLoadRules:
    """The post-load rules of one job. Each is called once for all its changes, from any thread.

    Args:
        changes: plug-in, options and change of each changed tensor.
        read: reads rows of tensors before the change.
    """

    def __init__(
        self, changes: Iterable[tuple[str, Mapping[str, Any], Change]], read: Reader
    ) -> None:
        self._read, self._lock = read, Lock()
        #: Target → its rule, with all changes of the rule.
        self._rules: dict[str, tuple[str, Mapping[str, Any], list[Change]]] = {}
        self._made: dict[str, Iterator[OldBytes | bytes]] = {}
        by_rule: dict[str, tuple[str, Mapping[str, Any], list[Change]]] = {}
        for use, options, change in changes:
            key = json.dumps([use, options], sort_keys=True)
            self._rules[change.target] = rule = by_rule.setdefault(key, (use, options, []))
            rule[2].append(change)

    def pieces(self, target: str) -> Iterator[OldBytes | bytes]:
        """The pieces of one changed tensor. A second call makes all tensors of its rule again.

        Raises:
            RemapError: as `make_pieces`.
        """
        with self._lock:
            if target not in self._made:
                self._made |= make_pieces(*self._rules[target], self._read)
            return self._made.pop(target)


def _options(use: str, options: Mapping[str, Any]) -> str:
    """Advice on wrong options: the known option that is most similar, or else all options."""
    known = list(getattr(_entry(use).load(), "model_fields", ()))
    for name in options:
        if name not in known and (near := difflib.get_close_matches(name, known, 1)):
            return f"Did you mean `{near[0]}`?"
    return f"Its options: {', '.join(known)}."


def provenance(use: str) -> str:
    """The package that a plug-in comes from, with its version."""
    package = _entry(use).dist
    return f"{package.name} {package.version}" if package is not None else ""


@lru_cache(maxsize=1)
def _installed(path: tuple[str, ...]) -> dict[str, EntryPoint]:
    """The plug-ins of the packages on the search path. Cached, since finding them reads the
    metadata of every installed package.
    """
    return {entry.name: entry for entry in entry_points(group=GROUP)}


def _entry(use: str) -> EntryPoint:
    installed = _installed(tuple(sys.path))
    if use not in installed:  # a notebook may have installed it just now
        _installed.cache_clear()
        installed = _installed(tuple(sys.path))
    if use not in installed:
        near = difflib.get_close_matches(use, installed, 1)
        raise refuse(
            "LR212",
            f"`post_load` uses `{use}`; installed: {', '.join(sorted(installed)) or 'none'}.",
            f"Did you mean `{near[0]}`?" if near else "Install the package that has it.",
        )
    return installed[use]


def _check_makes(use: str, change: Change, before: Before) -> None:
    """LR212 for a new tensor that the model doesn't have or has in another shape, or for a dtype
    that no parameter has.
    """
    have = before.tensors.get(change.target)
    shape = before.missing.get(change.target) if have is None else have[1]
    if shape != change.shape_after or change.dtype not in FLOATS:
        said = (
            "has no such parameter"
            if shape is None
            else f"has it as {list(shape)}, in floating-point numbers"
        )
        raise _fault(
            use,
            f"wants to make `{change.target}` as {change.dtype} {list(change.shape_after)}, and "
            f"the model {said}",
        )


def _check_made(use: str, made: bytes, change: Change) -> None:
    """LR406 for new values that aren't finite. They are made from finite values, so they don't fit
    into the dtype.
    """
    import numpy as np

    if not isinstance(made, bytes):
        raise _fault(use, f"makes a {type(made).__name__} for `{change.target}`, not bytes")
    if len(made) * 8 % DTYPE_BITS[change.dtype]:
        raise _fault(use, f"makes a piece of `{change.target}` that ends inside a number")
    if bad := int(np.count_nonzero(~is_finite(made, change.dtype))):
        raise refuse(
            "LR406",
            f"{bad} values that `{use}` makes for `{change.target}` don't fit into {change.dtype}: "
            "they are inf or NaN.",
            "Check the checkpoint for very large values, and check the options of the rule.",
            [change.target],
        )


@contextlib.contextmanager
def _own_faults(use: str) -> Iterator[None]:
    """LR212 for errors inside a plug-in. Refusals, errors of the system and a lack of memory pass
    unchanged; a limit that is reached is refused as that.
    """
    try:
        yield
    except (RemapError, OSError, MemoryError):
        raise
    except Exception as error:
        if (reached := limit_reached(error)) is not None:
            raise reached from error
        raise _fault(use, f"fails: {type(error).__name__}: {error}") from error


def _fault(use: str, fault: str) -> RemapError:
    return refuse("LR212", f"`{use}` {fault}.", f"Report it to the authors of `{use}`.")


class _NotAtHandError(RemapError):
    """New values depend on tensors that aren't known yet."""


def find_old_bytes(
    use: str, options: Mapping[str, Any], change: Change
) -> list[tuple[int, int]] | None:
    """The runs of a changed tensor that together are the old tensor, in order; None if the changed
    tensor doesn't have all of it.

    A run is an offset from the first byte of the changed tensor, and a number of bytes. Pieces are
    taken from the plug-in only until all runs are found, so new values after the old bytes are
    never computed. New values before them can't be computed, since the tensors that they depend on
    aren't known yet: the result is None.

    Raises:
        RemapError: LR212 as `make_pieces`.
    """
    assert change.shape_before is not None, "a tensor that a rule made has no old bytes"
    nbytes = prod(change.shape_before) * DTYPE_BITS[change.dtype] // 8
    #: Old bytes whose predecessors aren't found yet: old offset, number of bytes, new offset.
    waiting: list[tuple[int, int, int]] = []
    found: list[tuple[int, int]] = []
    reached = at = 0
    with contextlib.suppress(_NotAtHandError):
        for piece in make_pieces(use, options, [change], _not_at_hand)[change.target]:
            if isinstance(piece, OldBytes) and not piece.negated:
                heappush(waiting, (piece.offset, piece.nbytes, at))
            at += piece.nbytes if isinstance(piece, OldBytes) else len(piece)
            while waiting and waiting[0][0] <= reached:
                offset, length, start = heappop(waiting)
                if offset + length > reached:
                    found.append((start + reached - offset, offset + length - reached))
                    reached = offset + length
            if reached == nbytes:
                return found
    return None


def _not_at_hand(
    target: str, start: int, stop: int, *, as_stored: bool = False
) -> NDArray[np.float64]:
    raise _NotAtHandError.of("LR607", f"the old values of `{target}` aren't available.")
