"""Sources with tokenizers of all kinds, converted by the command line: in every version of
transformers, the folder's tokenizer encodes as the source's does.

It is opened as fast, with `use_fast=False`, and by the slow class's own name. The reference is the
source's `tokenizer.json`, else `LlamaTokenizer` (see `test_llama_tokenizer.py`), else the tokenizer
that transformers makes from the source's files.
"""

from __future__ import annotations

import ast
import json
import re
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from tokenizers import AddedToken, Tokenizer, normalizers, pre_tokenizers
from transformers import AutoTokenizer
from typer.testing import CliRunner

from llava_remap.cli.commands import app
from llava_remap.folder.llama_tokenizer import LlamaTokenizer
from llava_remap.folder.tokenizer import CLASS
from tests.compat.checkpoints import QWEN2, SIGLIP, SQUARE, change, qwen_tokenizer, without_newline
from tests.compat.run import missing
from tests.conftest import CLIP, RELEASED, Run
from tests.folder.sentencepieces import IMAGE, Kind, size, trained
from tests.folder.versions import (
    ALL_VERSIONS,
    INSTALLED,
    ask_versions,
    chosen_versions,
    of_version,
)

Encode = Callable[[str], list[int]]

PLAIN = Kind()
ROLES = ("<unk>", "<s>", "</s>")
BOS_AND_EOS = ("bos_token", "eos_token")
FLAGS = {"lstrip": False, "normalized": False, "rstrip": False, "single_word": False}
#: Texts that tokenizers disagree on; those with pictures last.
TEXTS = (
    "",
    "What is it? A cat, 3 dogs.",
    "Two  spaces,   three",
    " a",
    "  a",
    "a ",
    "a  ",
    " ",
    "   ",
    "\n",
    "\t",
    "\na",
    "a\n\n\nb",
    "def f(x):\n    if x > 3:\n\treturn  x\n\n\n# end",
    "name      value  note\n----------------------\nred          12  ok",
    "Äpfel, café, 漢字, кошка, 🙂👍🏽 → “x” … ½",
    "\u200b\ufeff\x00\x07\x7f",
    "don't I'll we've 1,234.50",
    "▁a ▁ b",
    ">(>>= ==",
    "a</s>(b",
    "fine</s>next",
    "fine </s> next",
    "fine</s>\n\nnext",
    "a</s></s>",
    "USER: hi ASSISTANT: ho </s>USER: next  one",
)
PROMPTS = (
    "<image>", "<image>\nWhat is it?", "USER: <image>\nWhat  is it? ASSISTANT:", "<image> a",
    "<image>  a", "a <image>b",
    "<image><image>\nTwo", "a<image>\n<image>\nb",
    "USER: <image>\nWhat? ASSISTANT: a cat.</s>USER: And <image> now? ASSISTANT:",
    "<image>\n    x = 1\n\ty", "[INST] <image>\nWhat? [/INST] a </s>[INST] why [/INST]",
)  # fmt: skip


@dataclass(frozen=True)
class Source:
    """A tokenizer's files, and what they mean.

    Attributes:
        files: by name: bytes, text, or the object of a JSON file.
        encode: the reference.
        before: how many ids it puts before each text; of `bos`.
        texts: besides those of all.
        slow: the class that reads its files slowly, by its name in transformers 4.
        lossless: whether a decoded text is the text.
        other: files that aren't of the tokenizer, by name, and what is put into them.
    """

    files: Mapping[str, Any]
    encode: Encode
    before: int = 1
    bos: str = "<s>"
    texts: Sequence[str] = ()
    slow: str | None = None
    lossless: bool = True
    other: Mapping[str, dict[str, Any]] = field(default_factory=dict)


