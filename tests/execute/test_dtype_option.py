"""`--dtype`: every weight in one dtype, rounded once; values that don't fit are found before
anything is written.
"""

from __future__ import annotations

import json
import tracemalloc
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from transformers import AutoModelForImageTextToText

from llava_remap.checkpoint import Tensor
from llava_remap.checkpoint.catalog import Location
from llava_remap.core.dtypes import from_float64, to_float64
from llava_remap.core.problem import RemapError
from llava_remap.execute import Recipe, values
from llava_remap.execute.values import CHUNK_ELEMENTS
from llava_remap.jobs.apply import apply
from llava_remap.jobs.apply import plan as plan_job
from llava_remap.planning import Cast, Mapped, Part
from llava_remap.post_load import Change
from llava_remap.post_load.run import make_pieces
from tests.conftest import CLIP, MANIFESTS, RELEASED, TINY, Changed, Run, Tensors

#: F16 language model, F32 tower.
MIXED = TINY / "llava-v1.5" / "full_state_dict"
EMBEDDING, HEAD = "language_model.model.embed_tokens.weight", "language_model.lm_head.weight"
TORCH = {"bfloat16": torch.bfloat16, "float16": torch.float16, "float32": torch.float32}
NAMES = {"bfloat16": "BF16", "float16": "F16", "float32": "F32"}
UP = "model.layers.0.mlp.up_proj.weight"


def sources(source: Path) -> list[object]:
    return ["--source", source, "--source", f"vision_tower={CLIP}"]


def written(folder: str = "out") -> Tensors:
    return {
        name: tensor
        for file in sorted(Path(folder).glob("*.safetensors"))
        for name, tensor in load_file(file).items()
    }


def in_float32(tensors: Tensors) -> None:
    tensors.update({name: tensor.float() for name, tensor in tensors.items()})


def noisy(tensors: Tensors) -> None:
    """In float32, with numbers that float16 and bfloat16 have to round."""
    generator = torch.Generator().manual_seed(0)
    for name, tensor in tensors.items():
        tensors[name] = tensor.float() + 1e-3 * torch.randn(tensor.shape, generator=generator)


@pytest.mark.parametrize("dtype", TORCH)
def test_every_weight_in_it(dtype: str, run: Run) -> None:
    ran = run(
        "apply",
        "llava-v1.5",
        *sources(MIXED),
        "--output",
        "out",
        "--dtype",
        dtype,
        "--verify",
        "full",
        "--format",
        "json",
    )
    assert ran.code == 0, ran.err
    plan = ran.json
    apply("llava-v1.5", [MIXED, f"vision_tower={CLIP}"], "kept")
    kept, cast = written("kept"), written()
    assert {tensor.dtype for tensor in kept.values()} == {torch.float16, torch.float32}
    assert kept.keys() == cast.keys()
    for name, tensor in cast.items():
        rows = 320 if name in (EMBEDDING, HEAD) else None
        assert torch.equal(tensor[:rows], kept[name].to(TORCH[dtype])[:rows]), name
        assert tensor.dtype == TORCH[dtype]
    for entry in plan["mapped"]:
        stored = "F32" if entry["target"].startswith("vision_tower") else "F16"
        steps = ["cast"] if stored != NAMES[dtype] else []
        steps += ["post_load"] if entry["target"] in (EMBEDDING, HEAD) else []
        assert [kind for step in entry["then"] for kind in step] == steps
        assert {step["cast"]["stored"] for step in entry["then"] if "cast" in step} <= {stored}
        assert entry["dtype"] == NAMES[dtype]
    assert plan["nbytes"]["write"] == sum(tensor.nbytes for tensor in cast.values())
    index = json.loads(Path("out/model.safetensors.index.json").read_text())
    assert index["metadata"]["total_size"] == plan["nbytes"]["write"]
    checks = {check["target"] for check in plan["value_checks"] if check["check"] == "range"}
    narrowed = {
        "bfloat16": set(cast),
        "float16": {name for name in cast if name.startswith("vision")},
        "float32": set(),
    }
    assert checks == narrowed[dtype]
    config = json.loads(Path("out/config.json").read_text())
    for part in (config, config["text_config"]):
        assert (part["torch_dtype"], part["dtype"]) == (dtype, dtype)
    model, info = AutoModelForImageTextToText.from_pretrained(
        "out", dtype="auto", output_loading_info=True
    )
    assert not any(info.values())
    assert {parameter.dtype for parameter in model.parameters()} == {TORCH[dtype]}


