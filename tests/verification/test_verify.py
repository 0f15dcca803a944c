"""The record in an output, and what `verify` finds by it."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from xxhash import xxh3_128_hexdigest

from llava_remap.checkpoint import open_checkpoint
from llava_remap.jobs.apply import apply
from llava_remap.source.sources import open_again
from llava_remap.verification import verify_folder
from llava_remap.verification.folder import _distance
from llava_remap.verification.record import read_record
from tests.conftest import CLIP, RELEASED, TINY, Run, heavy, lose_last_byte, with_own_digest

FORMS = {form: RELEASED / form for form in ("bin", "sharded", "safetensors")}
FORMS["legacy_pickle"] = TINY / "llava-v1.5" / "legacy_pickle"
SOURCES = (str(RELEASED / "sharded"), f"vision_tower={CLIP}")
APPLY = ("apply", "llava-v1.5", "--source", SOURCES[0], "--source", SOURCES[1])
UNCHECKED = (*APPLY, "--output", "out", "--verify", "none")
AGAINST = ("--against", SOURCES[0], "--against", SOURCES[1])
EMBEDDING = "language_model.model.embed_tokens.weight"
NORM = "language_model.model.norm.weight"


@pytest.fixture(scope="session")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("made") / "out"
    apply("llava-v1.5", SOURCES, folder)
    return folder


@pytest.fixture
def out(made: Path, tmp_path: Path) -> Path:
    """A converted folder that may be damaged; that it lies elsewhere than where it was made is
    no harm.
    """
    shutil.copytree(made, tmp_path / "out")
    return tmp_path / "out"


def xxh3(path: Path) -> str:
    return xxh3_128_hexdigest(path.read_bytes())


def record_of(folder: Path) -> Any:
    return json.loads((folder / "llava_remap.json").read_text())


def shard_with(folder: Path, name: str) -> Path:
    index = json.loads((folder / "model.safetensors.index.json").read_text())
    return folder / str(index["weight_map"][name])


def change_tensor(folder: Path, name: str, change: Callable[[torch.Tensor], None]) -> Path:
    """Change values of a tensor where they lie, so that the header stays as it is."""
    path = shard_with(folder, name)
    data = bytearray(path.read_bytes())
    length = int.from_bytes(data[:8], "little")
    start, end = json.loads(data[8 : 8 + length])[name]["data_offsets"]
    tensor = torch.frombuffer(
        data, dtype=torch.float16, offset=8 + length + start, count=(end - start) // 2
    )
    change(tensor)
    path.write_bytes(data)
    return path


def accept(folder: Path, *paths: Path) -> None:
    """Enter the files as they are now into the record, as someone would who wants to hide a
    change.
    """
    record = record_of(folder)
    for path in paths:
        record["outputs"][path.name] = {"nbytes": path.stat().st_size, "xxh3_128": xxh3(path)}
    (folder / "llava_remap.json").write_text(with_own_digest(record))


# --- the record


def test_what_a_record_says(made: Path, run: Run) -> None:
    record = record_of(made)
    assert (record["format"], record["format_version"], record["verified"]) == (
        "llava-remap/record",
        3,
        "meta",
    )
    assert record["made_with"]["transformers"] == version("transformers")
    assert record["made_with"]["post_load"] == {
        "expand_embeddings": f"llava-remap {version('llava-remap')}"
    }
    dry = run(*APPLY, "--dry-run", "--format", "json").json
    del dry["predicted"]  # depends on this process, not on the result
    for check in dry["value_checks"]:
        check["checked"] = True
    assert record["plan"] == dry
    names = {path.name for path in made.iterdir()} - {"llava_remap.json"}
    assert record["outputs"] == {
        n: {"nbytes": (made / n).stat().st_size, "xxh3_128": xxh3(made / n)} for n in names
    }


def test_the_rule_file_is_in_the_record(made: Path) -> None:
    """Its text and that of all it extends; the digest is theirs."""
    rules = record_of(made)["rules"]
    names = [file["name"] for file in rules["files"]]
    assert names[-1] == "llava-v1.5.yaml"
    assert "parts/llava.yaml" in names
    assert (
        hashlib.sha256("".join(file["text"] for file in rules["files"]).encode()).hexdigest()
        == rules["sha256"]
    )


def test_sources_in_the_record(made: Path) -> None:
    sources = record_of(made)["sources"]
    assert {name: source["location"] for name, source in sources.items()} == {
        "model": SOURCES[0],
        "vision_tower": str(CLIP),
    }
    assert set(sources["vision_tower"]["files"]) == {
        "model.safetensors",
        "config.json",
        "preprocessor_config.json",
    }
    weights = {f"pytorch_model-0000{number}-of-00002.bin" for number in (1, 2)} | {
        "pytorch_model.bin.index.json"
    }
    small = {
        "config.json",
        "generation_config.json",
        "tokenizer.model",
        "tokenizer_config.json",
        "special_tokens_map.json",
    }
    assert set(sources["model"]["files"]) == weights | small
    for name, source in sources.items():
        folder = Path(source["location"])
        for file, digest in source["files"].items():
            known = (
                {} if file.endswith((".bin", ".safetensors")) else {"xxh3_128": xxh3(folder / file)}
            )
            assert digest == {"nbytes": (folder / file).stat().st_size, **known}, (name, file)


def test_the_record_comes_last(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """While anything can still go wrong, there is none."""

    def fail(*arguments: object) -> None:
        assert not (tmp_path / "out" / "llava_remap.json").exists()
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("llava_remap.jobs.job.record_json", fail)
    with pytest.raises(Exception, match="LR502"):
        apply("llava-v1.5", SOURCES, tmp_path / "out")
    left = {path.name for path in (tmp_path / "out").iterdir()}
    assert left == {
        *(f"model-0000{number}-of-00003.safetensors" for number in (1, 2, 3)),
        "llava_remap.partial",
    }


# --- verify


def test_a_folder_as_it_was_written(out: Path, run: Run) -> None:
    ran = run("verify", out)
    assert ran.code == 0
    assert "as they were written" in ran.out
    assert "nothing missing, unexpected or mismatched" in ran.out
    assert ran.out.rstrip().endswith("Verified")
    found = run("verify", out, "--format", "json").json
    assert (
        found["verified"],
        found["strict_load"],
        found["tensors_compared"],
        found["problems"],
    ) == (True, True, None, [])
    assert found["files"] == len(record_of(out)["outputs"])


@pytest.mark.parametrize("form", FORMS)
def test_against_the_sources(form: str, tmp_path: Path, run: Run) -> None:
    apply("llava-v1.5", [str(FORMS[form]), SOURCES[1]], "made")
    for other in (form, "bin"):  # the tensors count, not their form
        ran = run(
            "verify", "made", "--against", FORMS[other], "--against", SOURCES[1], "--format", "json"
        )
        assert (ran.code, ran.json["tensors_compared"]) == (0, 80)


def test_sources_may_be_given_by_name(out: Path, run: Run) -> None:
    ran = run(
        "verify", out, "--against", f"vision_tower={CLIP}", "--against", f"model={SOURCES[0]}"
    )
    assert ran.code == 0
    assert "80 tensors equal, bit by bit, to what the sources give" in ran.out


def test_every_source_is_asked_for(out: Path, run: Run) -> None:
    ran = run("verify", out, "--against", SOURCES[0])
    assert ran.code == 2
    assert f"the folder was also made from `vision_tower` ({CLIP})" in ran.err
    assert "--against vision_tower=DIR" in ran.err


def test_a_changed_value(out: Path, run: Run) -> None:
    """One bit of one value: the digest shows the file; with the sources, the tensor is named,
    and how far it is off.
    """

    def flip(tensor: torch.Tensor) -> None:
        tensor[3] += 0.5

    path = change_tensor(out, NORM, flip)
    ran = run("verify", out)
    assert (ran.code, "LR603" in ran.out, "LR602" in ran.out) == (1, True, False)
    assert f"{path.name}  has xxh3_128 {xxh3(path)[:12]}…, the record says" in ran.out
    assert "Verified" not in ran.out
    accept(out, path)
    assert run("verify", out).code == 0
    ran = run("verify", out, *AGAINST)
    assert ran.code == 1
    assert f"{NORM}  1 of 64 values differ, by up to 0.5" in ran.out
    [problem] = run("verify", out, *AGAINST, "--format", "json").json["problems"]
    assert (problem["code"], problem["names"]) == ("LR602", [NORM])
    assert problem["details"] == {NORM: "1 of 64 values differ, by up to 0.5"}


def test_a_changed_new_row(out: Path, run: Run) -> None:
    """Rows that no source has are made again and compared."""

    def last(tensor: torch.Tensor) -> None:
        tensor[-1] = float("nan")

    accept(out, change_tensor(out, EMBEDDING, last))
    ran = run("verify", out, *AGAINST)
    assert ran.code == 1
    assert f"{EMBEDDING}  1 of 24,576 values differ, by up to inf" in ran.out


@pytest.mark.parametrize(
    "name",
    [
        "model-00002-of-00003.safetensors",
        "config.json",
        "tokenizer.json",
        "model.safetensors.index.json",
    ],
)
def test_a_file_that_is_gone(name: str, out: Path, run: Run) -> None:
    (out / name).unlink()
    ran = run("verify", out, *AGAINST)
    assert ran.code >= 1
    assert f"{name}  is gone" in ran.out
    assert "Verified" not in ran.out


def test_a_file_cut_short(out: Path, run: Run) -> None:
    path = out / "model-00001-of-00003.safetensors"
    size = path.stat().st_size
    path.write_bytes(path.read_bytes()[:-100])
    ran = run("verify", out)
    assert ran.code == 1
    assert f"{path.name}  has {size - 100:,} bytes, the record says {size:,}" in ran.out
    assert "LR601" in ran.out
    assert "strict load by transformers: failed" in ran.out


def test_a_changed_config(out: Path, run: Run) -> None:
    """A rope theta changed by hand loads strictly, and computes something else."""
    path = out / "config.json"
    path.write_text(path.read_text().replace("10000.0", "20000.0"))
    ran = run("verify", out)
    assert (ran.code, "config.json  has xxh3_128" in ran.out) == (1, True)


@pytest.mark.parametrize(
    ("name", "text"), [("config.json", "x"), ("model.safetensors.index.json", '{"a"')]
)
def test_what_can_not_be_read_any_more_is_not_loaded(
    name: str, text: str, out: Path, run: Run
) -> None:
    """Nothing claims a strict load that wasn't made."""
    (out / name).write_text(text)
    ran = run("verify", out)
    assert ran.code == 1
    assert "strict load by transformers: failed" in ran.out
    found = run("verify", out, "--format", "json").json
    assert (found["strict_load"], [problem["code"] for problem in found["problems"]]) == (
        False,
        ["LR603", "LR601"],
    )


