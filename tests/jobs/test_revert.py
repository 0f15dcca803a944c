"""The way back by the record: original names, bytes and configs; every refusal; an interrupted job
leaves nothing.
"""

from __future__ import annotations

import json
import shutil
import signal
import zipfile
from collections.abc import Callable, Iterator, Mapping
from functools import cache
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from xxhash import xxh3_128_hexdigest

from llava_remap.checkpoint import open_checkpoint
from llava_remap.core.problem import RemapError
from llava_remap.jobs.apply import apply
from llava_remap.jobs.revert import Reversion, plan_revert, revert
from llava_remap.jobs.run import run as run_job
from llava_remap.post_load import run as post_load_run
from llava_remap.post_load.plugins.expand_embeddings import ExpandEmbeddings
from llava_remap.post_load.plugins.new_rows import NewRows
from tests.checkpoint.stored import raw, stored
from tests.checkpoint.test_torch_files import rewritten
from tests.conftest import CLIP, DATA, RELEASED, TINY, Changed, Run, Tensors, with_own_digest
from tests.end_to_end.test_interrupt import signalled

LLAVA, SIGLIP = TINY / "llava-v1.5", TINY / "siglip-tiny-patch14-28"
FORMS = {form: RELEASED / form for form in ("bin", "sharded", "safetensors", "sharded_safetensors")}
FORMS |= {form: LLAVA / form for form in ("legacy_pickle", "full_state_dict")}
EMBEDDING, HEAD, NORM = "model.embed_tokens.weight", "lm_head.weight", "model.norm.weight"
TOWER = f"vision_tower={CLIP}"


def reverted() -> Reversion:
    """`out` taken back, and the plan of that."""
    job = plan_revert(Path("out"), "back")
    run_job(job, verify="none")
    return job


def tensors(folder: Path) -> dict[str, tuple[str, tuple[int, ...], bytes]]:
    """Dtype, shape and row-major, little-endian bytes of every tensor of a checkpoint."""
    catalog = open_checkpoint(folder).catalog
    return {
        name: (tensor.dtype, tensor.shape, raw(stored(tensor))) for name, tensor in catalog.items()
    }


def restored(original: Path, folder: Path, dropped: set[str]) -> None:
    """Names and bytes are the original's, what was dropped excepted."""
    wanted = tensors(original)
    assert dropped < wanted.keys()
    assert tensors(folder) == {
        name: tensor for name, tensor in wanted.items() if name not in dropped
    }


def contents(folder: Path, *patterns: str) -> dict[str, bytes]:
    found = (path for pattern in patterns or ("*",) for path in folder.rglob(pattern))
    return {
        path.relative_to(folder).as_posix(): path.read_bytes() for path in found if path.is_file()
    }


WEIGHTS = ("model*", "config.json", "generation_config.json")


@pytest.mark.parametrize("form", FORMS)
def test_there_and_back_and_there_again(form: str) -> None:
    source = FORMS[form]
    apply("llava-v1.5", [str(source), TOWER], "out")
    done = reverted()
    own = (
        form == "full_state_dict"
    )  # it has its own tower, so only the config of the other tower is used
    [model, *towers] = done.parts
    back = Path("back") if own else Path("back/model")
    restored(source, back, {entry.name for entry in model.dropped})
    assert {entry.rule for entry in model.dropped} <= {"prepare/inv-freq", "prepare/position-ids"}
    for name in ("config.json", "generation_config.json"):
        assert (back / name).is_file() == (source / name).is_file()
        assert (
            not (source / name).is_file()
            or (back / name).read_bytes() == (source / name).read_bytes()
        )
    assert len(towers) == (0 if own else 1)
    for tower in towers:
        taken = {name for name in tensors(CLIP) if name.startswith("vision_model.")} - {
            e.name for e in tower.dropped
        }
        assert tensors(Path("back/vision_tower")) == {
            name: t for name, t in tensors(CLIP).items() if name in taken
        }
        assert tower.not_taken == 39
        assert (Path("back/vision_tower") / "config.json").read_bytes() == (
            CLIP / "config.json"
        ).read_bytes()
    for file in source.glob("*token*"):
        shutil.copy(file, back)
    apply("llava-v1.5", [str(back), TOWER if own else "vision_tower=back/vision_tower"], "again")
    assert contents(Path("again"), *WEIGHTS) == contents(Path("out"), *WEIGHTS)


