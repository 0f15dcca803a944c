"""Presets of well-known parts: values that tensors can't show and that are the same in every copy.

A preset is used only if the sources' own configs don't have the values, and if its sizes are those
of the tensors.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

#: Default values of a vision config in the transformers classes, unchanged from 4.46 to 5.23.
TOWER_DEFAULTS: Mapping[str, Mapping[str, Any]] = {
    "clip_vision_model": {
        "hidden_size": 768, "intermediate_size": 3072, "num_hidden_layers": 12,
        "num_attention_heads": 12, "image_size": 224,
        "patch_size": 32, "hidden_act": "quick_gelu", "layer_norm_eps": 1e-5,
        "attention_dropout": 0.0,
    },
    "siglip_vision_model": {
        "hidden_size": 768, "intermediate_size": 3072, "num_hidden_layers": 12,
        "num_attention_heads": 12, "image_size": 224,
        "patch_size": 16, "hidden_act": "gelu_pytorch_tanh", "layer_norm_eps": 1e-6,
        "attention_dropout": 0.0,
    },
    "dinov2": {
        "hidden_size": 768, "intermediate_size": 3072, "num_hidden_layers": 12,
        "num_attention_heads": 12, "image_size": 224,
        "patch_size": 14, "hidden_act": "gelu", "layer_norm_eps": 1e-6,
    },
    "vit_msn": {  # ViT without its pooler
        "hidden_size": 768, "intermediate_size": 3072, "num_hidden_layers": 12,
        "num_attention_heads": 12, "image_size": 224,
        "patch_size": 16, "hidden_act": "gelu", "layer_norm_eps": 1e-6,
    },
}  # fmt: skip

#: Vision configs of the stock towers, as in their own `config.json`.
TOWERS: Mapping[str, Mapping[str, Any]] = {
    "openai/clip-vit-large-patch14": {
        "model_type": "clip_vision_model", "hidden_size": 1024, "intermediate_size": 4096,
        "num_hidden_layers": 24,
        "num_attention_heads": 16, "image_size": 224, "patch_size": 14, "projection_dim": 768,
    },
    "openai/clip-vit-large-patch14-336": {
        "model_type": "clip_vision_model", "hidden_size": 1024, "intermediate_size": 4096,
        "num_hidden_layers": 24,
        "num_attention_heads": 16, "image_size": 336, "patch_size": 14, "projection_dim": 768,
    },
    "google/siglip-so400m-patch14-384": {
        "model_type": "siglip_vision_model", "hidden_size": 1152, "intermediate_size": 4304,
        "num_hidden_layers": 27,
        "num_attention_heads": 16, "image_size": 384, "patch_size": 14,
    },
}  # fmt: skip

#: Vision configs of the stock towers by the last part of their names.
STOCK = {name.rpartition("/")[2]: preset for name, preset in TOWERS.items()}

#: Kinds of language models whose class multiplies embeddings by the root of hidden_size. Up to
#: transformers 5.0 this applied to words and pictures, in 5.23 only to words. The installed class
#: doesn't show how other versions compute.
SCALED_PICTURES = ("gemma", "gemma2", "vaultgemma")

#: The text model's type → tokenizer config (the defaults of 4.31), for a tokenizer whose own config
#: names no class.
TOKENIZERS: Mapping[str, Mapping[str, Any]] = {
    "llama": {"tokenizer_class": "LlamaTokenizer", "add_bos_token": True, "add_eos_token": False},
    "mistral": {"tokenizer_class": "LlamaTokenizer", "add_bos_token": True, "add_eos_token": False},
    "qwen2": {"tokenizer_class": "Qwen2Tokenizer"},
}

#: For each kind of text model: id → special token, and role → id. A config's ids show the kind.
SPECIAL_TOKENS: Sequence[tuple[Mapping[int, str], Mapping[str, int]]] = (
    # Llama, Mistral
    (
        {0: "<unk>", 1: "<s>", 2: "</s>"},
        {"bos_token": 1, "eos_token": 2, "unk_token": 0, "pad_token": 0},
    ),
    (
        {0: "<unk>", 1: "<|startoftext|>", 2: "<|endoftext|>", 6: "<|im_start|>", 7: "<|im_end|>"},
        {"bos_token": 1, "eos_token": 7, "unk_token": 0, "pad_token": 0},
    ),  # Yi
    (
        {151643: "<|endoftext|>", 151644: "<|im_start|>", 151645: "<|im_end|>"},
        {"eos_token": 151645, "pad_token": 151643},
    ),  # Qwen 1.5 and 2
    (
        {
            128000: "<|begin_of_text|>",
            128001: "<|end_of_text|>",
            128006: "<|start_header_id|>",
            128007: "<|end_header_id|>",
            # Llama 3
            128009: "<|eot_id|>",
            128255: "<|reserved_special_token_250|>",
        },
        {"bos_token": 128000, "eos_token": 128009},
    ),
)

#: Image processors of the stock towers, without sizes, for sources without a
#: `preprocessor_config.json`.
IMAGE_PROCESSORS: dict[str, Mapping[str, Any]] = {
    "clip_vision_model": {
        "image_processor_type": "CLIPImageProcessor", "do_center_crop": True,
        "do_convert_rgb": True, "do_normalize": True,
        "do_rescale": True, "do_resize": True, "image_mean": [0.48145466, 0.4578275, 0.40821073],
        "image_std": [0.26862954, 0.26130258, 0.27577711], "resample": 3, "rescale_factor": 1 / 255,
    },
    "siglip_vision_model": {
        "image_processor_type": "SiglipImageProcessor", "do_convert_rgb": True,
        "do_normalize": True, "do_rescale": True,
        "do_resize": True, "image_mean": [0.5, 0.5, 0.5], "image_std": [0.5, 0.5, 0.5],
        "resample": 3, "rescale_factor": 1 / 255,
    },
}  # fmt: skip
#: open_clip normalises pictures for every tower as for CLIP's, unless its file says otherwise.
IMAGE_PROCESSORS |= dict.fromkeys(("dinov2", "vit_msn"), IMAGE_PROCESSORS["clip_vision_model"])


def stock_name(named: str | None) -> str | None:
    """The stock tower that a hub id or a path names, even a path in a hub's cache
    (`models--ORG--NAME`); or else the path's last part.
    """
    parts = [part.split("--")[-1] for part in re.split(r"[/\\]", named or "") if part]
    return next((part for part in parts if part in STOCK), parts[-1] if parts else None)