def other_dtype(record: Any) -> None:
    next(entry for entry in record["plan"]["mapped"] if entry["target"] == NORM)["dtype"] = "BF16"


def other_name(record: Any) -> None:
    next(entry for entry in record["plan"]["mapped"] if entry["target"] == NORM)["target"] = "other"


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (other_dtype, f"{NORM}  is F16 [64] in the files, BF16 [64] in the record"),
        (other_name, f"{NORM}  is F16 [64] in the files, not there in the record"),
    ],
)
def test_a_record_that_is_not_of_these_files(
    change: Callable[[Any], object], words: str, out: Path, run: Run
) -> None:
    path = out / "llava_remap.json"
    path.write_text(broken(change)(path.read_text()))
    ran = run("verify", out)
    assert (ran.code, "LR603" in ran.out) == (1, True)
    assert words in ran.out


def test_a_config_of_another_size(out: Path, run: Run) -> None:
    path = out / "config.json"
    path.write_text(path.read_text().replace('"intermediate_size": 112', '"intermediate_size": 96'))
    accept(out, path)
    ran = run("verify", out)
    assert ran.code == 1
    assert "LR601" in ran.out
    assert "mlp.up_proj.weight" in ran.out


@pytest.mark.parametrize(
    "name",
    [
        "model.safetensors",
        "pytorch_model.bin",
        "adapter_model.safetensors",
        "model.safetensors.partial",
    ],
)
def test_a_file_that_a_loader_would_take_in(name: str, out: Path, run: Run) -> None:
    shutil.copy(out / "model-00001-of-00003.safetensors", out / name)
    ran = run("verify", out)
    assert ran.code == 1
    assert f"{name}  is not in the record" in ran.out


