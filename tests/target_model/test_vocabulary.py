"""Rows and ids of the vocabulary in the folder, for every combination of checkpoint, tokenizer and
config.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from transformers import AutoModelForImageTextToText, AutoProcessor, AutoTokenizer

from llava_remap.core.problem import RemapError
from llava_remap.jobs.apply import apply
from llava_remap.jobs.apply import plan as plan_job
from llava_remap.post_load import Before
from llava_remap.post_load.plugins import expand_embeddings
from llava_remap.post_load.plugins.expand_embeddings import ExpandEmbeddings
from tests.compat.checkpoints import QWEN2, SIGLIP, qwen_tokenizer
from tests.conftest import CLIP, RELEASED, Run, Tensors

LLAMA = RELEASED / "safetensors"
EMBEDDING, HEAD = "language_model.model.embed_tokens.weight", "language_model.lm_head.weight"
OLD = {EMBEDDING: "model.embed_tokens.weight", HEAD: "lm_head.weight"}
KEPT = {
    "lstrip": False,
    "normalized": False,
    "rstrip": False,
    "single_word": False,
    "special": True,
}


@dataclass(frozen=True)
class Case:
    """A checkpoint and what is asked of it.

    Attributes:
        rows: of the embedding; the tokenizer has 320 words of its own.
        words: added to the tokenizer, from id 320 on.
        pad: its pad token.
        config: entries of the source's config.
        head: `own`, `tied` (not stored, the config ties), or `one tensor`.
        vocab: `--vocab`.
        after, image, padding: rows of the output, and the two ids.
    """

    rows: int = 320
    words: tuple[str, ...] = ()
    pad: str = "<unk>"
    config: Mapping[str, Any] = field(default_factory=dict)
    head: str = "own"
    vocab: Any = "pad"
    after: int = 384
    image: int = 320
    padding: int = 321


#: A tokenizer of 321 words, and rows up to the next multiple of 64.
SPARE = Case(384, ("<own>",), image=321, padding=322)


def checkpoint(case: Case, folder: Path) -> Path:
    shutil.copytree(LLAMA, folder)
    tensors = load_file(folder / "model.safetensors")
    for seed, name in enumerate(OLD.values()):
        more = torch.randn(case.rows, 64, generator=torch.Generator().manual_seed(seed)).half()
        tensors[name] = torch.cat([tensors[name], more])[: case.rows].contiguous()
    config = {"vocab_size": case.rows, **case.config}
    if case.head == "own":
        save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    else:
        (folder / "model.safetensors").unlink()
        tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"]
        if case.head == "tied":
            del tensors["lm_head.weight"]
            config["tie_word_embeddings"] = True
        torch.save(tensors, folder / "pytorch_model.bin")
    put(folder / "config.json", **config)
    put(folder / "special_tokens_map.json", pad_token=case.pad)
    added = {str(320 + n): {"content": word, **KEPT} for n, word in enumerate(case.words)}
    put(folder / "tokenizer_config.json", pad_token=case.pad, added_tokens_decoder=added)
    return folder


def put(path: Path, **entries: Any) -> None:
    path.write_text(json.dumps({**json.loads(path.read_text()), **entries}))


def convert(case: Case, tmp_path: Path) -> Path:
    source = checkpoint(case, tmp_path / "source")
    apply("llava-v1.5", [source, f"vision_tower={CLIP}"], "out", vocab=case.vocab)
    return source


def state(source: Path) -> Tensors:
    file = source / "pytorch_model.bin"
    return (
        torch.load(file, weights_only=True)
        if file.is_file()
        else load_file(source / "model.safetensors")
    )


def bits(tensor: torch.Tensor) -> bytes:
    return tensor.contiguous().view(torch.uint8).numpy().tobytes()


def read(name: str) -> Any:
    return json.loads(Path("out", name).read_text())


def assert_whole(source: Path, after: int, image: int, padding: int, tied: bool) -> None:
    """The written folder, file by file: rows, bits, and one id for one token everywhere."""
    written = {
        name: tensor
        for file in Path("out").glob("*.safetensors")
        for name, tensor in load_file(file).items()
    }
    original = state(source)
    assert (HEAD in written) != tied
    for name in (EMBEDDING,) if tied else (EMBEDDING, HEAD):
        old = original[OLD[name]]
        assert written[name].shape == (after, old.shape[1])
        assert bits(written[name][: len(old)]) == bits(old)
        new = written[name][len(old) :].float()
        assert torch.isfinite(new).all()
        assert (
            len(new) < 2 or len(set(map(bits, new))) > len(new) // 2
        )  # the rows are drawn, not copies of one row
    config, generation = read("config.json"), read("generation_config.json")
    text = config["text_config"]
    assert (text["vocab_size"], text["pad_token_id"], text["tie_word_embeddings"]) == (
        after,
        padding,
        tied,
    )
    assert (config["image_token_index"], config["image_token_id"], config["pad_token_id"]) == (
        image,
        image,
        padding,
    )
    assert generation["pad_token_id"] == padding
    ends = generation["eos_token_id"]  # a list, if turns end with another token
    assert (ends[0] if isinstance(ends, list) else ends) == text["eos_token_id"]
    tokenizer = AutoTokenizer.from_pretrained("out", local_files_only=True)
    assert tokenizer.convert_tokens_to_ids("<image>") == image
    assert tokenizer.pad_token_id == padding
    assert max(tokenizer.get_vocab().values()) < after
    assert (
        read("special_tokens_map.json")["pad_token"]
        == read("tokenizer_config.json")["pad_token"]
        == tokenizer.pad_token
    )
    assert read("tokenizer_config.json")["added_tokens_decoder"][str(image)]["content"] == "<image>"
    processor = AutoProcessor.from_pretrained("out", local_files_only=True)
    assert (processor.image_token, processor.image_token_id) == ("<image>", image)
    ids = processor(images=Image.new("RGB", (40, 30)), text="<image>\nWhat?", return_tensors="pt")[
        "input_ids"
    ]
    assert ids[0].tolist().count(image) == config["image_seq_length"]
    model, info = AutoModelForImageTextToText.from_pretrained(
        "out", dtype=torch.float32, output_loading_info=True
    )
    assert not any(info.values())
    assert len(model.get_input_embeddings().weight) == len(model.lm_head.weight) == after
    assert (model.lm_head.weight is model.get_input_embeddings().weight) == tied


@pytest.mark.parametrize(
    "case",
    [
        pytest.param(Case(), id="as many rows as tokens"),
        pytest.param(Case(vocab=384), id="as many, and the number that pad would give"),
        pytest.param(Case(vocab=322, after=322), id="as many, and just what is needed"),
        pytest.param(Case(vocab=1000, after=1000), id="as many, and many more"),
        pytest.param(replace(SPARE, after=384), id="spare rows"),
        pytest.param(replace(SPARE, vocab="keep", after=384), id="spare rows, keep"),
        pytest.param(replace(SPARE, vocab=384, after=384), id="spare rows, and their number"),
        pytest.param(replace(SPARE, vocab=385, after=385), id="spare rows, and one more"),
        pytest.param(Case(321, ("<image>",)), id="an image token there"),
        pytest.param(
            Case(322, ("<image>", "<pad>"), "<pad>", after=322), id="image and pad token there"
        ),
        pytest.param(
            Case(322, ("<image>", "<pad>"), "<pad>", vocab="keep", after=322),
            id="image and pad token there, keep",
        ),
        pytest.param(
            Case(322, ("<image>", "<pad>"), "<pad>", vocab=323, after=323),
            id="image and pad token there, one more row",
        ),
        pytest.param(
            Case(320, ("<image>", "<pad>"), "<pad>"), id="image and pad token there, without rows"
        ),
        pytest.param(
            Case(322, ("<pad>", "<image>"), "<pad>", after=322, image=321, padding=320),
            id="in another order",
        ),
        pytest.param(
            Case(321, ("<pad>",), "<pad>", image=321, padding=320), id="a pad token there"
        ),
        pytest.param(Case(pad="</s>", padding=2), id="the end of a sentence for a pad token"),
        pytest.param(
            Case(pad="</s>", padding=2, vocab=321, after=321),
            id="the end of a sentence for a pad token, one row",
        ),
        pytest.param(
            Case(330, tuple(f"<{n}>" for n in range(10)), image=330, padding=331),
            id="tokens of one's own",
        ),
        pytest.param(Case(head="tied"), id="tied"),
        pytest.param(Case(head="one tensor"), id="one tensor"),
        pytest.param(
            replace(SPARE, head="tied", vocab="keep", after=384), id="tied, spare rows, keep"
        ),
        pytest.param(
            replace(SPARE, head="one tensor", vocab=390, after=390),
            id="one tensor, spare rows, a number",
        ),
        pytest.param(Case(config={"image_token_index": 320}), id="the config says the id too"),
        pytest.param(
            Case(config={"image_token_index": -200}), id="the config has the number of LLaVA's code"
        ),
    ],
)
def test_written(case: Case, tmp_path: Path) -> None:
    source = convert(case, tmp_path)
    assert_whole(source, case.after, case.image, case.padding, case.head != "own")
    record = read("llava_remap.json")["plan"]
    if case.after > case.rows:
        assert {entry["with"].get("vocab", "pad") for entry in record["post_load"]} == {case.vocab}
        assert {
            (entry["shape_before"][0], entry["shape_after"][0]) for entry in record["post_load"]
        } == {(case.rows, case.after)}
    else:
        assert record["post_load"] == []
    assert ("LR407" in {note["code"] for note in record["notes"]}) == (case.after == case.rows)


@pytest.mark.parametrize(
    ("case", "code", "said"),
    [
        (
            Case(vocab="keep"),
            "LR402",
            "will have 320 rows, so there is no row for `<image>` 320, `<pad>` 321: 322 are needed",
        ),
        (Case(321), "LR402", "321 rows, the tokenizer in"),
        (
            Case(321, vocab="keep"),
            "LR402",
            "may have been trained for tokens that the tokenizer doesn't know, and `<image>` would "
            "get these rows",
        ),
        (
            Case(322),
            "LR402",
            "rows from 320 on may have been trained for tokens that the tokenizer doesn't know, "
            "and `<image>` and `<pad>`",
        ),
        (Case(330, head="tied", vocab=400), "LR402", "rows from 320 on may have been trained"),
        (
            Case(vocab=321),
            "LR402",
            "will have 321 rows, so there is no row for `<pad>` 321: 322 are needed",
        ),
        (
            replace(SPARE, vocab=383),
            "LR402",
            "--vocab 383: embed_tokens has 384 rows, and rows are never removed",
        ),
        (Case(head="tied", vocab="keep"), "LR402", "322 are needed"),
        (Case(words=("<a>", "<b>")), "LR402", "embed_tokens has 320 rows, the tokenizer in"),
        (Case(330, tuple(f"<{n}>" for n in range(11))), "LR402", "has 331 tokens"),
        (
            Case(config={"vocab_size": 319}),
            "LR402",
            "embed_tokens has 320 rows, the source's config says vocab_size: 319",
        ),
        (
            Case(config={"image_token_index": 5}),
            "LR403",
            "`<image>` is 320 in the tokenizer, the source's config says ",
        ),
        (Case(config={"image_token_id": 5}), "LR403", "image_token_id: 5, which is `<0x02>`."),
        (
            replace(SPARE, config={"image_token_index": 325}),
            "LR403",
            "the source's config says image_token_index: 325.",
        ),
        (
            Case(321, ("<image>",), "<image>"),
            "LR403",
            "has id 320, and it is the image token and the pad token",
        ),
    ],
)
def test_refused(case: Case, code: str, said: str, tmp_path: Path) -> None:
    with pytest.raises(RemapError) as caught:
        convert(case, tmp_path)
    [problem] = caught.value.problems
    assert problem.code == code
    assert said in problem.cause
    assert problem.fix
    assert not Path("out").exists()


def test_an_id_that_another_word_has(tmp_path: Path) -> None:
    """The tokenizer's own files say it: a list of added tokens that belongs to another
    vocabulary.
    """
    source = checkpoint(Case(), tmp_path / "source")
    (source / "added_tokens.json").write_text('{"<image>": 300}')
    [problem] = plan_job("llava-v1.5", [source, f"vision_tower={CLIP}"], "out").plan.problems
    assert problem.code == "LR403"
    assert "`<image>`, the image token, has id 300, and so has `" in problem.cause


def test_a_tie_and_two_matrices(tmp_path: Path) -> None:
    """Whatever is asked of the vocabulary: the bytes are looked at before anything is written."""
    source = checkpoint(Case(config={"tie_word_embeddings": True}), tmp_path / "source")
    vocab: Any
    for vocab in ("pad", 500):
        with pytest.raises(RemapError, match="LR405"):
            plan_job("llava-v1.5", [source, f"vision_tower={CLIP}"], "out", vocab=vocab).run()


@pytest.mark.parametrize(
    ("vocab", "tie", "after"),
    [
        ("pad", False, 320),
        ("keep", True, 320),
        (320, False, 320),
        (321, True, 321),
        (400, False, 400),
    ],
)
@pytest.mark.parametrize("one_file", [True, False])
def test_qwen(vocab: Any, tie: bool, after: int, one_file: bool, tmp_path: Path) -> None:
    """303 tokens in 320 rows, and a pad token that pads in Qwen too."""
    source = tmp_path / "source"
    shutil.copytree(QWEN2, source)
    tensors = load_file(source / "model.safetensors")
    if tie:
        tensors.pop("lm_head.weight", None)
    else:
        tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"] * 0.5
    save_file(tensors, source / "model.safetensors", {"format": "pt"})
    put(source / "config.json", image_aspect_ratio="anyres", tie_word_embeddings=tie)
    sources: list[str | Path] = [source, f"vision_tower={SIGLIP}"]
    sources.append(f"language_model={qwen_tokenizer(tmp_path / 'tokenizer', one_file=one_file)}")
    apply("llava-interleave", sources, "out", vocab=vocab)
    assert_whole(source, after, 303, 300, tie)


def test_without_a_tokenizer_the_config_says_the_id(tmp_path: Path) -> None:
    """Where it says none, the ids follow the last row, so that keep can't be had."""
    source = checkpoint(Case(330, config={"image_token_index": 325}), tmp_path / "source")
    for file in source.glob("*token*"):
        file.unlink()
    apply("llava-v1.5", [source, f"vision_tower={CLIP}"], "out")
    config = read("config.json")
    assert (
        config["image_token_id"],
        config["pad_token_id"],
        config["text_config"]["vocab_size"],
    ) == (325, 330, 384)
    [problem] = plan_job(
        "llava-v1.5", [source, f"vision_tower={CLIP}"], "kept", vocab="keep"
    ).plan.problems
    assert (problem.code, "no row for `<pad>` 330" in problem.cause) == ("LR402", True)


