"""llama.cpp's own scripts make GGUF files of the converted folders as they are, and llama.cpp
computes from them what transformers computes from the folders.
"""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoTokenizer

from llava_remap.jobs.apply import apply
from tests.compat.checkpoints import FAMILIES, change
from tests.conftest import CLIP, RELEASED, TINY
from tests.programs.gguf_files import (
    CONVERTER,
    Ended,
    Mmproj,
    encoder_config,
    kind_of,
    make_folders,
    make_mmproj,
    read_gguf,
    run_scripts,
    text_command,
    vocabulary_of,
)
from tests.programs.outcomes import EQUAL, Outcomes, judge, record
from tests.programs.run import ask, ask_transformers, demand
from tests.programs.twins import TOKENS, Answer
from tests.programs.vocabularies import read_fields

pytestmark = [pytest.mark.programs, pytest.mark.llama_cpp]

HERE = Path(__file__).parent
#: float32 on both sides; the vocabularies are large, so log-probabilities are about -9, and they
#: were 1.2e-5 away at most.
LOGPROBS = 1e-4
#: llama.cpp's vision tower computes with 16 bits in places; 2.4e-4 were seen.
PICTURE_LOGPROBS = 2e-3
#: How llama.cpp's picture is told from the right one: these were 0.005 away at least.
OTHER_PICTURE = 4e-3
LLAVA = "llava-v1.5-7b.released"
NEXT = "llava-v1.6-vicuna-7b.released"
#: A family for each kind of tokenizer.
TOKENIZERS = {
    kind_of(name): name
    for name in (LLAVA, "llava-next-llama3-8b.released", "llava-onevision-qwen2-0.5b.released")
}
#: How the converter refuses a folder's tower, with `--mmproj`, by the folder's class.
NO_TOWER = {
    "LlavaForConditionalGeneration": "ValueError: Unsupported model type: {tower}",
}
NO_CLASS = "Model {class_} is not supported"
#: Families whose tower is tried with `--mmproj`: one for each class and kind of tower.
TOWERS = (LLAVA, NEXT, "llava-interleave-qwen-0.5b.released", "llava-onevision-qwen2-0.5b.released")
#: Why a GGUF file without `tokenizer.model` does not load.
WRONG_SHAPE = r"tensor 'token_embd.weight' has wrong shape; expected +\d+, +32002, got +\d+, +32064"


@dataclass(frozen=True)
class Asked:
    """All families.

    Attributes:
        folders: small twins with real tokenizers, converted.
        files: GGUF files of their language models.
        ended: how the converter ended.
        wanted: transformers' questions and answers.
        said: llama.cpp's answers.
        work: a folder for more.
    """

    folders: dict[str, Path]
    files: dict[str, Path]
    ended: dict[str, Ended]
    wanted: dict[str, Any]
    said: dict[str, Any]
    work: Path


@pytest.fixture(scope="module")
def asked(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Asked]:
    """Two gigabytes of files, which do not stay."""
    demand("llama_cpp_source")
    demand("llama_cpp_transformers")
    work = tmp_path_factory.mktemp("llama_cpp")
    folders = make_folders(work)
    files = {name: work / f"{name}.gguf" for name in FAMILIES}
    folders["no tokenizer.model"] = work / "out" / "no tokenizer.model"
    shutil.copytree(folders[LLAVA], folders["no tokenizer.model"])
    (folders["no tokenizer.model"] / "tokenizer.model").unlink()
    files["no tokenizer.model"] = work / "no-tokenizer-model.gguf"
    commands = {name: text_command(folders[name], files[name]) for name in folders}
    for name in TOWERS:
        file = work / f"mmproj-{name}.gguf"
        commands[f"mmproj {name}"] = [CONVERTER, folders[name], "--mmproj", "--outfile", file]
    with ThreadPoolExecutor(1) as beside:
        converting = beside.submit(run_scripts, commands, work)
        wanted = _ask_transformers(folders, work)
        ended = converting.result()

    questions = {
        name: {
            "model": str(file),
            "tokens": TOKENS,
            "prompts": {"text": wanted[name]["text"]["question"]["prompt"]},
            "cases": [text for text, _ in vocabulary_of(kind_of(name)).cases]
            if name in TOKENIZERS.values()
            else [],
        }
        for name, file in files.items()
        if name in FAMILIES and not ended[name].code
    }
    said = ask("llama_cpp", HERE / "ask_llama_cpp.py", questions, work)
    yield Asked(folders, files, ended, wanted, said, work)
    shutil.rmtree(work)


