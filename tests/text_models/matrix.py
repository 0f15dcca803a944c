"""Every language model of the installed transformers inside a LLaVA: converted by a shipped rule
file, held against its class.

Each is built small by its own class, with every key of its config at a value that isn't the
default, as far as the class takes one. What it computes then is the truth: the checkpoint is that
model's own, saved by transformers, with a tower and a projector put beside it as the research code
does.
"""

from __future__ import annotations

import dataclasses
import json
import shutil
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from transformers import CONFIG_MAPPING, AutoModelForCausalLM, PreTrainedConfig
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

from llava_remap.core.problem import RemapError
from llava_remap.jobs.apply import apply
from tests.conftest import CLIP, RELEASED, TINY
from tests.original.answers import ALL_VERSIONS, run_in_all

#: The largest difference of logits, as a share of the largest logit.
NEAR = 1e-5
SIZES = {
    "vocab_size": 320, "hidden_size": 64, "intermediate_size": 112, "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2, "max_position_embeddings": 256, "bos_token_id": 1, "eos_token_id": 2,
    "pad_token_id": 0,
    "tie_word_embeddings": False,
}  # fmt: skip
#: Sizes that only some have, made small where the class has them; each is left out where the class
#: doesn't take it.
MORE_SIZES = {
    "n_group": 1, "topk_group": 1, "first_k_dense_replace": 1, "num_experts_per_tok": 2,
    "head_dim": 16, "num_experts": 4,
    "n_routed_experts": 4, "num_local_experts": 4, "moe_num_experts": 4,
    "moe_k": 2, "moe_topk": 2, "moe_intermediate_size": 32, "shared_expert_intermediate_size": 32,
    "shared_intermediate_size": 32, "q_lora_rank": 16, "kv_lora_rank": 16, "qk_rope_head_dim": 8,
    "qk_nope_head_dim": 8, "v_head_dim": 16, "index_topk": 4, "index_n_heads": 2,
    "index_head_dim": 16, "mamba_n_heads": 8,
    "mamba_d_head": 16, "mamba_d_state": 16, "mamba_num_heads": 8, "mamba_head_dim": 16,
    "mamba_d_ssm": 128, "n_mamba_heads": 2,
    "linear_num_key_heads": 2, "linear_num_value_heads": 4, "linear_key_head_dim": 16,
    "linear_value_head_dim": 16,
    "rotary_dim": 8, "ffn_dim": 112, "word_embed_proj_dim": 64, "sliding_window": 16,
    "n_inner": 112, "ffn_hidden_size": 112,
}  # fmt: skip
#: Keys that are no property of what is computed here: ids, sizes, and how much is kept or reported.
STAYS = {
    *SIZES,
    "use_cache",
    "output_router_logits",
    "output_attentions",
    "initializer_range",
    "pretraining_tp",
}
TEXT = torch.randint(3, 300, (1, 100), generator=torch.Generator().manual_seed(1))


def kinds() -> list[str]:
    """Every kind of language model that transformers lists."""
    return sorted(kind for kind in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES if kind in CONFIG_MAPPING)


@dataclass(frozen=True)
class Own:
    """A small language model of one kind, in its own class.

    Attributes:
        changed: keys of its config that aren't at their default.
        kept: keys that its class takes at their default alone, as far as values were found.
    """

    kind: str
    model: Any
    changed: tuple[str, ...]
    kept: tuple[str, ...]


