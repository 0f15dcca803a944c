"""Every code occurs here: a small situation forces each code through the command line.

Each code is shown with its title, its exit code and what to do, without a traceback, and no file is
made or changed.
"""

from __future__ import annotations

import argparse
import errno
import hashlib
import json
import os
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from threading import Thread
from typing import Any

import pytest
import torch

from llava_remap.core import libraries
from llava_remap.core.codes import CODES, Exit
from llava_remap.execute import write
from llava_remap.folder import processor
from llava_remap.jobs.apply import apply
from llava_remap.rulefile import pattern
from tests.compat.checkpoints import qwen_tokenizer
from tests.conftest import CLIP, MANIFESTS, RELEASED, TINY, Changed, Run, Tensors, lose_last_byte

#: Codes of notes, which stop nothing. LR309 and LR317 can be notes or refusals: the refusal LR309
#: is in `test_findings.py`, the note LR317 in `test_parts.py`.
NOTES = {
    "LR205", "LR308", "LR309", "LR310", "LR312", "LR315", "LR316", "LR318", "LR319", "LR407",
    "LR408",
    "LR410", "LR411", "LR414", "LR415", "LR506", "LR608", "LR609", "LR610", "LR611",
}  # fmt: skip
#: Codes that always come with others: a parameter whose tensor is dropped is also missing.
TOGETHER = {"LR204": {"LR204", "LR213"}, "LR306": {"LR302", "LR306"}}

LORA = TINY / "llava-v1.5-lora"
HEAD, EMBEDDING, NORM = "lm_head.weight", "model.embed_tokens.weight", "model.norm.weight"

Arguments = Sequence[object]


@dataclass(frozen=True)
class Scene:
    """What a situation is set up with: the fixtures, the test's own folder (where it runs), and
    a folder that `apply` wrote.
    """

    changed: Changed
    patch: pytest.MonkeyPatch
    converted: Path

    def folder(self, name: str, **contents: str) -> Path:
        """A new folder with text files."""
        Path(name).mkdir()
        for file, text in contents.items():
            Path(name, file.replace("_json", ".json")).write_text(text)
        return Path(name)

    def copy(self, folder: Path, name: str = "source") -> Path:
        shutil.copytree(folder, name)
        return Path(name)

    def saved(self, value: object) -> Path:
        """A checkpoint folder whose one file holds this."""
        source = self.folder("source")
        torch.save(value, source / "pytorch_model.bin")
        return source

    def rules(self, text: str, extends: str = "llava-v1.5.yaml") -> Path:
        """A rule file of one's own."""
        path = Path("mine.yaml")
        path.write_text(
            f"schema: 1\nname: mine\nversion: 1.0.0\nsummary: one's own\nextends: [{extends}]\n"
            f"{text}\n"
        )
        return path


def applied(
    source: Path = RELEASED / "bin", rules: object = "llava-v1.5", *more: object, tower: Path = CLIP
) -> Arguments:
    return (
        "apply",
        rules,
        "--source",
        source,
        "--source",
        f"vision_tower={tower}",
        "--output",
        "out",
        *more,
    )


def planned(source: Path, *more: object) -> Arguments:
    return applied(source, "llava-v1.5", "--dry-run", *more)


# --- input


def lr100(scene: Scene) -> Arguments:
    return applied(Path("nowhere"))


def lr101(scene: Scene) -> Arguments:
    source = scene.copy(RELEASED / "safetensors")
    pointer = "version https://git-lfs.github.com/spec/v1\noid sha256:4d7a21\nsize 9976578928\n"
    (source / "model.safetensors").write_text(pointer)
    return applied(source)


def lr102(scene: Scene) -> Arguments:
    source = scene.copy(RELEASED / "safetensors")
    os.truncate(source / "model.safetensors", 50_000)
    return applied(source)


def lr103(scene: Scene) -> Arguments:
    source = scene.copy(RELEASED / "sharded_safetensors")
    (source / "model-00002-of-00002.safetensors").unlink()
    return applied(source)