@pytest.mark.parametrize(
    "name", ["added_tokens.json", "merges.txt", "modeling_llava.py", "chat_template2.jinja"]
)
def test_a_small_file_that_would_be_taken_in(name: str, out: Path, run: Run) -> None:
    (out / name).write_text("{}")
    assert f"{name}  is not in the record" in run("verify", out).out


def test_a_folder_that_would_be_taken_in(out: Path, run: Run) -> None:
    """With another default template in it, AutoProcessor doesn't open the folder any more."""
    (out / "additional_chat_templates").mkdir()
    ran = run("verify", out)
    assert (ran.code, "additional_chat_templates  is not in the record" in ran.out) == (1, True)


def test_other_files_may_be_added(out: Path, run: Run) -> None:
    (out / "README.md").write_text("# My model\n")
    (out / ".cache").mkdir()
    assert run("verify", out).code == 0


def test_against_another_checkpoint(out: Path, run: Run, tmp_path: Path) -> None:
    folder = tmp_path / "other"
    shutil.copytree(RELEASED / "safetensors", folder)
    state = load_file(folder / "model.safetensors")
    state["model.norm.weight"] = state["model.norm.weight"] + 1
    state["model.mm_projector.0.bias"] = state["model.mm_projector.0.bias"].float()
    del state["model.mm_projector.2.bias"]
    save_file(state, folder / "model.safetensors")
    ran = run("verify", out, "--against", folder, "--against", SOURCES[1])
    assert ran.code == 1
    assert "3 of 80 tensors differ from the sources" in ran.out
    assert f"{NORM}  64 of 64 values differ, by up to " in ran.out
    assert (
        "linear_1.bias  comes from `model.mm_projector.0.bias`, which is F32 [64] and was F16 [64]"
        in ran.out
    )
    assert (
        "linear_2.bias  comes from `model.mm_projector.2.bias`, which source `model` doesn't have"
        in ran.out
    )