@pytest.mark.parametrize("tie", [False, True])
def test_one_source_with_everything_in_it(tie: bool, changed: Changed) -> None:
    """Qwen2 with a SigLIP tower; a tied head is stored, isn't written, and comes back."""

    def tied(state: Tensors) -> None:
        if tie:
            state[HEAD] = state[EMBEDDING].clone()

    source = changed(
        TINY / "llava-onevision" / "safetensors",
        tensors=tied,
        config=lambda config: config.update(image_aspect_ratio="anyres", tie_word_embeddings=tie),
    )
    apply("llava-interleave", [str(source), f"vision_tower={SIGLIP}"], "out")
    done = reverted()
    [model] = done.parts  # only the config of the separate tower was used
    assert {entry.name for entry in model.dropped} == {"model.image_newline"}
    restored(source, Path("back"), {"model.image_newline"})


def test_a_single_source_becomes_the_output_itself(changed: Changed, run: Run) -> None:
    """Mistral. A stock tower's config is known without its checkpoint; here its source is taken
    out of the record.
    """
    source = changed(
        TINY / "llava-v1.6-mistral" / "safetensors",
        lambda state: state.pop("model.image_newline"),
        lambda config: config.update(image_aspect_ratio="pad", mm_patch_merge_type="flat"),
    )
    apply("llava-med-v1.5", [str(source), TOWER], "out")
    change_record(lambda record: record["sources"].pop("vision_tower"))
    ran = run("revert", "out", "--output", "back")
    assert ran.code == 0, ran.err
    restored(source, Path("back"), set())
    assert Path("back/config.json").read_bytes() == (source / "config.json").read_bytes()
    for file in source.glob("*token*"):
        shutil.copy(file, "back")
    apply("llava-med-v1.5", ["back", TOWER], "again")
    assert contents(Path("again"), *WEIGHTS) == contents(Path("out"), *WEIGHTS)


def saved(change: Callable[[dict[str, Any]], object], **config: object) -> Path:
    source = Path("source")
    shutil.copytree(RELEASED / "bin", source)
    state = torch.load(source / "pytorch_model.bin", weights_only=True)
    change(state)
    torch.save(state, source / "pytorch_model.bin")
    content = json.loads((source / "config.json").read_text())
    (source / "config.json").write_text(json.dumps({**content, **config}))
    return source


def transpose(state: dict[str, Any]) -> None:
    for name in (EMBEDDING, "model.layers.0.mlp.up_proj.weight"):
        state[name] = state[name].T.contiguous().T


def share(state: dict[str, Any]) -> None:
    state["model.layers.1.input_layernorm.weight"] = state["model.layers.0.input_layernorm.weight"]


def tie_by_storage(state: dict[str, Any]) -> None:
    state[HEAD] = state[EMBEDDING]


@pytest.mark.parametrize("change", [transpose, share, tie_by_storage])
def test_strided_and_shared_tensors(change: Callable[[dict[str, Any]], object]) -> None:
    """Their elements come back in row-major order, each tensor for itself."""
    source = saved(change)
    apply("llava-v1.5", [str(source), TOWER], "out")
    done = reverted()
    restored(source, Path("back/model"), {entry.name for entry in done.parts[0].dropped})


def test_big_endian_tensors(tmp_path: Path) -> None:
    source = saved(lambda state: None)
    file = source / "pytorch_model.bin"
    sizes = {0: 2}
    state = torch.load(file, weights_only=True)

    with zipfile.ZipFile(file) as archive:
        swapped = {"byteorder": b"big"}
        for number, value in enumerate(state.values()):
            data = archive.read(f"pytorch_model/data/{number}")
            size = sizes.setdefault(number, value.element_size())
            swapped[f"data/{number}"] = b"".join(
                data[i : i + size][::-1] for i in range(0, len(data), size)
            )
    rewritten(file, tmp_path / "big.bin", replace=swapped)
    (tmp_path / "big.bin").replace(file)
    apply("llava-v1.5", [str(source), TOWER], "out")
    done = reverted()
    restored(RELEASED / "bin", Path("back/model"), {entry.name for entry in done.parts[0].dropped})


