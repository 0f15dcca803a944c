"""Plug-ins are other people's code: here it is called, and what it says and makes is held
against what it was asked for.
"""

from __future__ import annotations

import contextlib
import difflib
import json
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from importlib.metadata import EntryPoint, entry_points
from math import prod
from threading import Lock
from typing import Any

from pydantic import ValidationError

from llava_remap.core.dtypes import DTYPE_BITS, FLOATS
from llava_remap.core.problem import RemapError, refuse
from llava_remap.post_load.protocol import Before, Change, Effect, OldBytes, PostLoadRule, Reader

GROUP = "llava_remap.post_load"


def load_post_load_rule(use: str, options: Mapping[str, Any]) -> PostLoadRule:
    """The installed plug-in of a name, with its options validated.

    Raises:
        RemapError: LR212 for a name that isn't installed or options that don't fit.
    """
    with _own_faults(use):
        try:
            # As JSON, which they are in a plan: there a list is a list or a tuple, as the model
            # wants it.
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
        RemapError: LR212 for a name that isn't installed.
    """
    with _own_faults(use):
        return option in getattr(_entry(use).load(), "model_fields", ())


def plan_changes(use: str, options: Mapping[str, Any], before: Before) -> Effect:
    """What a plug-in will change. Its facts come back as JSON gives them back, so that what is
    written can be made again.

    Raises:
        RemapError: LR212 as `load_post_load_rule`, and for changes of what the model doesn't have.
            That a source has what the plug-in makes is told by the plan (LR304).
    """
    rule = load_post_load_rule(use, options)
    with _own_faults(use):
        effect = rule.plan(before)
        changes = tuple(
            replace(change, facts=json.loads(json.dumps(dict(change.facts))))
            for change in effect.changes
        )
    for change in changes:
        have = before.tensors.get(change.target)
        if change.shape_before is None:
            _check_makes(use, change, before)
        elif have != (change.dtype, change.shape_before):
            said = (
                "has no such tensor to be written"
                if have is None
                else f"has it as {have[0]} {list(have[1])}"
            )
            wanted = f"`{change.target}` as {change.dtype} {list(change.shape_before)}"
            raise refuse(
                "LR212", f"`{use}` wants to change {wanted}, and the model {said}.", _report(use)
            )
        if unknown := [name for name in change.reads if name not in before.tensors]:
            raise refuse(
                "LR212",
                f"`{use}` wants to read `{unknown[0]}`, which the model doesn't have.",
                _report(use),
            )
    return replace(effect, changes=changes)


def make_pieces(
    use: str, options: Mapping[str, Any], changes: Sequence[Change], read: Reader
) -> dict[str, Iterator[OldBytes | bytes]]:
    """The changed tensors from a plug-in by target name, each piece by piece: as many bytes as
    planned, old ones that are there, finite new ones. Each can be taken once.

    Raises:
        RemapError: LR212 as `load_post_load_rule`, and where the plug-in makes something else;
            LR406 for inf or NaN.
    """
    rule = load_post_load_rule(use, options)
    with _own_faults(use):
        made = rule.pieces(changes, read)
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
                raise refuse(
                    "LR212",
                    f"`{use}` wants bytes {piece.offset} to {piece.offset + piece.nbytes} of "
                    f"`{change.target}`, which has {old}.",
                    _report(use),
                )
            made += piece.nbytes
        else:
            _check_made(use, piece, change)
            made += len(piece)
        if made <= planned:
            yield piece
    if made != planned:
        raise refuse(
            "LR212",
            f"`{use}` makes {'more' if made > planned else made} bytes for `{change.target}`; "
            f"{planned} were planned.",
            _report(use),
        )


class PostLoadRules:
    """The post-load rules of one job. Each is asked once for all its changes, from any thread.

    Args:
        changes: plug-in, options and change of each changed tensor.
        read: gives rows of tensors as they were before.
    """

    def __init__(
        self, changes: Iterable[tuple[str, Mapping[str, Any], Change]], read: Reader
    ) -> None:
        self._read, self._lock = read, Lock()
        self._rules: dict[str, tuple[str, Mapping[str, Any]]] = {}
        self._changes: dict[str, list[Change]] = defaultdict(list)
        self._rule_of: dict[str, str] = {}
        self._made: dict[str, Iterator[OldBytes | bytes]] = {}
        for use, options, change in changes:
            rule = json.dumps([use, options], sort_keys=True)
            self._rules[rule] = use, options
            self._changes[rule].append(change)
            self._rule_of[change.target] = rule

    def pieces(self, target: str) -> Iterator[OldBytes | bytes]:
        """One changed tensor. A tensor that is wanted once more is made anew, and so are the others
        of its rule.

        Raises:
            RemapError: as `make_pieces`.
        """
        rule = self._rule_of[target]
        with self._lock:
            if target not in self._made:
                self._made |= make_pieces(*self._rules[rule], self._changes[rule], self._read)
            return self._made.pop(target)


def _options(use: str, options: Mapping[str, Any]) -> str:
    """What to do about wrong options: the ones that there are, or the one that is nearest to an
    unknown one.
    """
    known = list(getattr(_entry(use).load(), "model_fields", ()))
    for name in options:
        if name not in known and (near := difflib.get_close_matches(name, known, 1)):
            return f"Did you mean `{near[0]}`?"
    return f"Its options: {', '.join(known)}."


def provenance(use: str) -> str:
    """The package that a plug-in comes from, with its version."""
    package = _entry(use).dist
    return f"{package.name} {package.version}" if package is not None else ""


def _entry(use: str) -> EntryPoint:
    installed = {entry.name: entry for entry in entry_points(group=GROUP)}
    if use not in installed:
        near = difflib.get_close_matches(use, installed, 1)
        raise refuse(
            "LR212",
            f"`post_load` uses `{use}`; installed: {', '.join(sorted(installed)) or 'none'}.",
            f"Did you mean `{near[0]}`?" if near else "Install the package that has it.",
        )
    return installed[use]


def _check_makes(use: str, change: Change, before: Before) -> None:
    """LR212 for a tensor that the model doesn't have, or has in another shape, or in a dtype
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
        wanted = f"`{change.target}` as {change.dtype} {list(change.shape_after)}"
        raise refuse(
            "LR212", f"`{use}` wants to make {wanted}, and the model {said}.", _report(use)
        )


