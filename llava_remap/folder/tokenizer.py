"""The tokenizer of the output: it encodes as the source's does, with the rule file's tokens added, in every transformers."""

from __future__ import annotations

import json
import re
import shutil
import tempfile
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from llava_remap.checkpoint import BESIDE, read_object
from llava_remap.errors import RemapError, refuse
from llava_remap.folder.as_data import AS_DATA, one_line, panics_as_errors
from llava_remap.folder.json_file import write_json
from llava_remap.folder.llama_tokenizer import LlamaTokenizer
from llava_remap.target import TOKENIZERS, PlacedToken, Vocabulary

#: The class that reads `tokenizer.json` as it is, in every version and for every model. Classes of one kind of tokenizer build
#: normalizer and pre-tokenizer anew in transformers 5.
CLASS = "PreTrainedTokenizerFast"
#: What a source's config says and ours doesn't: code, a text model's template, and what only one generation can read.
_NOT_KEPT = (
    "auto_map", "backend", "chat_template", "extra_special_tokens", "is_local", "local_files_only", "name_or_path",
    "special_tokens_map_file", "tokenizer_file",
)  # fmt: skip
_ROLES = ("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token")
_LLAMA = ("LlamaTokenizer", "LlamaTokenizerFast")
_FLAGS = ("content", "lstrip", "normalized", "rstrip", "single_word", "special")
#: Texts with all that tokenizers have been seen to disagree on: runs of spaces, indentation, tabs, blank lines, spaces and line
#: ends at either end, letters of many scripts, and characters that a vocabulary only has as bytes.
_PROBES = (
    "", "What is it? A cat, 3 dogs.", "Two  spaces,   three", " a", "  a", "a ", "a  ", " ", "   ", "\n", "\t", "\na", "a\n\n\nb",
    "def f(x):\n    if x > 3:\n\treturn  x\n\n\n# end", "name      value  note\n----------------------\nred          12  ok",
    "Äpfel, café, 漢字, кошка, 🙂👍🏽 → “x” … ½", "\u200b\ufeff\x00\x07\x7f", "don't I'll we've 1,234.50 http://a.b/c?d=e_f", "▁a ▁ b",
)  # fmt: skip
#: What stands between special tokens.
_BETWEEN = ("fine{0}next", "fine {0} next", "fine{0}\nnext", "a{0}{0}")
#: Ids of a text that a message shows.
_SHOWN = 40
_REPLACE = "Replace its files by the original ones, or give --source language_model=DIR."

Encode = Callable[[str], list[int]]


@dataclass(frozen=True, slots=True)
class _Source:
    """The source's tokenizer.

    Attributes:
        encode: what it makes of a text, special tokens as it adds them: the reference.
        candidates: tokenizers of the tokenizers library that may give the same ids for whole prompts, the simplest first, and
            whether tokens that stand for pictures are part of the text that their normalizer sees.
        config: `tokenizer_config.json`, with what follows from the class.
        added: the added tokens by id, as `tokenizers.AddedToken`.
    """

    encode: Encode
    candidates: Sequence[tuple[Any, bool]]
    config: Mapping[str, Any]
    added: Mapping[int, Any]