# --- what post-load rules changed


def with_rule(monkeypatch: pytest.MonkeyPatch, rule: Any, text: str) -> None:
    """Convert with a rule file whose post-load rule is this plug-in besides that for new rows."""
    entries = [SimpleNamespace(name="expand_embeddings", load=lambda: ExpandEmbeddings, dist=None)]
    entries.append(SimpleNamespace(name="mine", load=lambda: rule, dist=None))
    monkeypatch.setattr(
        post_load_run, "_installed", cache(lambda path: {entry.name: entry for entry in entries})
    )
    Path("mine.yaml").write_text(
        "schema: 1\nname: mine\nversion: 1.0.0\nsummary: s\nextends: [llava-v1.5.yaml]\n"
        f"post_load:\n{text}"
        "  - {use: expand_embeddings}\n"
    )
    apply("mine.yaml", [str(RELEASED / "bin"), TOWER], "out")


def test_a_plug_in_that_does_not_keep_the_old_bytes(
    monkeypatch: pytest.MonkeyPatch, run: Run
) -> None:
    monkeypatch.syspath_prepend(str(DATA / "plugin"))
    from llava_remap_multiply import Multiply  # type: ignore[import-not-found]

    with_rule(
        monkeypatch,
        Multiply,
        "  - {use: mine, with: {targets: [multi_modal_projector.linear_2.bias], factor: 0.5}}\n",
    )
    ran = run("revert", "out", "--output", "back", "--format", "json")
    assert ran.code == 1
    [problem] = ran.json["problems"]
    assert (problem["code"], problem["names"]) == ("LR607", ["model.mm_projector.2.bias"])
    assert problem["details"] == {
        "model.mm_projector.2.bias": "changed by `mine`, which doesn't keep the old values"
    }
    assert str(RELEASED / "bin") in problem["message"]
    assert not Path("back").exists()


class Reversed(ExpandEmbeddings):
    """The norm's elements in reverse order, so that its old bytes lie in as many runs as it has
    elements.
    """

    def plan(self, before: Any) -> Any:
        from llava_remap.post_load import Change, Effect

        name = "language_model.model.norm.weight"
        dtype, shape = before.tensors[name]
        return Effect((Change(name, dtype, shape, shape, ()),))

    def pieces(self, changes: Any, read: Any) -> Mapping[str, Iterator[Any]]:
        from llava_remap.post_load import OldBytes

        [change] = changes
        ends = reversed(range(0, 2 * change.shape_before[0], 2))
        return {change.target: (OldBytes(at, 2) for at in ends)}


def test_old_bytes_in_another_order(monkeypatch: pytest.MonkeyPatch) -> None:
    with_rule(monkeypatch, Reversed, "  - {use: mine}\n")
    written = {
        n: t for file in Path("out").glob("*.safetensors") for n, t in load_file(file).items()
    }
    original = load_file(RELEASED / "safetensors" / "model.safetensors")[NORM]
    assert torch.equal(written["language_model.model.norm.weight"], original.flip(0))
    done = reverted()
    restored(RELEASED / "bin", Path("back/model"), {entry.name for entry in done.parts[0].dropped})


def test_new_rows_are_not_computed_again(monkeypatch: pytest.MonkeyPatch) -> None:
    apply("llava-v1.5", [str(RELEASED / "bin"), TOWER], "out")
    monkeypatch.setattr(NewRows, "_made", lambda *arguments: pytest.fail("new rows were made"))
    revert("out", "back")


def test_a_tied_head_of_another_dtype(run: Run) -> None:
    """Equal in value, so it is tied and not written; how it was stored is lost."""
    source = saved(
        lambda state: state.update({HEAD: state[EMBEDDING].float()}), tie_word_embeddings=True
    )
    apply("llava-v1.5", [str(source), TOWER], "out")
    ran = run("revert", "out", "--output", "back")
    assert (ran.code, "LR607" in ran.err) == (1, True)
    assert (
        "lm_head.weight  was F32; now it is tied to `language_model.model.embed_tokens.weight`, "
        "which "
        "is F16" in ran.err
    )


