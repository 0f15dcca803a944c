"""Small models of any type that transformers has, with other numbers of layers and experts than the
default config, and other sizes.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch

from llava_remap.target_model.conversions import build_for_conversion

_RESNET = {"model_type": "resnet", "out_features": ["stage1", "stage2", "stage3", "stage4"]}
_WITHOUT_TIMM = {"backbone_config": _RESNET, "use_timm_backbone": False, "backbone": None}
_HEAD = {"upsample_out_channels": [64, 48], "conv_out_channels": [48, 32, 32]}
_SHUFFLED = {"head_config": {**_HEAD, "use_pixel_shuffle": True}}
_SIGLIP = {"vision_config": {"model_type": "siglip_vision_model"}}
_EMU = {"vocabulary_map": {"<|extra_0|>": 0}}
_VIBE_VOICE = {
    f"{kind}_tokenizer_encoder_config": {"num_filters": 4, "depths": [1, 1, 1, 1, 1, 1, 2]}
    for kind in ("acoustic", "semantic")
}
_MISTRAL_LARGE = {
    "num_hidden_layers": 4,
    "mlp_layer_types": ["dense", "sparse", "sparse", "sparse"],
    "layer_types": ["indexed_attention"] * 4,
    "indexer_types": ["full"] * 4,
    "no_rope_layers": [1, 1, 1, 0],
    "kv_source_layers": [0, 1, 2, 3],
    "hidden_size": 256,
    "num_attention_heads": 4,
    "num_key_value_heads": 4,
    "n_routed_experts": 8,
}
#: Configs of types whose class has none by default from which it can be built.
CONFIGS: Mapping[str, Mapping[str, Any]] = {
    "DetrModel": _WITHOUT_TIMM,
    "DetrForSegmentation": _WITHOUT_TIMM,
    "ConditionalDetrModel": _WITHOUT_TIMM,
    "ConditionalDetrForSegmentation": _WITHOUT_TIMM,
    "conditional_detr": _WITHOUT_TIMM,
    "detr": _WITHOUT_TIMM,
    "BeitForSemanticSegmentation": {"out_indices": [1, 2, 3, 4], "num_hidden_layers": 4},
    "AyaVisionModel": _SIGLIP,
    "aya_vision": _SIGLIP,
    "Emu3Model": _EMU,
    "emu3": _EMU,
    "gemma4_unified": {"vision_config": {"model_type": "gemma4_unified_vision"}},
    "qwen3_omni_moe": {"enable_audio_output": False},
    "esm": {"vocab_size": 33, "pad_token_id": 1},
    "lfm2_moe": {
        "layer_types": ["conv", "full_attention", "conv", "full_attention"],
        "num_hidden_layers": 4,
    },
    "hunyuan_vl": {"text_config": {"head_dim": 64}},
    "hunyuan_v1_moe": {"head_dim": 64},
    "deepseek_ocr2": {
        "text_config": {
            "mlp_layer_types": ["dense", "sparse", "sparse", "sparse"],
            "num_hidden_layers": 4,
        }
    },
    "dots1": {"n_routed_experts": 8, "n_shared_experts": 2, "n_group": 1, "topk_group": 1},
    "t5gemma2_encoder": {"text_config": {"dropout_rate": 0.0}},
    "Sapiens2ForSemanticSegmentation": {"head_config": _HEAD},
    "Sapiens2ForPoseEstimation": {"head_config": _HEAD},
    "Sapiens2ForNormalEstimation": _SHUFFLED,
    "Sapiens2ForPointmapEstimation": {
        "head_config": {
            **_HEAD,
            "use_pixel_shuffle": True,
            "scale_conv_out_channels": [32, 16],
            "scale_final_hidden_sizes": [32, 16],
        }
    },
    "Sapiens2ForImageMatting": _SHUFFLED,
    "MimiModel": {"upsample_groups": 32, "num_filters": 16},
    "VibeVoiceAsrModel": _VIBE_VOICE,
    "vibevoice_asr": _VIBE_VOICE,
    "cosmos3_edge": {
        "text_config": {
            "hidden_size": 128,
            "intermediate_size": 256,
            "num_attention_heads": 2,
            "num_key_value_heads": 1,
            "head_dim": 64,
            "rope_parameters": {"rope_type": "default", "mrope_section": [12, 10, 10]},
        },
        "vision_config": {"hidden_size": 64, "intermediate_size": 96, "num_attention_heads": 4},
        "projector_hidden_size": 160,
    },
    "gemma3n_text": {
        "num_hidden_layers": 5,
        "intermediate_size": [192] * 5,
        "layer_types": ["sliding_attention"] * 4 + ["full_attention"],
        "activation_sparsity_pattern": [0.9, 0.9, 0.9, 0.0, 0.0],
        "num_kv_shared_layers": 0,
    },
    "granitemoehybrid": {
        "layer_types": ["linear_attention", "full_attention", "linear_attention"],
        "num_hidden_layers": 3,
        "hidden_size": 256,
        "mamba_n_heads": 8,
        "intermediate_size": 192,
        "num_local_experts": 4,
    },
    "inkling_mm_model": {
        "text_config": {
            "hidden_size": 128,
            "num_hidden_layers": 3,
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
            "swa_num_attention_heads": 4,
            "swa_num_key_value_heads": 2,
            "layer_types": ["hybrid_sliding", "hybrid", "hybrid_sliding"],
            "mlp_layer_types": ["dense", "sparse", "sparse"],
            "intermediate_size": 256,
            "moe_intermediate_size": 96,
            "n_routed_experts": 8,
        },
        "audio_config": {"text_hidden_size": 128},
        "vision_config": {"text_hidden_size": 128, "patch_size": 4, "n_layers": 4},
    },
    "kimi_k25": {
        "text_config": {
            "first_k_dense_replace": 1,
            "hidden_size": 1024,
            "intermediate_size": 1536,
            "num_attention_heads": 16,
            "num_key_value_heads": 16,
        }
    },
    "d_fine": {"d_model": 128},
    "longcat_flash": {"n_routed_experts": 8, "zero_expert_num": 4, "moe_topk": 4},
    "mistral_large4": {"text_config": _MISTRAL_LARGE},
    "mistral_large4_text": _MISTRAL_LARGE,
    "qwen4_exp_text": {
        "num_hidden_layers": 4,
        "num_experts": 8,
        "num_experts_per_tok": 2,
        "ngram_vocab_size_base": 2000,
        "split_ngram_parts": 4,
        "ple_layer_ids": [1, 3],
        "ple_embed_dim": 64,
        "eos_token_id": 1,
        "indexer_n_heads": 2,
        "indexer_kv_heads": 1,
        "indexer_head_dim": 256,
        "indexer_budget": 64,
        "indexer_compress_ratio": 4,
    },
}
_LAYERS = re.compile(r"(num|n)_.*(layers|blocks)$|^(num_layers|n_layer|depth)$|.*_layers$")
_EXPERTS = re.compile(r".*(num|n).*experts$")
_SIZE = re.compile(
    r".*(size|dim|dims|channels|d_model|d_ff|rank|width|n_embd|n_inner|ffn|features|planes|d_kv|"
    r"hidden|length|positions|embeddings)$"
)
_KEPT = re.compile(r".*(patch|kernel|image|window|chunk|group|pool|stride|conv|vocab).*")
#: The most elements of a model that is tried; with fewer than the second, no smaller one is looked
#: for.
MOST, ENOUGH = 60_000_000, 4_000_000


def small_config(kind: str, fits: Callable[[Any], bool]) -> dict[str, Any] | None:
    """A config of a type as small as the class takes it; None where only its default will do.

    Args:
        fits: whether a model without weights still has what it is built for.
    """
    given = CONFIGS.get(kind)
    plain = build_for_conversion(kind, given).config.to_dict()
    best, fewest = None, None
    for config in _smaller(plain):
        try:
            model = build_for_conversion(kind, config)
        except Exception:  # whatever the class says about sizes
            continue
        count = elements(model)
        if (fewest is None or count < fewest) and fits(model):
            best, fewest = config, count
            if count < ENOUGH:
                break
    return best if best is not None else (None if given is None else dict(given))


def elements(model: Any) -> int:
    return sum(value.numel() for value in model.state_dict().values())


def _smaller(config: dict[str, Any]) -> Iterator[dict[str, Any]]:
    for divisor in (16, 8, 4, 2, 1):
        for layers in (3, 5, 0):
            for experts in (4, 0):
                yield _changed(config, divisor, layers, experts)


def _changed(config: Mapping[str, Any], divisor: int, layers: int, experts: int) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for key, value in config.items():
        if not isinstance(key, str):
            found[key] = value
        elif isinstance(value, Mapping):
            found[key] = _changed(value, divisor, layers, experts)
        elif type(value) is not int:
            found[key] = value
            if layers and isinstance(value, list) and key.endswith("layer_types"):
                found[key] = value[:layers]
        elif key.endswith("token_id"):
            found[key] = min(value, 1)
        elif "vocab_size" in key:
            found[key] = min(value, 96)
        elif layers and _LAYERS.match(key):
            found[key] = min(value, layers)
        elif experts and _EXPERTS.match(key):
            found[key] = min(value, experts)
        elif _SIZE.match(key) and not _KEPT.match(key) and value >= 32 and value % divisor == 0:
            found[key] = value // divisor
        else:
            found[key] = value
    return found


def fill(model: Any) -> None:
    """Numbers in every tensor, none of which another tensor has."""
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for value in model.state_dict().values():
            if value.is_floating_point():
                value.copy_(torch.randn(value.shape, generator=generator))
            elif value.dtype != torch.bool:
                value.copy_(torch.randint(0, 100, value.shape, generator=generator))
