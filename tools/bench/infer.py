"""How well rules are inferred: every manifest with an official mapping, without an edit.

python -m tools.bench.infer
"""

from __future__ import annotations

import json
import time
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from llava_remap.rewrite.infer import DROPPED, InferredRule, Shape, infer
from llava_remap.rulefile import Rule, RuleKind, TimeSpent

DATA = Path(__file__).resolve().parents[2] / "tests" / "data"


@dataclass(frozen=True, slots=True)
class Measured:
    """What was inferred for one manifest: names, those of them that become what they should,
    rules, open questions, seconds.
    """

    manifest: str
    names: int
    right: int
    rules: int
    questions: int
    seconds: float


def target_of(name: str) -> tuple[dict[str, Shape], dict[str, Shape], list[str]]:
    """Source and target shapes by name, without stored buffers, and the target names that the
    config ties.
    """
    from llava_remap.authoring.draft_sources import cleaned

    manifest = json.loads((DATA / "manifests" / f"{name}.json").read_text())
    expected = json.loads((DATA / "expected" / f"{name}.json").read_text())
    source, _ = cleaned({n: tuple(tensor["shape"]) for n, tensor in manifest["tensors"].items()})
    target = {n: tuple(shape) for n, shape in expected["target"].items()}
    ties = manifest["config"].get("tie_word_embeddings") is True
    return source, target, [n for n in target if ties and n.endswith("lm_head.weight")]


@cache
def compiled(rule: InferredRule) -> RuleKind:
    """The rule as a rule file would have it."""
    pattern, new = ("match", "replace") if rule.is_regex else ("from", "to")
    becomes = {"drop": DROPPED} if rule.to is None else {new: rule.to}
    return Rule.model_validate({"id": rule.id, pattern: rule.match, **becomes}).kind


def run_rule(rule: InferredRule, name: str) -> tuple[bool, str | None]:
    """Whether a rule takes a name, and the new name (None: dropped)."""
    after = compiled(rule).apply(name, TimeSpent())
    return after is not None, None if rule.to is None else after


def measure(name: str) -> Measured:
    """Infer, and hold what the rules make of every name of the manifest against the official
    mapping.
    """
    manifest = json.loads((DATA / "manifests" / f"{name}.json").read_text())
    expected = json.loads((DATA / "expected" / f"{name}.json").read_text())
    started = time.perf_counter()
    source, target, tied = target_of(name)
    found = infer(source, target, tied=tied, drop=True)
    seconds = time.perf_counter() - started
    right = 0
    for tensor in manifest["tensors"]:
        taken, becomes = (True, None)  # by the shared parts, as a stored buffer
        if tensor in source:
            taken, becomes = next(
                (outcome for rule in found.rules if (outcome := run_rule(rule, tensor))[0]),
                (False, None),
            )
        right += (
            taken
            and becomes == expected["map"].get(tensor)
            and (becomes is not None or tensor in expected["dropped"])
        )
    return Measured(
        name, len(manifest["tensors"]), right, len(found.rules), len(found.questions), seconds
    )


def main() -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table(
        title="rules inferred from names and shapes, without an edit", title_justify="left"
    )
    table.add_column("manifest", no_wrap=True)
    for column in ("names", "as expected", "rules", "questions", "s"):
        table.add_column(column, justify="right")
    for path in sorted((DATA / "expected").glob("*.json")):
        found = measure(path.stem)
        table.add_row(
            found.manifest, str(found.names), f"{100 * found.right / found.names:.1f} %",
            str(found.rules),
            str(found.questions), f"{found.seconds:.2f}",
        )  # fmt: skip
    Console(width=max(Console().width, 100)).print(table)


if __name__ == "__main__":
    main()