# --- the job


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("made") / "out"
    apply("llava-v1.5", [str(RELEASED / "sharded"), TOWER], folder)
    return folder


@pytest.fixture
def out(made: Path) -> Path:
    shutil.copytree(made, "out")
    return Path("out")


def test_what_is_told(out: Path, run: Run) -> None:
    ran = run("revert", out, "--output", "back")
    assert ran.code == 0
    for words in (
        "./out, back through llava-v1.5 1.0.0",
        "model         ./back/model: 25 tensors in 2 files, 247 kB",
        "config.json, generation_config.json",
        "model: 2 tensors that were dropped\n"
        "    model.layers.{0..1}.self_attn.rotary_emb.inv_freq\n",
        "computed by the model since transformers 4.32 (prepare/inv-freq)",
        f"vision_tower: 39 tensors of {CLIP} that were not taken",
        "model: special_tokens_map.json, tokenizer.model, tokenizer_config.json; copy from "
        f"{RELEASED / 'sharded'}",
        "Done: ./back written in",
    ):
        assert words in ran.out, words
    found = run("revert", out, "--output", "twice", "--format", "json").json
    assert (found["format"], found["format_version"], found["reverted"]) == (
        "llava-remap/reversion",
        2,
        True,
    )
    model = found["sources"]["model"]
    assert len(model["restored"]) == 25
    wanted = {
        "name": NORM,
        "dtype": "F16",
        "shape": [64],
        "from": ["language_model.model.norm.weight"],
    }
    assert wanted in model["restored"]
    assert {entry["rule"] for entry in model["dropped"]} == {"prepare/inv-freq"}
    assert found["sources"]["vision_tower"]["not_taken"] == 39
    assert found["files"] == sorted(contents(Path("twice")))
    assert contents(Path("back")) == contents(Path("twice"))
    assert not list(Path("back").rglob("*.partial"))


def test_progress_adds_up(out: Path) -> None:
    job = plan_revert(out, "back")
    told: list[int] = []
    run_job(job, told.append, verify="none")
    assert sum(told) == job.nbytes_to_handle


def test_the_folder_is_left_as_it_is(out: Path) -> None:
    before = contents(out)
    revert(out, "back")
    assert contents(out) == before


def refusal(code: str, output: str = "back") -> str:
    before = contents(Path())
    with pytest.raises(RemapError) as caught:
        revert("out", output)
    [problem] = caught.value.problems
    assert problem.code == code
    assert problem.fix
    assert contents(Path()) == before
    return problem.cause + "".join(f" {name} {fact}" for name, fact in problem.table)


def change_record(change: Callable[[Any], object]) -> None:
    path = Path("out/llava_remap.json")
    record = json.loads(path.read_text())
    change(record)
    path.write_text(with_own_digest(record))


def test_without_a_record(out: Path) -> None:
    (out / "llava_remap.json").unlink()
    refusal("LR606")


def flip(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-1] + b"\x7f")


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (lambda out: flip(out / "model-00002-of-00003.safetensors"), "has xxh3_128"),
        (lambda out: (out / "model-00002-of-00003.safetensors").write_bytes(b"x"), "has 1 bytes"),
        (lambda out: (out / "model-00002-of-00003.safetensors").unlink(), "is gone"),
        (lambda out: (out / "model.safetensors.index.json").unlink(), "is gone"),
        (lambda out: (out / "config.json").write_text("{}"), "config.json has 2 bytes"),
        (lambda out: (out / "model.safetensors").write_bytes(b""), "is not in the record"),
    ],
)
def test_a_folder_that_has_changed(damage: Callable[[Path], object], words: str, out: Path) -> None:
    damage(out)
    assert words in refusal("LR603")


def test_a_folder_that_is_written_again_after_planning(out: Path) -> None:
    job = plan_revert(out, "back")
    path = out / "model-00001-of-00003.safetensors"
    path.write_bytes(path.read_bytes())
    with pytest.raises(RemapError, match="LR102"):
        run_job(job)
    assert not Path("back").exists()


def text_of(record: Any) -> None:
    record["sources"]["model"]["texts"]["config.json"] += " "