def _ask_transformers(folders: dict[str, Path], work: Path) -> Any:
    questions = {
        name: {
            "folder": str(folder),
            "tokens": TOKENS,
            "shown": str(work / f"{name}.shown"),
            "kinds": ["text", "picture", "padded"] if name in (LLAVA, NEXT) else ["text"],
        }
        for name, folder in folders.items()
        if name in FAMILIES
    }
    return ask_transformers(HERE / "ask_transformers.py", questions, work)


@pytest.fixture(scope="module")
def outcomes(asked: Asked) -> Outcomes:
    return record("llama_cpp", {name: {"text": _outcome(name, asked)} for name in FAMILIES})


def _outcome(name: str, asked: Asked) -> str:
    if asked.ended[name].code:
        return asked.ended[name].said[-2000:]
    answer = asked.wanted[name]["text"]["answer"]
    return judge(Answer(**answer), asked.said[name]["text"], LOGPROBS)


@pytest.mark.parametrize("name", FAMILIES)
def test_text_is_that_of_transformers(name: str, outcomes: Outcomes) -> None:
    """Eight greedy tokens from the folder as it is, and their log-probabilities; the prompt's ids
    are those of llama.cpp's own tokenizer.
    """
    assert outcomes[name]["text"] == EQUAL


@pytest.mark.parametrize("kind", TOKENIZERS)
def test_tokenizers_are_the_genuine_ones(kind: str, asked: Asked) -> None:
    """The folder's tokenizer, and llama.cpp's from the GGUF file, make of each text the ids that
    llama.cpp recorded of the genuine tokenizer.
    """
    cases = vocabulary_of(kind).cases
    tokenizer = AutoTokenizer.from_pretrained(asked.folders[TOKENIZERS[kind]])
    wanted = [ids for _, ids in cases]
    assert len(wanted) > 40
    assert asked.said[TOKENIZERS[kind]]["cases"] == wanted
    assert [tokenizer.encode(text, add_special_tokens=False) for text, _ in cases] == wanted


def test_llama_text_without_tokenizer_model_does_not_load(asked: Asked) -> None:
    """It converts, with 32002 tokens; the embedding has 32064 rows."""
    name = "no tokenizer.model"
    assert asked.ended[name].code == 0, asked.ended[name].said[-2000:]
    for of, tokens in ((name, 32002), (LLAVA, 32064)):
        with asked.files[of].open("rb") as opened:
            assert len(read_fields(opened)["tokenizer.ggml.tokens"]) == tokens
    question = {"text": {"model": str(asked.files[name]), "tokens": TOKENS}}
    said = ask("llama_cpp", HERE / "ask_llama_cpp.py", question, asked.work)
    assert "error" in said["text"]
    assert re.search(WRONG_SHAPE, (asked.work / "ask_llama_cpp.log").read_text())


