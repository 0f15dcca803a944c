"""Small checkpoints of every kind of text model, converted: the folders that several versions of
transformers are asked about.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors.torch import load_file, save_file
from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers

from llava_remap.authoring.shrink import shrink
from llava_remap.jobs.apply import apply
from tests.conftest import CLIP, MANIFESTS, RELEASED, TINY, Tensors
from tests.families import RULES_OF
from tests.programs.vocabularies import qwen2_config

LLAMA = RELEASED / "safetensors"
STATE_DICT = TINY / "llava-v1.5" / "full_state_dict"
MISTRAL = TINY / "llava-v1.6-mistral" / "safetensors"
QWEN2 = TINY / "llava-onevision" / "safetensors"
SIGLIP = TINY / "siglip-tiny-patch14-28"
#: What a config says that cuts no image into tiles, as LLaVA-1.5's.
SQUARE = {"image_aspect_ratio": "pad", "mm_patch_merge_type": "flat"}
LINEAR = {"type": "linear", "factor": 2.0}
DYNAMIC = {"type": "dynamic", "factor": 2.0}
LLAMA3 = {
    "rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}  # fmt: skip
#: As Vicuna's generation config has it.
SAMPLING = {"temperature": 0.9, "top_p": 0.6, "max_length": 4096}
#: How Qwen's tokenizers cut text into words.
_QWEN_WORDS = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| "
    r"?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_QWEN_SPECIAL = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")


@dataclass(frozen=True)
class Case:
    """A checkpoint to be converted.

    Attributes:
        base: the genuine checkpoint that it is a copy of.
        tensors: what is done to the copy's tensors.
        config: what is put into its config.
        rules: the rule file.
        tower: the tower given besides.
        tokenizer: the kind of Qwen2 tokenizer that is given besides, or None.
        generation: what is put into its generation config.
    """

    base: Path
    tensors: Callable[[Tensors], object] = lambda tensors: None
    config: dict[str, Any] | None = None
    rules: str = "llava-v1.5"
    tower: Path = CLIP
    tokenizer: str | None = None
    generation: dict[str, Any] | None = None


def without_newline(tensors: Tensors) -> None:
    del tensors["model.image_newline"]


def with_long_heads(tensors: Tensors) -> None:
    """Heads of twice the size that hidden size and number of heads make."""
    for name in [
        name
        for name in tensors
        if ".self_attn." in name and "vision_tower" not in name and name.endswith("weight")
    ]:
        times = (1, 2) if "o_proj" in name else (2, 1)
        tensors[name] = tensors[name].repeat(*times).contiguous()


def tied(tensors: Tensors) -> None:
    del tensors["lm_head.weight"]


def mistral(**config: Any) -> Case:
    return Case(MISTRAL, without_newline, {**SQUARE, **config}, "llava-med-v1.5")


def qwen2(tokenizer: str | None = "files", **config: Any) -> Case:
    return Case(QWEN2, without_newline, {**SQUARE, **config}, tower=SIGLIP, tokenizer=tokenizer)


def interleave(tensors: Callable[[Tensors], object] = lambda tensors: None, **config: Any) -> Case:
    said = {"image_aspect_ratio": "anyres", **config}
    return Case(QWEN2, tensors, said, "llava-interleave", SIGLIP, "files")


CASES: dict[str, Case] = {
    "llama": Case(RELEASED / "sharded"),
    "llama-state-dict": Case(STATE_DICT),
    "llama-linear": Case(LLAMA, config={"rope_scaling": LINEAR}),
    "llama-dynamic": Case(LLAMA, config={"rope_scaling": DYNAMIC, "max_position_embeddings": 32}),
    "llama-llama3": Case(LLAMA, config={"rope_scaling": LLAMA3, "rope_theta": 500000.0}),
    "llama-5.x": Case(
        LLAMA,
        config={"rope_parameters": {"rope_type": "linear", "factor": 2.0, "rope_theta": 5000.0}},
    ),
    "llama-head-dim": Case(LLAMA, with_long_heads, {"head_dim": 32}),
    "llama-cls-patch": Case(LLAMA, config={"mm_vision_select_feature": "cls_patch"}),
    "llama-sampling": Case(LLAMA, generation=SAMPLING),
    "mistral": mistral(),
    "mistral-window": mistral(sliding_window=16),
    "qwen2": qwen2(),
    "qwen2-one-file-tokenizer": qwen2("one file"),
    "qwen2-linear": qwen2(rope_scaling=LINEAR, architectures=["Qwen2ForCausalLM"]),
    "qwen2-head-dim-null": qwen2(head_dim=None),
    "no-tokenizer": qwen2(None),
    "next": Case(MISTRAL, rules="llava-next"),
    "onevision": Case(QWEN2, rules="llava-onevision", tower=SIGLIP, tokenizer="files"),
    "interleave": interleave(),
    "interleave-tied": interleave(tied, tie_word_embeddings=True),
}


@dataclass(frozen=True)
class Twin:
    """A small twin of a manifest, to be converted.

    Attributes:
        manifest: its name.
        rules: the rule file.
        config: what is put into its config.
        before: the rule file that makes the checkpoint, in a layout of transformers, that `rules`
            is for; empty if `rules` is for the twin itself.
    """

    manifest: str
    rules: str
    config: dict[str, Any] | None = None
    before: str = ""


#: Twins of manifests that have another one by their own name.
_SECOND = {
    "interleave-as-onevision": Twin(
        "llava-interleave-qwen-0.5b.released", "llava-interleave-onevision"
    ),
    "sharegpt4v": Twin(
        "llava-v1.5-7b.released", "sharegpt4v", {"architectures": ["Share4VLlamaForCausalLM"]}
    ),
    "hf-layouts": Twin("llava-v1.5-7b.released", "hf-layouts", before="llava-v1.5"),
}
#: Twins of the manifests that differ in text model or stored names, by the manifest's name or their
#: own.
FAMILIES: dict[str, Twin] = {
    name: _SECOND.get(name) or Twin(name, RULES_OF[name])
    for name in (
        "llava-lightning-7b-v1-1.released",
        "llava-v1.5-7b.released",
        "bakllava-v1.released",
        "llava-med-v1.5-mistral-7b.released",
        "llava-interleave-qwen-0.5b.released",
        "interleave-as-onevision",
        "llava-v1.6-vicuna-7b.released",
        "llava-v1.6-mistral-7b.released",
        "llava-next-llama3-8b.released",
        "llava-next-qwen1.5-72b.released",
        "llava-next-video-7b.released",
        "llava-onevision-qwen2-0.5b.released",
        "llava-onevision-qwen2-7b.released",
        "vip-llava-7b",
        "video-llava-7b",
        "sharegpt4v",
        "hf-layouts",
    )
}
#: They keep the twin's own tokenizer, of one file: as their text models have, or since it has
#: <im_start> and <im_end>. Those of the others are SentencePiece models, as Llama's and Mistral's
#: are.
_ONE_FILE = ("qwen", "llama3", "lightning")
#: Folders that are copied, with nothing said in their config of how positions are turned.
ROPED = ("mistral", "qwen2", "llama-linear")


def convert(case: Case, work: Path, output: Path) -> None:
    """Make a case's checkpoint in `work` and convert it."""
    work.mkdir()
    source = case.base
    if (source / "model.safetensors").is_file():
        source = work / "checkpoint"
        shutil.copytree(case.base, source)
        tensors = load_file(source / "model.safetensors")
        case.tensors(tensors)
        save_file(tensors, source / "model.safetensors", {"format": "pt"})
        change(source / "config.json", **(case.config or {}))
        change(source / "generation_config.json", **(case.generation or {}))
    sources = [str(source), f"vision_tower={case.tower}"]
    if case.tokenizer is not None:
        tokenizer = qwen_tokenizer(work / "tokenizer", one_file=case.tokenizer == "one file")
        sources.append(f"language_model={tokenizer}")
    apply(case.rules, sources, output)


