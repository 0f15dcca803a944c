"""`llava-remap diff` finds every change that is made in a copy, and nothing else."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForImageTextToText

from llava_remap.checkpoint import InMemory, open_checkpoint
from llava_remap.core.problem import RemapError
from llava_remap.jobs.apply import apply
from llava_remap.jobs.diff import diff, prepare
from llava_remap.jobs.inspect_parts import inspect
from llava_remap.verification.compare_tokenizers import TEXTS
from llava_remap.verification.difference import Difference
from tests.conftest import CLIP, MANIFESTS, RELEASED, TINY, Run, heavy

SOURCES = (str(RELEASED / "bin"), f"vision_tower={CLIP}")
NORM = "language_model.model.norm.weight"
HEAD = "language_model.lm_head.weight"
TABLE = "language_model.model.embed_tokens.weight"


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("made") / "a"
    apply("llava-v1.5", SOURCES, folder, max_shard_nbytes=10**9)
    return folder


@pytest.fixture
def copy(made: Path, tmp_path: Path) -> Path:
    """A copy of a converted folder, to change something in it."""
    shutil.copytree(made, tmp_path / "b")
    return tmp_path / "b"


def change_json(path: Path, change: Callable[[Any], object]) -> None:
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))


def change_tensors(folder: Path, change: Callable[[dict[str, torch.Tensor]], object]) -> None:
    [file] = folder.glob("*.safetensors")
    tensors = load_file(file)
    change(tensors)
    save_file(tensors, file, {"format": "pt"})
    (folder / "model.safetensors.index.json").unlink(missing_ok=True)
    if file.name != "model.safetensors":
        file.rename(folder / "model.safetensors")


def findings(found: Difference) -> dict[str, Any]:
    """All lists and parts of a comparison that aren't empty, but for what is only spelt
    otherwise.
    """
    content = found.to_json()
    facts = ("format", "format_version", "equal", "differs", "of", "a", "b")
    kept = {
        k: v for k, v in content.items() if v and k not in (*facts, "tensors", "values_compared")
    }
    kept["files"] = [file for file in content["files"] if file["rows"] or file["only_in"]]
    return {k: v for k, v in kept.items() if v}


def test_a_copy_is_equal(made: Path, copy: Path) -> None:
    found = diff(made, copy)
    assert findings(found) == {}
    assert found.equal
    assert found.values_compared == found.tensors == len(open_checkpoint(made).catalog)


@pytest.mark.parametrize(
    ("bits", "expected"),
    [
        (0x3C01, {"differing": 1, "nan_bits": 0, "zero_signs": 0}),
        (0x7E01, {"differing": 1, "not_finite": 1, "max_abs": None}),
    ],
)
def test_a_value(made: Path, copy: Path, bits: int, expected: dict[str, Any]) -> None:
    def plant(tensors: dict[str, torch.Tensor]) -> None:
        tensors[NORM].view(torch.int16)[5] = bits

    change_tensors(copy, plant)
    found = diff(made, copy)
    assert findings(found).keys() == {"values"}
    [values] = found.to_json()["values"]
    assert (values["name"], values["first"]["index"]) == (NORM, [5])
    assert values["first"]["b"]["bits"] == f"0x{bits:04x}"
    assert expected.items() <= values.items()


def test_a_nan_with_other_bits_and_a_zero_with_another_sign(made: Path, tmp_path: Path) -> None:
    for folder, nan, zero in (("x", 0x7E00, 0), ("y", 0x7E01, -0x8000)):
        shutil.copytree(made, tmp_path / folder)

        def plant(tensors: dict[str, torch.Tensor], nan: int = nan, zero: int = zero) -> None:
            tensors[NORM].view(torch.int16)[:2] = torch.tensor([nan, zero], dtype=torch.int16)

        change_tensors(tmp_path / folder, plant)
    found = diff(tmp_path / "x", tmp_path / "y")
    assert findings(found).keys() == {"values"}
    [values] = found.values
    assert (values.differing, values.nan_bits, values.zero_signs) == (2, 1, 1)


def test_dtype_shape_and_name(made: Path, copy: Path) -> None:
    def plant(tensors: dict[str, torch.Tensor]) -> None:
        tensors[NORM] = tensors[NORM].float()
        tensors[TABLE] = tensors[TABLE][:-1].clone()
        tensors["stray\x1b"] = tensors.pop(HEAD)

    change_tensors(copy, plant)
    found = diff(made, copy)
    assert findings(found).keys() == {"dtypes", "shapes", "only_in_a", "only_in_b"}
    assert [(d.name, d.a, d.b) for d in found.dtypes] == [(NORM, "F16", "F32")]
    assert [(s.name, s.a, s.b) for s in found.shapes] == [(TABLE, (384, 64), (383, 64))]
    assert [t.name for t in found.only_in_a] == [HEAD]
    assert [t.name for t in found.only_in_b] == ["stray\x1b"]
    assert found.values_compared == found.tensors - 1


def test_a_head_that_is_stored_once(made: Path, copy: Path, tmp_path: Path) -> None:
    """Beside an equal table, and as the same storage in a file of torch."""

    def untied(tensors: dict[str, torch.Tensor]) -> None:
        tensors[HEAD] = tensors[TABLE].clone()

    change_tensors(copy, untied)
    shutil.copytree(copy, tmp_path / "once")
    change_tensors(tmp_path / "once", lambda tensors: tensors.pop(HEAD))
    shutil.copytree(copy, tmp_path / "torch")
    tensors = load_file(copy / "model.safetensors")
    tensors[HEAD] = tensors[TABLE]
    (tmp_path / "torch" / "model.safetensors").unlink()
    torch.save(tensors, tmp_path / "torch" / "pytorch_model.bin")
    for a, b, stored in (
        (copy, "once", ("equal", "alone")),
        ("once", copy, ("alone", "equal")),
        ("torch", copy, ("shared", "apart")),
        ("torch", "once", ("shared", "alone")),
        ("once", "torch", ("alone", "shared")),
    ):
        found = diff(tmp_path / a, tmp_path / b)
        assert findings(found).keys() == {"ties"}
        [tie] = found.ties
        assert (tie.names, tie.a, tie.b) == ((HEAD, TABLE), *stored)
    assert findings(diff(copy, tmp_path / "once", values=False)).keys() == {
        "only_in_a",
        "values_reason",
    }
    assert findings(diff(made, tmp_path / "once")).keys() == {"only_in_a"}


PLANTED: dict[str, tuple[str, Callable[[Any], object], str, str]] = {
    "config": (
        "config.json",
        lambda c: c["text_config"].update(rms_norm_eps=1e-6),
        "files",
        "text_config.rms_norm_eps",
    ),
    "rope": (
        "config.json",
        lambda c: c["text_config"].update(rope_theta=500000.0),
        "files",
        "text_config.rope_theta",
    ),
    "unknown key": ("config.json", lambda c: c.update(other=[1]), "files", "other"),
    "generation": (
        "generation_config.json",
        lambda c: c.update(temperature=0.3),
        "files",
        "temperature",
    ),
    "processor": (
        "preprocessor_config.json",
        lambda c: c["image_mean"].__setitem__(1, 0.5),
        "files",
        "image_mean[1]",
    ),
}


@pytest.mark.parametrize("case", PLANTED)
def test_a_key_of_a_config(made: Path, copy: Path, case: str) -> None:
    file, plant, part, key = PLANTED[case]
    change_json(copy / file, plant)
    found = findings(diff(made, copy))
    assert found.keys() == {part}
    [entry] = found[part]
    assert entry["name"] == file
    assert [row["key"] for row in entry["rows"]] == [key]


def test_spelling_of_a_config_is_no_difference(made: Path, copy: Path) -> None:
    """As transformers 5 writes what 4 wrote; oracle: its own class."""
    from transformers import LlavaConfig

    LlavaConfig.from_pretrained(made).save_pretrained(copy)
    assert (made / "config.json").read_text() != (copy / "config.json").read_text()
    found = diff(made, copy)
    [file] = found.files
    assert file.spelling
    assert file.read_by.startswith("LlavaConfig")
    assert (
        LlavaConfig.from_pretrained(made).to_dict() == LlavaConfig.from_pretrained(copy).to_dict()
    )
    assert found.equal
    # Another value in the new spelling counts as a difference, not as spelling.
    change_json(
        copy / "config.json",
        lambda c: c["text_config"]["rope_parameters"].update(rope_theta=77.0),
    )
    [file] = diff(made, copy).files
    assert [(row.key, row.b) for row in file.rows] == [
        ("text_config.rope_parameters.rope_theta", 77.0)
    ]


def test_spelling_is_not_established_for_research_code(tmp_path: Path) -> None:
    for name, key in (("x", "torch_dtype"), ("y", "dtype")):
        shutil.copytree(RELEASED / "safetensors", tmp_path / name)
        content = json.loads((tmp_path / name / "config.json").read_text())
        content[key] = content.pop("torch_dtype")
        (tmp_path / name / "config.json").write_text(json.dumps(content))
    [file] = diff(tmp_path / "x", tmp_path / "y").files
    assert {row.key for row in file.rows} == {"torch_dtype", "dtype"}
    assert not file.spelling


def test_two_values_of_a_key_are_no_spelling(made: Path, copy: Path) -> None:
    """transformers 5 reads `rope_parameters` alone; 4 reads `rope_theta`."""
    from transformers import LlavaConfig

    change_json(copy / "config.json", lambda c: c["text_config"].update(rope_theta=5.0))
    configs = [LlavaConfig.from_pretrained(folder).to_dict() for folder in (made, copy)]
    assert configs[0] == configs[1]
    [file] = diff(made, copy).files
    assert [row.key for row in file.rows] == ["text_config.rope_theta"]


def test_a_token(made: Path, copy: Path) -> None:
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(str(copy / "tokenizer.json"))
    tokenizer.add_tokens(["Hello"])
    tokenizer.save(str(copy / "tokenizer.json"))
    found = diff(made, copy)
    assert findings(found).keys() == {"tokenizer"}
    assert found.tokenizer is not None
    [word] = found.tokenizer.words
    assert (word.key, word.a, word.only_in) == ("Hello", None, "b")
    assert not any(file.differs for file in found.tokenizer.files)
    assert not found.tokenizer.special
    assert {entry.text for entry in found.tokenizer.texts} == {t for t in TEXTS if "Hello" in t}
    for entry in found.tokenizer.texts:
        assert list(entry.b) == tokenizer.encode(entry.text).ids


def test_special_tokens_and_flags(made: Path, copy: Path) -> None:
    def plant(content: Any) -> None:
        content["eos_token"] = "<pad>"
        content["model_max_length"] = 7

    change_json(copy / "tokenizer_config.json", plant)

    def flags(content: Any) -> None:
        next(t for t in content["added_tokens"] if t["content"] == "<image>")["lstrip"] = True

    change_json(copy / "tokenizer.json", flags)
    found = diff(made, copy).tokenizer
    assert found is not None
    assert [(row.key, row.b) for row in found.special] == [("eos_token", "<pad>")]
    assert [row.key for row in found.added] == ["<image>"]
    assert [row.key for file in found.files for row in file.rows] == ["model_max_length"]
    assert not found.words


def test_tokens_of_a_file_that_another_file_hides(made: Path, copy: Path) -> None:
    """Flags and ids in the tokenizer's config, which transformers reads before `tokenizer.json`;
    words in the map, which older versions read.
    """
    from transformers import AutoTokenizer

    def plant(content: Any) -> None:
        flags = {token["content"]: token for token in content["added_tokens_decoder"].values()}
        flags["<image>"]["lstrip"] = True

    change_json(copy / "tokenizer_config.json", plant)
    read = [AutoTokenizer.from_pretrained(folder).added_tokens_decoder for folder in (made, copy)]
    assert read[0] != read[1]
    change_json(copy / "special_tokens_map.json", lambda c: c.update(eos_token="<unk>"))

    def renumber(content: Any) -> None:
        next(t for t in content["added_tokens"] if t["content"] == "<pad>")["id"] = 7

    change_json(copy / "tokenizer.json", renumber)
    found = diff(made, copy).tokenizer
    assert found is not None
    assert [row.key for row in found.added] == ["<image>"]
    assert [(row.key, row.a, row.b) for row in found.special] == [("eos_token", "</s>", "<unk>")]
    assert [(row.key, row.b) for row in found.words] == [("<pad>", 7)]


def test_the_order_of_added_tokens_is_compared(made: Path, tmp_path: Path) -> None:
    """The library gives them ids by their order, not those that the file says."""
    from tokenizers import Tokenizer

    ids = []
    for name, step in (("x", 1), ("y", -1)):
        file = shutil.copytree(made, tmp_path / name) / "tokenizer.json"
        tokenizer = Tokenizer.from_file(str(file))
        tokenizer.add_tokens(["<one>", "<two>"])
        tokenizer.save(str(file))

        def turn(content: Any, step: int = step) -> None:
            content["added_tokens"] = (
                content["added_tokens"][:-2] + (content["added_tokens"][-2:][::step])
            )

        change_json(file, turn)
        ids.append(Tokenizer.from_file(str(file)).token_to_id("<one>"))
    assert ids[0] != ids[1]
    found = diff(tmp_path / "x", tmp_path / "y").tokenizer
    assert found is not None
    assert (found.words, found.texts) == ((), ())
    [differing] = found.files
    assert {(row.a, row.b) for row in differing.rows} == {("<one>", "<two>"), ("<two>", "<one>")}


def test_scores_of_words_are_compared(made: Path, copy: Path, tmp_path: Path) -> None:
    from tokenizers import Tokenizer
    from tokenizers.models import Unigram

    shutil.copytree(made, tmp_path / "x")
    for folder, score in ((tmp_path / "x", -1.0), (copy, -1.5)):
        model = Unigram([("<unk>", 0.0), ("rare", score)], 0, False)
        Tokenizer(model).save(str(folder / "tokenizer.json"))
    found = diff(tmp_path / "x", copy).tokenizer
    assert found is not None
    assert (found.words, found.texts) == ((), ())
    [file] = found.files
    assert [(row.key, row.a, row.b) for row in file.rows] == [("model.scores.rare", -1.0, -1.5)]


def test_files_of_an_unknown_tokenizer_and_of_code(made: Path, tmp_path: Path) -> None:
    for name in ("x", "y"):
        shutil.copytree(made, tmp_path / name)
        for file in ("tokenizer.json", "tokenizer.model"):
            (tmp_path / name / file).unlink()
        (tmp_path / name / "words.tiktoken").write_text(name)
        (tmp_path / name / "same.py").write_text("")
    (tmp_path / "y" / "modeling.py").write_text("")
    (tmp_path / "y" / "pytorch_model.bin").write_text("")
    found = diff(tmp_path / "x", tmp_path / "y")
    assert found.equal
    assert found.notes == (
        "weights in B that are not read: `pytorch_model.bin`",
        "files that differ, and that were not compared: `modeling.py`, `words.tiktoken`",
    )
    change_json(tmp_path / "y" / "tokenizer_config.json", lambda c: c.update(model_max_length=7))
    tokenizer = diff(tmp_path / "x", tmp_path / "y").tokenizer
    assert tokenizer is not None
    assert [row.key for file in tokenizer.files for row in file.rows] == ["model_max_length"]
    assert tokenizer.reason


@pytest.mark.parametrize("visible", [True, False])
def test_a_letter_of_a_chat_template(made: Path, copy: Path, visible: bool) -> None:
    path = copy / "chat_template.jinja"
    text = path.read_text()
    at = text.rindex("ASSISTANT") if visible else 0
    path.write_text(f"{text[:at]}{'Q' if visible else '{#- a remark -#}'}{text[at:]}")
    found = diff(made, copy)
    assert findings(found).keys() == {"templates"}
    [template] = found.templates
    place = text[:at].count("\n") + 1
    assert (template.name, template.line, template.only_in) == ("default", place, None)
    assert template.tried > 5
    assert (template.differing > 0) is visible
    if visible:
        assert template.first is not None
        assert template.first.b.replace("QASSISTANT", "ASSISTANT") == template.first.a


def test_where_a_chat_template_is_stored_is_no_difference(made: Path, copy: Path) -> None:
    path = copy / "chat_template.jinja"
    change_json(copy / "tokenizer_config.json", lambda c: c.update(chat_template=path.read_text()))
    path.unlink()
    assert findings(diff(made, copy)) == {}


def test_a_template_behind_another_one_is_compared(made: Path, tmp_path: Path) -> None:
    """transformers 5 reads `chat_template.json` for the processor even beside
    `chat_template.jinja`, and the tokenizer's config for the tokenizer beside the former.
    """
    folders = [tmp_path / "x", tmp_path / "y"]
    for folder in folders:
        shutil.copytree(made, folder)
        (folder / "chat_template.json").write_text(json.dumps({"chat_template": folder.name}))
    found = diff(*folders)
    assert found.differs == ("chat_template",)
    assert [template.name for template in found.templates] == ["default in chat_template.json"]
    assert diff(made, folders[0]).differs == ("chat_template",)
    for folder in folders:
        shutil.copy(made / "chat_template.json", folder)
        (folder / "chat_template.jinja").unlink()
    assert diff(*folders).equal
    change_json(folders[0] / "tokenizer_config.json", lambda c: c.update(chat_template="other"))
    [template] = diff(*folders).templates
    assert template.name == "default in tokenizer_config.json"
    assert template.first is not None
    assert template.first.a == "other"


def test_files_that_one_side_has(made: Path, copy: Path) -> None:
    for path in (copy / "generation_config.json", *copy.glob("chat_template.*")):
        path.unlink()
    found = diff(made, copy)
    assert [(file.name, file.only_in) for file in found.files] == [("generation_config.json", "a")]
    assert [(template.name, template.only_in) for template in found.templates] == [("default", "a")]
    for path in copy.glob("*token*"):
        path.unlink()
    found = diff(made, copy)
    assert found.tokenizer is not None
    assert found.tokenizer.only_in == "a"


@pytest.mark.parametrize("layout", ["module-4.52", "module-5.6"])
def test_another_layout_is_the_only_difference(made: Path, tmp_path: Path, layout: str) -> None:
    apply("llava-v1.5", SOURCES, tmp_path / "b", layout=layout)
    found = diff(made, tmp_path / "b")
    assert findings(found).keys() == {"layout"}
    assert found.differs == ("layout",)
    assert found.layout is not None
    names = [open_checkpoint(folder).catalog.keys() for folder in (made, tmp_path / "b")]
    assert (found.layout.a, found.layout.b) == ("classic", layout)
    assert found.layout.renamed == len(names[0] - names[1])
    assert found.values_compared == len(names[0])
    plans = diff(made / "llava_remap.json", tmp_path / "b" / "llava_remap.json")
    assert {entry.part for entry in plans.entries} <= {"shards"}
    assert plans.layout == found.layout


def test_equal_checkpoints_need_no_heavy_library() -> None:
    assert heavy("diff", RELEASED / "bin", RELEASED / "safetensors") == set()


@pytest.mark.parametrize("form", ["sharded", "safetensors", "sharded_safetensors"])
def test_the_form_of_storage_is_no_difference(form: str) -> None:
    found = diff(RELEASED / "bin", RELEASED / form)
    assert found.equal
    assert found.a.form != found.b.form


def test_what_transformers_saves_of_a_folder(made: Path, tmp_path: Path) -> None:
    from transformers import AutoModelForImageTextToText

    model = AutoModelForImageTextToText.from_pretrained(made, dtype="auto")
    model.save_pretrained(tmp_path / "saved")
    found = diff(made, tmp_path / "saved")
    assert set(found.differs) <= {"dtypes", "values", "files", "tokenizer", "chat_template"}
    # The folder keeps the tower's dtype; the loader casts every tensor to the config's dtype.
    saved = load_file(tmp_path / "saved" / "model.safetensors")
    rounded = {d.name for d in found.dtypes}
    assert rounded == {
        name for name, t in open_checkpoint(made).catalog.items() if t.dtype == "F32"
    }
    assert {entry.name for entry in found.values} <= rounded
    assert {entry.rounded_in for entry in found.values} == {"b"}
    assert {str(saved[name].dtype) for name in rounded} == {"torch.float16"}


def test_a_manifest_has_no_values(run: Run) -> None:
    path = MANIFESTS / "llava-v1.5-7b.json"
    ran = run("diff", path, path)
    assert ran.code == 0
    assert "Values were not compared: A is a manifest" in ran.out
    content = run("diff", path, RELEASED / "bin", "--format", "json").json
    assert content["values_compared"] == 0
    assert content["values_reason"] == "A is a manifest"
    assert {entry["name"] for entry in content["only_in_a"]} > {
        "model.layers.31.mlp.up_proj.weight"
    }
    assert content["shapes"]
    assert [file["name"] for file in content["files"]] == ["config.json"]
    [note] = content["notes"]
    assert note.startswith("generation config, tokenizer, processor and chat template were not")


def test_a_manifest_beside_a_folder_without_config(made: Path, copy: Path) -> None:
    manifest, without = copy.parent / "m.json", copy.parent / "without.json"
    manifest.write_text(inspect(made).manifest())
    (copy / "config.json").unlink()
    assert [(f.name, f.only_in) for f in diff(manifest, copy).files] == [("config.json", "a")]
    shutil.copy(manifest, without)
    change_json(without, lambda content: content.pop("config"))
    for a, b in ((manifest, without), (without, manifest)):
        [note] = diff(a, b).notes
        assert note.startswith("config, generation config,")


def test_tensors_in_memory_are_a_side(made: Path) -> None:
    tensors = {
        name: tensor
        for file in made.glob("*.safetensors")
        for name, tensor in load_file(file).items()
    }
    assert diff(tensors, made).equal
    assert diff(InMemory(tensors, folder=made), made).notes == ()
    tensors[NORM][5] = 7
    found = diff(made, InMemory(tensors, config={"model_type": "llava"}))
    assert set(found.differs) == {"values", "files"}
    assert found.values[0].first.b.value == 7


@pytest.mark.parametrize(
    ("file", "content", "code"),
    [
        ("config.json", {"model_type": "llava", "text_config": 7, "vision_config": [1]}, 1),
        ("config.json", {"model_type": {"a": 1}, "architectures": {"x": 1}}, 1),
        ("config.json", {"model_type": "llava", "text_config": {"num_hidden_layers": 10**9}}, 1),
        ("config.json", {"x": json.loads("[" * 300 + "]" * 300)}, 3),
        ("config.json", [1], 3),
        ("generation_config.json", {"temperature": {"a": 1}}, 1),
        ("processor_config.json", {"image_processor": 3}, 1),
        ("tokenizer_config.json", {"added_tokens_decoder": [1], "chat_template": {"a": 3}}, 3),
        ("tokenizer_config.json", {"chat_template": [1, {"name": 2}]}, 3),
        ("tokenizer.json", {"model": {"vocab": {"a": 1}}, "added_tokens": []}, 1),
        ("tokenizer.json", {"model": 3}, 3),
        ("special_tokens_map.json", {"additional_special_tokens": {"a": [1]}}, 3),
    ],
)
@pytest.mark.parametrize("form", ["human", "json"])
def test_small_files_that_make_no_sense(
    made: Path, copy: Path, file: str, content: Any, code: int, form: str, run: Run
) -> None:
    """They differ or are refused; none ends in an error of Python."""
    (copy / file).write_text(json.dumps(content))
    assert run("diff", made, copy, "--no-values", "--format", form).code == code


def test_a_converted_folder_and_its_source_are_compared_by_verify(made: Path) -> None:
    found = diff(RELEASED / "bin", made, values=False)
    [note] = found.notes
    assert f"llava-remap verify {made} --against {RELEASED / 'bin'}" in note
    assert found.layout is None


def test_progress_counts_what_was_promised(made: Path, copy: Path) -> None:
    change_tensors(copy, lambda tensors: tensors.pop(HEAD))
    comparison = prepare(made, copy)
    read: list[int] = []
    comparison.run(read.append)
    assert sum(read) == comparison.nbytes


def test_a_file_that_changes_meanwhile_is_refused(made: Path, copy: Path) -> None:
    def change(phase: str) -> None:
        change_json(copy / "config.json", lambda content: content.update(new=phase))

    with pytest.raises(RemapError) as refused:
        prepare(made, copy).run(on_phase=change)
    assert [problem.code for problem in refused.value.problems] == ["LR102"]


@pytest.fixture
def plans(made: Path, tmp_path: Path) -> tuple[Path, Path]:
    record = made / "llava_remap.json"
    path = tmp_path / "plan.json"
    path.write_text(json.dumps(json.loads(record.read_text())["plan"]))
    return record, path


def test_a_plan_and_its_record_are_equal(plans: tuple[Path, Path], run: Run) -> None:
    found = diff(*plans)
    assert (found.of, found.equal, found.entries) == ("plans", True, ())
    assert run("diff", *plans).code == 0


def test_every_change_of_a_plan_is_found(plans: tuple[Path, Path]) -> None:
    def plant(plan: Any) -> None:
        plan["rules"]["version"] = "9"
        plan["mapped"][3]["rules"] = ["other/rule"]
        plan["dropped"].pop(0)
        plan["notes"].append({"code": "LR315", "message": "new", "names": []})
        plan["shards"][0]["tensors"].reverse()

    before = json.loads(plans[1].read_text())
    change_json(plans[1], plant)
    found = diff(*plans)
    entries = {(entry.part, entry.name, entry.only_in) for entry in found.entries}
    dropped = before["dropped"][0]
    assert entries == {
        ("plan", "rules", None),
        ("mapped", before["mapped"][3]["target"], None),
        ("dropped", f"{dropped['source']} {dropped['name']}", "a"),
        ("notes", "LR315 new", "b"),
        ("shards", before["shards"][0]["file"], None),
    }
    [mapped] = [entry for entry in found.entries if entry.part == "mapped"]
    assert {row.key.partition("[")[0] for row in mapped.rows} == {"rules"}


@pytest.mark.parametrize(
    ("content", "code"),
    [
        ({"format": "llava-remap/plan", "format_version": 1}, "LR113"),
        ({"format": "llava-remap/plan", "format_version": 2}, "LR113"),
        ({"format": "llava-remap/record", "format_version": 3}, "LR113"),
        ({"format": "llava-remap/record", "format_version": 3, "plan": {"mapped": 1}}, "LR113"),
        ({"format": "llava-remap/verification", "format_version": 1}, "LR106"),
    ],
)
def test_files_that_are_no_plan(
    content: dict[str, Any], code: str, tmp_path: Path, plans: tuple[Path, Path]
) -> None:
    (tmp_path / "x.json").write_text(json.dumps(content))
    with pytest.raises(RemapError) as refused:
        diff(tmp_path / "x.json", tmp_path / "x.json")
    assert refused.value.problems[0].code == code


def test_a_plan_with_entries_of_another_form(plans: tuple[Path, Path]) -> None:
    change_json(plans[1], lambda plan: plan["mapped"][0].pop("target"))
    with pytest.raises(RemapError) as refused:
        diff(*plans)
    assert refused.value.problems[0].code == "LR113"


def test_a_checkpoint_and_a_plan_are_refused(
    made: Path, plans: tuple[Path, Path], run: Run
) -> None:
    ran = run("diff", made, plans[0], "--format", "json")
    assert ran.code == 2
    assert ran.json["format"] == "llava-remap/diff"
    assert ran.json["equal"] is False
    assert "is a checkpoint, and B" in ran.json["problems"][0]["message"]
    assert run("diff", made, "nowhere").code == 3


def test_parts_of_models_are_compared_too() -> None:
    adapter = TINY / "llava-v1.5-lora"
    projector = TINY / "llava-v1.5" / "pretrain_projector_only"
    assert diff(adapter, adapter).equal
    assert diff(projector, projector).equal
    assert diff(projector, adapter).differs[0] == "names"


def test_of_two_forms_the_one_is_read_that_transformers_loads(copy: Path) -> None:
    """A `model.safetensors` beside an index and its shards: `from_pretrained` takes it first."""
    [file] = copy.glob("*.safetensors")
    tensors, shard = load_file(file), "model-00001-of-00001.safetensors"
    other = {name: tensor + 1 if name == NORM else tensor for name, tensor in tensors.items()}
    file.rename(copy / shard)
    index = {"metadata": {}, "weight_map": dict.fromkeys(tensors, shard)}
    (copy / "model.safetensors.index.json").write_text(json.dumps(index))
    shards = open_checkpoint(copy)
    assert shards.form.endswith("(model.safetensors.index.json)")
    save_file(other, copy / "model.safetensors", {"format": "pt"})
    loaded = AutoModelForImageTextToText.from_pretrained(copy, dtype="auto").state_dict()
    [norm] = [
        value for name, value in loaded.items() if name.endswith("language_model.norm.weight")
    ]
    assert torch.equal(norm, other[NORM])
    found = diff(str(copy / "model.safetensors.index.json"), str(copy))
    assert not found.equal
    assert "model.safetensors.index.json" in open_checkpoint(copy).passed_over