def build(kind: str) -> Own | str:
    """The small model, or why it can't be built."""
    config_class = CONFIG_MAPPING[kind]
    names = {field.name for field in dataclasses.fields(config_class)} - {
        f.name for f in dataclasses.fields(PreTrainedConfig)
    }
    said = {config_class.attribute_map.get(key, key): value for key, value in SIZES.items()}
    said = {key: value for key, value in said.items() if key in names}
    more = {key: value for key, value in MORE_SIZES.items() if key in names}
    plain = {
        key: value for key, value in more.items() if key != "head_dim"
    }  # where rope has a size of its own, it is that
    each = (
        {"num_key_value_heads": 4} if "num_key_value_heads" in said else {}
    )  # some have as many as heads
    for some in (more, plain, more | each, plain | each):
        if _runs(config_class, said | some):
            said |= some
            break
    else:
        for key, value in more.items():
            if _runs(config_class, {**said, key: value}):
                said[key] = value
    if (why := _why_not(config_class, said)) is not None:
        return why
    defaults = config_class(**said).to_dict()
    kept = []
    for key in sorted(names - set(said) - STAYS):
        for value in _others(key, defaults.get(key)):
            if _runs(config_class, {**said, key: value}, sizes=False):
                said[key] = value
                break
        else:
            kept.append(key)
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(
        config_class(**said), dtype=torch.float32, attn_implementation="eager"
    ).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            around = parameter.mean() if parameter.ndim == 1 else 0.0
            parameter.copy_(torch.randn_like(parameter) * 0.08 + around)
    changed = tuple(key for key in said if key not in SIZES)
    return Own(kind, model, changed, tuple(kept))


