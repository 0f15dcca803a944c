"""`revert --rules`: from every layout that transformers saves to the original names, by the rule
file alone.
"""

from __future__ import annotations

import json
import shutil
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoConfig, AutoModelForImageTextToText, LlavaForConditionalGeneration

from llava_remap.checkpoint import open_checkpoint
from llava_remap.core.problem import RemapError
from llava_remap.execute import write
from llava_remap.jobs.apply import apply
from llava_remap.jobs.reverse import plan_reverse
from llava_remap.jobs.run import run as run_job
from llava_remap.rulefile import load_rule_file, shipped_folder
from tests.conftest import (
    CLIP,
    MANIFESTS,
    RELEASED,
    TINY,
    Changed,
    Ran,
    Run,
    Tensors,
    lose_last_byte,
)
from tests.end_to_end.test_interrupt import signalled
from tests.jobs.test_revert import FORMS, SIGLIP, TOWER, contents, tensors

GROWN = ("model.embed_tokens.weight", "lm_head.weight")
EMBEDDING = "language_model.model.embed_tokens.weight"


def reverse(
    source: object = "out", rules: object = "llava-v1.5", output: str = "back", **named: Any
) -> Any:
    return run_job(plan_reverse(str(rules), str(source), output), **named)


def leads_back(original: dict[str, Any], folder: Path, rows: int = 384) -> dict[str, Any]:
    """Every original tensor is there, byte for byte, new rows behind the old ones; gives the
    others that are there.
    """
    found = tensors(folder)
    for name, (dtype, shape, data) in original.items():
        have = found.pop(name)
        if name in GROWN:
            assert have[:2] == (dtype, (rows, *shape[1:]))
            assert have[2][: len(data)] == data
        else:
            assert have == (dtype, shape, data), name
    return found


@pytest.mark.parametrize("form", FORMS)
def test_there_and_back(form: str) -> None:
    apply("llava-v1.5", [str(FORMS[form]), TOWER], "out")
    result = reverse()
    assert [note.code for note in result.notes] == ["LR410", "LR411"]
    original = {
        n: t
        for n, t in tensors(FORMS[form]).items()
        if not n.endswith(("inv_freq", "position_ids"))
    }
    more = leads_back(original, Path("back"))
    if form == "full_state_dict":
        assert not more
    else:  # the tower was another source; it gets the names of a checkpoint with a tower
        tower = {
            f"model.vision_tower.vision_tower.{n}": t
            for n, t in tensors(CLIP).items()
            if n.startswith("vision_model.")
        }
        assert more == {
            name: tensor for name, tensor in tower.items() if not name.endswith("position_ids")
        }
    names = {path.name for path in Path("back").iterdir()}
    assert names == set(result.files)
    assert {name for name in names if not name.startswith("model-")} == {
        "model.safetensors.index.json"
    }


def test_what_comes_back_is_taken_there_again(changed: Changed) -> None:
    """With the files that are to be copied, and the number of rows and the tokens that the
    report names.
    """
    source = FORMS["full_state_dict"]
    apply("llava-v1.5", [str(source), TOWER], "out")
    reverse()
    for file in source.glob("*token*"):
        shutil.copy(file, "back")
    config = json.loads((source / "config.json").read_text())
    Path("back/config.json").write_text(json.dumps({**config, "vocab_size": 384}))
    Path("back/added_tokens.json").write_text(json.dumps({"<image>": 320, "<pad>": 321}))
    apply("llava-v1.5", ["back", TOWER], "again")
    assert {n: t[2] for n, t in tensors(Path("again")).items()} == {
        n: t[2] for n, t in tensors(Path("out")).items()
    }


@pytest.mark.parametrize("tie", ["apart", "not stored", "stored"])
def test_interleave(tie: str, changed: Changed, run: Run) -> None:
    """Tied heads: one that isn't there isn't missed, one that is there isn't written twice."""

    def head(state: Tensors) -> None:
        if tie == "not stored":
            del state["lm_head.weight"]
        elif tie == "stored":
            state["lm_head.weight"] = state["model.embed_tokens.weight"].clone()

    source = changed(
        TINY / "llava-onevision" / "safetensors",
        tensors=head,
        config=lambda config: config.update(
            image_aspect_ratio="anyres", tie_word_embeddings=tie != "apart"
        ),
    )
    apply("llava-interleave", [str(source), f"vision_tower={SIGLIP}"], "out")
    original = tensors(source)
    del original["model.image_newline"]
    if tie == "stored":  # as saved by a trainer that ignores ties
        [shard] = Path("out").glob("*.safetensors")
        state = load_file(shard)
        save_file(
            {**state, "language_model.lm_head.weight": state[EMBEDDING].clone()},
            shard,
            {"format": "pt"},
        )
        Path("out/model.safetensors.index.json").unlink()
    ran = run("revert", "out", "--rules", "llava-interleave", "--output", "back")
    assert ran.code == 0, ran.out + ran.err
    assert "`model.image_newline` (several images are not cut into tiles" in ran.out
    if tie != "apart":
        original.pop("lm_head.weight", None)
    assert not leads_back(original, Path("back"))


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("made") / "out"
    apply("llava-v1.5", [str(FORMS["full_state_dict"]), TOWER], folder)
    return folder