def test_against_a_checkpoint_without_what_new_rows_are_made_from(
    out: Path, run: Run, tmp_path: Path
) -> None:
    """The new rows of lm_head are made from embed_tokens, so both are not what this source
    gives.
    """
    folder = tmp_path / "other"
    shutil.copytree(RELEASED / "safetensors", folder)
    state = load_file(folder / "model.safetensors")
    del state["model.embed_tokens.weight"]
    save_file(state, folder / "model.safetensors")
    ran = run("verify", out, "--against", folder, "--against", SOURCES[1])
    assert ran.code == 1
    assert "2 of 80 tensors differ from the sources" in ran.out
    assert (
        "lm_head.weight  comes from `model.embed_tokens.weight`, which source `model` doesn't have"
        in ran.out
    )


def test_against_a_manifest(out: Path, run: Run, tmp_path: Path) -> None:
    """It has every name and shape, and no values."""
    catalog = open_checkpoint(Path(SOURCES[0])).catalog
    tensors = {
        name: {"dtype": tensor.dtype, "shape": tensor.shape} for name, tensor in catalog.items()
    }
    content = {"format": "llava-remap/manifest", "format_version": 1, "tensors": tensors}
    (tmp_path / "manifest.json").write_text(json.dumps(content))
    ran = run("verify", out, "--against", "manifest.json", "--against", SOURCES[1])
    assert (ran.code, "LR111" in ran.err) == (1, True)
    assert "there are no values to compare" in ran.err


def without_norm(record: Any) -> None:
    record["plan"]["mapped"] = [
        entry for entry in record["plan"]["mapped"] if entry["target"] != NORM
    ]