def lr104(scene: Scene) -> Arguments:
    def stub(tensors: Tensors) -> None:
        tensors.update(
            {name: torch.empty(0, dtype=torch.float16) for name in tensors if ".layers." in name}
        )

    return applied(scene.changed(tensors=stub))


def lr105(scene: Scene) -> Arguments:
    return applied(scene.saved({NORM: torch.ones(64), "args": argparse.Namespace(lr=2e-5)}))


def lr106(scene: Scene) -> Arguments:
    return applied(scene.saved({"state": {0: torch.ones(2)}, "param_groups": [{"lr": 2e-5}]}))


def lr107(scene: Scene) -> Arguments:
    return applied(LORA)


def lr108(scene: Scene) -> Arguments:
    return applied(TINY / "llava-v1.5" / "pretrain_projector_only")


def lr109(scene: Scene) -> Arguments:
    return applied(scene.converted)


def lr110(scene: Scene) -> Arguments:
    def wrap(tensors: Tensors) -> None:
        for name in list(tensors):
            tensors["module." + name] = tensors.pop(name)

    text = "sources: {model: {}, vision_tower: {}}\ntarget: {class: LlavaForConditionalGeneration}"
    return applied(scene.changed(tensors=wrap), scene.rules(text, "parts/llava.yaml"))


def lr111(scene: Scene) -> Arguments:
    return applied(MANIFESTS / "llava-v1.5-7b.json")


def lr112(scene: Scene) -> Arguments:
    return applied(scene.changed(config=lambda config: config.pop("num_attention_heads")))


def lr113(scene: Scene) -> Arguments:
    source = scene.changed()
    (source / "tokenizer_config.json").write_text("{")
    return applied(source)


def lr114(scene: Scene) -> Arguments:
    return (
        "apply",
        "llava-v1.5",
        "--source",
        "no-such-user/no-such-model",
        "--output",
        "out",
        "--offline",
    )


def lr115(scene: Scene) -> Arguments:
    adapter = scene.copy(LORA, "adapter")
    content = json.loads((adapter / "adapter_config.json").read_text())
    (adapter / "adapter_config.json").write_text(json.dumps({**content, "use_dora": True}))
    return (*applied(), "--source", f"adapter={adapter}")


# --- rule file


def lr200(scene: Scene) -> Arguments:
    return applied(rules="llava-v1.7")


def lr201(scene: Scene) -> Arguments:
    return applied(rules=scene.rules("nmaes: []"))


def lr202(scene: Scene) -> Arguments:
    return applied(rules=scene.rules("names: [{id: open, match: 'model.(', replace: x}]"))


def lint(names: str, *tests: str) -> Arguments:
    """Of a file with these rules, and tests for them."""
    said = "".join(f"\n  - {{{test}}}" for test in tests)
    Path("linted.yaml").write_text(f"schema: 1\nnames: [{names}]\ntests:{said or ' []'}\n")
    return ("rules", "lint", "linted.yaml")


def lr203(scene: Scene) -> Arguments:
    return lint(
        "{id: model, from: 'model.{r...}', to: 'model.text.{r}'}", "from: model.a, to: model.text.a"
    )


def lr204(scene: Scene) -> Arguments:
    tests = ("from: model.a.b, to: text.a.b", "from: model.norm.w, to: text.norm.w")
    return lint(
        "{id: all, from: 'model.{r...}', to: 'text.{r}'}, {id: norm, from: 'model.norm.{p}', to: "
        "'n.{p}'}",
        *tests,
    )


def lr205(scene: Scene) -> Arguments:
    return (
        *lint("{id: gone, from: gone, to: lost}", "from: gone, to: lost"),
        "--source",
        MANIFESTS / "llava-v1.5-7b.json",
    )


def lr206(scene: Scene) -> Arguments:
    scene.patch.setattr(pattern, "TIME_LIMIT", 0.05)
    source = scene.changed(tensors=lambda tensors: tensors.update({"a" * 200: torch.ones(1)}))
    return applied(source, scene.rules("names: [{id: runaway, match: '^(a|a|aa)+$b', replace: x}]"))