@pytest.mark.parametrize("name", TOWERS)
def test_the_converter_knows_no_tower(name: str, asked: Asked) -> None:
    """A limit of llama.cpp's: so its older scripts make the GGUF file of tower and projector."""
    ended = asked.ended[f"mmproj {name}"]
    config = json.loads((asked.folders[name] / "config.json").read_text())
    class_, tower = config["architectures"][0], config["vision_config"]["model_type"]
    assert ended.code != 0
    assert NO_TOWER.get(class_, NO_CLASS).format(class_=class_, tower=tower) in ended.said


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tower's checkpoint, with what OpenAI's has besides: a tokenizer, and a config that says
    more.
    """
    folder = tmp_path_factory.mktemp("clip") / "clip"
    shutil.copytree(CLIP, folder)
    more = {"hidden_act": "quick_gelu", "layer_norm_eps": 1e-05}
    config = json.loads((folder / "config.json").read_text())
    change(
        folder / "config.json",
        **{key: {**config[key], **more} for key in ("text_config", "vision_config")},
    )
    letters = [letter + end for end in ("", "</w>") for letter in "abcdefghijklmnopqrstuvwxyz"]
    first, last = "<|startoftext|>", "<|endoftext|>"
    vocabulary = {word: i for i, word in enumerate([*letters, first, last])}
    (folder / "vocab.json").write_text(json.dumps(vocabulary))
    (folder / "merges.txt").write_text("#version: 0.2\n")
    roles = {"bos_token": first, "eos_token": last, "unk_token": last, "pad_token": last}
    (folder / "tokenizer_config.json").write_text(
        json.dumps({"tokenizer_class": "CLIPTokenizer", **roles})
    )
    return folder


@pytest.fixture(scope="module")
def mmproj(asked: Asked, clip: Path) -> dict[str, Path]:
    """GGUF files of towers and projectors.

    Their names: the version, how it was stored, and whether it comes from the research checkpoint
    or the converted folder; and those of two twins, with and without the layer.
    """
    work = asked.work / "genuine"
    work.mkdir()
    research = {
        "1.5 bin": RELEASED / "bin",
        "1.5 safetensors": RELEASED / "safetensors",
        "1.6": TINY / "llava-v1.6-mistral" / "safetensors",
    }
    folders = {name: work / name for name in research}
    for name, source in research.items():
        rules = "llava-next" if name == "1.6" else "llava-v1.5"
        apply(rules, [str(source), f"vision_tower={clip}"], folders[name])
    config = encoder_config(folders["1.6"])
    wanted = {
        "1.5 bin, research": Mmproj(research["1.5 bin"], clip, "llava_surgery.py"),
        "1.5 safetensors, research": Mmproj(research["1.5 safetensors"], clip),
        "1.5 bin, converted": Mmproj(folders["1.5 bin"], clip),
        "1.5 safetensors, converted": Mmproj(folders["1.5 safetensors"], clip),
        "1.5 alone": Mmproj(folders["1.5 bin"], encoder_config(folders["1.5 bin"])),
        "1.6, research": Mmproj(research["1.6"], config),
        "1.6, converted": Mmproj(folders["1.6"], config),
    }
    for name in (LLAVA, NEXT):
        config = encoder_config(asked.folders[name])
        wanted[name] = Mmproj(asked.folders[name], config, options=("--use-f32",))
        config = {key: value for key, value in config.items() if key != "vision_feature_layer"}
        wanted[f"{name}, no layer"] = replace(wanted[name], tower=config)
    return make_mmproj(wanted, asked.work / "mmproj")


@pytest.mark.parametrize("name", ["1.5 bin", "1.5 safetensors"])
def test_mmproj_of_15_beside_clip(name: str, mmproj: dict[str, Path]) -> None:
    """The documented way, once from the research checkpoint and once from the converted folder:
    the projector out of the model, the tower out of its own checkpoint.

    All metadata and all tensors are equal. The files are equal where both have their tensors in
    the same order; torch's files have weights before biases.
    """
    research, converted = (mmproj[f"{name}, {of}"] for of in ("research", "converted"))
    assert read_gguf(converted) == read_gguf(research)
    assert (converted.read_bytes() == research.read_bytes()) is (name == "1.5 safetensors")
    assert len(read_gguf(converted)[1]) == 41


def test_mmproj_of_15_from_the_folder_alone(mmproj: dict[str, Path]) -> None:
    """The converted folder has the tower, too. The tensors are those of the documented way, and so
    is the metadata, but for the name and for the layer, which is said here.
    """
    fields, tensors = read_gguf(mmproj["1.5 alone"])
    wanted, wanted_tensors = read_gguf(mmproj["1.5 bin, research"])
    assert tensors == wanted_tensors
    assert {key for key in fields | wanted if fields.get(key) != wanted.get(key)} == {
        "general.name",
        "clip.vision.feature_layer",
        "GGUF.kv_count",
    }
    assert fields["clip.vision.feature_layer"] == [fields["clip.vision.block_count"]] == [2]


def test_mmproj_of_16(mmproj: dict[str, Path]) -> None:
    """The documented way: the files from the research checkpoint and from the converted folder are
    equal.
    """
    converted = mmproj["1.6, converted"]
    assert converted.read_bytes() == mmproj["1.6, research"].read_bytes()
    fields, tensors = read_gguf(converted)
    assert len(tensors) == 42
    assert "model.image_newline" in tensors
    assert fields["clip.vision.image_grid_pinpoints"]


@dataclass(frozen=True)
class Pictures:
    """Answers about pictures, by family and kind.

    Attributes:
        said: llama.cpp's, by the name of the GGUF file of tower and projector.
        last: transformers', with the class token where llama.cpp has it.
    """

    said: dict[str, Any]
    last: dict[str, Any]


@pytest.fixture(scope="module")
def pictures(asked: Asked, mmproj: dict[str, Path]) -> Pictures:
    questions = {}
    for name in (LLAVA, NEXT):
        shown = {kind: asked.wanted[name][kind]["question"] for kind in ("picture", "padded")}
        for of in (name, f"{name}, no layer"):
            questions[of] = {
                "model": str(asked.files[name]),
                "mmproj": str(mmproj[of]),
                "tokens": TOKENS,
                "pictures": {kind: (one["prompt"], one["image"]) for kind, one in shown.items()},
            }
    said = ask("llama_cpp", HERE / "ask_llama_cpp.py", questions, asked.work)
    question = {
        "folder": str(asked.folders[LLAVA]),
        "tokens": TOKENS,
        "shown": str(asked.work / "shown-last"),
        "kinds": ["picture", "padded"],
    }
    last = ask_transformers(HERE / "ask_as_llama_cpp.py", {LLAVA: question}, asked.work)
    return Pictures(said, last)


def distance(answer: dict[str, Any], wanted: dict[str, Any]) -> float:
    """How far the first token's log-probability is away."""
    return abs(float(answer["logprobs"][0] - wanted["logprobs"][0]))


