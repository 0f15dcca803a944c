"""Converted twins with real tokenizers, and GGUF files made of them by llama.cpp's own scripts."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import cache
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

from llava_remap.authoring.shrink import shrink
from tests.compat.checkpoints import FAMILIES, change, convert_made
from tests.conftest import MANIFESTS
from tests.forks import HANGS
from tests.programs.run import place
from tests.programs.vocabularies import (
    Vocabulary,
    read_vocabulary,
    write_llama3,
    write_qwen2,
    write_sentencepiece,
)

#: llama.cpp's source, which `make programs` unpacks.
SOURCE = place("llama_cpp_source") / "vendor" / "llama.cpp"
CONVERTER = SOURCE / "convert_hf_to_gguf.py"
LEGACY = SOURCE / "tools" / "mtmd" / "legacy-models"
#: What LLaVA adds behind Llama's vocabulary where there are so many more rows.
ADDED = ("<im_patch>", "<im_start>", "<im_end>")
#: Name of the vocabulary in llama.cpp's source, by the kind of tokenizer.
VOCABULARIES = {"sentencepiece": "llama-spm", "llama3": "llama-bpe", "qwen2": "qwen2"}
_MATRICES = ("embed_tokens.weight", "lm_head.weight")


def kind_of(name: str) -> str:
    """The kind of a family's tokenizer."""
    manifest = FAMILIES[name].manifest
    return "qwen2" if "qwen" in manifest else "llama3" if "llama3" in manifest else "sentencepiece"


@cache
def vocabulary_of(kind: str) -> Vocabulary:
    """The vocabulary of a kind of tokenizer."""
    return read_vocabulary(SOURCE, VOCABULARIES[kind])


def make_folders(work: Path) -> dict[str, Path]:
    """Every family's twin with its real tokenizer, converted; in two processes.

    Args:
        work: an existing folder.
    """
    folders = {name: work / "out" / name for name in FAMILIES}
    with ProcessPoolExecutor(2, get_context("spawn")) as pool:
        list(pool.map(_make_folder, FAMILIES, (work / name for name in FAMILIES), folders.values()))
    return folders


def _make_folder(name: str, checkpoint: Path, output: Path) -> None:
    make_checkpoint(name, vocabulary_of(kind_of(name)), checkpoint)
    convert_made(FAMILIES[name], checkpoint, output)


def make_checkpoint(name: str, vocabulary: Vocabulary, checkpoint: Path) -> None:
    """Make a family's small twin with its real tokenizer, and so many rows as the original has.

    Args:
        name: the family's name.
        vocabulary: its tokenizer's vocabulary.
        checkpoint: the new folder, in the research code's format.
    """
    twin = FAMILIES[name]
    manifest = json.loads((MANIFESTS / f"{twin.manifest}.json").read_text())
    shrink(MANIFESTS / f"{twin.manifest}.json", checkpoint)
    ids = {
        key: value
        for key, value in manifest["config"].items()
        if key == "vocab_size" or key.endswith("_token_id")
    }
    change(checkpoint / "config.json", **(twin.config or {}), **ids)
    rows = manifest["tensors"]["model.embed_tokens.weight"]["shape"][0]
    _enlarge(checkpoint / "model.safetensors", rows)
    for file in checkpoint.glob("*token*"):
        file.unlink()
    if kind_of(name) == "qwen2":
        write_qwen2(vocabulary, checkpoint)
    elif kind_of(name) == "llama3":
        write_llama3(vocabulary, checkpoint)
    else:
        added = ADDED[: rows - len(vocabulary.fields["tokens"])]
        write_sentencepiece(vocabulary, checkpoint, added)


def _enlarge(file: Path, rows: int) -> None:
    """Put more rows into the embedding and the output matrix, seeded and as large as the others."""
    tensors = load_file(file)
    made: dict[int, torch.Tensor] = {}
    for name in sorted(name for name in tensors if name.endswith(_MATRICES)):
        before = tensors[name]
        same = next(
            (made[i] for i in made if torch.equal(tensors[name], made[i][: len(before)])), None
        )
        if same is None:
            random = torch.Generator().manual_seed(len(made))
            more = torch.randn(rows - len(before), before.shape[1], generator=random)
            more *= before.float().std()
            same = made[len(made)] = torch.cat([before, more.to(before.dtype)])
        tensors[name] = same.clone()
    save_file(tensors, file, {"format": "pt"})


@dataclass(frozen=True)
class Ended:
    """How a script ended.

    Attributes:
        code: its exit code.
        said: what it printed.
    """

    code: int
    said: str