def llama(
    config: dict[str, Any] | None,
    kind: Kind = PLAIN,
    added: Sequence[str] = (),
    listed: bool = True,
    **more: Any,
) -> Source:
    """A `tokenizer.model` and its config; tokens in square brackets aren't special."""
    model = trained(kind)
    texts = dict(enumerate(ROLES)) | dict(enumerate(added, size(model)))
    tokens = {
        i: AddedToken(text, special=text[0] == "<", normalized=False) for i, text in texts.items()
    }
    files: dict[str, Any] = {"tokenizer.model": model}
    if config is not None:
        files["tokenizer_config.json"] = {**config, "tokenizer_class": "LlamaTokenizer"}
        if added and listed:
            decoder = {
                str(i): {"content": text, "special": text[0] == "<", **FLAGS}
                for i, text in texts.items()
            }
            files["tokenizer_config.json"]["added_tokens_decoder"] = decoder
        elif added:
            files["added_tokens.json"] = {text: i for i, text in texts.items() if i > 2}
    reference = LlamaTokenizer(model, tokens, config or {})
    own = [
        text
        for token in added
        for text in (
            f"fine{token}next",
            f"fine {token} next",
            f"a {token}{token}\n",
            f"a{IMAGE}{token}x",
        )
    ]
    lossless = not (kind.nfkc or kind.strips)
    return Source(
        files,
        reference.encode,
        len(reference.before),
        texts=own,
        slow="LlamaTokenizer",
        lossless=lossless,
        **more,
    )


def one_file(change_it: Callable[[Any], object], **more: Any) -> Source:
    """A `tokenizer.json` of one's own, with the pieces of a SentencePiece model."""
    model = trained(Kind())
    tokens = {i: AddedToken(text, special=True, normalized=False) for i, text in enumerate(ROLES)}
    tokenizer = LlamaTokenizer(model, tokens, {}).backend()
    tokenizer.add_special_tokens(list(tokens.values()))
    change_it(tokenizer)
    whole = tokenizer.to_str()
    config = {
        "bos_token": "<s>",
        "eos_token": "</s>",
        "unk_token": "<unk>",
        "tokenizer_class": CLASS,
    }
    reference = Tokenizer.from_str(whole)
    reference.no_truncation()
    reference.no_padding()
    files = {"tokenizer.json": whole, "tokenizer_config.json": config}
    return Source(files, lambda text: list(reference.encode(text).ids), **more)


def saying(source: Source, config: Mapping[str, Any], **files: Any) -> Source:
    """A source whose config says more than its reference knows of."""
    said = source.files["tokenizer_config.json"] | config
    return replace(source, files={**source.files, "tokenizer_config.json": said} | files)


def map_and_config() -> Source:
    """Of two files that disagree, and no `added_tokens_decoder`, the map counts (transformers
    4.37).
    """
    source = llama({"legacy": True, "bos_token": "</s>", "eos_token": "</s>"})
    counts = dict.fromkeys(BOS_AND_EOS, "</s>")
    disagreeing = {"bos_token": "<s>", "eos_token": ""}
    return saying(replace(source, bos="</s>"), disagreeing, **{"special_tokens_map.json": counts})


def lower(tokenizer: Any) -> None:
    tokenizer.normalizer = normalizers.Sequence(
        [normalizers.NFKC(), normalizers.Lowercase(), tokenizer.normalizer]
    )


def spaced_first(tokenizer: Any) -> None:
    """As transformers makes it of `legacy: false`."""
    tokenizer.normalizer = None
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(
        replacement="▁", prepend_scheme="first", split=False
    )


def cut_and_filled(tokenizer: Any) -> None:
    tokenizer.enable_truncation(4)
    tokenizer.enable_padding(length=64, pad_id=0, pad_token="<unk>")