def test_a_config_in_the_record_that_was_changed(out: Path) -> None:
    change_record(text_of)
    assert "model/config.json doesn't match its digest in the record" in refusal("LR603")


def test_a_file_that_no_record_keeps(out: Path) -> None:
    change_record(lambda record: record["sources"]["model"]["texts"].update({"../evil.py": "x"}))
    refusal("LR113")


@pytest.mark.parametrize(
    "name", ["../x", "..", ".", "", "a/b", "a\\b", "a\0b", "/abs", "C:x", "x\n", " x"]
)
def test_a_source_whose_name_leads_elsewhere(name: str, out: Path) -> None:
    def rename(record: Any) -> None:
        record["sources"][name] = record["sources"].pop("model")
        record["plan"]["sources"][name] = record["plan"]["sources"].pop("model")
        for entry in record["plan"]["mapped"]:
            for origin in entry["from"]:
                origin["source"] = name if origin["source"] == "model" else origin["source"]

    change_record(rename)
    assert "can't be the name of a folder" in refusal("LR113")
    assert "\0" not in refusal("LR113")


LAYER = [
    f"language_model.model.layers.{layer}.{name}.weight"
    for layer in (0, 1)
    for name in ("input_layernorm", "post_attention_layernorm", "mlp.up_proj", "mlp.down_proj")
]


def columns(rows: int) -> dict[str, Any]:
    """An entry of two columns, each with a box of its own."""
    boxes = [
        {"view": [rows, 2], "axes": [0, 1], "start": [0, first], "stop": [rows, first + 1]}
        for first in (0, 1)
    ]
    origin = {"source": "model", "name": "x", "shape": [rows, 2]}
    parts = [{**origin, "taken": box, "placed": box} for box in boxes]
    return {"shape": [rows, 2], "from": parts}


def ones(axes: int) -> list[dict[str, Any]]:
    box = {"view": [1] * axes, "axes": [*range(axes)], "start": [0] * axes, "stop": [1] * axes}
    origin = {"source": "model", "name": "x", "shape": [1] * axes}
    return [{**origin, "taken": box, "placed": box}]


def alias(record: Any) -> Any:
    entry = mapped(record)
    same = {key: entry[key] for key in ("target", "dtype", "shape", "rules")}
    return {**same, "of": entry["target"], "from": entry["from"][0]}


def mapped(record: Any, target: str = "language_model.model.norm.weight") -> Any:
    return next(entry for entry in record["plan"]["mapped"] if entry["target"] == target)


@pytest.mark.parametrize(
    "change",
    [
        lambda record: mapped(record)["from"][0].update(name=EMBEDDING),
        lambda record: mapped(record)["from"][0].update(name="__metadata__"),
        lambda record: mapped(record)["from"][0].update(name="\ud800"),
        lambda record: mapped(record)["from"].append({"source": "model", "name": "other"}),
        lambda record: mapped(record).update(then=[{"split": {}}]),
        lambda record: mapped(record).update(then=[None]),
        lambda record: mapped(record).update(then="abc"),
        lambda record: mapped(record).update(then=[{"cast": 1}]),
        lambda record: mapped(record).update(target=["x"]),
        lambda record: mapped(record)["from"][0].update(name=["x"]),
        lambda record: mapped(record).update(columns(10**25)),
        lambda record: mapped(record).update(shape=[1] * 30_000, **{"from": ones(30_000)}),
        lambda record: mapped(record).update(then=[{"cast": {"stored": "F16"}}] * 2),
        lambda record: record["plan"]["aliases"].append(alias(record)),
        lambda record: record["plan"]["mapped"].append(mapped(record)),
        lambda record: record["plan"]["aliases"].append({**alias(record), "target": "x"}),
        lambda record: record["plan"]["aliases"].append(
            {**alias(record), "target": "x", "from": {"source": "model", "name": "x"}, "shape": [3]}
        ),
        lambda record: record["plan"].pop("dropped"),
        lambda record: record["sources"]["model"]["texts"].update({"config.json": "\ud800"}),
    ],
)
def test_a_record_that_contradicts_itself(change: Callable[[Any], object], out: Path) -> None:
    change_record(change)
    refusal("LR113")