@pytest.fixture
def out(made: Path) -> Path:
    shutil.copytree(made, "out")
    return Path("out")


def respelt(out: Path, layout: str) -> None:
    """The folder's names as a layout has them, by the inverse of what the layout's file says."""
    from llava_remap.rewrite import compile_rules

    program = compile_rules(load_rule_file(shipped_folder() / "layouts" / f"{layout}.yaml"))
    state = {
        name: tensor
        for file in out.glob("*.safetensors")
        for name, tensor in load_file(file).items()
    }
    for file in (*out.glob("*.safetensors"), out / "model.safetensors.index.json"):
        file.unlink()
    save_file(
        {str(program.inverse(name)): tensor for name, tensor in state.items()},
        out / "model.safetensors",
    )


@pytest.mark.parametrize(
    "layout", ["classic", "classic-5.6", "mixed-5.4", "module-4.52", "module-5.6"]
)
def test_every_layout(layout: str, made: Path, out: Path) -> None:
    respelt(out, layout)
    assert (tensors(out).keys() == tensors(made).keys()) == (layout == "classic")
    reverse()
    reverse(made, output="classic")
    assert tensors(Path("back")) == tensors(Path("classic"))


def test_a_file_with_the_projector_alone(made: Path) -> None:
    """The way back keeps the files of the folder, and one of many may be that of a projector."""
    apply("llava-v1.5", [str(FORMS["full_state_dict"]), TOWER], "many", max_shard_nbytes=3000)
    reverse("many")
    reverse(made, output="few")
    assert tensors(Path("back")) == tensors(Path("few"))


def test_what_the_installed_transformers_saves(out: Path) -> None:
    """A fine-tuned model, and one built from scratch: every tensor that was saved comes back
    under its original name.
    """
    model = AutoModelForImageTextToText.from_pretrained(out)
    with torch.no_grad():
        model.get_input_embeddings().weight += 1
    model.save_pretrained("tuned")
    LlavaForConditionalGeneration(AutoConfig.from_pretrained(out)).save_pretrained("scratch")
    for folder in ("tuned", "scratch"):
        result = reverse(folder, output=f"back-{folder}")
        assert result.nbytes == open_checkpoint(Path(folder)).nbytes
        assert tensors(Path(f"back-{folder}")).keys() == {
            name
            for name in tensors(FORMS["full_state_dict"])
            if not name.endswith(("inv_freq", "position_ids"))
        }
    tuned = load_file("tuned/model.safetensors")[EMBEDDING]
    assert torch.equal(
        load_file("back-tuned/model-00001-of-00001.safetensors")["model.embed_tokens.weight"], tuned
    )


# --- reports


def test_a_dry_run_and_a_report(out: Path, run: Run) -> None:
    arguments = ("revert", out, "--rules", "llava-v1.5", "--output", "back")
    ran = run(*arguments, "--dry-run")
    assert ran.code == 0
    assert "llava-v1.5 1.0.0 → LlavaForConditionalGeneration, original layout" in ran.out
    assert "Plan complete: 80 of 80 parameters" in ran.out
    assert "LR410 rows of new tokens stay: all 384 rows of embed_tokens are kept" in ran.out
    assert not Path("back").exists()
    dry = run(*arguments, "--dry-run", "--format", "json", "--report", "plan.json").json
    assert dry == json.loads(Path("plan.json").read_text())
    assert dry["target"] == {
        "class": "LlavaForConditionalGeneration",
        "layout": "original",
        "tensors": 80,
    }
    entry = next(entry for entry in dry["mapped"] if entry["target"] == "model.mm_projector.0.bias")
    assert entry["from"] == [{"source": "model", "name": "multi_modal_projector.linear_1.bias"}]
    assert (entry["rules"], entry["then"]) == (["names/projector-in"], [])
    wet = run(*arguments, "--format", "json").json
    assert {key: value for key, value in wet.items() if key != "result"} == dry
    assert wet["result"]["verified"] == "meta"


