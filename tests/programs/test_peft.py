"""Adapters that PEFT trains on converted folders: saved, loaded again, merged by PEFT and merged by
`apply hf-layouts`, they compute what the trained model computed.
"""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
import transformers
from PIL import Image
from safetensors.torch import load_file

from llava_remap.core.problem import RemapError
from llava_remap.jobs.apply import apply
from tests.compat.checkpoints import FAMILIES, change
from tests.compat.look import open_processor
from tests.compat.run import LOGITS
from tests.conftest import Tensors
from tests.programs.twins import Question, Twins

pytestmark = [
    pytest.mark.programs,
    pytest.mark.peft,
    # PEFT asks transformers by an old name.
    pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing. is deprecated:FutureWarning"),
]

LINEAR = "q_proj|k_proj|v_proj|o_proj|gate_proj|up_proj|down_proj"
NEITHER_TOWER_NOR_PROJECTOR = r".*(_tower|multi_modal_projector).*"


@dataclass(frozen=True)
class Recipe:
    """What is trained.

    Attributes:
        config: of `peft.LoraConfig`.
        trained: a regex that matches the trained model's parameters, and no others.
    """

    config: Mapping[str, Any]
    trained: str


RECIPES = {
    "language": Recipe(
        {"target_modules": rf".*language_model.*\.({LINEAR})"},
        rf"model\.language_model\.layers\.\d+\.\w+\.({LINEAR})\.weight",
    ),
    "projector": Recipe(
        {
            "target_modules": "all-linear",
            "exclude_modules": NEITHER_TOWER_NOR_PROJECTOR,
            "modules_to_save": ["multi_modal_projector"],
        },
        rf"model\.language_model\.layers\.\d+\.\w+\.({LINEAR})\.weight"
        r"|model\.multi_modal_projector\..*",
    ),
    "embeddings": Recipe(
        {
            "target_modules": r".*language_model.*\.(q_proj|v_proj)",
            "modules_to_save": ["embed_tokens", "lm_head"],
        },
        r"model\.language_model\.layers\.\d+\.self_attn\.(q_proj|v_proj)\.weight"
        r"|model\.language_model\.embed_tokens\.weight|lm_head\.weight",
    ),
}
#: One family for each kind of language model. Their embeddings are not tied.
UNTIED = (
    "llava-v1.5-7b.released",
    "llava-v1.6-mistral-7b.released",
    "llava-onevision-qwen2-7b.released",
)
TIED = "llava-onevision-qwen2-0.5b.released"
CASES = [
    *((family, "projector") for family in FAMILIES),
    *((family, recipe) for family in UNTIED for recipe in ("language", "embeddings")),
]
STEPS = 3
#: What training has to change the logits by at least: far more than rounding can.
MOVED = 1000 * LOGITS
#: Keys of a config that change nothing that a model computes.
ASIDE = {"_name_or_path", "transformers_version", "dtype", "torch_dtype"}


@dataclass(frozen=True)
class Tuned:
    """A converted folder with an adapter that was trained on it.

    Attributes:
        folder: the converted folder.
        adapter: the folder in which PEFT saved the adapter.
        merged: the folder in which transformers saved the merged model.
        inputs: a prompt with a picture, and an answer.
        logits: of the trained model, before it was saved.
        trained: a regex for the parameters that were trained.
    """

    folder: Path
    adapter: Path
    merged: Path
    inputs: Mapping[str, Any]
    logits: torch.Tensor
    trained: str


@pytest.fixture(scope="module", params=CASES, ids=["-".join(case) for case in CASES])
def tuned(
    request: pytest.FixtureRequest, twins: Twins, tmp_path_factory: pytest.TempPathFactory
) -> Tuned:
    family, recipe = request.param
    question = twins.questions[family]["padded"]
    work = tmp_path_factory.mktemp("tuned")
    return tune(twins.folders[family], question, RECIPES[recipe], work)


def tune(folder: Path, question: Question, recipe: Recipe, work: Path) -> Tuned:
    """Train an adapter on a folder, save it, load it again, merge it and save the whole model."""
    inputs = with_answer(folder, question)
    before = logits(load(folder), inputs)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = peft.get_peft_model(load(folder), peft.LoraConfig(r=4, **recipe.config))
        losses = train(model, inputs)
    assert losses == sorted(losses, reverse=True)
    model.save_pretrained(work / "adapter")
    after = logits(model, inputs)
    assert float((after - before).abs().max()) > MOVED
    again = peft.PeftModel.from_pretrained(load(folder), work / "adapter")
    assert distance(again, inputs, after) <= LOGITS
    whole = again.merge_and_unload()
    assert distance(whole, inputs, after) <= LOGITS
    whole.save_pretrained(work / "merged")
    return Tuned(folder, work / "adapter", work / "merged", inputs, after, recipe.trained)