def test_a_tensor_that_the_record_leaves_out(out: Path, run: Run) -> None:
    path = out / "llava_remap.json"
    path.write_text(broken(without_norm)(path.read_text()))
    ran = run("verify", out, *AGAINST)
    assert ran.code == 1
    assert f"{NORM}  has no source in the record" in ran.out


def test_sources_whose_tensors_lie_otherwise(out: Path, run: Run, tmp_path: Path) -> None:
    """The same values, transposed in memory: how they lie is no difference."""
    folder = tmp_path / "transposed"
    shutil.copytree(RELEASED / "bin", folder)
    state = torch.load(folder / "pytorch_model.bin", weights_only=True)
    for name in ("model.embed_tokens.weight", "model.layers.0.mlp.up_proj.weight"):
        state[name] = state[name].T.contiguous().T
    torch.save(state, folder / "pytorch_model.bin")
    assert run("verify", out, "--against", folder, "--against", SOURCES[1]).code == 0


def test_a_tied_head_that_has_come_apart(run: Run, tmp_path: Path) -> None:
    """It isn't in the folder; in the source it has to be what it is tied to."""
    for name in ("tied", "apart"):
        shutil.copytree(RELEASED / "bin", tmp_path / name)
        state = torch.load(tmp_path / name / "pytorch_model.bin", weights_only=True)
        state["lm_head.weight"] = state["model.embed_tokens.weight"] + (0 if name == "tied" else 1)
        torch.save(state, tmp_path / name / "pytorch_model.bin")
        config = json.loads((tmp_path / name / "config.json").read_text())
        (tmp_path / name / "config.json").write_text(
            json.dumps({**config, "tie_word_embeddings": True})
        )
    apply("llava-v1.5", [str(tmp_path / "tied"), SOURCES[1]], "made")
    assert run("verify", "made", "--against", tmp_path / "tied", "--against", SOURCES[1]).code == 0
    ran = run("verify", "made", "--against", tmp_path / "apart", "--against", SOURCES[1])
    assert ran.code == 1
    assert (
        "lm_head.weight  is tied to `language_model.model.embed_tokens.weight`, but its "
        "source has other values" in ran.out
    )
    assert "80 tensors compared with what the sources give, 1 differ" in ran.out


def test_a_source_of_which_no_tensor_was_used(run: Run, tmp_path: Path) -> None:
    """As `apply` was given it: a tower of its own is there already, and of the other only the
    config was read.
    """
    model = TINY / "llava-onevision" / "safetensors"
    tower = tmp_path / "tower"
    tower.mkdir()
    shutil.copy(TINY / "siglip-tiny-patch14-28" / "config.json", tower)
    sources = (f"model={model}", f"vision_tower={tower}")
    ran = run(
        "apply",
        "llava-onevision",
        *(a for source in sources for a in ("--source", source)),
        "--output",
        "made",
    )
    assert ran.code == 0, ran.out + ran.err
    assert (
        run("verify", "made", *(a for source in sources for a in ("--against", source))).code == 0
    )
    assert run("verify", "made", "--against", model).code == 0
    assert "made from `model`" in run("verify", "made", "--against", sources[1]).err
    ran = run("verify", "made", "--against", model, "--against", f"tower={tower}")
    assert (ran.code, "the sources are model, vision_tower" in ran.err) == (2, True)


def test_progress_adds_up(out: Path) -> None:
    record = read_record(out)
    for against in (None, open_again(record.locations, AGAINST[1::2])):
        told: list[int] = []
        assert not verify_folder(out, record, against, told.append).problems
        assert sum(told) == record.nbytes_to_read(compared=against is not None)


@pytest.mark.parametrize(
    "config", ["{}", '{"model_type": "llava"}', '{"model_type": "llava", "text_config": 5}']
)
def test_a_config_from_which_no_model_is_built(config: str, out: Path, run: Run) -> None:
    """No rule file is wrong, and nobody used anything wrongly."""
    (out / "config.json").write_text(config)
    ran = run("verify", out, "--format", "json")
    assert ran.code == 1
    assert {problem["code"] for problem in ran.json["problems"]} == {"LR603", "LR601"}


