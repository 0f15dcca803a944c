"""The README says what is true: its table of codes is that of the code, and its first screen is
what the demo prints.
"""

from __future__ import annotations

import re
from pathlib import Path

from llava_remap.core.codes import CODES
from llava_remap.post_load.plugins.expand_embeddings import USED_BY, ExpandEmbeddings
from llava_remap.rulefile import load_rule_file, shipped_rule_files
from tests.conftest import CLIP, RELEASED, Run

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")


def code_table() -> str:
    """The entries of all codes as they stand in the README."""
    rows = [
        f"| {code} | {entry.title} | {entry.exit.value} | {entry.about} |"
        for code, entry in CODES.items()
    ]
    return "\n".join(
        [
            "| code | what | exit | what it means, and what to do |",
            "| --- | --- | --- | --- |",
            *rows,
        ]
    )


def test_table_of_codes() -> None:
    assert code_table() in README


def option_table() -> str:
    """Options of `expand_embeddings` as they stand in the README."""
    rows = ["| option | default | with `init` | what |", "| --- | --- | --- | --- |"]
    for name, field in ExpandEmbeddings.model_fields.items():
        default = "" if field.default is None else f"`{field.default}`"
        rows.append(
            f"| `{name}` | {default} | {', '.join(USED_BY.get(name, ['any']))} | "
            f"{field.description} |"
        )
    return "\n".join(rows)


def test_table_of_options() -> None:
    assert f"-->\n{option_table()}\n<!-- end of options -->" in README


def test_the_plug_in_is_the_one_in_the_tests() -> None:
    for language, file in (("toml", "pyproject.toml"), ("python", "llava_remap_multiply.py")):
        assert (
            f"```{language}\n{(ROOT / 'tests/data/plugin' / file).read_text(encoding='utf-8')}```"
            in README
        )


def test_every_code_is_used_and_every_used_code_is_known() -> None:
    source = "".join(
        path.read_text() for path in (ROOT / "llava_remap").rglob("*.py") if path.name != "codes.py"
    )
    assert set(re.findall(r'"(LR\d{3})"', source)) == set(CODES)


def test_shipped_rule_files_are_listed() -> None:
    for name in shipped_rule_files():
        assert f"| `{name}` |" in README
        assert load_rule_file(name).text.summary


def test_first_screen_is_what_the_demo_prints(run: Run) -> None:
    ran = run(
        "apply",
        "llava-v1.5",
        "--source",
        RELEASED / "sharded",
        "--source",
        f"vision_tower={CLIP}",
        "--output",
        "demo",
    )
    assert ran.code == 0
    wanted = README[README.index("llava-v1.5 1.0.0 →") : README.index("Done: ./demo written")]
    printed = ran.out[: ran.out.index("Done: ./demo written")]
    printed = re.sub(r"\S*tests/data", "./tests/data", printed)
    needs = re.compile(
        r"needs at most [\d.]+ [MG]B of memory and [\d.]+ kB of disk"
    )  # this process is a larger one
    assert needs.sub("", printed) == needs.sub("", wanted) != wanted