def lr208(scene: Scene) -> Arguments:
    return lint("{id: model, match: '^model', replace: text}", "from: model.a, to: text.a")


def lr209(scene: Scene) -> Arguments:
    return applied(rules=scene.rules("names: [{id: a, from: a, to: b}, {id: a, from: c, to: d}]"))


def lr210(scene: Scene) -> Arguments:
    return applied(rules=scene.rules("", "llava-v1.7.yaml"))


def lr211(scene: Scene) -> Arguments:
    return applied(Path("a"), "llava-v1.5", "--source", "b")


def lr212(scene: Scene) -> Arguments:
    return applied(rules=scene.rules("post_load: [{use: expand_embedings}]"))


def lr213(scene: Scene) -> Arguments:
    return lint("{id: norm, from: norm.w, to: text.norm.w}")


def lr214(scene: Scene) -> Arguments:
    return lint(
        "{id: layers, from: 'layers.{n:int}.{p}', to: 'text.{p}'}", "from: layers.1.w, to: text.w"
    )


def lr215(scene: Scene) -> Arguments:
    names = (
        "{id: norm, match: '^norm\\.', replace: 'text.', reverse: {match: '^text\\.', "
        "replace: "
        "'nrom.'}}"
    )
    return lint(names, "from: norm.w, to: text.w")


def lr216(scene: Scene) -> Arguments:
    return "convert", MANIFESTS / "llava-interleave-qwen-0.5b.released.json", "--dry-run"


# --- mapping


def lr217(scene: Scene) -> Arguments:
    """Experts of which the first half becomes one tensor, and the second half another one."""
    return ("rules", "import", "--model-type", "ernie4_5_vl_moe")


def lr301(scene: Scene) -> Arguments:
    return applied(
        scene.changed(
            tensors=lambda tensors: tensors.update(
                {"model.mm_projector.4.weight": torch.ones(64, 64)}
            )
        )
    )


def lr302(scene: Scene) -> Arguments:
    return applied(scene.changed(tensors=lambda tensors: tensors.pop("model.mm_projector.0.bias")))


def lr303(scene: Scene) -> Arguments:
    def add_layer(tensors: Tensors) -> None:
        tensors.update(
            {
                n.replace(".1.", ".2."): t.clone()
                for n, t in tensors.items()
                if n.startswith("model.layers.1.")
            }
        )

    return applied(scene.changed(tensors=add_layer))


def lr304(scene: Scene) -> Arguments:
    return applied(
        scene.changed(
            tensors=lambda tensors: tensors.update({f"module.{NORM}": tensors[NORM].clone()})
        )
    )


def lr305(scene: Scene) -> Arguments:
    text = (
        "schema: 1\nname: other\nversion: 1.0.0\nsummary: a file for other names\n"
        "sources: {model: {}, vision_tower: {}}\n"
        "target: {class: LlavaForConditionalGeneration}\n"
        "names: [{id: other, from: 'other.{rest...}', to: '{rest}'}]\n"
    )
    Path("other.yaml").write_text(text)
    return applied(rules="other.yaml")


def lr306(scene: Scene) -> Arguments:
    return applied(
        rules=scene.rules(
            "prepare: [{id: norms, from: 'model.norm.{p}', drop: thought to be a buffer}]"
        )
    )


def lr307(scene: Scene) -> Arguments:
    rules = scene.rules(
        "names: [{id: extra, from: 'extra.{p}', to: 'language_model.language_model.{p}'}]"
    )
    return applied(
        scene.changed(tensors=lambda tensors: tensors.update({"extra.weight": torch.ones(1)})),
        rules,
    )


def lr308(scene: Scene) -> Arguments:
    return planned(scene.changed(config=lambda config: config.update(mm_projector_type="linear")))


def lr309(scene: Scene) -> Arguments:
    """The config names the tower of the full size; the one that is given is a tiny one."""
    return planned(RELEASED / "bin")


def lr310(scene: Scene) -> Arguments:
    return planned(TINY / "llava-v1.5" / "full_state_dict")


def lr311(scene: Scene) -> Arguments:
    return planned(MANIFESTS / "llava-interleave-qwen-0.5b.released.json")