def test_json_of_a_refusal(tmp_path: Path, run: Run) -> None:
    ran = run("verify", tmp_path, "--format", "json")
    assert (ran.json["format"], ran.json["verified"], ran.code) == (
        "llava-remap/verification",
        False,
        3,
    )


@pytest.mark.parametrize("dtype", ["U16", "I16", "C64"])
def test_a_shard_of_another_dtype(dtype: str, out: Path, run: Run) -> None:
    path = shard_with(out, NORM)
    path.write_bytes(path.read_bytes().replace(b'"F16"', f'"{dtype}"'.encode(), 1))
    ran = run("verify", out)
    assert ran.code > 0
    assert f"{path.name}  has" in ran.out


def test_how_far_is_told_of_what_differs() -> None:
    """Two infinite values that are equal are no difference, beside one that is."""
    one, other = torch.tensor([1.0, float("inf")]), torch.tensor([1.5, float("inf")])
    assert _distance(one.numpy().tobytes(), other.numpy().tobytes(), "F32") == (1, 0.5)


# --- a record that was changed


def swap_sources(record: Any) -> None:
    """Two matrices of the same shape change places: by names and shapes, nothing is wrong."""
    one, other = (
        next(
            entry
            for entry in record["plan"]["mapped"]
            if entry["target"].endswith(f"layers.0.self_attn.{name}_proj.weight")
        )
        for name in "qo"
    )
    one["from"], other["from"] = other["from"], one["from"]


@pytest.mark.parametrize(
    "change",
    [
        swap_sources,
        lambda record: record["plan"]["notes"].clear(),
        lambda record: record.update(verified="full"),
        lambda record: record["rules"]["files"][0].update(text="# another"),
        lambda record: record["made_with"].update(torch="1.0"),
        lambda record: record.update(more=1),
        lambda record: record.pop("digest"),
        lambda record: record.update(digest="0" * 32),
    ],
)
def test_a_record_changed_by_accident(change: Callable[[Any], object], out: Path, run: Run) -> None:
    record = record_of(out)
    change(record)
    (out / "llava_remap.json").write_text(json.dumps(record))
    for command in (("verify", out), ("revert", out, "--output", "back")):
        ran = run(*command)
        assert (ran.code, "LR113" in ran.err, "llava_remap.json" in ran.err) == (3, True, True)
    assert not Path("back").exists()


def test_a_record_that_was_only_set_anew(out: Path, run: Run) -> None:
    """Spaces and the order of keys say nothing."""
    record = dict(sorted(record_of(out).items(), reverse=True))
    (out / "llava_remap.json").write_text(json.dumps(record, ensure_ascii=False))
    assert run("verify", out).code == 0


# --- folders and records that can't be read


def test_without_a_record(out: Path, run: Run) -> None:
    (out / "llava_remap.json").unlink()
    ran = run("verify", out)
    assert ran.code == 3
    assert "LR606" in ran.err


@pytest.mark.parametrize(
    "name", ["config.json", "model-00002-of-00003.safetensors", "tokenizer.json"]
)
def test_a_folder_in_place_of_a_file(name: str, out: Path, run: Run) -> None:
    (out / name).unlink()
    (out / name).mkdir()
    ran = run("verify", out, *AGAINST)
    assert ran.code == 1
    assert f"{name}  can't be read: it is a folder where a file should be" in ran.out