def test_pictures_of_15_but_for_the_class_token(asked: Asked, pictures: Pictures) -> None:
    """A limit of llama.cpp's: it puts CLIP's class token last. Tokens and log-probabilities are
    those of transformers with the class token in the same place.
    """
    answer, wanted = pictures.said[LLAVA]["picture"], pictures.last[LLAVA]["picture"]["answer"]
    assert answer["length"] == len(wanted["ids"])
    assert answer["tokens"] == wanted["tokens"]
    assert answer["logprobs"] == pytest.approx(wanted["logprobs"], abs=PICTURE_LOGPROBS)
    assert distance(answer, asked.wanted[LLAVA]["picture"]["answer"]) > OTHER_PICTURE


def test_a_tower_whose_layer_is_not_said_is_one_layer_short(
    asked: Asked, pictures: Pictures
) -> None:
    """A limit of llama.cpp's: script and program each leave out the last layer, unless the
    tower's config has `vision_feature_layer`.
    """
    wanted = pictures.last[LLAVA]["picture"]["answer"]
    far = distance(pictures.said[f"{LLAVA}, no layer"]["picture"], wanted)
    assert far > 10 * distance(pictures.said[LLAVA]["picture"], wanted)


@pytest.mark.parametrize("kind", ["picture", "padded"])
def test_pictures_of_16_lack_the_ends_of_rows(kind: str, asked: Asked, pictures: Pictures) -> None:
    """A limit of llama.cpp's: `image_newline` is in the file and in no prompt. So many tokens are
    missing as the picture has rows of patches.
    """
    config = json.loads((asked.folders[NEXT] / "config.json").read_text())
    wanted = asked.wanted[NEXT][kind]["answer"]["ids"]
    image = wanted.count(config["image_token_id"])
    missing = len(wanted) - pictures.said[NEXT][kind]["length"]
    tiles = image - config["image_seq_length"] - missing
    assert missing > 0
    assert tiles % missing == 0