def test_a_rule_file_says_it(tmp_path: Path) -> None:
    """`--vocab` goes before it; `pad` is what it says."""
    rules = tmp_path / "mine.yaml"
    rules.write_text(
        "schema: 1\nname: mine\nversion: 1.0.0\nsummary: 400 rows\nextends: [llava-v1.5.yaml]\n"
        "post_load: [{use: expand_embeddings, with: {vocab: 400}}]\n"
    )
    source = checkpoint(Case(), tmp_path / "source")

    def rows(vocab: Any) -> set[int]:
        plan = plan_job(rules, [source, f"vision_tower={CLIP}"], "out", vocab=vocab).plan
        assert plan.complete, plan.problems
        return {entry.change.shape_after[0] for entry in plan.post_load}

    assert (rows("pad"), rows(350)) == ({400}, {350})


def test_without_a_rule_that_adds_rows(tmp_path: Path) -> None:
    rules = tmp_path / "mine.yaml"
    rules.write_text(
        "schema: 1\nname: mine\nversion: 1.0.0\nsummary: no new rows\nextends: [llava-v1.5.yaml]\n"
        "post_load: []\n"
    )
    source = checkpoint(SPARE, tmp_path / "source")

    def problems(vocab: Any) -> list[str]:
        return [
            problem.cause
            for problem in plan_job(
                rules, [source, f"vision_tower={CLIP}"], "out", vocab=vocab
            ).plan.problems
        ]

    assert problems("keep") == problems("pad") == problems(384) == []
    [cause] = problems(390)
    assert (
        "--vocab 390: embed_tokens has 384 rows, and none can be added: no rule of `post_load` "
        "adds rows." in cause
    )