def write_tokenizer(
    vocabulary: Vocabulary,
    text_model_type: str,
    tokens: Sequence[PlacedToken],
    folder: Path,
    processor_class: str | None,
    prompts: Sequence[str] = (),
) -> None:
    """Write the tokenizer's files, and open them as a user would: they encode as the source's tokenizer does, or are refused.

    The research code cuts a prompt at its pictures and encodes the pieces one by one. So a prompt's reference is that of its
    pieces, without what the tokenizer puts before each text, with the picture's token between them.

    Args:
        tokens: the rule file's, with their ids.
        folder: where the output's config.json is already.
        prompts: what the chat template makes of conversations, tried beside texts of all kinds.

    Raises:
        RemapError: LR113 where the source's files can't be read, LR403 where a token gets another id than planned, LR412 for a
            tokenizer that can't be reproduced, with the first text that differs.
    """
    images = [token for token in tokens if token.role in ("image", "video")]
    source = _open(vocabulary, text_model_type, [token.text for token in images])
    between = [token.content for token in source.added.values()]
    texts = [*_PROBES, *(text.format(token) for token in between for text in _BETWEEN)]
    with panics_as_errors():
        wanted = {text: source.encode(text) for text in texts}
        wanted |= {prompt: _encode_prompt(source.encode, prompt, images) for prompt in prompts}
    for number, (tokenizer, seen) in enumerate(source.candidates, 1):
        content = _with_tokens(tokenizer, source, tokens, [t.text for t in images] if seen else [], vocabulary.folder)
        _write(content, source, vocabulary, tokens, folder, processor_class)
        differs = _first_difference(folder, wanted)
        if differs is None:
            return
        if number == len(source.candidates):
            text, got = differs
            raise refuse(
                "LR412",
                f"the tokenizer in {vocabulary.folder} makes {_shown(wanted[text])} of {text!r}; what transformers opens of the "
                f"tokenizer.json that was made from it makes {got if isinstance(got, str) else _shown(got)}.",
                "If its files belong together, please report it; else put those there that the checkpoint was trained with.",
            )


def _encode_prompt(encode: Encode, prompt: str, images: Sequence[PlacedToken]) -> list[int]:
    before = len(encode(""))  # BOS; nothing is put behind a text by the tokenizers of the family
    pieces, ids = [prompt], [token.id for token in images]
    for token in images:  # a text has tokens of one role or the other
        if len(pieces) == 1 and token.text in prompt:
            pieces, ids = prompt.split(token.text), [token.id]
    made = encode(pieces[0])
    for piece in pieces[1:]:
        made += [ids[0], *encode(piece)[before:]]
    return made


def _first_difference(folder: Path, wanted: Mapping[str, list[int]]) -> tuple[str, list[int] | str] | None:
    """The first text of which the tokenizer in a folder, opened with `AutoTokenizer`, makes other ids, and those, or its error."""
    import transformers

    text = ""
    try:
        with panics_as_errors():
            opened = transformers.AutoTokenizer.from_pretrained(folder, **AS_DATA)
            for text, ids in wanted.items():
                if (got := opened(text)["input_ids"]) != ids:
                    return text, got
    except Exception as error:  # whatever a library raises
        return text, f"an error ({one_line(error)})"
    return None


def _shown(ids: Sequence[int]) -> str:
    """Ids for a message, shortened."""
    more = f", … ({len(ids)} in all)" if len(ids) > _SHOWN else ""
    return f"[{', '.join(map(str, ids[:_SHOWN]))}{more}]"


def _open(vocabulary: Vocabulary, text_model_type: str, images: Sequence[str]) -> _Source:
    try:
        with panics_as_errors():
            return _source(vocabulary, text_model_type, images)
    except RemapError:
        raise
    except Exception as error:  # whatever a library raises: the files are the user's
        raise refuse("LR113", f"the tokenizer in {vocabulary.folder} can't be opened: {one_line(error)}.", _REPLACE) from error


