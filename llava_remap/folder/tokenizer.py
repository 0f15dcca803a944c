"""The tokenizer of the output: the source's, with the rule file's tokens added, in files that old and new transformers open."""

from __future__ import annotations

import json
import shutil
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from llava_remap.checkpoint import BESIDE, read_object
from llava_remap.errors import refuse
from llava_remap.folder.as_data import AS_DATA, panics_as_errors
from llava_remap.folder.json_file import write_json
from llava_remap.target import TOKENIZERS, PlacedToken, Vocabulary

#: Written by 5.x; 4.x can't read them or takes them for something else.
_NEW_ONLY = ("backend", "is_local", "local_files_only", "extra_special_tokens")
#: 5.x's name for any tokenizer; 4.x knows only the one below.
_NEW, _ANY = "TokenizersBackend", "PreTrainedTokenizerFast"
#: A sentence with words, numbers and marks.
_PROBE = "What is it? A cat, 3 dogs."
_ROLES = ("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token")


def open_tokenizer(vocabulary: Vocabulary, text_model_type: str, tokens: Sequence[PlacedToken]) -> Any:
    """The source's tokenizer with the tokens added, as a transformers tokenizer.

    Raises:
        RemapError: LR113 where transformers can't open it, LR403 where a token gets another id than planned.
    """
    import transformers
    from tokenizers import AddedToken

    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)  # only the tokenizer's files: beside a LLaVA config, AutoTokenizer would look for a LLaVA tokenizer
        for file in BESIDE["tokenizer"]:
            if (vocabulary.folder / file).is_file():
                shutil.copyfile(vocabulary.folder / file, folder / file)
        config = _own_config(vocabulary)
        whole = (folder / "tokenizer.json").is_file()  # it says itself how words are cut
        if not whole and not hasattr(transformers, str(config.get("tokenizer_class"))):
            # Without a class, or by the model's type, AutoTokenizer may make a general one, which cuts words otherwise.
            preset = TOKENIZERS.get(text_model_type)
            if preset is None:
                write_json(folder / "config.json", {"model_type": text_model_type})
            else:
                merged = {**preset, **config, "tokenizer_class": preset["tokenizer_class"]}
                write_json(folder / "tokenizer_config.json", merged)
        try:
            with panics_as_errors():
                tokenizer = transformers.AutoTokenizer.from_pretrained(folder, **AS_DATA)
                tokenizer(_PROBE)
        except Exception as error:  # whatever the tokenizer's code raises: the files are the user's
            raise refuse(
                "LR113",
                f"transformers can't open the tokenizer in {vocabulary.folder}: {' '.join(str(error).split()).rstrip('.')}.",
                "Replace its files by the original ones, or give --source language_model=DIR.",
            ) from error
        if (folder / "tokenizer.model").is_file() and not whole:
            _compare_with_sentencepiece(tokenizer, folder / "tokenizer.model", vocabulary.folder)
    for token in sorted(tokens, key=lambda token: token.id):
        if token.added:
            tokenizer.add_tokens(AddedToken(token.text, special=True, normalized=False), special_tokens=True)
        if token.role == "pad":
            tokenizer.pad_token = token.text
        got = tokenizer.convert_tokens_to_ids(token.text)
        if got != token.id:
            raise refuse(
                "LR403",
                f"token `{token.text}` gets id {got}; {token.id} was planned.",
                f"The tokenizer's files disagree on how many tokens there are; see {vocabulary.folder}.",
            )
    return tokenizer


def write_tokenizer(tokenizer: Any, vocabulary: Vocabulary, folder: Path, processor_class: str | None) -> None:
    """Save a tokenizer in both generations of files: real class name and all added tokens in `tokenizer_config.json`."""
    tokenizer.chat_template = None  # the processor's counts; a text model's knows no images
    tokenizer.save_pretrained(folder)
    path = folder / "tokenizer_config.json"
    config = json.loads(path.read_text(encoding="utf-8"))
    original = _own_config(vocabulary)
    for key in _NEW_ONLY:
        config.pop(key, None)
    config["tokenizer_class"] = next(
        name for name in (original.get("tokenizer_class"), type(tokenizer).__name__, _ANY) if name not in (None, _NEW)
    )
    if processor_class is not None:
        config["processor_class"] = processor_class
    config["model_input_names"] = ["input_ids", "attention_mask"]  # where it isn't said, 4.x makes token_type_ids too
    for key in ("add_bos_token", "add_eos_token", "legacy", "add_prefix_space"):
        if original.get(key) is not None:
            config[key] = original[key]
    config["added_tokens_decoder"] = {
        str(i): {
            "content": token.content,
            "lstrip": token.lstrip,
            "normalized": token.normalized,
            "rstrip": token.rstrip,
            "single_word": token.single_word,
            "special": token.special,
        }
        for i, token in sorted(tokenizer.added_tokens_decoder.items())
    }
    write_json(path, config)
    write_json(
        folder / "special_tokens_map.json", {role: str(token) for role in _ROLES if (token := getattr(tokenizer, role, None))}
    )
    if (vocabulary.folder / "tokenizer.model").is_file():  # llama.cpp reads it
        shutil.copyfile(vocabulary.folder / "tokenizer.model", folder / "tokenizer.model")


def _own_config(vocabulary: Vocabulary) -> dict[str, Any]:
    path = vocabulary.folder / "tokenizer_config.json"
    return read_object(path, "LR113", "Replace it by the original one.", unique=False) if path.is_file() else {}


def _compare_with_sentencepiece(tokenizer: Any, model: Path, folder: Path) -> None:
    """LR113 where what transformers made of a SentencePiece model cuts a sentence otherwise than SentencePiece does."""
    import sentencepiece

    wanted = sentencepiece.SentencePieceProcessor(model_file=str(model)).encode(_PROBE)
    got = tokenizer(_PROBE, add_special_tokens=False)["input_ids"]
    if got != wanted:
        raise refuse(
            "LR113",
            f"transformers opens the tokenizer in {folder} as a {type(tokenizer).__name__}, which cuts {_PROBE!r} otherwise than "
            "its tokenizer.model does.",
            "Put the tokenizer_config.json there that belongs to it, with its `tokenizer_class`.",
        )