def with_answer(folder: Path, question: Question) -> dict[str, Any]:
    """The model's inputs for a question with a picture and its answer."""
    processor, _ = open_processor(folder)
    image = Image.open(str(question.image)).convert("RGB")
    text = f"{question.prompt} The cat is nearest."
    return dict(processor(text=text, images=image, return_tensors="pt"))


def load(folder: Path) -> Any:
    """The folder's model in float32; any missing, unexpected or mismatched tensor is a failure."""
    kind = json.loads((folder / "config.json").read_text())["architectures"][0]
    model, info = getattr(transformers, kind).from_pretrained(
        folder, dtype=torch.float32, output_loading_info=True
    )
    assert not any(info.values()), info
    return model


def train(model: Any, inputs: Mapping[str, Any]) -> list[float]:
    """Train a few steps.

    Returns:
        The loss before each step, and the loss in the end.
    """
    ids, losses = inputs["input_ids"], []
    labels = ids.masked_fill(ids == model.config.image_token_index, -100)
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=3e-3)
    for step in range(STEPS + 1):
        loss = model(**inputs, labels=labels).loss
        losses.append(loss.item())
        if step < STEPS:
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    return losses


@torch.no_grad()
def logits(model: Any, inputs: Mapping[str, Any]) -> torch.Tensor:
    found: torch.Tensor = model.eval()(**inputs).logits
    return found


def distance(model: Any, inputs: Mapping[str, Any], wanted: torch.Tensor) -> float:
    return float((logits(model, inputs) - wanted).abs().max())


def tensors(folder: Path) -> Tensors:
    """All tensors that a folder holds, by their stored names."""
    return {
        name: tensor
        for file in folder.glob("*.safetensors")
        for name, tensor in load_file(file).items()
    }


def meaning(folder: Path) -> list[Any]:
    """What transformers reads in a folder's configs, without the keys of `ASIDE`, and without the
    old name of `rope_type` beside the new one.
    """

    def kept(value: Any) -> Any:
        if not isinstance(value, dict):
            return value
        aside = {*ASIDE, *(("type",) if value.get("type") == value.get("rope_type") else ())}
        return {key: kept(inner) for key, inner in value.items() if key not in aside}

    read = (transformers.AutoConfig, transformers.GenerationConfig)
    return [kept(kind.from_pretrained(folder).to_dict()) for kind in read]


def test_the_merged_model_is_whole_and_its_config_says_the_same(tuned: Tuned) -> None:
    assert distance(load(tuned.merged), tuned.inputs, tuned.logits) <= LOGITS
    assert meaning(tuned.merged) == meaning(tuned.folder)


def test_what_was_trained_has_changed_and_nothing_else(tuned: Tuned) -> None:
    before, after = (load(folder).state_dict() for folder in (tuned.folder, tuned.merged))
    assert before.keys() == after.keys()
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert changed == {name for name in before if re.fullmatch(tuned.trained, name)}


def test_the_tool_merges_the_adapter_as_peft_does(tuned: Tuned, tmp_path: Path) -> None:
    sources = [f"model={tuned.folder}", f"adapter={tuned.adapter}"]
    apply("hf-layouts", sources, tmp_path / "out")
    assert tensors(tmp_path / "out").keys() == tensors(tuned.folder).keys()
    assert distance(load(tmp_path / "out"), tuned.inputs, tuned.logits) <= LOGITS
    assert meaning(tmp_path / "out") == meaning(tuned.folder)


def test_the_merged_model_gets_the_names_of_the_folder_again(tuned: Tuned, tmp_path: Path) -> None:
    """transformers saves a model under other names than those of a converted folder, which not
    every program knows.
    """
    apply("hf-layouts", [str(tuned.merged)], tmp_path / "out")
    assert tensors(tmp_path / "out").keys() == tensors(tuned.folder).keys()
    assert distance(load(tmp_path / "out"), tuned.inputs, tuned.logits) <= LOGITS
    assert meaning(tmp_path / "out") == meaning(tuned.folder)


@pytest.mark.filterwarnings("ignore:.*embeddings:UserWarning")  # PEFT's, about what is tried here
def test_tied_embeddings_that_were_trained_apart_are_refused(twins: Twins, tmp_path: Path) -> None:
    """Until the config says that they are tied no longer."""
    folder, question = twins.folders[TIED], twins.questions[TIED]["padded"]
    trained = tune(folder, question, RECIPES["embeddings"], tmp_path)
    base, out = tmp_path / "base", tmp_path / "out"
    shutil.copytree(folder, base)
    sources = [f"model={base}", f"adapter={trained.adapter}"]
    with pytest.raises(RemapError) as caught:
        apply("hf-layouts", sources, out)
    assert [problem.code for problem in caught.value.problems] == ["LR405"]
    text = json.loads((base / "config.json").read_text())["text_config"]
    untied = {"tie_word_embeddings": False}
    change(base / "config.json", **untied, text_config={**text, **untied})
    apply("hf-layouts", sources, out)
    assert distance(load(out), trained.inputs, trained.logits) <= LOGITS
