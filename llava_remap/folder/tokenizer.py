"""The tokenizer of the output: the source's tokenizer with the rule file's tokens, which encodes
texts in the same way in every version of transformers.
"""

from __future__ import annotations

import json
import re
from collections.abc import Collection, Mapping, Sequence
from itertools import islice, takewhile
from pathlib import Path
from typing import Any

from llava_remap.checkpoint import has_file, read_file
from llava_remap.core.problem import Problem, refuse
from llava_remap.core.wording import one_line
from llava_remap.folder.llama_tokenizer import ROLES
from llava_remap.folder.scratch import AS_DATA, panics_as_errors, write_json
from llava_remap.folder.source_tokenizer import (
    FLAGS,
    LLAMA,
    Encode,
    SourceTokenizer,
    add_own,
    open_source_tokenizer,
    special_tokens,
)
from llava_remap.target_model import PlacedToken, Vocabulary

#: The class that reads `tokenizer.json` unchanged, in every version and for every model. In
#: transformers 5, classes for one kind of tokenizer rebuild normalizer and pre-tokenizer.
CLASS = "PreTrainedTokenizerFast"
#: Keys of a source's config that aren't written: code, a text model's template, and keys that only
#: one generation of transformers can read.
_NOT_KEPT = (
    "auto_map", "backend", "chat_template", "extra_special_tokens", "is_local", "local_files_only",
    "name_or_path",
    "special_tokens_map_file", "tokenizer_file",
)  # fmt: skip
#: Texts on which tokenizers are known to disagree: runs of spaces, indentation, tabs, blank lines,
#: spaces and line ends at either end, letters of many scripts, and characters that a vocabulary
#: has only as bytes.
_PROBES = (
    "", "What is it? A cat, 3 dogs.", "Two  spaces,   three", " a", "  a", "a ", "a  ", " ", "   ",
    "\n", "\t", "\na", "a\n\n\nb",
    "def f(x):\n    if x > 3:\n\treturn  x\n\n\n# end",
    "name      value  note\n----------------------\nred          12  ok",
    "Äpfel, café, 漢字, кошка, 🙂👍🏽 → “x” … ½", "\u200b\ufeff\x00\x07\x7f",
    "don't I'll we've 1,234.50 http://a.b/c?d=e_f", "▁a ▁ b",
)  # fmt: skip
#: Texts with special tokens.
_BETWEEN = ("fine{0}next", "fine {0} next", "fine{0}\nnext", "a{0}{0}")
#: Texts with pictures.
_AROUND = ("{0}\nnext", "{0}{0} next", "a {0} b")
#: The most ids of a text that a message shows.
_SHOWN = 40


def write_tokenizer(
    vocabulary: Vocabulary,
    text_model_type: str,
    tokens: Sequence[PlacedToken],
    folder: Path,
    processor_class: str | None,
    prompts: Sequence[str] = (),
) -> list[Problem]:
    """Write the tokenizer's files, open them as a user would, and refuse a tokenizer that doesn't
    encode as the source's tokenizer does.

    The research code cuts a prompt at its pictures and encodes the pieces one by one. So the
    reference for a prompt is the ids of its pieces, without the tokens that the tokenizer puts
    before each text, and with the picture's token between them.

    Args:
        tokens: the rule file's tokens with their ids.
        folder: the output, which has its config.json already.
        prompts: the chat template's prompts, tried beside texts of all kinds.

    Returns:
        LR415 for special tokens without an id; LR414 if the source has two tokenizers that
        disagree, with the first such text.

    Raises:
        RemapError: LR113 if the source's files can't be read, or name a BOS or EOS that isn't a
            token; LR403 if a token gets another id than planned; LR412 for a tokenizer that can't
            be reproduced, with the first text that differs.
    """
    images = [token for token in tokens if token.role in ("image", "video")]
    source = open_source_tokenizer(vocabulary, text_model_type, [token.text for token in images])
    texts = [
        *_PROBES,
        *(text.format(token.content) for token in source.added.values() for text in _BETWEEN),
        *(text.format(token.text) for token in images for text in _AROUND),
        *prompts,
    ]
    with panics_as_errors():
        encode = _as_prompts(source.encode, images)
        wanted = {text: encode(text) for text in texts}
    text, made = "", "nothing"
    for tokenizer, seen in source.candidates:
        content = _with_tokens(tokenizer, source, tokens, seen, vocabulary.folder)
        _write(content, source, vocabulary, tokens, folder, processor_class)
        if (found := _first_difference(folder, wanted)) is None:
            return [*_roles_without_id(source, vocabulary), *_other_tokenizer(source, texts)]
        text, made = found
    raise refuse(
        "LR412",
        f"the tokenizer in {vocabulary.folder} gives {text!r} the ids {_shown(wanted[text])}; the "
        f"tokenizer.json made from it, opened by transformers, gives {made}.",
        "If its files belong together, please report this. Otherwise, put the tokenizer files of "
        "the training there.",
    )


def _roles_without_id(source: SourceTokenizer, vocabulary: Vocabulary) -> list[Problem]:
    """LR415 for special tokens that the tokenizer's files name but don't have as tokens."""
    return [
        Problem(
            "LR415",
            f"the source's tokenizer files say {role}: {text!r}, which isn't one of their tokens. "
            "The folder's tokenizer leaves it out.",
        )
        for role, text in special_tokens(vocabulary, source.config).items()
        if text not in vocabulary.ids
    ]