def lr312(scene: Scene) -> Arguments:
    """Beside the pairs lies a projector, and the base has one, too."""
    return planned(RELEASED / "bin", "--source", f"adapter={LORA}")


def lr313(scene: Scene) -> Arguments:
    """The adapter of a deeper model."""
    adapter = scene.copy(LORA, "adapter")
    pairs = torch.load(adapter / "adapter_model.bin", weights_only=True)
    deeper = {
        name.replace(".1.", ".2."): tensor for name, tensor in pairs.items() if ".layers.1." in name
    }
    torch.save(pairs | deeper, adapter / "adapter_model.bin")
    return (*applied(), "--source", f"adapter={adapter}")


def lr314(scene: Scene) -> Arguments:
    return planned(scene.changed(config=lambda config: config.update(s2=True)))


def lr315(scene: Scene) -> Arguments:
    """LLaVA-1.5's config says `pad`."""
    return planned(RELEASED / "bin")


def lr316(scene: Scene) -> Arguments:
    return planned(
        RELEASED / "bin",
        "--source",
        f"adapter={adapter(scene, base_model_name_or_path='lmsys/vicuna-7b-v1.5')}",
    )


def lr317(scene: Scene) -> Arguments:
    """What a trainer leaves on the way: the pairs and LLaVA's config, no projector."""
    path = adapter(scene)
    (path / "non_lora_trainables.bin").unlink()
    return applied(RELEASED / "bin", "llava-v1.5", "--source", f"adapter={path}")


# --- shapes, dtypes, vocabulary


def lr318(scene: Scene) -> Arguments:
    return applied(
        scene.changed(config=lambda config: config.update(mm_of_mine=3)), "llava-v1.5", "--dry-run"
    )


def lr319(scene: Scene) -> Arguments:
    """Research code of a name that no rule file knows, on a language model that transformers
    does.
    """
    return applied(
        scene.changed(config=lambda config: config.update(architectures=["OursLlamaForCausalLM"])),
        "llava-v1.5",
        "--dry-run",
    )


def lr320(scene: Scene) -> Arguments:
    return "convert", CLIP


def lr321(scene: Scene) -> Arguments:
    return applied(
        rules=scene.rules(
            "tensors: [{id: turn, from: '{m...}.down_proj.weight', to: '{m}.down_proj.weight', "
            "how: {axes: [1, 0]}}]"
        )
    )


def lr322(scene: Scene) -> Arguments:
    def halve(tensors: Tensors) -> None:
        one, other = tensors.pop(HEAD).chunk(2)
        tensors.update({"lm_head.top": one.float(), "lm_head.bottom": other.clone()})

    return applied(
        scene.changed(tensors=halve),
        scene.rules(
            "tensors: [{id: head, from: ['{m...}.lm_head.top', '{m...}.lm_head.bottom'], "
            "to: '{m}.lm_head.weight', how: {concat: 0}}]"
        ),
    )


def lr401(scene: Scene) -> Arguments:
    return applied(
        scene.changed(
            tensors=lambda tensors: tensors.update({NORM: torch.ones(63, dtype=torch.float16)})
        )
    )


def lr402(scene: Scene) -> Arguments:
    return applied(rules=scene.rules("post_load: []"))


def lr403(scene: Scene) -> Arguments:
    """A list of added tokens beside a tokenizer.json that has none of them, and doesn't count
    them.
    """
    source = more_rows(scene)
    tokenizer = json.loads((scene.converted / "tokenizer.json").read_text())
    tokenizer["added_tokens"] = [token for token in tokenizer["added_tokens"] if token["id"] < 320]
    (source / "tokenizer.json").write_text(json.dumps(tokenizer))
    (source / "added_tokens.json").write_text('{"<extra>": 325}')
    return applied(source)


def lr405(scene: Scene) -> Arguments:
    return applied(scene.changed(config=lambda config: config.update(tie_word_embeddings=True)))


def lr406(scene: Scene) -> Arguments:
    return applied(
        scene.changed(tensors=lambda tensors: tensors[EMBEDDING][7, 3:5].fill_(float("nan")))
    )