def _check_made(use: str, made: bytes, change: Change) -> None:
    """LR406 for new values that are not finite; those that they were made from were, so they
    don't fit into the dtype.
    """
    import numpy as np

    from llava_remap.core.dtypes import is_finite

    if not isinstance(made, bytes):
        raise refuse(
            "LR212",
            f"`{use}` makes a {type(made).__name__} for `{change.target}`, not bytes.",
            _report(use),
        )
    if len(made) * 8 % DTYPE_BITS[change.dtype]:
        raise refuse(
            "LR212",
            f"`{use}` makes a piece of `{change.target}` that ends inside a number.",
            _report(use),
        )
    bad = int(np.count_nonzero(~is_finite(made, change.dtype)))
    if bad:
        raise refuse(
            "LR406",
            f"{bad} values that `{use}` makes for `{change.target}` don't fit into {change.dtype}: "
            "they are inf or NaN.",
            "Look for values close to the largest ones in the checkpoint, and at the options of "
            "the rule.",
            [change.target],
        )


@contextlib.contextmanager
def _own_faults(use: str) -> Iterator[None]:
    """LR212 for what goes wrong inside a plug-in. What it refuses itself, the system's errors
    and want of memory pass.
    """
    try:
        yield
    except (RemapError, OSError, MemoryError):
        raise
    except Exception as error:
        raise refuse(
            "LR212", f"`{use}` fails: {type(error).__name__}: {error}.", _report(use)
        ) from error


def _report(use: str) -> str:
    return f"Tell those who wrote `{use}`."