def _other_tokenizer(source: SourceTokenizer, texts: Sequence[str]) -> list[Problem]:
    """LR414 for the first text to which a `tokenizer.model` beside the `tokenizer.json` gives other
    ids.
    """
    pairs = ((text, source.encode(text), source.other(text)) for text in texts if source.other)
    return [
        Problem(
            "LR414",
            f"the source's tokenizer.json and tokenizer.model give {text!r} different ids: "
            f"{_shown(ids)} and {_shown(others)}. The tokenizer.json is taken; the research code "
            "reads the tokenizer.model.",
            "If the checkpoint was trained with the tokenizer.model, remove the tokenizer.json.",
        )
        for text, ids, others in islice((pair for pair in pairs if pair[1] != pair[2]), 1)
    ]


def _as_prompts(encode: Encode, images: Sequence[PlacedToken]) -> Encode:
    """Encode prompts as the research code does, with the encoding of texts, `encode`."""
    before = len(
        [*takewhile(lambda pair: pair[0] == pair[1], zip(encode(""), encode("a"), strict=False))]
    )  # BOS
    ids = {token.text: token.id for token in images}
    cut = re.compile("(" + "|".join(map(re.escape, ids)) + ")")

    def encode_prompt(prompt: str) -> list[int]:
        pieces = cut.split(prompt) if ids else [prompt]  # every second one is a picture
        made = encode(pieces[0])
        for picture, piece in zip(pieces[1::2], pieces[2::2], strict=True):
            made += [ids[picture], *encode(piece)[before:]]
        return made

    return encode_prompt


def _first_difference(folder: Path, wanted: Mapping[str, list[int]]) -> tuple[str, str] | None:
    """The first text for which `AutoTokenizer` of a folder gives other ids, and these ids, or the
    error, for a message.
    """
    import transformers

    text = ""
    try:
        with panics_as_errors():
            opened = transformers.AutoTokenizer.from_pretrained(folder, **AS_DATA)
            for text, ids in wanted.items():
                if (got := opened(text)["input_ids"]) != ids:
                    return text, _shown(got)
    except Exception as error:  # whatever a library raises
        return text, f"an error ({one_line(error)})"
    return None


def _shown(ids: Sequence[int]) -> str:
    """Ids for a message, shortened."""
    more = f", … ({len(ids)} in all)" if len(ids) > _SHOWN else ""
    return f"[{', '.join(map(str, ids[:_SHOWN]))}{more}]"


def _with_tokens(
    tokenizer: Any,
    source: SourceTokenizer,
    tokens: Sequence[PlacedToken],
    seen: Collection[str],
    folder: Path,
) -> dict[str, Any]:
    """The content of `tokenizer.json` with all added tokens.

    Args:
        seen: tokens that the normalizer has to see, so they are matched after normalization.
    """
    from tokenizers import AddedToken

    add_own(tokenizer, source.added)
    for token in sorted((token for token in tokens if token.added), key=lambda token: token.id):
        tokenizer.add_special_tokens([AddedToken(token.text, special=True, normalized=False)])
    for token in tokens:
        if (got := tokenizer.token_to_id(token.text)) != token.id:
            raise refuse(
                "LR403",
                f"token `{token.text}` gets id {got}; {token.id} was planned.",
                f"The tokenizer's files disagree on how many tokens there are; see {folder}.",
            )
    content: dict[str, Any] = json.loads(tokenizer.to_str())
    for token in content["added_tokens"]:
        if token["content"] in seen:
            token["normalized"] = True
    return content


def _write(
    content: Mapping[str, Any],
    source: SourceTokenizer,
    vocabulary: Vocabulary,
    tokens: Sequence[PlacedToken],
    folder: Path,
    processor_class: str | None,
) -> None:
    """Write a tokenizer for both generations of transformers: all added tokens in
    `tokenizer_config.json`, and the files of slow tokenizers.
    """
    write_json(folder / "tokenizer.json", content)
    roles = {
        role: text
        for role, text in special_tokens(vocabulary, source.config).items()
        if text in vocabulary.ids
    }
    roles |= {f"{token.role}_token": token.text for token in tokens if token.role == "pad"}
    model = vocabulary.folder / "tokenizer.model"
    defaults: dict[str, Any] = {"clean_up_tokenization_spaces": False}
    if source.config.get("tokenizer_class") in LLAMA:
        defaults["padding_side"] = "left"
        if has_file(model):  # an absent key means true in transformers 4, false in 5
            defaults["legacy"] = True
    config = {
        **defaults,
        **{key: value for key, value in source.config.items() if key not in (*_NOT_KEPT, *ROLES)},
        **roles,
        "tokenizer_class": CLASS,
        # Without this key, 4.x makes token_type_ids too.
        "model_input_names": ["input_ids", "attention_mask"],
        "added_tokens_decoder": {
            str(token["id"]): {flag: token[flag] for flag in FLAGS}
            for token in sorted(content["added_tokens"], key=lambda token: int(token["id"]))
        },
    }
    if named := {token.attribute: token.text for token in tokens if token.attribute is not None}:
        config["extra_special_tokens"] = named
    if processor_class is not None:
        config["processor_class"] = processor_class
    write_json(folder / "tokenizer_config.json", dict(sorted(config.items())))
    write_json(folder / "special_tokens_map.json", roles)
    if "ByteLevel" in json.dumps(content["pre_tokenizer"]) and content["model"]["type"] == "BPE":
        write_json(folder / "vocab.json", content["model"]["vocab"])
        merges = (
            pair if isinstance(pair, str) else " ".join(pair) for pair in content["model"]["merges"]
        )
        (folder / "merges.txt").write_text(
            "\n".join(["#version: 0.2", *merges, ""]), encoding="utf-8"
        )
    if has_file(model):  # slow tokenizers and llama.cpp read it
        (folder / "tokenizer.model").write_bytes(read_file(model))
