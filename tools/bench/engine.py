"""50,000 names through 50 rules, beside a plain loop of `re` over the same rules; as templates and
as regexes.

    python tools/bench/engine.py [--rounds 5]

The loop is what a script has: for each name each compiled pattern in turn, until one matches, and
what it is replaced by. Both run in one process, one behind the other, in every second round in
reverse order. What counts is the ratio.
"""

from __future__ import annotations

import argparse
import re
import sys
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from statistics import median

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))  # it is run as a file

from llava_remap.rewrite import Program, compile_rules
from llava_remap.rulefile import load_rule_file

COMPONENTS = ("text", "vision", "audio", "video", "extra")
MODULES = (
    "self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "self_attn.o_proj", "mlp.up_proj",
    "mlp.down_proj",
    "mlp.gate_proj", "input_norm", "output_norm", "rotary",
)  # fmt: skip
LAYERS = 500
NAMES = [
    f"model.{component}.layers.{layer}.{module}.{leaf}"
    for component in COMPONENTS
    for layer in range(LAYERS)
    for module in MODULES
    for leaf in ("weight", "bias")
]
PATHS = [(component, module) for component in COMPONENTS for module in MODULES]
TEMPLATES = [
    f"from: 'model.{component}.layers.{{n:int}}.{module}.{{p}}', to: "
    f"'{component}_model.h.{{n}}.{module}.{{p}}'"
    for component, module in PATHS
]
REGEXES = [
    (
        rf"^model\.{component}\.layers\.([0-9]+)\.{re.escape(module)}\.([^.]+)$",
        rf"{component}_model.h.\1.{module}.\2",
    )
    for component, module in PATHS
]


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=5)
    rounds = parser.parse_args().rounds
    loop = [(re.compile(match), replace) for match, replace in REGEXES]
    print(
        f"{len(NAMES):,} names, {len(REGEXES)} rules: seconds, median (least–most) of {rounds} "
        "rounds"
    )
    for kind, rules in (
        ("templates", TEMPLATES),
        ("regexes", [f"match: '{match}', replace: '{replace}'" for match, replace in REGEXES]),
    ):
        program = compiled(rules)
        ways: dict[str, Callable[[], list[str | None]]] = {
            "plain loop of re": lambda: [plain(loop, name) for name in NAMES],
            f"llava-remap, {kind}": partial(ours, program),
        }
        found, wanted = (way() for way in ways.values())
        if found != wanted or None in found:
            sys.exit("bench: the two don't make the same names")
        taken: dict[str, list[float]] = {name: [] for name in ways}
        for number in range(rounds):
            for name in list(ways) if number % 2 == 0 else reversed(ways):
                started = time.perf_counter()
                ways[name]()
                taken[name].append(time.perf_counter() - started)
        for name, seconds in taken.items():
            print(f"  {name:24} {median(seconds):6.2f} ({min(seconds):.2f}–{max(seconds):.2f})")
        ratios = sorted(two / one for one, two in zip(*taken.values(), strict=True))
        print(
            f"  ratio                    {median(ratios):6.2f} ({ratios[0]:.2f}–{ratios[-1]:.2f})"
        )


def compiled(rules: list[str]) -> Program:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "bench.yaml"
        path.write_text(
            "schema: 1\nnames:\n"
            + "".join(f"  - {{id: r{n}, {rule}}}\n" for n, rule in enumerate(rules))
        )
        return compile_rules(load_rule_file(path))


def ours(program: Program) -> list[str | None]:
    return [program.rewrite(name).target for name in NAMES]


def plain(loop: list[tuple[re.Pattern[str], str]], name: str) -> str | None:
    for pattern, replace in loop:
        if found := pattern.search(name):
            return name[: found.start()] + found.expand(replace) + name[found.end() :]
    return None


if __name__ == "__main__":
    main()