def lr407(scene: Scene) -> Arguments:
    return planned(more_rows(scene))


def lr408(scene: Scene) -> Arguments:
    return planned(TINY / "llava-v1.5" / "legacy_pickle")


def lr409(scene: Scene) -> Arguments:
    return applied(
        scene.changed(tensors=lambda tensors: tensors.update({NORM: tensors[NORM].long()}))
    )


def lr410(scene: Scene) -> Arguments:
    return (
        "revert",
        scene.converted,
        "--rules",
        "llava-v1.5",
        "--output",
        "out",
        "--dry-run",
    )


lr411 = lr410


def lr412(scene: Scene) -> Arguments:
    """The end of a text is put behind each piece between pictures, and no tokenizer does that
    with a whole prompt.
    """
    source = scene.changed()
    config = json.loads((source / "tokenizer_config.json").read_text())
    (source / "tokenizer_config.json").write_text(json.dumps({**config, "add_eos_token": True}))
    return applied(source)


def lr413(scene: Scene) -> Arguments:
    """The config wants markers around pictures, and the tokenizer doesn't have them."""
    return applied(scene.changed(config=lambda config: config.update(mm_use_im_start_end=True)))


def lr414(scene: Scene) -> Arguments:
    """A tokenizer.json that lost what puts a space before a text, beside the tokenizer.model."""
    source = scene.changed()
    content = json.loads((scene.converted / "tokenizer.json").read_text())
    content["added_tokens"] = [token for token in content["added_tokens"] if token["id"] < 320]
    (source / "tokenizer.json").write_text(json.dumps({**content, "pre_tokenizer": None}))
    return planned(source)


def adapter(scene: Scene, **config: Any) -> Path:
    """A copy of the genuine adapter, with changes to its adapter_config.json."""
    path = scene.copy(LORA, "adapter") / "adapter_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **config}))
    return path.parent


def more_rows(scene: Scene) -> Path:
    """A checkpoint with spare rows: its tokenizer has 321 words, and the rows were padded to a
    multiple of 64.
    """

    def grow(tensors: Tensors) -> None:
        tensors.update(
            {name: torch.cat([tensors[name], tensors[name][:64]]) for name in (EMBEDDING, HEAD)}
        )

    source = scene.changed(tensors=grow, config=lambda config: config.update(vocab_size=384))
    (source / "added_tokens.json").write_text(json.dumps({"<own>": 320}))
    return source


# --- resources and output


def fail(error: BaseException) -> Callable[..., Any]:
    def failing(*arguments: object, **named: object) -> Any:
        raise error

    return failing


def lr501(scene: Scene) -> Arguments:
    scene.patch.setattr(write, "shard_header", fail(MemoryError()))
    return applied()


def lr502(scene: Scene) -> Arguments:
    """The disk is filled by others while the weights are written."""
    scene.patch.setattr(os, "pwrite", fail(OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))))
    return applied()


def lr503(scene: Scene) -> Arguments:
    scene.folder("out", notes="mine")
    return applied()


def lr504(scene: Scene) -> Arguments:
    """The source is touched after a job was interrupted."""
    source = scene.copy(RELEASED / "bin")
    with scene.patch.context() as patched:
        patched.setattr("llava_remap.jobs.run.write_index", fail(KeyboardInterrupt()))
        with pytest.raises(KeyboardInterrupt):
            apply("llava-v1.5", [str(source), f"vision_tower={CLIP}"], "out")
    os.utime(source / "pytorch_model.bin", (1, 1))
    return applied(source, "llava-v1.5", "--resume")


def lr505(scene: Scene) -> Arguments:
    scene.copy(scene.converted, "out")
    Path("out/llava_remap.json").unlink()
    Path("out/model-00001-of-00002.safetensors").rename(
        "out/model-00001-of-00002.safetensors.partial"
    )
    return ("verify", "out")