def _others(key: str, value: Any) -> Iterator[Any]:
    """Values for a key that aren't its default."""
    if key == "rope_parameters":
        part = (
            {"partial_rotary_factor": 0.75}
            if isinstance(value, dict) and "partial_rotary_factor" in value
            else {}
        )
        yield {"rope_type": "default", "rope_theta": 5000.0, **part}
    elif isinstance(value, bool):
        yield not value
    elif isinstance(value, float):
        yield from (value * 1.5 + 0.01, value / 2)
    elif isinstance(value, int):
        yield from (value + 1, value * 2, max(value // 2, 1))
    elif isinstance(value, str):
        yield from ("gelu", "relu", "silu")
    elif value is None and key.endswith(("softcapping", "scale", "multiplier", "cap", "clip_qkv")):
        yield from (2.0, 2)


def _runs(config_class: Any, said: Mapping[str, Any], *, sizes: bool = True) -> bool:
    return _why_not(config_class, said, sizes=sizes) is None


def _why_not(config_class: Any, said: Mapping[str, Any], *, sizes: bool = True) -> str | None:
    """Why a model with this config can't be built and run, or None. `sizes`: whether they may be
    too large for it.
    """
    try:
        torch.manual_seed(0)
        config = config_class(**json.loads(json.dumps(dict(said))))
        if sizes:
            with torch.device("meta"):
                number = sum(
                    value.numel() for value in AutoModelForCausalLM.from_config(config).parameters()
                )
            if number > 20_000_000:
                return f"at its smallest here it has {number} parameters"
        model = AutoModelForCausalLM.from_config(
            config, dtype=torch.float32, attn_implementation="eager"
        ).eval()
        with torch.no_grad():
            logits = model(input_ids=TEXT[:, :20], use_cache=False).logits
        return None if logits.isfinite().all() else "its logits aren't finite"
    except Exception as error:  # whatever the class raises: it is another reason not to build it
        return " ".join(f"{type(error).__name__}: {error}".split())[:160]


@dataclass(frozen=True)
class Outcome:
    """What became of a language model.

    Attributes:
        untried: why it wasn't built.
        refused: the codes and the reasons of a refusal.
        newer: what the report says of older versions of transformers.
        folder: where it was converted.
        changed: keys of its config that weren't at their default.
    """

    untried: str = ""
    refused: str = ""
    newer: str = ""
    folder: Path | None = None
    changed: tuple[str, ...] = ()


def checkpoint(own: Own, folder: Path, family: str = "llava-v1.5") -> Path:
    """The model as research code stores it: under its own names, with LLaVA's modules and
    LLaVA's keys.
    """
    own.model.save_pretrained(folder, max_shard_size="100GB")
    tensors = load_file(folder / "model.safetensors")
    base = own.model.base_model_prefix
    tensors |= {
        name.replace("model.", f"{base}.", 1): value for name, value in _beside(family).items()
    }
    save_file(
        {name: value.contiguous() for name, value in tensors.items()},
        folder / "model.safetensors",
        {"format": "pt"},
    )
    config = json.loads((folder / "config.json").read_text())
    llava = {
        key: value for key, value in _config(family).items() if key.startswith(("mm_", "image_"))
    }
    stem = "".join(part.title() for part in own.kind.replace("-", "_").split("_"))
    config |= llava | {
        "architectures": [f"Llava{stem}ForCausalLM"],
        "model_type": f"llava_{own.kind}",
    }
    (folder / "config.json").write_text(json.dumps(config))
    for name in ("generation_config.json",):
        (folder / name).unlink(missing_ok=True)
    return folder


FOLDERS = {
    "llava-v1.5": RELEASED / "safetensors",
    "llava-next": TINY / "llava-v1.6-mistral/safetensors",
    "llava-onevision": TINY / "llava-onevision/safetensors",
}
#: Those that llava-v1.5 leaves to other rule files.
OTHERS = {"mistral": "llava-next"}
TOWERS = {
    "llava-v1.5": CLIP,
    "llava-next": CLIP,
    "llava-onevision": TINY / "siglip-tiny-patch14-28",
}


@cache
def _config(family: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((FOLDERS[family] / "config.json").read_text())
    return found


@cache
def _beside(family: str) -> dict[str, torch.Tensor]:
    """LLaVA's own tensors: tower, projector, and what else there is."""
    tensors = {
        name: value
        for file in sorted(FOLDERS[family].glob("*.safetensors"))
        for name, value in load_file(file).items()
    }
    if family == "llava-v1.5":
        clip = load_file(CLIP / "model.safetensors")
        tensors |= {
            f"model.vision_tower.vision_tower.{name}": value
            for name, value in clip.items()
            if name.startswith("vision_model.")
        }
    return {
        name: value.float()
        for name, value in tensors.items()
        if any(part in name for part in ("mm_projector", "vision_tower", "image_newline"))
    }


def convert(kind: str, work: Path, family: str = "llava-v1.5") -> Outcome:
    """Convert a small model of a kind with a shipped rule file. Its own logits of `TEXT` are put
    beside the folder.
    """
    own = build(kind)
    if isinstance(own, str):
        return Outcome(untried=own)
    family = OTHERS.get(kind, family)
    source, folder = checkpoint(own, work / "source" / kind, family), work / kind
    try:
        result = apply(family, [source, f"vision_tower={TOWERS[family]}"], folder)
    except RemapError as error:
        said = "; ".join(f"{problem.code} {problem.placed_cause}" for problem in error.problems)
        return Outcome(refused=said.replace(str(source), "the checkpoint"), changed=own.changed)
    finally:
        shutil.rmtree(source)
    with torch.no_grad():
        torch.save(
            {"ids": TEXT, "logits": own.model(input_ids=TEXT, use_cache=False).logits},
            folder.with_suffix(".pt"),
        )
    newer = " ".join(
        note.cause
        for note in result.notes
        if note.code == "LR319" and "versions of transformers" in note.cause
    )
    return Outcome(newer=newer, folder=folder, changed=own.changed)


@dataclass(frozen=True)
class Matrix:
    """Every kind, converted by llava-v1.5, and what versions of transformers make of the folders.

    Attributes:
        outcomes: by kind.
        far: by version and kind, the largest difference of logits as a share of the largest logit,
            or why there is none.
    """

    outcomes: dict[str, Outcome]
    far: dict[str, dict[str, float | str]]


def everything(work: Path) -> Matrix:
    """All kinds, and all versions that are there."""
    outcomes = {kind: convert(kind, work) for kind in kinds()}
    folders = [outcome.folder for outcome in outcomes.values() if outcome.folder is not None]
    asked = run_in_all("tests.text_models.ask", ALL_VERSIONS, folders, work)
    return Matrix(
        outcomes, {version: json.loads(path.read_text()) for version, path in asked.items()}
    )