def test_what_is_told_when_it_is_done(out: Path, run: Run) -> None:
    ran = run("revert", out, "--rules", "llava-v1.5", "--verify", "full")
    assert ran.code == 0
    done = ran.out[ran.out.index("Done: ./out-original written") :]
    assert (
        "the rule file maps them to where they came from; every tensor equal to what the source "
        "gives" in done
    )
    assert "LR411 weights alone: config.json, generation_config.json and the" in done
    assert "Copy them from the original, liuhaotian/llava-v1.5-7b for one." in done


def test_two_runs_give_the_same_bytes(out: Path) -> None:
    reverse(output="one")
    reverse(output="two")
    assert contents(Path("one")) == contents(Path("two"))


@pytest.mark.parametrize("verify", ["meta", "full", "none"])
def test_progress_adds_up(verify: Any, out: Path) -> None:
    job = plan_reverse("llava-v1.5", out, "back")
    told: list[int] = []
    run_job(job, told.append, verify=verify)
    assert sum(told) == job.nbytes_to_handle(verify)


# --- refusals


def refusal(
    run: Run, *arguments: object, rules: object = "llava-v1.5", source: object = "out"
) -> Any:
    """The one problem of a refused job, as JSON; nothing is left."""
    before = contents(Path())
    ran: Ran = run(
        "revert",
        source,
        "--rules",
        rules,
        "--output",
        "back",
        "--format",
        "json",
        *arguments,
    )
    assert ran.code > 0
    [problem] = ran.json["problems"]
    assert contents(Path()) == before
    assert not Path("back").exists()
    return problem


def change_config(**changes: object) -> None:
    path = Path("out/config.json")
    content = {**json.loads(path.read_text()), **changes}
    path.write_text(json.dumps({key: value for key, value in content.items() if value is not None}))


def change_shard(change: Callable[[Tensors], object]) -> None:
    respelt(Path("out"), "classic")
    state = load_file("out/model.safetensors")
    change(state)
    save_file(state, "out/model.safetensors", {"format": "pt"})


def test_no_config(out: Path, run: Run) -> None:
    (out / "config.json").unlink()
    assert refusal(run)["code"] == "LR112"


@pytest.mark.parametrize(
    ("changes", "code"),
    [
        ({"architectures": ["LlavaNextForConditionalGeneration"]}, "LR311"),
        ({"architectures": None}, "LR311"),
        ({"architectures": "LlavaForConditionalGeneration"}, "LR311"),
        ({"model_type": "llava_next"}, "LR311"),
        ({"text_config": None}, "LR112"),
        ({"text_config": 5}, "LR112"),
        ({"vision_config": 5}, "LR112"),
        ({"text_config": {"model_type": "llama", "hidden_size": "x"}}, "LR112"),
    ],
)
def test_a_config_of_something_else(
    changes: dict[str, object], code: str, out: Path, run: Run
) -> None:
    change_config(**changes)
    assert refusal(run)["code"] == code


def test_an_original(run: Run) -> None:
    problem = refusal(run, source=RELEASED / "bin")
    assert problem["code"] == "LR311"
    assert "['LlavaLlamaForCausalLM'], not ['LlavaForConditionalGeneration']" in problem["message"]


def test_names_of_no_layout(out: Path, run: Run) -> None:
    change_shard(lambda state: state.update(extra=torch.ones(1)))
    problem = refusal(run)
    assert (problem["code"], problem["names"]) == ("LR301", ["extra"])
    assert "1 of 81 names are not in layout classic" in problem["message"]


def test_names_that_no_rule_makes(out: Path, run: Run) -> None:
    change_shard(lambda state: state.update({"multi_modal_projector.linear_3.bias": torch.ones(1)}))
    problem = refusal(run)
    assert (problem["code"], problem["names"]) == ("LR301", ["multi_modal_projector.linear_3.bias"])
    assert "have no way back by llava-v1.5: no rule makes them" in problem["message"]


def test_a_rule_file_that_is_one_way(out: Path, run: Run) -> None:
    Path("mine.yaml").write_text(
        "schema: 1\nname: mine\nversion: 1.0.0\nsummary: s\nextends: [llava-v1.5.yaml]\n"
        "names: [{id: text-norm, from: 'model.norm.{p}', to: 'language_model.model.norm.{p}', "
        "one_way: true}]\n"
    )
    ran = run("revert", "out", "--rules", "mine.yaml", "--output", "back", "--format", "json")
    assert {(p["code"], *p["names"]) for p in ran.json["problems"]} == {
        ("LR301", "language_model.model.norm.weight"),
        ("LR302", "language_model.model.norm.weight"),
    }