def lr506(scene: Scene) -> Arguments:
    source = scene.copy(RELEASED / "bin")
    state = torch.load(source / "pytorch_model.bin", weights_only=True)
    torch.save({**state, HEAD: state[EMBEDDING]}, source / "pytorch_model.bin")
    return planned(source)


def lr508(scene: Scene) -> Arguments:
    Path("out").write_text("a file")
    return (*applied(), "--output", "out/below")


# --- verification


def lr601(scene: Scene) -> Arguments:
    """A transformers that doesn't know the classic layout any more, when it is asked to load
    what was written.
    """
    from transformers import conversion_mapping

    scene.patch.setattr(conversion_mapping, "get_model_conversion_mapping", lambda model: [])
    fresh = "llava_remap.verification.strict.cached_value"  # earlier answers are cached
    scene.patch.setattr(fresh, lambda question, facts, ask, kind: kind(**ask()))
    return applied()


def lr602(scene: Scene) -> Arguments:
    """A disk that loses the last byte of what is copied to it."""
    lose_last_byte(scene.patch)
    return applied(RELEASED / "bin", "llava-v1.5", "--verify", "full")


def lr603(scene: Scene) -> Arguments:
    with (scene.copy(scene.converted, "out") / "generation_config.json").open("a") as file:
        file.write("\n")
    return ("verify", "out")


def lr604(scene: Scene) -> Arguments:
    tower = scene.copy(CLIP, "tower")
    content = json.loads((tower / "preprocessor_config.json").read_text())
    content["crop_size"] = {"height": 42, "width": 42}
    (tower / "preprocessor_config.json").write_text(json.dumps(content))
    return applied(tower=tower)


def lr605(scene: Scene) -> Arguments:
    return applied(rules=scene.rules("processor: {class: CLIPProcessor}"))


def lr606(scene: Scene) -> Arguments:
    return ("verify", scene.copy(RELEASED / "safetensors", "out"))


def lr607(scene: Scene) -> Arguments:
    """An lm_head in float32 that equals the embedding in float16: one of them is written."""
    source = scene.copy(RELEASED / "bin")
    state = torch.load(source / "pytorch_model.bin", weights_only=True)
    torch.save({**state, HEAD: state[EMBEDDING].float()}, source / "pytorch_model.bin")
    config = json.loads((source / "config.json").read_text())
    (source / "config.json").write_text(json.dumps({**config, "tie_word_embeddings": True}))
    apply("llava-v1.5", [str(source), f"vision_tower={CLIP}"], "out")
    return ("revert", "out", "--output", "back")


def lr608(scene: Scene) -> Arguments:
    scene.patch.setattr(processor, "has_torchvision", lambda: False)
    tokenizer = qwen_tokenizer(Path("tokenizer"))
    tower = TINY / "siglip-tiny-patch14-28"
    source = TINY / "llava-onevision" / "safetensors"
    return applied(
        source,
        "llava-onevision",
        "--source",
        f"language_model={tokenizer}",
        "--dry-run",
        tower=tower,
    )


def lr609(scene: Scene) -> Arguments:
    """Qwen's tokenizer ends turns with <|im_end|>, which the generation config of the checkpoint
    doesn't name.
    """
    tower, tokenizer = TINY / "siglip-tiny-patch14-28", qwen_tokenizer(Path("tokenizer"))
    source = TINY / "llava-onevision" / "safetensors"
    return applied(
        source,
        "llava-onevision",
        "--source",
        f"language_model={tokenizer}",
        "--dry-run",
        tower=tower,
    )


def lr610(scene: Scene) -> Arguments:
    """A rule file of one's own that takes LLaVA-1.5's image processor as it is."""
    return applied(
        RELEASED / "bin",
        scene.rules("processor: {image_processor: {config: {do_pad: {const: null}}}}"),
        "--dry-run",
    )


def lr510(scene: Scene) -> Arguments:
    """transformers doesn't go with another library; what it is asked was never asked before."""
    scene.patch.setenv("LLAVA_REMAP_CACHE", str(Path("empty").resolve()))
    scene.patch.setattr(
        libraries,
        "import_module",
        fail(ImportError("cannot import name 'X' from 'huggingface_hub'")),
    )
    return applied()


