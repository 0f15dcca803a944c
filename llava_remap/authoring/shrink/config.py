"""The small twin's config, its tower's config, and a tokenizer with the tokens that the config
names.

Token ids below 100 stay, such as Llama's first three. Ids after a large vocabulary move to the end
of the small one, such as Qwen's. The ids between them are the 256 bytes, so that every text can be
encoded, and merges of a blank with a following character. Rows after the last token stay spare.
"""

from __future__ import annotations

import json
import re
import string
from collections.abc import Mapping
from math import gcd
from typing import Any

from llava_remap.authoring.shrink.twin import Twin
from llava_remap.core.problem import refuse
from llava_remap.folder.scratch import json_bytes
from llava_remap.target_model.presets import SPECIAL_TOKENS, TOWER_DEFAULTS

#: Keys of token ids. A value may also be a list of ids, or an id without a token, such as LLaVA's
#: −200 for an image.
_ID = re.compile(r"_token_(?:id|index)$")
_OF_PROJECTOR = ("mm_hidden_size", "mm_spatial_pool_out_channels", "projection_dim")
_ALWAYS = ("hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads")
_GROUPS, _HEAD = "num_key_value_heads", "head_dim"
_TOWER = (*_ALWAYS, "image_size", "patch_size", "num_channels")
#: The largest difference between the embedding's rows and the config's vocab_size that a twin
#: keeps. With a larger difference, the config belongs to another checkpoint.
_OTHER_ROWS = 64
_LOW = 100
#: The most spare rows of a small embedding. It has no more of them than the large one.
_SPARE = 17
_BLANK = "Ġ"
#: Words that LLaVA adds at the end of a vocabulary, by the config key that switches them on.
_ADDED = {
    "mm_use_im_patch_token": ("<im_patch>",),
    "mm_use_im_start_end": ("<im_start>", "<im_end>"),
}