def run_scripts(commands: Mapping[str, Sequence[str | Path]], work: Path) -> dict[str, Ended]:
    """Run Python scripts of llama.cpp one after another, with the transformers that it asks for.

    Args:
        commands: by any name, a script and its arguments.
        work: an existing folder for logs.
    """
    given, answered = work / "commands.json", work / "codes.json"
    logs = {name: work / f"{name}.log" for name in commands}
    listed = [
        {"arguments": list(map(str, arguments)), "log": str(logs[name])}
        for name, arguments in commands.items()
    ]
    given.write_text(json.dumps(listed))
    (packages,) = place("llama_cpp_transformers").glob("lib/python*/site-packages")
    paths = os.pathsep.join([str(packages), str(SOURCE / "gguf-py")])
    environment = {**os.environ, "PYTHONPATH": paths, "HF_HUB_OFFLINE": "1"}
    script = Path(__file__).with_name("run_scripts.py")
    subprocess.run(
        [sys.executable, script, given, answered],
        env=environment,
        cwd=work,
        check=True,
        timeout=HANGS,
    )
    codes = json.loads(answered.read_text())
    return {
        name: Ended(code, logs[name].read_text(errors="replace"))
        for name, code in zip(commands, codes, strict=True)
    }


def text_command(folder: Path, file: Path) -> list[str | Path]:
    """The documented command that makes a GGUF file of a folder's language model."""
    return [CONVERTER, folder, "--outtype", "f32", "--outfile", file]


def read_gguf(file: Path) -> tuple[dict[str, Any], dict[str, bytes]]:
    """The metadata of a GGUF file, and its tensors' bytes."""
    sys.path.insert(0, str(SOURCE / "gguf-py"))
    try:
        from gguf import GGUFReader  # type: ignore[import-not-found]
    finally:
        sys.path.pop(0)
    reader = GGUFReader(file)
    fields = {key: field.contents() for key, field in reader.fields.items()}
    tensors = {t.name: bytes(t.data.tobytes()) for t in reader.tensors}
    return fields, tensors


@dataclass(frozen=True)
class Mmproj:
    """A GGUF file of a vision tower and its projector, to be made as llama.cpp documents it.

    Attributes:
        model: a converted folder or a research checkpoint.
        tower: the folder of the tower's own checkpoint; or its config for llama.cpp, where the
            tower is taken out of the model.
        surgery: the script that takes the projector out of the model.
        options: more options of `convert_image_encoder_to_gguf.py`.
    """

    model: Path
    tower: Path | Mapping[str, Any]
    surgery: str = "llava_surgery_v2.py"
    options: tuple[str, ...] = ()


def make_mmproj(wanted: Mapping[str, Mmproj], work: Path) -> dict[str, Path]:
    """Make such files by llama.cpp's scripts, by name.

    `llava_surgery.py` and `llava_surgery_v2.py` write `llava.clip` and `llava.projector` into the
    model's folder, so each folder is copied first. A tower out of the model is put into a folder
    `vit` with its config.

    Args:
        wanted: the files, by name.
        work: a new folder.
    """
    surgeries: dict[str, list[str | Path]] = {}
    encoders: dict[str, list[str | Path]] = {}
    for name, of in wanted.items():
        model, output = work / name / "model", work / name / "mmproj"
        shutil.copytree(of.model, model)
        surgeries[name] = [LEGACY / of.surgery, "-m", model]
        tower = of.tower if isinstance(of.tower, Path) else work / name / "vit"
        encoders[name] = [
            LEGACY / "convert_image_encoder_to_gguf.py",
            *("-m", tower, "--llava-projector", model / "llava.projector", "--output-dir", output),
            *of.options,
        ]
        if not isinstance(of.tower, Path):
            surgeries[name].append("-C")
            encoders[name].append("--clip-model-is-vision")
    _succeed(run_scripts(surgeries, work))
    for name, of in wanted.items():
        if not isinstance(of.tower, Path):
            vit = work / name / "vit"
            vit.mkdir()
            shutil.copy(work / name / "model" / "llava.clip", vit / "pytorch_model.bin")
            (vit / "config.json").write_text(json.dumps(of.tower))
    _succeed(run_scripts(encoders, work))
    return {name: next((work / name / "mmproj").glob("*.gguf")) for name in wanted}


def encoder_config(folder: Path) -> dict[str, Any]:
    """A converted folder's tower, as the config.json in which llama.cpp's script looks for it.

    The script wants a `projection_dim`, and llama.cpp uses none. Without `vision_feature_layer`,
    script and program each leave out the last layer.
    """
    config = json.loads((folder / "config.json").read_text())
    encoder = {"projection_dim": 0, **config["vision_config"]}
    encoder["vision_feature_layer"] = config["vision_feature_layer"]
    if "image_grid_pinpoints" in config:
        encoder["image_grid_pinpoints"] = config["image_grid_pinpoints"]
        encoder |= {"image_aspect_ratio": "anyres", "mm_patch_merge_type": "spatial_unpad"}
    return encoder


def _succeed(ended: Mapping[str, Ended]) -> None:
    failed = {name: of.said[-2000:] for name, of in ended.items() if of.code}
    assert not failed, failed