OF_ANOTHER = {
    "AutoTokenizer": ["tokenization_mine.MineTokenizer", None],
    "AutoProcessor": "processing_mine.MineProcessor",
}
SOURCES: dict[str, Callable[[], Source]] = {
    "model alone": partial(llama, None),
    "legacy absent": partial(llama, {}),
    "legacy true": partial(llama, {"legacy": True}),
    "legacy false": partial(llama, {"legacy": False}),
    "prefix null": partial(llama, {"legacy": False, "add_prefix_space": None}),
    "no prefix": partial(llama, {"legacy": False, "add_prefix_space": False}),
    "no BOS": partial(llama, {"legacy": True, "add_bos_token": False}),
    "BOS null": partial(llama, {"legacy": True, "add_bos_token": None}),
    "map and config": map_and_config,
    "map and decoder": lambda: saying(
        llama({"legacy": True}, added=("[SEG]",)),
        {},
        **{"special_tokens_map.json": {"bos_token": "</s>"}},
    ),
    "unigram": partial(llama, {"legacy": True}, Kind(unigram=True)),
    "nfkc and stripped": partial(llama, {"legacy": True}, Kind(nfkc=True, strips=True)),
    "pieces kept whole": partial(llama, {"legacy": True}, Kind(own=True)),
    "added, legacy true": partial(
        llama, {"legacy": True}, added=("<im_start>", "<im_end>", "[SEG]")
    ),
    "added, legacy false": partial(
        llama, {"legacy": False}, added=("<im_start>", "<im_end>", "[SEG]")
    ),
    "markers around pictures": partial(
        llama,
        {"legacy": False},
        added=("<im_start>", "<im_end>"),
        other={"config.json": {"mm_use_im_start_end": True}},
    ),
    "image there": partial(llama, {"legacy": False}, added=(IMAGE, "[SEG]")),
    "added_tokens.json": partial(
        llama, {"legacy": True}, added=("<im_start>", "[SEG]"), listed=False
    ),
    "auto_map": partial(
        llama,
        {"legacy": True, "auto_map": OF_ANOTHER},
        other={
            "generation_config.json": {"auto_map": OF_ANOTHER},
            "preprocessor_config.json": {"auto_map": OF_ANOTHER},
        },
    ),
    "lower case": partial(one_file, lower, lossless=False),
    "spaced first": partial(one_file, spaced_first),
    "cut and filled": partial(one_file, cut_and_filled),
    "flags of another class": lambda: saying(
        one_file(lambda tokenizer: None), {"add_bos_token": False, "add_eos_token": True}
    ),
}


# --- all of them converted, and every version asked


@dataclass(frozen=True)
class Converted:
    source: Source
    folder: Path
    said: str

    @property
    def config(self) -> dict[str, Any]:
        content: dict[str, Any] = json.loads((self.folder / "tokenizer_config.json").read_text())
        return content

    @property
    def image(self) -> int:
        return int(json.loads((self.folder / "config.json").read_text())["image_token_index"])

    @property
    def texts(self) -> tuple[str, ...]:
        return (*TEXTS, *self.source.texts, *PROMPTS)

    def wanted(self, text: str) -> list[int]:
        first, *rest = (self.source.encode(piece) for piece in text.split(IMAGE))
        return first + [i for ids in rest for i in (self.image, *ids[self.source.before :])]


def write(folder: Path, files: Mapping[str, Any]) -> None:
    for name, content in files.items():
        made = content if isinstance(content, bytes | str) else json.dumps(content)
        (folder / name).write_bytes(made if isinstance(made, bytes) else made.encode())


def checkpoint(folder: Path, files: Mapping[str, Any], rows: int) -> Path:
    """A small LLaVA-1.5 with these tokenizer files, and as many rows as they have tokens."""
    shutil.copytree(RELEASED / "safetensors", folder)
    for name in ("tokenizer.model", "tokenizer_config.json", "special_tokens_map.json"):
        (folder / name).unlink()
    write(folder, files)
    tensors = load_file(folder / "model.safetensors")
    for name in ("model.embed_tokens.weight", "lm_head.weight"):
        tensors[name] = torch.cat([tensors[name]] * 2)[:rows].contiguous()
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    change(folder / "config.json", vocab_size=rows)
    return folder


def rows_of(files: Mapping[str, Any]) -> int:
    """One for each token."""
    if "tokenizer.json" in files:
        return int(Tokenizer.from_str(files["tokenizer.json"]).get_vocab_size())
    decoder = files.get("tokenizer_config.json", {}).get("added_tokens_decoder", {})
    ids = [*map(int, decoder), *files.get("added_tokens.json", {}).values()]
    return int(max([size(files["tokenizer.model"]), *(i + 1 for i in ids)]))


def apply_to(
    source: Path, output: Path, *more: object, rules: str = "llava-v1.5", tower: Path = CLIP
) -> str:
    arguments = [
        "apply",
        rules,
        "--source",
        source,
        "--source",
        f"vision_tower={tower}",
        "--output",
        output,
        *more,
    ]
    ran = CliRunner().invoke(app, [str(argument) for argument in arguments], catch_exceptions=False)
    assert ran.exit_code == 0, ran.output
    return ran.output


def convert(name: str, work: Path) -> Converted:
    source = SOURCES[name]()
    folder = checkpoint(work / name, source.files, rows_of(source.files))
    for file, content in source.other.items():
        if not (folder / file).is_file():
            shutil.copy(CLIP / file, folder)
        change(folder / file, **content)
    return Converted(source, work / "out" / name, apply_to(folder, work / "out" / name))