def lr511(scene: Scene) -> Arguments:
    """No thread can be started any more when the weights are to be written."""
    scene.patch.setattr(Thread, "start", fail(RuntimeError("can't start new thread")))
    return applied()


def lr415(scene: Scene) -> Arguments:
    source = scene.copy(RELEASED / "bin", "source")
    roles = json.loads((source / "special_tokens_map.json").read_text())
    (source / "special_tokens_map.json").write_text(json.dumps({**roles, "mask_token": "<mask>"}))
    return applied(source, "llava-v1.5", "--dry-run")


def lr611(scene: Scene) -> Arguments:
    tower = scene.copy(CLIP, "tower")
    (tower / "preprocessor_config.json").unlink()
    return applied(RELEASED / "bin", "llava-v1.5", "--dry-run", tower=tower)


SCENARIOS: dict[str, Callable[[Scene], Arguments]] = {
    name.upper(): found
    for name, found in list(globals().items())
    if name.startswith("lr") and name[2:].isdecimal()
}


def test_every_code_has_its_scenario() -> None:
    assert set(SCENARIOS) == set(CODES)


@pytest.fixture(scope="module")
def converted(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("converted") / "out"
    apply("llava-v1.5", [str(RELEASED / "bin"), f"vision_tower={CLIP}"], folder)
    return folder


@pytest.fixture
def scene(changed: Changed, monkeypatch: pytest.MonkeyPatch, converted: Path) -> Scene:
    return Scene(changed, monkeypatch, converted)


def tree() -> dict[str, str]:
    """Every file below the current folder with its digest, and every folder."""
    found = (path for path in Path().rglob("*"))
    return {
        str(path): hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() else ""
        for path in found
    }


def said(content: Any) -> tuple[list[Any], list[Any]]:
    """The problems and the notes of a plan or a verification, or of the one file of a lint."""
    if content["format"] != "llava-remap/lint":
        return content["problems"], content.get("notes", [])
    [file] = content["files"]
    levels: dict[str, list[Any]] = {"error": [], "note": []}
    for finding in file["findings"]:
        levels[finding["level"]].append(finding)
    return levels["error"], levels["note"]


@pytest.mark.parametrize("code", SCENARIOS)
def test_it_is_told_and_nothing_is_left(code: str, run: Run, scene: Scene) -> None:
    arguments = SCENARIOS[code](scene)
    before = tree()
    human, machine = run(*arguments), run(*arguments, "--format", "json")
    assert human.code == machine.code == (Exit.DONE if code in NOTES else CODES[code].exit)
    printed = human.out + human.err
    assert f"{code} {CODES[code].title}" in printed
    assert code in NOTES or "  → " in printed
    assert "Traceback" not in printed + machine.out + machine.err
    assert len(printed.splitlines()) < 80  # the plan takes about 40
    problems, notes = said(machine.json)
    found = {problem["code"]: problem["message"] for problem in problems}
    if code in NOTES:
        assert code in {note["code"] for note in notes}
        assert not found
    else:
        assert set(found) == TOGETHER.get(code, {code})
        assert CODES[code].title in found[code]
    assert tree() == before


@pytest.mark.parametrize("code", ["LR405", "LR406"])
def test_values_are_checked_before_anything_is_made(code: str, run: Run, scene: Scene) -> None:
    """Not even for a moment: neither the output folder nor a file in it is asked for."""
    made: list[object] = []
    mkdir, opened = Path.mkdir, Path.open

    def watched_mkdir(path: Path, *arguments: Any, **named: Any) -> None:
        made.append(path)
        mkdir(path, *arguments, **named)

    def watched_open(path: Path, mode: str = "r", *arguments: Any, **named: Any) -> Any:
        made.extend([path] if set(mode) & set("wxa+") else [])
        return opened(path, mode, *arguments, **named)

    arguments = SCENARIOS[code](scene)
    scene.patch.setattr(Path, "mkdir", watched_mkdir)
    scene.patch.setattr(Path, "open", watched_open)
    assert run(*arguments).code == CODES[code].exit
    assert made == []
