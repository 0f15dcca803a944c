"""How reports show tensor operations: which rows of which tensor, and parts that are dropped."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import torch
from safetensors.torch import load_file, save_file

from llava_remap import plan
from llava_remap.report.html.rows import rows
from tests.conftest import CLIP, Run
from tests.fused import RULES, sources

if TYPE_CHECKING:
    from playwright.sync_api import Browser

#: Only the first rows of `gate_up` are taken.
CUT = RULES.replace("'{m}.up_proj.weight']", "{drop: padding}]").replace(
    "how: {view: ['*', 2], unstack: 1}", "how: {split: 0}"
)
LAYER = "language_model.model.layers.0"


def given(source: Path) -> tuple[object, ...]:
    return ("--source", source, "--source", f"vision_tower={CLIP}", "--dry-run")


def test_rows_of_a_page(fused_source: Path, fused_rules: Path) -> None:
    fused_rules.write_text(CUT)
    found = rows(plan(fused_rules, sources(fused_source), dry_run=True))
    by_target = {row.target: row for row in found if row.target}
    gate = by_target[f"{LAYER}.mlp.gate_proj.weight"]
    assert (gate.status, gate.how) == ("moved", "rows 0..111 of the source tensor")
    down = by_target[f"{LAYER}.mlp.down_proj.weight"]
    assert down.how == "the source tensor seen as [112, 64] in the order [1, 0]"
    [cut, _] = [row for row in found if row.status == "dropped" and "gate_up" in str(row.taken)]
    assert cut.how == "rows 112..223 of the source tensor: padding"
    # Bytes of a tensor are those of its parts, each once.
    assert cut.nbytes == sum(nbytes for _, nbytes in cut.taken) == 112 * 64 * 2
    assert cut.shape == "112 × 64"
    assert gate.nbytes == sum(nbytes for _, nbytes in gate.taken) == 112 * 64 * 2
    norm = by_target[f"{LAYER}.input_layernorm.weight"]
    assert (norm.status, norm.how) == ("mapped", "")


def test_a_tensor_that_is_put_together(
    fused_source: Path, fused_rules: Path, tmp_path: Path
) -> None:
    """The other way round: the plain checkpoint's tensors become fused ones."""
    from llava_remap import apply

    apply(fused_rules, sources(fused_source), "made")
    back = tmp_path / "back.yaml"
    back.write_text(
        "schema: 1\nname: fuse\nversion: 1.0.0\nsummary: halves of two layers' norms\n"
        "extends: [hf-layouts]\ntensors:\n"
        "  - {id: swap, from: ['{m...}.0.input_layernorm.weight'], "
        "to: '{m}.0.input_layernorm.weight', how: {view: [2, '*'], axes: [1, 0]}}\n"
    )
    Path("made/llava_remap.json").unlink()
    found = rows(plan(back, {"model": "made"}, dry_run=True))
    [row] = [row for row in found if row.target == f"{LAYER}.input_layernorm.weight"]
    assert row.status == "moved"
    assert row.how == "the source tensor seen as [2, 32] in the order [1, 0]"


def test_a_plan_on_a_terminal(fused_source: Path, fused_rules: Path, run: Run) -> None:
    fused_rules.write_text(CUT)
    out = run("apply", fused_rules, *given(fused_source)).out
    assert "Divided, joined or reordered\n" in out
    assert "  tensors/gate-up  2 parameters from 2 tensors\n" in out
    assert (
        f"    rows 0..111 of `model.layers.0.mlp.gate_up.weight` → `{LAYER}.mlp.gate_proj.weight`\n"
    ) in out
    assert (
        "  model.layers.{0..1}.mlp.gate_up.weight\n"
        "    rows 112..223 of it: padding (tensors/gate-up)\n"
    ) in out
    kinds = re.findall(r"self_attn\.wqkv\.weight` seen as .* → `.*\.([qkv])_proj", out)
    assert kinds == ["q", "k", "v"]  # in the order of the rows


def test_a_complete_plan_counts_parts_apart(
    fused_source: Path, fused_rules: Path, run: Run
) -> None:
    """Gate and up with rows of padding behind them, as some trainers write them."""
    file = fused_source / "model.safetensors"
    tensors = load_file(file)
    for name, value in tensors.items():
        if "gate_up" in name:
            tensors[name] = torch.cat([value, value[:16]])
    save_file(tensors, file, {"format": "pt"})
    fused_rules.write_text(
        RULES.replace("'{m}.up_proj.weight']", "'{m}.up_proj.weight', {drop: padding}]").replace(
            "how: {view: ['*', 2], unstack: 1}", "how: {split: 0}"
        )
    )
    ran = run("apply", fused_rules, *given(fused_source))
    assert ran.code == 0, ran.out
    assert "80 of 80 parameters, 2 dropped and 2 in part, nothing unmapped" in ran.out
    assert "    rows 224..239 of it: padding (tensors/gate-up)\n" in ran.out


def test_two_plans_differ_in_words(fused_source: Path, fused_rules: Path, run: Run) -> None:
    for name, text in (("a", RULES), ("b", CUT)):
        fused_rules.write_text(text)
        Path(f"{name}.json").write_text(
            run("apply", fused_rules, *given(fused_source), "--format", "json").out
        )
    ran = run("diff", "a.json", "b.json")
    assert ran.code == 1
    assert (
        'from[0].taken: "[all, 0, all] of it seen as [112, 2, 64]" in A, "rows 0..111 of it" in B'
    ) in ran.out
    found = json.loads(run("diff", "a.json", "b.json", "--format", "json").out)
    dropped = [entry for entry in found["entries"] if entry["part"] == "dropped"]
    assert {row["b"] for entry in dropped for row in entry["rows"] if row["key"] == "box"} == {
        "rows 112..223 of it"
    }
    assert run("diff", "a.json", "a.json").code == 0


@pytest.mark.parametrize("broken", [3, {"view": [1]}, None])
def test_a_plan_with_a_box_that_is_none(
    fused_source: Path, fused_rules: Path, run: Run, broken: object
) -> None:
    content = run("apply", fused_rules, *given(fused_source), "--format", "json").json
    entry = next(entry for entry in content["mapped"] if "taken" in entry["from"][0])
    entry["from"][0]["taken"] = broken
    Path("a.json").write_text(json.dumps(content))
    ran = run("diff", "a.json", "a.json")
    assert ran.code == 3
    assert "LR113" in ran.err + ran.out


def test_a_page_in_a_browser(
    fused_source: Path, fused_rules: Path, run: Run, browser: Browser
) -> None:
    fused_rules.write_text(CUT)
    run("apply", fused_rules, *given(fused_source), "--report", "r.html")
    page = browser.new_page()
    errors: list[str] = []
    page.on("pageerror", lambda error: errors.append(str(error)))
    page.goto(Path("r.html").absolute().as_uri())
    page.wait_for_load_state("networkidle")
    text = page.inner_text("body")
    page.close()
    assert errors == []
    assert "rows 112..223 of the source tensor: padding" in text
    assert "rows 0..111 of the source tensor" in text