def convert_qwen(work: Path) -> Converted:
    """`vocab.json` and `merges.txt`, with what transformers itself makes of them for a
    reference.
    """
    folder = work / "qwen"
    shutil.copytree(QWEN2, folder)
    tensors = load_file(folder / "model.safetensors")
    without_newline(tensors)
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    change(folder / "config.json", **SQUARE)
    tokenizer = qwen_tokenizer(work / "qwen tokenizer")
    opened = AutoTokenizer.from_pretrained(tokenizer)
    change(
        tokenizer / "tokenizer_config.json", add_bos_token=True, bos_token="<|im_end|>"
    )  # the tokenizer's class reads neither key
    said = apply_to(
        folder, work / "out" / "qwen", "--source", f"language_model={tokenizer}", tower=SIGLIP
    )
    own = [
        "fine<|im_end|>next",
        "fine <|im_end|>\nnext",
        "<|im_start|>user\nhi<|im_end|>\n<|im_start|>assistant\n",
    ]
    source = Source(
        {}, lambda text: list(opened(text)["input_ids"]), 0, texts=own, slow="Qwen2Tokenizer"
    )
    return Converted(source, work / "out" / "qwen", said)


NAMES = (*SOURCES, "qwen")


@pytest.fixture(scope="session")
def converted(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Converted]:
    work = tmp_path_factory.mktemp("sources")
    return {name: convert(name, work) for name in SOURCES} | {"qwen": convert_qwen(work)}


Answers = dict[str, dict[tuple[str, str], dict[str, Any]]]


@pytest.fixture(scope="session")
def answers(
    converted: dict[str, Converted],
    request: pytest.FixtureRequest,
    tmp_path_factory: pytest.TempPathFactory,
) -> Answers:
    """By version, of those that the chosen tests name, then by source and way."""
    asked = {}
    for version in chosen_versions(request) & {*ALL_VERSIONS}:
        old = version.startswith("4.")
        ways = {
            name: ("fast", *(("slow", one.source.slow) if old else ()))
            for name, one in converted.items()
        }
        asked[version] = [(name, way) for name in ways for way in ways[name] if way is not None]
    questions = {
        v: [(converted[name].folder, way, converted[name].texts) for name, way in pairs]
        for v, pairs in asked.items()
    }
    given = ask_versions(questions, tmp_path_factory.mktemp("asked"))
    return {
        version: dict(zip(asked[version], found, strict=True)) for version, found in given.items()
    }


def answer_of(answers: Answers, version: str, name: str, way: str) -> dict[str, Any]:
    if version != INSTALLED and (why := missing(version)):
        pytest.fail(why)
    found = answers[version][name, way]
    assert "error" not in found, found["error"]
    return found


ALL_WAYS = [
    of_version(version, way)
    for version in ALL_VERSIONS
    for way in (("fast", "slow") if version.startswith("4.") else ("fast",))
]


@pytest.mark.parametrize(("version", "way"), ALL_WAYS)
@pytest.mark.parametrize("name", NAMES)
def test_it_encodes_as_the_source_does(
    name: str, version: str, way: str, answers: Answers, converted: dict[str, Converted]
) -> None:
    """Texts, and prompts with pictures: their pieces one by one, as the research code encodes
    them.
    """
    one, found = converted[name], answer_of(answers, version, name, way)
    assert dict(zip(one.texts, found["ids"], strict=True)) == {
        text: one.wanted(text) for text in one.texts
    }


@pytest.mark.parametrize(
    "version", [of_version(version) for version in ALL_VERSIONS if version.startswith("4.")]
)
@pytest.mark.parametrize("name", [name for name in NAMES if name == "qwen" or SOURCES[name]().slow])
def test_the_slow_class_by_its_name(
    name: str, version: str, answers: Answers, converted: dict[str, Converted]
) -> None:
    """Equal ids, but for a fault that no folder mends: with `legacy: false` no space is put
    before the text behind a picture.
    """
    one = converted[name]
    assert one.source.slow is not None
    found = answer_of(answers, version, name, one.source.slow)
    assert found["class"] == one.source.slow
    wanted = {text: one.wanted(text) for text in one.texts}
    if one.config.get("legacy") is False:
        model = one.source.files["tokenizer.model"]
        decoder = one.config["added_tokens_decoder"].items()
        added = {
            int(i): AddedToken(t["content"], special=t["special"], normalized=False)
            for i, t in decoder
        }
        uncut = LlamaTokenizer(model, added, one.config)
        wanted |= {text: uncut.encode(text) for text in one.texts if IMAGE in text}
        if name != "no prefix":
            ids = one.wanted(prompt := "USER: <image>\nWhat is it?")
            behind = ids.index(one.image) + 1
            assert ids[behind] == uncut.ids["▁"]
            assert uncut.encode(prompt) == ids[:behind] + ids[behind + 1 :]
    assert dict(zip(one.texts, found["ids"], strict=True)) == wanted