def test_keep_is_the_default_and_changes_nothing(run: Run) -> None:
    for output, more in (("one", []), ("two", ["--dtype", "keep"])):
        assert run("apply", "llava-v1.5", *sources(MIXED), "--output", output, *more).code == 0
    files = {
        output: {p.name: p.read_bytes() for p in Path(output).iterdir()}
        for output in ("one", "two")
    }
    assert files["one"] == files["two"]
    record = json.loads(files["one"]["llava_remap.json"])
    assert not any("cast" in step for entry in record["plan"]["mapped"] for step in entry["then"])


def test_the_same_bytes_every_time(changed: Changed) -> None:
    source = changed(tensors=noisy)
    for output in ("one", "two"):
        apply("llava-v1.5", [source, f"vision_tower={CLIP}"], output, dtype="bfloat16")
    assert [p.read_bytes() for p in sorted(Path("one").iterdir())] == [
        p.read_bytes() for p in sorted(Path("two").iterdir())
    ]


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_new_rows_are_made_from_stored_values_and_rounded_once(
    dtype: str, changed: Changed
) -> None:
    source = changed(tensors=noisy)
    apply("llava-v1.5", [source, f"vision_tower={CLIP}"], "out", dtype=dtype)  # type: ignore[arg-type]
    matrix = load_file(source / "model.safetensors")["model.embed_tokens.weight"].double().numpy()
    with safe_open("out/model-00001-of-00002.safetensors", "pt") as file:
        found = file.get_tensor(EMBEDDING)[320:]
    options = {"pad_to_multiple_of": 64, "init": "multivariate_normal", "scale": 1e-5, "seed": 0}
    change = Change(EMBEDDING, "F64", (320, 64), (384, 64), (EMBEDDING,))

    def read(target: str, start: int, stop: int, as_stored: bool = False) -> Any:
        return matrix[start:stop]

    exact = list(make_pieces("expand_embeddings", options, [change], read)[EMBEDDING])[-1]
    assert isinstance(exact, bytes)
    wanted = from_float64(to_float64(exact, "F64"), NAMES[dtype])
    assert found.view(torch.int16).numpy().tobytes() == wanted


def test_a_mean_beside_a_tie(changed: Changed) -> None:
    """Rounded to float32 first, it would lie on the tie between two numbers of bfloat16 and go
    to the lower one.
    """

    def beside(tensors: Tensors) -> None:
        in_float32(tensors)
        tensors["model.embed_tokens.weight"].fill_(1 + 2**-8)
        tensors["model.embed_tokens.weight"][7] += 2**-23

    rules = Path("mine.yaml")
    rules.write_text(
        "schema: 1\nname: mine\nversion: 1.0.0\nsummary: the mean\nextends: [llava-v1.5.yaml]\n"
        "post_load: [{use: expand_embeddings, with: {init: mean}}]\n"
    )
    apply(rules, [changed(tensors=beside), f"vision_tower={CLIP}"], "out", dtype="bfloat16")
    rows = written()[EMBEDDING]
    assert torch.equal(rows[320:].float(), torch.full((64, 64), 1 + 2**-7))
    assert torch.equal(rows[:7].float(), torch.ones(7, 64))


def broken(tensors: Tensors) -> None:
    in_float32(tensors)
    tensors[UP][1, 2:4] = torch.tensor([70000.0, -80000.5])
    tensors[UP][0, 0] = 65519.9  # rounds to the largest number of float16
    tensors["model.norm.weight"][3] = float("inf")
    tensors["model.layers.1.mlp.up_proj.weight"][0, :2] = torch.tensor([float("nan"), 1e38])


def test_what_does_not_fit_is_told_and_nothing_written(run: Run, changed: Changed) -> None:
    source = changed(tensors=broken)
    ran = run(
        "apply",
        "llava-v1.5",
        *sources(source),
        "--output",
        "out",
        "--dtype",
        "float16",
        "--format",
        "json",
    )
    assert ran.code == 1
    [problem] = ran.json["problems"]
    assert problem["code"] == "LR406"
    assert problem["names"] == [
        "model.layers.0.mlp.up_proj.weight",
        "model.layers.1.mlp.up_proj.weight",
        "model.norm.weight",
    ]
    assert "values of 3 tensors don't fit into F16" in problem["message"]
    told = run("apply", "llava-v1.5", *sources(source), "--output", "out", "--dtype", "float16").out
    assert "2 of 7,168 values too large, the largest 80000.5" in told
    assert "1 of 7,168 values too large, the largest 1e+38; 1 of 7,168 values inf or NaN" in told
    assert "1 of 64 values inf or NaN" in told
    assert not Path("out").exists()


def test_a_dry_run_says_that_it_did_not_look(run: Run, changed: Changed) -> None:
    source = changed(tensors=broken)
    command = ["apply", "llava-v1.5", *sources(source), "--dtype", "float16", "--dry-run"]
    ran = run(*command)
    assert ran.code == 0
    assert "range: not run (in a dry run, --check-values does)" in ran.out
    assert "F32 → F16: " in ran.out
    assert "rounded to nearest, so revert can't restore them" in ran.out
    looked = run(*command, "--check-values")
    assert looked.code == 1
    assert "LR406" in looked.out