def _source(vocabulary: Vocabulary, text_model_type: str, images: Sequence[str]) -> _Source:
    from tokenizers import Tokenizer

    folder = vocabulary.folder
    config = {key: value for key, value in _own(folder, "tokenizer_config.json").items() if value is not None}
    named = config.get("tokenizer_class")
    whole = folder / "tokenizer.json"
    if whole.is_file():
        tokenizer = Tokenizer.from_str(whole.read_text(encoding="utf-8"))
        tokenizer.no_truncation()  # a prompt is never cut, whatever was baked in
        tokenizer.no_padding()
        added = _added(vocabulary, config, tokenizer.get_added_tokens_decoder())
        if named in _LLAMA:  # their class makes BOS and EOS, whatever the file says
            config = {"add_bos_token": True, "add_eos_token": False, **config}
        _set_bos_and_eos(tokenizer, config, vocabulary)
        return _copied(tokenizer, config, added, images)
    import transformers

    if not hasattr(transformers, str(named)):  # a general class, made by the model's type, would cut words otherwise
        config = {**TOKENIZERS.get(text_model_type, {}), **config}
        config["tokenizer_class"] = named = TOKENIZERS.get(text_model_type, {}).get("tokenizer_class")
    added = _added(vocabulary, config, {})
    model = folder / "tokenizer.model"
    reference = LlamaTokenizer(model.read_bytes(), added, config) if model.is_file() else None
    if reference is not None and named in _LLAMA:
        roles = {f"{role}_token": text for role, text in reference.roles.items()}
        adds = {"add_bos_token": bool(reference.before), "add_eos_token": bool(reference.behind)}
        config = {**config, **roles, **adds, "legacy": reference.legacy}
        added = _added(vocabulary, config, {})
        reference = LlamaTokenizer(model.read_bytes(), added, config)
        seen = bool(images) and not reference.legacy
        return _Source(reference.encode, [(reference.backend(images), seen)], config, added)
    with tempfile.TemporaryDirectory() as name:
        scratch = Path(name)  # only the tokenizer's files: beside a LLaVA config, AutoTokenizer would look for a LLaVA tokenizer
        for file in BESIDE["tokenizer"]:
            if (folder / file).is_file():
                shutil.copyfile(folder / file, scratch / file)
        write_json(scratch / "tokenizer_config.json", config)
        if named is None:
            write_json(scratch / "config.json", {"model_type": text_model_type})
        opened = transformers.AutoTokenizer.from_pretrained(scratch, **AS_DATA)
    tokenizer = Tokenizer.from_str(opened.backend_tokenizer.to_str())
    config |= {role: str(token) for role in _ROLES if (token := getattr(opened, role, None)) is not None}
    added = _added(vocabulary, config, tokenizer.get_added_tokens_decoder())
    if reference is None:
        return _copied(tokenizer, config, added, images)
    reference = LlamaTokenizer(
        model.read_bytes(), added, config if named in _LLAMA else {**config, "legacy": True, "add_bos_token": opened("")["input_ids"] != []}
    )
    return _Source(reference.encode, [(tokenizer, False)], config, added)


def _copied(tokenizer: Any, config: Mapping[str, Any], added: Mapping[int, Any], images: Sequence[str]) -> _Source:
    """A source whose own `tokenizer.json` is the reference.

    Where its pre-tokenizer puts a space before the first text alone, the text behind a picture needs one of its own: the second
    candidate's normalizer puts it there.
    """
    from tokenizers import Regex, Tokenizer, normalizers

    _add_own(tokenizer, added)
    written = tokenizer.to_str()
    source, plain = Tokenizer.from_str(written), Tokenizer.from_str(written)
    candidates = [(plain, False)]
    if images:
        between = "|".join(map(re.escape, images))
        spaced = Tokenizer.from_str(written)
        behind = normalizers.Replace(Regex(f"(?<={between})(?!{between})(?=[^ ▁])"), " ")
        spaced.normalizer = normalizers.Sequence([*([spaced.normalizer] if spaced.normalizer else []), behind])
        candidates.append((spaced, True))
    return _Source(lambda text: list(source.encode(text).ids), candidates, config, added)


def _added(vocabulary: Vocabulary, config: Mapping[str, Any], known: Mapping[int, Any]) -> dict[int, Any]:
    """The source's added tokens by id: those of its `tokenizer.json`, then those of its other files, then special tokens."""
    from tokenizers import AddedToken

    said = _own(vocabulary.folder, "special_tokens_map.json") | dict(config)
    special = {text for role in _ROLES if (text := _text(said.get(role)))}
    special |= {text for token in said.get("additional_special_tokens") or () if (text := _text(token))}
    tokens = {token.content: token for token in known.values()}
    for token in config.get("added_tokens_decoder", {}).values():
        if isinstance(token, Mapping) and (text := _text(token)) not in tokens:
            flags = {"normalized": False} | {flag: token[flag] for flag in _FLAGS[1:] if flag in token}
            tokens[text] = AddedToken(text, **flags)
    for text in (*_own(vocabulary.folder, "added_tokens.json"), *sorted(special)):
        if text not in tokens:
            tokens[text] = AddedToken(text, normalized=False, special=text in special)
    return {vocabulary.ids[text]: token for text, token in tokens.items() if text in vocabulary.ids}


