"""A plug-in of one's own, the one in docs/rules/plugins.md: built, installed beside
llava-remap, and named in a rule file.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path
from typing import NoReturn

import pytest
import torch
from safetensors.torch import load_file

from llava_remap.execute.files import Closed
from llava_remap.post_load import Before
from llava_remap.post_load.plugins.expand_embeddings import ExpandEmbeddings
from llava_remap.post_load.run import make_pieces
from tests.conftest import CLIP, DATA, RELEASED

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs" / "rules" / "plugins.md"
WEIGHT, BIAS = (f"multi_modal_projector.linear_2.{part}" for part in ("weight", "bias"))
LINES = next(
    block
    for block in re.findall(r"```yaml\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL)
    if "use: multiply" in block
)
RULES = (
    "schema: 1\nname: mine\nversion: 1.0.0\nsummary: with a factor\n"
    f"extends: [llava-v1.5.yaml]\n{LINES}"
)


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of packages with the plug-in in it."""
    folder = tmp_path_factory.mktemp("packages")
    options = (
        "--quiet",
        "--no-deps",
        "--no-build-isolation",
        "--no-index",
        "--disable-pip-version-check",
        "--target",
        folder,
    )
    subprocess.run(
        [sys.executable, "-m", "pip", "install", *options, DATA / "plugin"],
        check=True,
        capture_output=True,
    )
    return folder


def apply_with(packages: list[Path], rules: str = RULES) -> subprocess.CompletedProcess[str]:
    Path("mine.yaml").write_text(rules)
    program = "from llava_remap.cli import main; main()"
    arguments = (
        "apply",
        "mine.yaml",
        "--source",
        RELEASED / "sharded",
        "--source",
        f"vision_tower={CLIP}",
        "--output",
        "out",
    )
    path = os.pathsep.join(map(str, [*packages, ROOT]))
    return subprocess.run(
        [sys.executable, "-c", program, *arguments],
        env=os.environ | {"PYTHONPATH": path, "COLUMNS": "200"},
        capture_output=True,
        text=True,
        check=False,
    )


def written() -> dict[str, torch.Tensor]:
    return {
        name: tensor
        for file in Path("out").glob("*.safetensors")
        for name, tensor in load_file(file).items()
    }


def test_it_is_used(installed: Path) -> None:
    ran = apply_with([installed])
    assert ran.returncode == 0, ran.stderr
    assert f"Other values\n  {BIAS} (multiply)\n  {WEIGHT} (multiply)\n" in ran.stdout
    source = load_file(RELEASED / "safetensors" / "model.safetensors")
    found = written()
    for name, old in ((WEIGHT, "model.mm_projector.2.weight"), (BIAS, "model.mm_projector.2.bias")):
        wanted = (source[old].double() * 0.3).to(source[old].dtype)
        assert torch.equal(found[name], wanted)
        assert not torch.equal(found[name], source[old])
    assert torch.equal(
        found["multi_modal_projector.linear_1.weight"], source["model.mm_projector.0.weight"]
    )
    assert found["language_model.lm_head.weight"].shape == (384, 64)


def test_its_mistakes_have_a_place_in_the_rule_file(installed: Path) -> None:
    ran = apply_with([installed], RULES.replace(BIAS, "no.such.bias"))
    assert ran.returncode == 2
    assert "mine.yaml:8:5 `multiply`: the model has no `no.such.bias`." in ran.stdout
    assert not Path("out").exists()


def test_what_it_makes_is_checked(installed: Path) -> None:
    ran = apply_with([installed], RULES.replace("factor: 0.3", "factor: 1.0e+9"))
    assert ran.returncode == 1
    said = (
        r"\d+ values that `multiply` makes for `multi_modal_projector\.linear_2\.\w+` don't "
        r"fit "
        r"into F16"
    )
    assert "LR406" in ran.stderr
    assert re.search(said, ran.stderr)
    assert not Path("out").exists()


def test_not_installed() -> None:
    ran = apply_with([])
    assert ran.returncode == 2
    assert "LR212" in ran.stdout + ran.stderr
    assert (
        "mine.yaml:8:5 `post_load` uses `multiply`; installed: expand_embeddings, identity_layer."
        in ran.stdout + ran.stderr
    )
    assert not Path("out").exists()


def test_a_plug_in_is_not_blamed_for_the_end_of_writing() -> None:
    """It reads while another file fails: then reading ends it."""
    rule = ExpandEmbeddings(init="mean", vocab=50)
    table = "language_model.model.embed_tokens.weight"
    effect = rule.plan(Before({table: ("F32", (40, 8))}, 41, {}, None, table))

    def closed(*arguments: object, **named: object) -> NoReturn:
        raise Closed

    pieces = make_pieces("expand_embeddings", {"init": "mean", "vocab": 50}, effect.changes, closed)
    with pytest.raises(Closed):
        [*pieces[table]]