def test_widening_needs_no_look_and_keeps_what_is_there(run: Run, changed: Changed) -> None:
    source = changed(tensors=lambda tensors: tensors["model.norm.weight"][3].fill_(float("inf")))
    assert (
        run("apply", "llava-v1.5", *sources(source), "--output", "out", "--dtype", "float32").code
        == 0
    )
    assert written()["language_model.model.norm.weight"][3] == float("inf")


def test_bfloat16_to_float16_can_overflow_and_back_it_cannot(run: Run, changed: Changed) -> None:
    def large(tensors: Tensors) -> None:
        tensors.update({name: tensor.to(torch.bfloat16) for name, tensor in tensors.items()})
        tensors[UP][0, 0] = 1e30

    source = changed(tensors=large)
    ran = run("apply", "llava-v1.5", *sources(source), "--output", "out", "--dtype", "float16")
    assert (ran.code, "the largest 1.0" in ran.err + ran.out) == (1, True)
    assert (
        run("apply", "llava-v1.5", *sources(source), "--output", "out", "--dtype", "bfloat16").code
        == 0
    )


def test_values_that_lie_apart(tmp_path: Path) -> None:
    """Strided tensors of a `.bin` are cast as they are gathered."""
    folder = tmp_path / "source"
    folder.mkdir()
    state = torch.load(RELEASED / "bin" / "pytorch_model.bin", weights_only=True)
    state = {
        name: tensor.T.contiguous().T if tensor.ndim == 2 else tensor
        for name, tensor in state.items()
    }
    torch.save(state, folder / "pytorch_model.bin")
    for file in (RELEASED / "bin").iterdir():
        if file.suffix != ".bin":
            (folder / file.name).write_bytes(file.read_bytes())
    apply("llava-v1.5", [folder, f"vision_tower={CLIP}"], "out", dtype="bfloat16")
    apply("llava-v1.5", [RELEASED / "bin", f"vision_tower={CLIP}"], "plain", dtype="bfloat16")
    out, plain = written(), written("plain")
    assert all(torch.equal(out[name], plain[name]) for name in plain)
    job = plan_job("llava-v1.5", [folder, f"vision_tower={CLIP}"], "again", dtype="bfloat16")
    assert all(any(isinstance(s, Cast) for s in entry.then) for entry in job.plan.mapped)


