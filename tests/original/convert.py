"""Checkpoints put together from the facts, and converted by the command line."""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from pathlib import Path

from tests.original.facts import FACTS, FAMILIES, family

#: Where other rule files than the one that the facts name are asked about; the first has to meet
#: the facts. `LlavaForConditionalGeneration`, the class of `llava-interleave`, takes one tile and
#: has no newline token.
RULES = {"interleave": ("llava-interleave-onevision", "llava-interleave")}


@dataclass(frozen=True)
class Target:
    """A family, converted by a rule file."""

    family: str
    rules: str

    @property
    def name(self) -> str:
        """Of the converted folder."""
        return f"{self.family}+{self.rules}"

    @classmethod
    def of(cls, name: str) -> Target:
        return cls(*name.split("+"))


def rules_of(name: str) -> tuple[str, ...]:
    """The rule files that a family is converted by; the first has to meet the facts."""
    return RULES.get(name, (family(name).rules,))


def main_target(name: str) -> Target:
    """What has to meet the facts of a family."""
    return Target(name, rules_of(name)[0])


def targets(names: tuple[str, ...] = FAMILIES) -> list[Target]:
    """All targets of some families."""
    return [Target(name, rules) for name in names for rules in rules_of(name)]


def assemble(parts: tuple[str, ...], folder: Path) -> None:
    """Copy folders of the facts into one; a later file replaces an earlier one."""
    folder.mkdir(parents=True)
    for part in parts:
        for file in (FACTS / part).iterdir():
            shutil.copy(file, folder)


def convert(target: Target, work: Path) -> Path | str:
    """Put a family's sources together in `work` and run `llava-remap apply`; the folder that it
    made, or what it said.

    The folder is `work/out/NAME`, with the target's name.
    """
    from typer.testing import CliRunner

    from llava_remap.cli.commands import app

    out = work / "out" / target.name
    out.parent.mkdir(parents=True, exist_ok=True)
    arguments = ["apply", target.rules, "--output", str(out), "--offline"]
    for source, parts in family(target.family).sources.items():
        assemble(parts, work / target.name / source)
        arguments += ["--source", f"{source}={work / target.name / source}"]
    ran = CliRunner().invoke(app, arguments)
    if ran.exit_code == 0:
        return out
    why = (
        repr(ran.exception)
        if ran.exception is not None and not isinstance(ran.exception, SystemExit)
        else ran.output
    )
    return f"llava-remap apply {target.rules}: exit {ran.exit_code}: {' '.join(why.split())}"