@pytest.mark.parametrize("version", [of_version(version) for version in ALL_VERSIONS])
@pytest.mark.parametrize(
    "name", [name for name in NAMES if name == "qwen" or SOURCES[name]().lossless]
)
def test_a_text_without_special_tokens_comes_back(
    name: str, version: str, answers: Answers, converted: dict[str, Converted]
) -> None:
    one, found = converted[name], answer_of(answers, version, name, "fast")
    bos = one.source.bos * one.source.before
    plain = [
        text
        for text in one.texts
        if not any(sign in text for sign in ("<s>", "</s>", "[SEG]", "<im", "<|", "▁"))
    ]
    decoded = dict(zip(one.texts, found["decoded"], strict=True))
    # After BOS, the decoders of some versions don't recognise the start of a text, and keep the
    # space that was added there.
    wrong = {
        text: decoded[text]
        for text in plain
        if decoded[text] not in (f"{bos}{text}", f"{bos} {text}")
    }
    assert wrong == {}


# --- what is written


def test_a_prefix_of_null_is_left_out(converted: dict[str, Converted]) -> None:
    """Slow tokenizers take null for false."""
    assert "add_prefix_space" not in converted["prefix null"].config
    assert converted["no prefix"].config["add_prefix_space"] is False


def test_an_absent_legacy_is_written_as_true(converted: dict[str, Converted]) -> None:
    """transformers 5 takes an absent one for false."""
    legacy = {
        name: converted[name].config["legacy"]
        for name in ("model alone", "legacy absent", "legacy true", "legacy false")
    }
    assert legacy == {
        "model alone": True,
        "legacy absent": True,
        "legacy true": True,
        "legacy false": False,
    }


def test_a_normalizer_is_kept(converted: dict[str, Converted]) -> None:
    one = converted["lower case"]
    written, given = (
        json.loads((one.folder / "tokenizer.json").read_text()),
        json.loads(one.source.files["tokenizer.json"]),
    )
    for part in ("normalizer", "pre_tokenizer", "decoder", "model"):
        assert written[part] == given[part]


def test_truncation_and_padding_are_dropped(converted: dict[str, Converted]) -> None:
    one = converted["cut and filled"]
    given, written = (
        json.loads(one.source.files["tokenizer.json"]),
        json.loads((one.folder / "tokenizer.json").read_text()),
    )
    assert given["truncation"] and given["padding"]  # noqa: PT018
    assert (written["truncation"], written["padding"]) == (None, None)


def test_a_second_form_is_written_only_where_the_first_makes_other_ids(
    converted: dict[str, Converted],
) -> None:
    """The text behind a picture gets a space of its own; the picture's token is then part of
    what the normalizer sees.
    """
    seen = {}
    for name in ("spaced first", "lower case", "cut and filled"):
        added = json.loads((converted[name].folder / "tokenizer.json").read_text())["added_tokens"]
        [seen[name]] = (token["normalized"] for token in added if token["content"] == IMAGE)
    assert seen == {"spaced first": True, "lower case": False, "cut and filled": False}


def test_no_file_names_code(converted: dict[str, Converted]) -> None:
    for path in converted["auto_map"].folder.glob("*.json"):
        if path.name != "llava_remap.json":
            assert "auto_map" not in path.read_text(), path.name