def _add_own(tokenizer: Any, added: Mapping[int, Any]) -> None:
    there = {token.content for token in tokenizer.get_added_tokens_decoder().values()}
    for _, token in sorted(added.items()):
        if token.content not in there:
            (tokenizer.add_special_tokens if token.special else tokenizer.add_tokens)([token])


def _with_tokens(
    tokenizer: Any, source: _Source, tokens: Sequence[PlacedToken], seen: Collection[str], folder: Path
) -> dict[str, Any]:
    """The content of `tokenizer.json` with all added tokens.

    Args:
        seen: tokens that the normalizer has to see, so they are looked for behind it.
    """
    from tokenizers import AddedToken

    _add_own(tokenizer, source.added)
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
    source: _Source,
    vocabulary: Vocabulary,
    tokens: Sequence[PlacedToken],
    folder: Path,
    processor_class: str | None,
) -> None:
    """Write a tokenizer for both generations: all added tokens in `tokenizer_config.json`, and the files of slow tokenizers."""
    write_json(folder / "tokenizer.json", content)
    said = {**vocabulary.special, **{role: text for role in _ROLES if (text := _text(source.config.get(role)))}}
    roles = {role: said[role] for role in _ROLES if said.get(role) in vocabulary.ids}
    roles |= {"pad_token": token.text for token in tokens if token.role == "pad"}
    config = {key: value for key, value in source.config.items() if key not in (*_NOT_KEPT, *_ROLES)} | roles
    config.setdefault("clean_up_tokenization_spaces", False)
    model = vocabulary.folder / "tokenizer.model"
    if source.config.get("tokenizer_class") in _LLAMA:
        config.setdefault("padding_side", "left")
        if model.is_file():
            config.setdefault("legacy", True)  # an absent key means true in transformers 4, false in 5
    config["tokenizer_class"] = CLASS
    if processor_class is not None:
        config["processor_class"] = processor_class
    config["model_input_names"] = ["input_ids", "attention_mask"]  # where it isn't said, 4.x makes token_type_ids too
    by_id = sorted(content["added_tokens"], key=lambda token: int(token["id"]))
    config["added_tokens_decoder"] = {str(token["id"]): {flag: token[flag] for flag in _FLAGS} for token in by_id}
    write_json(folder / "tokenizer_config.json", dict(sorted(config.items())))
    write_json(folder / "special_tokens_map.json", roles)
    if "ByteLevel" in json.dumps(content["pre_tokenizer"]) and content["model"]["type"] == "BPE":
        write_json(folder / "vocab.json", content["model"]["vocab"])
        merges = (pair if isinstance(pair, str) else " ".join(pair) for pair in content["model"]["merges"])
        (folder / "merges.txt").write_text("\n".join(["#version: 0.2", *merges, ""]), encoding="utf-8")
    if model.is_file():  # slow tokenizers and llama.cpp read it
        shutil.copyfile(model, folder / "tokenizer.model")


def _set_bos_and_eos(tokenizer: Any, config: Mapping[str, Any], vocabulary: Vocabulary) -> None:
    """Put BOS and EOS around texts where the config says so and `tokenizer.json` doesn't do it."""
    from tokenizers import processors

    if config.get("add_bos_token") is None and config.get("add_eos_token") is None:
        return
    bos, eos = (
        [text] if config.get(f"add_{role}_token") and (text := vocabulary.special.get(f"{role}_token")) in vocabulary.ids else []
        for role in ("bos", "eos")
    )
    ids = {token: vocabulary.ids[token] for token in (*bos, *eos)}
    if tokenizer.encode("").ids != [*ids.values()]:
        tokenizer.post_processor = processors.TemplateProcessing(
            single=" ".join([*bos, "$A", *eos]), pair=" ".join([*bos, "$A", *eos, *bos, "$B", *eos]), special_tokens=[*ids.items()]
        )


def _own(folder: Path, name: str) -> dict[str, Any]:
    path = folder / name
    return read_object(path, "LR113", "Replace it by the original one.", unique=False) if path.is_file() else {}


def _text(token: Any) -> str | None:
    """A special token as a config has it: its text, or a mapping with it."""
    content = token.get("content") if isinstance(token, Mapping) else token
    return content if isinstance(content, str) else None
