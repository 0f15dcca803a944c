"""Layouts: rule files that take the names of a layout to the classic ones, and their reverse."""

from __future__ import annotations

from collections.abc import Collection
from functools import cache

from llava_remap.core.problem import refuse
from llava_remap.rewrite import Program, compile_rules
from llava_remap.rulefile import RuleFile, load_rule_file, shipped_layouts

#: The layout of all plans. It is written unless the user asks for another one.
CLASSIC = "classic"
#: The layouts that can be written. `classic-5.6` and `mixed-5.4` can only be read: they are
#: accidents of some versions' `save_pretrained`.
WRITTEN = (CLASSIC, "module-4.52", "module-5.6")


@cache
def layout_rules(layout: str) -> RuleFile:
    """The rule file of a shipped layout."""
    return load_rule_file(shipped_layouts()[layout])


@cache
def layout_program(layout: str) -> Program:
    """The program that takes names of a shipped layout to classic ones."""
    return compile_rules(layout_rules(layout))


def check_layout(layout: str) -> None:
    """LR211 for a layout that can't be written."""
    if layout not in WRITTEN:
        raise refuse(
            "LR211", f"--layout {layout}: it is one of {', '.join(WRITTEN)}.", "Write one of them."
        )


def names_in(layout: str, classic: Collection[str]) -> dict[str, str]:
    """The names of parameters in a layout, by classic name: one name each, which leads back to the
    classic name and no other.

    Raises:
        RemapError: LR601 for parameters that the layout has no name for.
    """
    back = layout_program(layout).inverse
    found = {name: other for name in classic if (other := back(name)) is not None}
    if lost := [name for name in classic if name not in found]:
        raise refuse(
            "LR601",
            f"layout {layout} has no name for {len(lost)} parameters.",
            "Write the classic layout.",
            lost,
        )
    return found