@pytest.mark.parametrize(
    ("vocab", "adds_rows", "rows", "fix"),
    [
        (100, True, 320, "Give --vocab pad, or --vocab 322 or more."),
        (100, True, 384, "Give --vocab pad, or --vocab 384 or more."),
        (321, True, 320, "Give --vocab pad, or --vocab 322 or more."),
        ("keep", True, 320, "Give --vocab pad, or --vocab 322 or more."),
        ("pad", False, 320, "Add `use: expand_embeddings` to the rule file's `post_load`."),
        (400, False, 320, "Add `use: expand_embeddings` to the rule file's `post_load`."),
        (400, False, 384, "Give --vocab keep, or leave it out."),
        (100, False, 384, "Give --vocab keep, or leave it out."),
    ],
)
def test_one_fix_that_can_be_done(
    vocab: Any, adds_rows: bool, rows: int, fix: str, tmp_path: Path
) -> None:
    """One problem for one cause, and what its fix says is accepted."""
    rules = "llava-v1.5"
    if not adds_rows:
        rules = str(tmp_path / "mine.yaml")
        Path(rules).write_text(
            "schema: 1\nname: mine\nversion: 1.0.0\nsummary: no new rows\n"
            "extends: [llava-v1.5.yaml]\npost_load: []\n"
        )
    sources: list[str | Path] = [
        checkpoint(SPARE if rows == 384 else Case(rows), tmp_path / "source"),
        f"vision_tower={CLIP}",
    ]
    [problem] = plan_job(rules, sources, "out", vocab=vocab).plan.problems
    assert (problem.code, problem.fix) == ("LR402", fix)
    if "keep" in fix:
        assert plan_job(rules, sources, "out", vocab="keep").plan.complete
    if adds_rows:
        assert plan_job(rules, sources, "out", vocab=int(fix.split()[-3])).plan.complete