def convert_family(name: str, work: Path, output: Path, **options: Any) -> None:
    """Make one of the small twins in `work` and convert it, with `options` of `apply`."""
    convert_twin(FAMILIES[name], work, output, **options)


def convert_twin(twin: Twin, work: Path, output: Path, **options: Any) -> None:
    """Make a small twin in `work` and convert it, with `options` of `apply`."""
    shrink(MANIFESTS / f"{twin.manifest}.json", work)
    change(work / "config.json", **(twin.config or {}))
    if not any(kind in twin.manifest for kind in _ONE_FILE):
        for file in work.glob("*token*"):
            file.unlink()
        for file in STATE_DICT.glob("*token*"):
            shutil.copy(file, work)
    convert_made(twin, work, output, **options)


def convert_made(twin: Twin, checkpoint: Path, output: Path, **options: Any) -> None:
    """Convert a small twin that was made before, with `options` of `apply`."""
    sources = [str(checkpoint), f"vision_tower={checkpoint / 'vision_tower'}"]
    if twin.before:
        layout = output.with_name(f"{output.name}-before")
        apply(twin.before, sources, layout, layout="module-5.6")
        sources = [str(layout)]
    apply(twin.rules, sources, output, **options)


def change(path: Path, **entries: Any) -> None:
    """Put entries into a JSON file."""
    path.write_text(json.dumps({**json.loads(path.read_text()), **entries}))


def without_rope(folder: Path, copy: Path) -> None:
    """A copy of a converted folder whose config says nothing of how positions are turned, in no
    version's words.
    """
    shutil.copytree(folder, copy)
    config = json.loads((copy / "config.json").read_text())
    for key in ("rope_theta", "rope_scaling", "rope_parameters"):
        del config["text_config"][key]
    (copy / "config.json").write_text(json.dumps(config))


def qwen_tokenizer(folder: Path, *, one_file: bool = False) -> Path:
    """A small Qwen2 tokenizer of 303 tokens: as Qwen releases it, in vocab.json and merges.txt,
    or in tokenizer.json alone.
    """
    tokenizer = Tokenizer(models.BPE())
    tokenizer.normalizer = normalizers.NFC()
    words = pre_tokenizers.Split(Regex(_QWEN_WORDS), behavior="isolated")
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [words, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)]
    )
    tokenizer.decoder = decoders.ByteLevel()
    text = [
        "What is in the picture? Name 3 things, and say which of them is nearest: the cat, the dog "
        "or the house on the hill."
    ]
    trainer = trainers.BpeTrainer(
        vocab_size=300,
        min_frequency=1,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(text, trainer)
    first = tokenizer.get_vocab_size()
    assert first == 300
    folder.mkdir()
    model = json.loads(tokenizer.to_str())["model"]
    if one_file:
        tokenizer.add_special_tokens(list(_QWEN_SPECIAL))
        tokenizer.save(str(folder / "tokenizer.json"))
    else:
        (folder / "vocab.json").write_text(
            json.dumps(model["vocab"], ensure_ascii=False), encoding="utf-8"
        )
        merges = (merge if isinstance(merge, str) else " ".join(merge) for merge in model["merges"])
        (folder / "merges.txt").write_text(
            "\n".join(["#version: 0.2", *merges, ""]), encoding="utf-8"
        )
    config = qwen2_config({text: first + i for i, text in enumerate(_QWEN_SPECIAL)})
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    return folder