@pytest.mark.parametrize(("stored", "dtype"), [("F32", "BF16"), ("F16", "F32"), ("F64", "F16")])
@pytest.mark.parametrize(
    ("start", "stop"), [(0, None), (0, 1), (1, 2), (3, 1001), (1398, 1400), (700, 700)]
)
def test_runs_of_what_is_cast(
    stored: str,
    dtype: str,
    start: int,
    stop: int | None,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Also runs that begin or end inside a number, and numbers in many chunks."""
    monkeypatch.setattr(values, "CHUNK_ELEMENTS", 7)
    numbers = torch.randn(700, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    raw = from_float64(numbers.numpy(), stored)
    (tmp_path / "data").write_bytes(raw)
    tensor = Tensor.of(
        "x", stored, (700,), Location(tmp_path / "data", 0, None, False, (0, len(raw)))
    )
    entry = Mapped("y", dtype, (700,), (Part.whole("a", "x", "y", (700,)),), (Cast(stored),), ())
    stop = entry.nbytes if stop is None else stop

    source: Any = SimpleNamespace(catalog={"x": tensor})
    recipe = Recipe({"y": entry}, {}, {"a": source})
    moved = recipe._moved(entry, start, stop)
    found = b"".join(piece for piece in moved if isinstance(piece, bytes))
    assert found == from_float64(to_float64(raw, stored), dtype)[start:stop]


def test_memory_is_that_of_a_chunk(tmp_path: Path) -> None:
    count = 12 * CHUNK_ELEMENTS
    with (tmp_path / "data").open("wb") as file:
        file.truncate(4 * count)
    tensor = Tensor.of(
        "x", "F32", (count,), Location(tmp_path / "data", 0, None, False, (0, 4 * count))
    )
    entry = Mapped(
        "y", "BF16", (count,), (Part.whole("a", "x", "y", (count,)),), (Cast("F32"),), ()
    )

    source: Any = SimpleNamespace(catalog={"x": tensor})
    recipe = Recipe({"y": entry}, {}, {"a": source})
    next(iter(recipe.pieces("y")))
    tracemalloc.start()
    try:
        assert (
            sum(len(piece) for piece in recipe.pieces("y") if isinstance(piece, bytes)) == 2 * count
        )
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 32 * CHUNK_ELEMENTS < tensor.nbytes


def test_a_tied_head_goes_with_its_embedding(run: Run, changed: Changed) -> None:
    def tied(tensors: Tensors) -> None:
        in_float32(tensors)
        tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"].clone()

    source = changed(tensors=tied, config=lambda config: config.update(tie_word_embeddings=True))
    ran = run(
        "apply",
        "llava-v1.5",
        *sources(source),
        "--output",
        "out",
        "--dtype",
        "bfloat16",
        "--format",
        "json",
    )
    assert ran.code == 0
    [head] = ran.json["aliases"]
    assert (head["target"], head["dtype"]) == (HEAD, "F32")
    holder = next(entry for entry in ran.json["mapped"] if entry["target"] == head["of"])
    assert holder["dtype"] == "BF16"
    assert HEAD not in written()
    assert run("verify", "out", "--against", source, "--against", f"vision_tower={CLIP}").code == 0


@pytest.mark.parametrize("dtype", TORCH)
def test_verify_against_the_sources(dtype: str, run: Run, changed: Changed) -> None:
    source = changed(tensors=noisy)
    assert (
        run("apply", "llava-v1.5", *sources(source), "--output", "out", "--dtype", dtype).code == 0
    )
    against = ["--against", source, "--against", f"vision_tower={CLIP}"]
    ran = run("verify", "out", *against)
    assert (ran.code, "bit by bit" in ran.out) == (0, True)
    tensors = load_file(source / "model.safetensors")
    tensors[UP][3, 3] += 1
    save_file(tensors, source / "model.safetensors", {"format": "pt"})
    ran = run("verify", "out", *against)
    assert (ran.code, "LR602" in ran.out, "1 of 7,168 values differ" in ran.out) == (1, True, True)


def test_what_was_widened_comes_back(run: Run) -> None:
    assert (
        run(
            "apply",
            "llava-v1.5",
            *sources(RELEASED / "safetensors"),
            "--output",
            "out",
            "--dtype",
            "float32",
        ).code
        == 0
    )
    assert run("revert", "out", "--output", "back").code == 0
    original = load_file(RELEASED / "safetensors" / "model.safetensors")
    [file] = Path("back/model").glob("*.safetensors")
    back = load_file(file)
    assert back
    for name, tensor in back.items():
        assert (tensor.dtype, torch.equal(tensor, original[name])) == (
            original[name].dtype,
            True,
        ), name
    assert original.keys() - back.keys() == {name for name in original if name.endswith("inv_freq")}


def test_a_tower_and_a_language_model_come_back_in_their_own_dtypes(run: Run) -> None:
    """F16 became F32 beside F32 that stayed; wider elements stand first again."""
    assert (
        run("apply", "llava-v1.5", *sources(MIXED), "--output", "out", "--dtype", "float32").code
        == 0
    )
    assert run("revert", "out", "--output", "back").code == 0
    original = torch.load(MIXED / "model_state_dict.bin", weights_only=True)
    back = written("back")
    assert all(
        torch.equal(tensor, original[name]) and tensor.dtype == original[name].dtype
        for name, tensor in back.items()
    )
    assert {name for name in original if name not in back} == {
        name for name in original if name.endswith("inv_freq")
    }


def test_what_was_rounded_does_not(run: Run, changed: Changed) -> None:
    assert (
        run(
            "apply",
            "llava-v1.5",
            *sources(changed(tensors=noisy)),
            "--output",
            "out",
            "--dtype",
            "bfloat16",
        ).code
        == 0
    )
    ran = run("revert", "out", "--output", "back")
    assert ran.code == 1
    assert "LR607" in ran.err
    assert "was F32; now it is BF16" in ran.err
    assert not Path("back").exists()


def test_from_a_manifest(run: Run) -> None:
    source = MANIFESTS / "llava-v1.5-7b.json"
    kept, cast = (
        run(
            "apply",
            "llava-v1.5",
            "--source",
            source,
            "--dry-run",
            "--format",
            "json",
            "--dtype",
            dtype,
        ).json
        for dtype in ("keep", "float32")
    )
    assert {entry["dtype"] for entry in kept["mapped"]} == {"F16", "F32"}
    assert {entry["dtype"] for entry in cast["mapped"]} == {"F32"}
    assert cast["nbytes"]["read"] == kept["nbytes"]["read"]
    assert cast["nbytes"]["write"] > 1.9 * kept["nbytes"]["write"]


def test_wrong_usage(run: Run) -> None:
    assert run("apply", "llava-v1.5", *sources(MIXED), "--dtype", "int8").code == 2
    wrong: Any = "bf16"
    with pytest.raises(RemapError, match="LR211"):
        plan_job("llava-v1.5", [MIXED], dtype=wrong)