@pytest.mark.parametrize("vocab", ["none", "0", "-1", "1e3", "", "99999999999", "٣"])
def test_wrong_usage(vocab: str, run: Run) -> None:
    ran = run(
        "apply",
        "llava-v1.5",
        "--source",
        LLAMA,
        "--source",
        f"vision_tower={CLIP}",
        f"--vocab={vocab}",
        "--output",
        "out",
    )
    assert ran.code == 2
    assert "LR211" in ran.err


def test_from_the_command_line(run: Run) -> None:
    command = [
        "apply",
        "llava-v1.5",
        "--source",
        LLAMA,
        "--source",
        f"vision_tower={CLIP}",
        "--output",
        "out",
    ]
    assert "320 → 333 rows (expand_embeddings)" in run(*command, "--vocab", "333", "--dry-run").out
    kept = run(*command, "--vocab", "keep", "--format", "json")
    assert (kept.code, [problem["code"] for problem in kept.json["problems"]]) == (1, ["LR402"])
    assert run(*command, "--vocab", "333").code == 0
    assert run("verify", "out", "--against", LLAMA, "--against", f"vision_tower={CLIP}").code == 0
    assert run("revert", "out", "--output", "back").code == 0
    [file] = Path("back/model").glob("*.safetensors")
    assert bits(load_file(file)["lm_head.weight"]) == bits(
        load_file(LLAMA / "model.safetensors")["lm_head.weight"]
    )


def test_many_new_rows_are_made_some_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """In groups, of which the first is what it would be alone; every init makes as many as
    planned.
    """
    matrix = torch.randn(
        40, 8, generator=torch.Generator().manual_seed(0), dtype=torch.float64
    ).numpy()
    reader: Callable[..., Any] = lambda _, start, stop, as_stored=False: matrix[start:stop]  # noqa: E731
    ways: tuple[Any, ...] = ("multivariate_normal", "mean", "zeros", "normal")
    for init in ways:
        made = {}
        for group in (4, 512):
            monkeypatch.setattr(expand_embeddings, "GROUP_ROWS", group)
            rule = ExpandEmbeddings(init=init, vocab=50)
            [change] = rule.plan(
                Before({EMBEDDING: ("F64", (40, 8))}, 41, embedding=EMBEDDING)
            ).changes
            _, *pieces = rule.pieces([change], reader)[change.target]
            assert len(pieces) == (3 if group == 4 else 1)
            made[group] = b"".join(piece for piece in pieces if isinstance(piece, bytes))
            assert len(made[group]) == 10 * 8 * 8
        if init != "multivariate_normal":
            assert made[4] == made[512]