def test_added_tokens_keep_id_and_kind(converted: dict[str, Converted]) -> None:
    """`added_tokens.json` doesn't say which are special; what the rule file adds comes behind
    them.
    """
    first = size(trained(Kind()))
    written = {}
    for name in ("added, legacy true", "added, legacy false", "image there", "added_tokens.json"):
        decoder = converted[name].config["added_tokens_decoder"]
        written[name] = [
            (decoder[i]["content"], decoder[i]["special"])
            for i in sorted(decoder, key=int)
            if int(i) >= first
        ]
    special = [(text, True) for text in ("<im_start>", "<im_end>", IMAGE, "<pad>")]
    assert written == {
        "added, legacy true": [*special[:2], ("[SEG]", False), *special[2:]],
        "added, legacy false": [*special[:2], ("[SEG]", False), *special[2:]],
        "image there": [special[2], ("[SEG]", False), special[3]],
        "added_tokens.json": [("<im_start>", False), ("[SEG]", False), *special[2:]],
    }


def test_byte_level_words_and_merges_are_files_of_their_own(
    converted: dict[str, Converted],
) -> None:
    written = {name: {path.name for path in converted[name].folder.glob("*")} for name in NAMES}
    assert [name for name in NAMES if {"vocab.json", "merges.txt"} & written[name]] == ["qwen"]
    assert [name for name in NAMES if "tokenizer.model" in written[name]] == [
        n for n in SOURCES if SOURCES[n]().slow
    ]


# --- refusals and notes


def told(folder: Path, run: Run, code: str, *, exit_code: int) -> str:
    """What a plan says of a code."""
    arguments = [
        "--source",
        folder,
        "--source",
        f"vision_tower={CLIP}",
        "--output",
        "out",
        "--dry-run",
        "--format",
        "json",
    ]
    ran = run("apply", "llava-v1.5", *arguments)
    assert ran.code == exit_code
    [said] = [
        problem["message"]
        for kind in ("problems", "notes")
        for problem in ran.json[kind]
        if problem["code"] == code
    ]
    return str(said)


def test_what_cannot_be_reproduced_is_refused_with_the_first_text_that_differs(
    tmp_path: Path, run: Run
) -> None:
    """Line ends that become spaces and are stripped: one of the limits in
    `test_llama_tokenizer.py`.
    """
    source = llama({"legacy": False}, Kind(nfkc=True, strips=True))
    folder = checkpoint(tmp_path / "source", source.files, rows_of(source.files))
    said = told(folder, run, "LR412", exit_code=1)
    found = re.search(r"gives ('.*') the ids (\[[\d, ]*\]); .* gives (\[[\d, ]*\])\.", said)
    assert found, said
    text, wanted, got = map(ast.literal_eval, found.groups())
    assert wanted == source.encode(text) != got


def test_what_changes_how_sentencepiece_encodes_is_refused(tmp_path: Path, run: Run) -> None:
    source = llama({"legacy": True, "sp_model_kwargs": {}})
    folder = checkpoint(tmp_path / "source", source.files, rows_of(source.files))
    apply_to(folder, tmp_path / "fine")
    change(folder / "tokenizer_config.json", sp_model_kwargs={"add_bos": True})
    assert "sp_model_kwargs" in told(folder, run, "LR113", exit_code=3)


def test_two_tokenizers_that_disagree_are_told_with_the_first_text(
    tmp_path: Path, run: Run
) -> None:
    """The `tokenizer.json` is taken: here one with the ids of `legacy: false`, beside a config
    that says true.
    """
    source = llama({"legacy": True})
    model = trained(PLAIN)
    tokens = {i: AddedToken(text, special=True, normalized=False) for i, text in enumerate(ROLES)}
    other = LlamaTokenizer(model, tokens, {"legacy": False}).backend()
    other.add_special_tokens(list(tokens.values()))
    folder = checkpoint(
        tmp_path / "source", {**source.files, "tokenizer.json": other.to_str()}, size(model)
    )
    said = told(folder, run, "LR414", exit_code=0)
    found = re.search(r"give ('.*') different ids: (\[[\d, ]*\]) and (\[[\d, ]*\])\.", said)
    assert found, said
    text, of_one_file, of_model = map(ast.literal_eval, found.groups())
    assert of_one_file == other.encode(text).ids != of_model == source.encode(text)
    apply_to(folder, tmp_path / "out")
    opened = AutoTokenizer.from_pretrained(tmp_path / "out")
    assert [opened(text)["input_ids"] for text in TEXTS] == [
        other.encode(text).ids for text in TEXTS
    ]
    (folder / "tokenizer.json").unlink()
    assert "LR414" not in apply_to(folder, tmp_path / "again")