@pytest.mark.parametrize(
    "change",
    [
        lambda record: mapped(record).update(columns(10**8)),
        lambda record: mapped(record).update(columns(10**18)),
        lambda record: [mapped(record, name).update(columns(10**5)) for name in LAYER],
    ],
)
def test_a_record_of_huge_tensors(change: Callable[[Any], object], out: Path) -> None:
    """Soon, and without much memory: their boxes are consistent, and the files have others."""
    change_record(change)
    refusal("LR603")


def test_a_shape_before_that_can_not_have_been(out: Path) -> None:
    """More rows than are written: the plug-in says what it makes of them, and that isn't what
    was planned.
    """

    def change(record: Any) -> None:
        changed = record["plan"]["post_load"][0]
        changed.update(shape_before=[10**9, 64])
        [step] = mapped(record, changed["target"])["then"]
        step["post_load"]["before"] = [10**9, 64]

    change_record(change)
    refusal("LR212")
    change_record(lambda record: record["plan"]["post_load"][0].update(shape_before=[320, 64]))
    refusal("LR113")


def test_outputs_that_can_not_be(out: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    Path("full").mkdir()
    Path("full/mine").write_text("mine")
    refusal("LR503", "full")
    refusal("LR503", "out")
    assert "inside source `converted`" in refusal("LR508", "out/back")
    Path("link").symlink_to("out")
    assert "inside source `converted`" in refusal("LR508", "link/back")
    monkeypatch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(free=1000))
    refusal("LR502")


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM], ids=["SIGINT", "SIGTERM"])
@pytest.mark.parametrize(
    "stage",
    [
        "llava_remap.jobs.revert.output_problems",
        "llava_remap.jobs.revert.file_problems",
        "llava_remap.execute.write.readable",
        "llava_remap.execute.files.write_all",
        "llava_remap.jobs.run.write_index",
    ],
)
def test_nothing_is_left_of_an_interrupted_job(
    stage: str, number: signal.Signals, out: Path
) -> None:
    before = contents(Path())
    code, errors, _ = signalled(stage, number, "revert", "out", "--output", "deep/back")
    assert code == 128 + number
    assert (
        errors.strip()
        == {
            "SIGINT": "Interrupted: this run leaves no unfinished output behind.",
            "SIGTERM": "Terminated.",
        }[number.name]
    )
    assert contents(Path()) == before
    assert not Path("deep").exists()


def test_a_full_disk_leaves_nothing(out: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*arguments: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("llava_remap.jobs.run.write_index", full)
    refusal("LR502")


def test_the_digests_in_the_record_are_those_of_the_texts(made: Path) -> None:
    for source in json.loads((made / "llava_remap.json").read_text())["sources"].values():
        assert source["texts"]
        for name, text in source["texts"].items():
            assert source["files"][name]["xxh3_128"] == xxh3_128_hexdigest(
                text.encode("utf-8", "surrogateescape")
            )


@pytest.mark.parametrize("form", ["bin", "sharded", "safetensors", "sharded_safetensors"])
@pytest.mark.parametrize(
    ("name", "class_name", "tower"),
    [
        ("llava-v1.6-mistral", "LlavaNextForConditionalGeneration", CLIP),
        ("llava-onevision", "LlavaOnevisionForConditionalGeneration", SIGLIP),
    ],
)
def test_families_without_a_shipped_file(
    name: str, class_name: str, tower: Path, form: str, run: Run
) -> None:
    """There and back by an inferred rule file; without a tokenizer, since no shipped part knows
    these classes' processors.
    """
    shutil.copytree(TINY / name / form, "source", ignore=shutil.ignore_patterns("*token*"))
    assert (
        run("rules", "new", "--from", "source", "--to", class_name, "--output", "mine.yaml").code
        == 0
    )
    ran = run(
        "apply",
        "mine.yaml",
        "--source",
        "source",
        "--source",
        f"vision_tower={tower}",
        "--output",
        "out",
    )
    assert ran.code == 0, ran.out + ran.err
    [part] = reverted().parts
    restored_all = tensors(Path("back"))
    assert restored_all == {
        n: t for n, t in tensors(Path("source")).items() if n not in {d.name for d in part.dropped}
    }
    assert len(restored_all) > 60
    assert not part.dropped