def small_config(config: Mapping[str, Any], twin: Twin, ids: Mapping[int, int]) -> dict[str, Any]:
    """The twin's config: the large checkpoint's config with small sizes.

    Args:
        ids: large token id → small token id.

    Raises:
        RemapError: LR112 if the config belongs to another checkpoint.
    """
    small: dict[str, Any] = json.loads(json.dumps(config))
    inside = {
        key: small[key]
        for key in ("text_config", "vision_config")
        if isinstance(small.get(key), dict)
    }
    before, after, tower = twin.text.before, twin.text.after, twin.tower.after
    text = inside.get("text_config", small)
    wanted = {*_ALWAYS, *(key for key in (_GROUPS, _HEAD) if text.get(key) is not None)}
    if after[_GROUPS] != after["num_attention_heads"]:
        wanted.add(_GROUPS)
    text |= {key: size for key, size in after.items() if key in wanted}
    if "vision_config" in inside:
        inside["vision_config"] |= tower_config(config, twin)
    for section in (small, *inside.values()):
        for key, value in section.items():
            if key == "vocab_size" and isinstance(value, int):
                if abs(value - before["vocab_size"]) > _OTHER_ROWS:
                    raise refuse(
                        "LR112",
                        f"the config says vocab_size: {value}, embed_tokens has "
                        f"{before['vocab_size']} rows.",
                        "Give a checkpoint with the config.json that belongs to it.",
                    )
                section[key] = after["vocab_size"] + value - before["vocab_size"]
            elif _ID.search(key):
                section[key] = (
                    [_small_id(i, ids) for i in value]
                    if isinstance(value, list)
                    else _small_id(value, ids)
                )
            elif key in _OF_PROJECTOR and isinstance(value, int):
                section[key] = twin.projector.sizes.get(value, value)
    if small.get("image_grid_pinpoints"):
        small["image_grid_pinpoints"] = _pinpoints(
            small["image_grid_pinpoints"], tower["image_size"]
        )
    if "image_seq_length" in small:
        small["image_seq_length"] = (tower["image_size"] // tower["patch_size"]) ** 2
    return small


def tower_config(config: Mapping[str, Any], twin: Twin) -> dict[str, Any]:
    """The `vision_config` of the twin's tower: small sizes, else the large tower's values."""
    own = config.get("vision_config")
    layers = twin.tower.after["num_hidden_layers"] + twin.last_layer_deleted
    return {
        **TOWER_DEFAULTS[twin.tower_kind],
        **(own if isinstance(own, Mapping) else {}),
        "model_type": twin.tower_kind,
        **{key: twin.tower.after[key] for key in _TOWER},
        "num_hidden_layers": layers,
    }


def _small_id(value: Any, ids: Mapping[int, int]) -> Any:
    return ids.get(value, value) if isinstance(value, int) else value


def _pinpoints(pinpoints: Any, image_size: int) -> Any:
    """Image sizes in pixels, as a list or as text, scaled to another tile. The tile is the largest
    size of which all are multiples.
    """
    text = json.dumps(pinpoints)
    tile = gcd(*map(int, re.findall(r"\d+", text)))
    if tile <= 1:  # sizes in tiles, not in pixels
        return pinpoints
    return json.loads(re.sub(r"\d+", lambda number: str(int(number[0]) // tile * image_size), text))


def small_tokenizer(
    config: Mapping[str, Any], rows: int, small_rows: int
) -> tuple[dict[str, bytes], dict[int, int]]:
    """A tokenizer with the special tokens of a config.

    Args:
        rows: the number of rows of the large embedding.
        small_rows: the number of rows of the small embedding.

    Returns:
        The tokenizer's files by name (`tokenizer.json` in byte-level BPE, and its config), and
        large token id → small token id for the special tokens.

    Raises:
        RemapError: LR112 for too few rows for a vocabulary.
    """
    named = _named_ids(config)
    ends = {i for i, role in named.items() if role in ("bos", "eos")}
    known, roles = max(SPECIAL_TOKENS, key=lambda kind: len(ends.intersection(kind[0])))
    if not ends.intersection(known):  # another kind of text model
        known, roles = {}, {}
    added = [word for key, group in _ADDED.items() if config.get(key) for word in group]
    special = {i: word for i, word in known.items() if i < rows}
    special |= {rows - len(added) + n: word for n, word in enumerate(added)}
    for i, role in named.items():
        if i < rows and i not in special:
            special[i] = f"<{role}>" if f"<{role}>" not in special.values() else f"<{role}-{i}>"
    low, high = (sorted(i for i in special if (i < _LOW) is wanted) for wanted in (True, False))
    size = small_rows - (min(rows - high[-1] - 1, _SPARE) if high else 0)
    ids = {**{i: i for i in low}, **{i: size - len(high) + n for n, i in enumerate(high)}}
    ordinary = iter(_ordinary(size - len(special)))
    placed = {ids[i]: special[i] for i in (*low, *high)}
    words = [placed.get(i) or next(ordinary) for i in range(size)]
    roles = roles or {
        f"{role}_token": i for i, role in named.items() if role in ("bos", "eos", "pad", "unk")
    }
    word_of = {role: words[ids[i]] for role, i in roles.items() if i in ids}
    inside = {word: i for i, word in enumerate(words) if i in low or i not in placed}
    flags = {
        "lstrip": False,
        "normalized": False,
        "rstrip": False,
        "single_word": False,
        "special": True,
    }
    tokenizer_config = {
        "added_tokens_decoder": {
            str(i): {"content": word, **flags} for i, word in sorted(placed.items())
        },
        "clean_up_tokenization_spaces": False,
        # transformers 4.46 would also make token types, which no model here takes
        "model_input_names": ["input_ids", "attention_mask"],
        **dict(sorted(word_of.items())),
        "tokenizer_class": "PreTrainedTokenizerFast",
    }
    files = {
        "tokenizer.json": _byte_level(inside, placed, word_of.get("bos_token")),
        "tokenizer_config.json": json_bytes(tokenizer_config),
    }
    return files, ids


def _named_ids(config: Mapping[str, Any]) -> dict[int, str]:
    """The ids of tokens that a config names, with the role of each: 32000 → `image`."""
    text = config.get("text_config")
    roles: dict[int, str] = {}
    for key, value in [*config.items(), *(text.items() if isinstance(text, Mapping) else ())]:
        for i in value if isinstance(value, list) else [value]:
            if _ID.search(key) and isinstance(i, int) and not isinstance(i, bool) and i >= 0:
                roles.setdefault(i, _ID.sub("", key))
    return roles


def _byte_level(words: Mapping[str, int], special: Mapping[int, str], first: str | None) -> bytes:
    """`tokenizer.json` in byte-level BPE.

    Args:
        words: word → id.
        special: id → special token.
        first: the special token that begins every text.
    """
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, processors

    merges = [(_BLANK, word[1]) for word in words if len(word) == 2 and word[0] == _BLANK]
    tokenizer = Tokenizer(models.BPE(dict(words), merges))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(
        [AddedToken(special[i], normalized=False, special=True) for i in sorted(special)]
    )
    if first:
        place = next(i for i, word in special.items() if word == first)
        tokenizer.post_processor = processors.TemplateProcessing(
            f"{first} $A", f"{first} $A {first} $B:1", [(first, place)]
        )
    return tokenizer.to_str(pretty=True).encode() + b"\n"


def _ordinary(count: int) -> list[str]:
    """So many words: every byte, as byte-level BPE writes it, then merges."""
    from tokenizers import pre_tokenizers

    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    signs = string.ascii_letters + string.digits + string.punctuation
    words = [*letters, *(_BLANK + sign for sign in signs)]
    if not len(letters) <= count <= len(words):
        raise refuse(
            "LR112",
            f"the embedding leaves {count} rows for words that aren't special; a small vocabulary "
            f"has {len(letters)} to {len(words)} such words.",
            "Give a checkpoint with more rows.",
        )
    return words[:count]