@pytest.mark.parametrize("name", ["llava_remap.json", "config.json"])
def test_a_file_that_must_not_be_read(
    name: str, out: Path, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whose test run may read everything: the refusal is made up."""
    opened = Path.open

    def denied(path: Path, *arguments: Any, **named: Any) -> Any:
        if path.name == name:
            raise PermissionError(13, "Permission denied", str(path))
        return opened(path, *arguments, **named)

    monkeypatch.setattr(Path, "open", denied)
    ran = run("verify", out)
    assert ran.code == 3
    assert "LR100" in ran.err
    assert f"{name}` can't be read: Permission denied" in ran.err


def test_a_name_too_long(run: Run) -> None:
    ran = run("verify", "x" * 300)
    assert (ran.code, "LR100" in ran.err) == (3, True)


@pytest.mark.parametrize(
    "left", [["model-00001-of-00003.safetensors"], ["model-00002-of-00003.safetensors.partial"]]
)
def test_an_unfinished_folder(left: list[str], out: Path, run: Run) -> None:
    for path in out.iterdir():
        path.unlink()
    for name in left:
        (out / name).write_bytes(b"")
    ran = run("verify", out)
    assert ran.code == 4
    assert "LR505" in ran.err


def test_no_folder(run: Run) -> None:
    ran = run("verify", "nowhere")
    assert (ran.code, "LR100" in ran.err) == (3, True)
    Path("file").write_text("")
    assert run("verify", "file").code == 3


def broken(change: Callable[[Any], object]) -> Callable[[str], str]:
    def apply_to(text: str) -> str:
        record = json.loads(text)
        change(record)
        return with_own_digest(record)

    return apply_to


@pytest.mark.parametrize(
    "damage",
    [
        lambda text: "",
        lambda text: text[:-10],
        lambda text: "[]",
        broken(lambda r: r.update(format="other")),
        broken(lambda r: r.update(format_version=2)),
        broken(lambda r: r.pop("outputs")),
        broken(
            lambda r: r["outputs"].update({"../../etc/passwd": {"nbytes": 1, "xxh3_128": "0" * 32}})
        ),
        broken(lambda r: r["outputs"].update({"..": {"nbytes": 1, "xxh3_128": "0" * 32}})),
        broken(lambda r: r["outputs"].update({"a": {"nbytes": -1, "xxh3_128": "0" * 32}})),
        broken(lambda r: r["outputs"].update({"a": {"nbytes": 1, "xxh3_128": "zz"}})),
        broken(lambda r: r["plan"]["mapped"][0].pop("target")),
        broken(lambda r: r["plan"]["mapped"][0].update(shape="x")),
        broken(lambda r: r["plan"]["mapped"][0].update({"from": []})),
        broken(lambda r: r["plan"]["post_load"][0].pop("use")),
        broken(lambda r: r["plan"].pop("target")),
        broken(lambda r: r["plan"]["mapped"][0]["from"][0].update(source="other")),
        broken(lambda r: r["plan"]["post_load"][0].update(target="other")),
        broken(lambda r: r["plan"]["post_load"][0].update(reads=["other"])),
        broken(lambda r: r["plan"]["post_load"][0].update(dtype="other")),
        broken(lambda r: r["plan"]["post_load"][0]["shape_after"].append(2)),
    ],
)
def test_a_broken_record(damage: Callable[[str], str], out: Path, run: Run) -> None:
    path = out / "llava_remap.json"
    path.write_text(damage(path.read_text()))
    ran = run("verify", out)
    assert ran.code == 3
    assert "LR113" in ran.err
    assert "llava_remap.json" in ran.err


# --- apply --verify


def test_full_reads_everything_back(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    command = ("apply", "llava-v1.5", "--source", SOURCES[0], "--source", SOURCES[1], "--output")
    ran = run(*command, "good", "--verify", "full")
    assert ran.code == 0
    assert "every tensor read back, and equal to what the sources give" in ran.out
    assert record_of(Path("good"))["verified"] == "full"
    lose_last_byte(monkeypatch)
    assert run(*command, "unseen").code == 0
    assert "model-00001-of-00003.safetensors  has xxh3_128" in run("verify", "unseen").out
    assert run("verify", "unseen", *AGAINST).code == 1
    ran = run(*command, "bad", "--verify", "full")
    assert ran.code == 1
    assert "LR602" in ran.err
    assert not Path("bad").exists()


def test_none_says_so(run: Run) -> None:
    ran = run(*UNCHECKED)
    assert "not checked after writing (--verify none)" in ran.out


def test_none_asks_nobody(made: Path) -> None:
    """Warm, a job without the strict load imports neither torch nor transformers."""
    assert heavy(*UNCHECKED) == {"numpy"}  # the new rows
    assert record_of(Path("out"))["verified"] == "none"
    for path in made.iterdir():
        if path.name != "llava_remap.json":
            assert path.read_bytes() == Path("out", path.name).read_bytes()
