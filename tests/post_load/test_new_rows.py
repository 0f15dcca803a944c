"""Whole jobs with other ways to make new rows: what is planned, refused and written, and that
the plan's JSON is enough.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from sentencepiece import SentencePieceProcessor

from llava_remap.core.problem import RemapError
from llava_remap.jobs.apply import plan
from llava_remap.jobs.job import Job
from llava_remap.planning import PostLoadChange
from llava_remap.post_load import OldBytes
from llava_remap.post_load.run import make_pieces
from tests.conftest import CLIP, RELEASED, TINY, Changed, Run, Tensors

EMBED = "language_model.model.embed_tokens.weight"
HEAD = "language_model.lm_head.weight"
DOCS = Path(__file__).parents[2] / "docs"
PAGE = (DOCS / "guide" / "vocabulary.md").read_text(encoding="utf-8")


def rule_file(options: dict[str, Any], name: str = "llava-v1.5") -> Path:
    path = Path("mine.yaml")
    path.write_text(
        f"schema: 1\nname: mine\nversion: 1.0.0\nsummary: one's own\nextends: [{name}.yaml]\n"
        "post_load:\n  - use: expand_embeddings\n"
        f"    with: {json.dumps(options, ensure_ascii=False)}\n"
    )
    return path


def planned(rules: Path, source: Path = RELEASED / "safetensors", tower: Path = CLIP) -> Job:
    return plan(rules, [str(source), f"vision_tower={tower}"], "out")


def written() -> Tensors:
    return {
        name: tensor
        for file in Path("out").glob("*.safetensors")
        for name, tensor in load_file(file).items()
    }


def bits(tensor: torch.Tensor) -> bytes:
    return tensor.contiguous().view(torch.uint8).numpy().tobytes()


def test_copy_of_a_token_as_in_the_docs() -> None:
    text = next(
        block
        for block in re.findall(r"```yaml[^\n]*\n(.*?)```", PAGE, re.DOTALL)
        if "init: copy" in block
    )
    Path("mine.yaml").write_text(text)
    planned(Path("mine.yaml")).run()
    source, found = load_file(RELEASED / "safetensors" / "model.safetensors"), written()
    row = SentencePieceProcessor(
        model_file=str(RELEASED / "safetensors" / "tokenizer.model")
    ).piece_to_id("</s>")
    for name, old in ((EMBED, "model.embed_tokens.weight"), (HEAD, "lm_head.weight")):
        assert found[name].shape == (328, 64)
        assert bits(found[name][:320]) == bits(source[old])
        assert all(bits(found[name][new]) == bits(source[old][row]) for new in range(320, 328))


@pytest.mark.parametrize(
    ("options", "wanted"),
    [
        ({"init": "zeros"}, lambda embed, head: (torch.zeros(64), torch.zeros(64))),
        ({"init": "mean"}, lambda embed, head: (embed.double().mean(0), embed.double().mean(0))),
        (
            {"init": "mean", "statistics": "own"},
            lambda embed, head: (embed.double().mean(0), head.double().mean(0)),
        ),
    ],
    ids=["zeros", "mean", "own mean"],
)
def test_rows_that_nothing_is_drawn_for(
    options: dict[str, Any], wanted: Callable[..., Any]
) -> None:
    planned(rule_file(options)).run()
    source, found = load_file(RELEASED / "safetensors" / "model.safetensors"), written()
    for name, row in zip(
        (EMBED, HEAD),
        wanted(source["model.embed_tokens.weight"], source["lm_head.weight"]),
        strict=True,
    ):
        assert torch.equal(found[name][320:], row.to(torch.float16).expand(64, 64))


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (
            {"init": "copy", "token": "no such token"},
            "mine.yaml:7:5 `init: copy`: the tokenizer has no token `no such token`.",
        ),
        (
            {"init": "copy", "token": "<image>"},
            "mine.yaml:7:5 `init: copy`: the id of `<image>` is 320, but embed_tokens has only 320",
        ),
        (
            {"init": "copy"},
            "mine.yaml:7:5 options of `expand_embeddings`: `init: copy` needs `token`",
        ),
        (
            {"init": "zeros", "scale": 1.0},
            "mine.yaml:7:5 options of `expand_embeddings`: `scale` does nothing with `init: zeros`",
        ),
    ],
)
def test_mistakes_have_their_place(options: dict[str, Any], said: str, run: Run) -> None:
    rules = rule_file(options)
    ran = run(
        "apply",
        rules,
        "--source",
        RELEASED / "bin",
        "--source",
        f"vision_tower={CLIP}",
        "--output",
        "out",
    )
    assert ran.code == 2
    assert said in re.sub(r"\s+", " ", ran.out + ran.err)
    assert not Path("out").exists()


def test_copy_without_a_tokenizer(changed: Changed) -> None:
    source = changed()
    for file in source.glob("*token*"):
        file.unlink()
    job = planned(rule_file({"init": "copy", "token": "</s>"}), source)
    assert [problem.code for problem in job.plan.problems] == ["LR212"]
    assert "no source has a tokenizer" in job.plan.problems[0].cause


@pytest.mark.parametrize(
    ("init", "refused"), [("zeros", False), ("normal", False), ("mean", True), ("copy", True)]
)
def test_inf_is_refused_where_rows_are_made_from_it(
    init: str, refused: bool, changed: Changed
) -> None:
    def poison(tensors: Tensors) -> None:
        tensors["model.embed_tokens.weight"][7, 3] = float("inf")

    job = planned(
        rule_file({"init": init, **({"token": "</s>"} if init == "copy" else {})}),
        changed(tensors=poison),
    )
    if not refused:
        job.run()
        assert torch.isfinite(written()[EMBED][320:]).all()
        return
    with pytest.raises(RemapError) as caught:
        job.run()
    assert [problem.code for problem in caught.value.problems] == ["LR406"]
    assert not Path("out").exists()


@pytest.mark.parametrize("statistics", ["embed_tokens", "own"])
def test_a_tied_head_is_not_changed_apart(statistics: str, changed: Changed) -> None:
    """Whether it is stored or not: one matrix, one change, one check, one tensor written."""
    for stored in (True, False):

        def tie(tensors: Tensors, stored: bool = stored) -> None:
            tensors.pop("lm_head.weight", None)
            if stored:
                tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"].clone()

        source = changed(
            TINY / "llava-onevision" / "safetensors",
            tensors=tie,
            config=lambda content: content.update(
                image_aspect_ratio="anyres", tie_word_embeddings=True
            ),
        ).rename(f"stored-{stored}")
        rules = rule_file({"statistics": statistics}, "llava-interleave")
        job = plan(
            rules, [str(source), f"vision_tower={TINY / 'siglip-tiny-patch14-28'}"], f"out-{stored}"
        )
        assert [entry.change.target for entry in job.plan.post_load] == [EMBED]
        assert [check.target for check in job.plan.value_checks if check.check == "finite"] == [
            EMBED
        ]
        assert not [m for m in job.plan.mapped if m.target == HEAD]
        assert [(a.of, a.shape) for a in job.plan.aliases if a.target == HEAD] == (
            [(EMBED, (320, 64))] if stored else []
        )
        job.run()
    one, other = (
        {
            n: bits(t)
            for file in Path(f"out-{stored}").glob("*.safetensors")
            for n, t in load_file(file).items()
        }
        for stored in (True, False)
    )
    assert HEAD not in one
    assert one == other


@pytest.mark.parametrize(
    "options", [{}, {"init": "copy", "token": "</s>"}, {"init": "normal", "seed": 5}], ids=str
)
def test_the_plan_as_json_is_enough_to_make_the_rows_again(
    options: dict[str, Any], changed: Changed
) -> None:
    """Without rule file and tokenizer: from what the plan says and the matrices."""
    source = changed()
    (job := planned(rule_file(options), source)).run()
    matrices = load_file(source / "model.safetensors")
    old = {EMBED: matrices["model.embed_tokens.weight"], HEAD: matrices["lm_head.weight"]}

    def read(target: str, start: int, stop: int, as_stored: bool = False) -> Any:
        return old[target][start:stop].numpy().astype(np.float64)

    entries = json.loads(json.dumps(job.plan.to_json()))["post_load"]
    for entry in map(PostLoadChange.from_json, entries):
        name = entry.change.target
        raw = bits(old[name])
        pieces = make_pieces(entry.use, entry.options, [entry.change], read)[name]
        made = b"".join(
            raw[p.offset : p.offset + p.nbytes] if isinstance(p, OldBytes) else p for p in pieces
        )
        assert made == bits(written()[name])
    assert [entry["target"] for entry in entries] == [HEAD, EMBED]


def test_embeddings_that_lie_column_by_column_get_the_same_rows(tmp_path: Path) -> None:
    """Gathered by chunks, the old rows and the new ones are those of the plain checkpoint."""
    planned(rule_file({}), RELEASED / "bin").run()
    plain = {name: bits(tensor) for name, tensor in written().items()}
    source = tmp_path / "source"
    source.mkdir()
    for file in (RELEASED / "bin").iterdir():
        (source / file.name).write_bytes(file.read_bytes())
    state = torch.load(source / "pytorch_model.bin", weights_only=True)
    for name in ("model.embed_tokens.weight", "lm_head.weight"):
        state[name] = state[name].T.contiguous().T
    torch.save(state, source / "pytorch_model.bin")
    plan("mine.yaml", [str(source), f"vision_tower={CLIP}"], "again").run()
    again = {
        n: bits(t)
        for file in Path("again").glob("*.safetensors")
        for n, t in load_file(file).items()
    }
    assert again == plain