def test_a_layer_too_many(out: Path, run: Run) -> None:
    name = "language_model.model.layers.2.input_layernorm.weight"
    change_shard(lambda state: state.update({name: torch.ones(64, dtype=torch.float16)}))
    problem = refusal(run)
    assert (problem["code"], problem["names"]) == ("LR303", [name])


def test_a_parameter_that_is_missing(out: Path, run: Run) -> None:
    change_shard(lambda state: state.pop("multi_modal_projector.linear_1.bias"))
    problem = refusal(run)
    assert (problem["code"], problem["names"]) == ("LR302", ["model.mm_projector.0.bias"])


def test_a_parameter_of_another_shape(out: Path, run: Run) -> None:
    change_shard(
        lambda state: state.update(
            {"multi_modal_projector.linear_1.bias": torch.ones(63, dtype=torch.float16)}
        )
    )
    assert refusal(run)["code"] == "LR401"


def test_a_parameter_of_another_dtype(out: Path, run: Run) -> None:
    change_shard(
        lambda state: state.update(
            {"multi_modal_projector.linear_1.bias": torch.ones(64, dtype=torch.int8)}
        )
    )
    assert refusal(run)["code"] == "LR409"


def test_two_names_that_meet(out: Path, run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    """No shipped layout gives one parameter two names; here is one that does."""
    one, other = "multi_modal_projector.linear_1.bias", "multi_modal_projector.linear_9.bias"
    change_shard(lambda state: state.update({other: state[one].clone()}))
    monkeypatch.setattr(
        "llava_remap.jobs.reverse.nearest_layout",
        lambda names: ("mine", {n: one if n == other else n for n in names}),
    )
    problem = refusal(run)
    assert (problem["code"], problem["names"]) == ("LR304", [one, other])


def test_a_tied_head_that_differs(out: Path, run: Run) -> None:
    change_config(tie_word_embeddings=True)
    text = json.loads((out / "config.json").read_text())["text_config"]
    change_config(text_config={**text, "tie_word_embeddings": True})
    assert refusal(run)["code"] == "LR405"


def test_outputs_and_command_lines(out: Path, run: Run) -> None:
    Path("full").mkdir()
    Path("full/mine").write_text("mine")
    base = ("revert", out, "--rules", "llava-v1.5")
    assert "LR503" in run(*base, "--output", "full").out
    assert "LR508" in run(*base, "--output", "out/back").out
    assert run("revert", "--rules", "llava-v1.5", "--output", "back").code == 2
    assert run(*base, "other", "--output", "back").code == 2
    for option in (("--dry-run",), ("--offline",), ("--verify", "full")):
        ran = run("revert", out, "--output", "back", *option)
        assert (ran.code, f"{option[0]} is only for a reversal by a rule" in ran.err) == (2, True)
    ran = run("revert", out)
    assert (ran.code, "needs --output" in ran.err) == (2, True)
    manifest = MANIFESTS / "llava-v1.5-7b.json"
    assert "LR111" in run("revert", manifest, "--rules", "llava-v1.5", "--output", "back").out


def test_a_disk_that_loses_a_byte(out: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    lose_last_byte(monkeypatch)
    with pytest.raises(RemapError, match="LR602"):
        reverse(verify="full")
    assert not Path("back").exists()


def test_a_header_that_is_not_the_one_planned(out: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As many bytes under another name: the rule file doesn't take it where it came from."""
    real = write.shard_header

    def header(*arguments: Any) -> bytes:
        return real(*arguments).replace(
            b'"model.mm_projector.0.bias"', b'"model.mm_projector.7.bias"'
        )

    monkeypatch.setattr(write, "shard_header", header)
    with pytest.raises(RemapError, match="LR601"):
        reverse()
    assert not Path("back").exists()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM], ids=["SIGINT", "SIGTERM"])
@pytest.mark.parametrize(
    "stage",
    [
        "llava_remap.jobs.reverse.build_plan",
        "llava_remap.execute.write.readable",
        "llava_remap.jobs.run.write_index",
    ],
)
def test_nothing_is_left_of_an_interrupted_job(
    stage: str, number: signal.Signals, out: Path
) -> None:
    before = contents(Path())
    arguments = ("revert", "out", "--rules", "llava-v1.5", "--output", "deep/back")
    code, errors, _ = signalled(stage, number, *arguments)
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
