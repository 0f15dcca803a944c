"""The source's tokenizer: the ids that it gives to texts, and tokenizers of the tokenizers library
that may give the same.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from llava_remap.checkpoint import BESIDE, has_file, read_file, read_text
from llava_remap.core.problem import RemapError, refuse
from llava_remap.core.wording import one_line
from llava_remap.folder.llama_tokenizer import ROLES, LlamaTokenizer, token_text
from llava_remap.folder.scratch import (
    AS_DATA,
    panics_as_errors,
    scratch_folder,
    write_json,
)
from llava_remap.target_model import (
    TOKENIZERS,
    Vocabulary,
    read_beside,
    read_tekken,
    tekken_encoder,
)

#: Classes that use SentencePiece with rules of their own.
LLAMA = ("LlamaTokenizer", "LlamaTokenizerFast")
#: Classes that don't define how words are cut. A `tokenizer.json` would define it.
_GENERAL = ("PreTrainedTokenizerFast", "TokenizersBackend")
#: The keys of a token in `added_tokens_decoder`.
FLAGS = ("content", "lstrip", "normalized", "rstrip", "single_word", "special")
#: Keys that say whether BOS and EOS are put around a text.
_FLAGS = ("add_bos_token", "add_eos_token")
#: Roles of the tokens around a text, which change the model's input.
_OUTER = ("bos_token", "eos_token")
_REPLACE = "Replace its files with the original ones, or give --source language_model=DIR."

Encode = Callable[[str], list[int]]


@dataclass(frozen=True, slots=True)
class SourceTokenizer:
    """A source's tokenizer.

    Attributes:
        encode: the reference: gives the ids of a text, with the tokenizer's special tokens.
        candidates: tokenizers of the tokenizers library that may give the same ids for whole
            prompts, the simplest first; each with the tokens that its normalizer has to see in a
            text.
        config: `tokenizer_config.json`, with the values that follow from the class.
        added: the added tokens by id, as `tokenizers.AddedToken`.
        other: encodes by the `tokenizer.model` beside the `tokenizer.json`; None without both.
    """

    encode: Encode
    candidates: Sequence[tuple[Any, Collection[str]]]
    config: Mapping[str, Any]
    added: Mapping[int, Any]
    other: Encode | None = None


def open_source_tokenizer(
    vocabulary: Vocabulary, text_model_type: str, images: Sequence[str]
) -> SourceTokenizer:
    """Open a source's tokenizer.

    The reference is the `tokenizer.json`; without one, the `tokenizer.model`, read by SentencePiece
    in the way of transformers' slow tokenizer; without either, the tokenizer that transformers
    makes of the files, or Mistral's own for a tekken.json.

    Args:
        text_model_type: the text model, whose usual tokenizer is used if the files name no class.
        images: tokens that stand for pictures or videos.

    Raises:
        RemapError: LR113 if the files can't be read, or name a BOS or EOS that isn't a token.
    """
    try:
        with panics_as_errors():
            return _source(vocabulary, text_model_type, images)
    except RemapError:
        raise
    except Exception as error:  # whatever a library raises: the files are the user's
        raise refuse(
            "LR113",
            f"the tokenizer in {vocabulary.folder} can't be opened: {one_line(error)}.",
            _REPLACE,
        ) from error


def special_tokens(vocabulary: Vocabulary, config: Mapping[str, Any]) -> dict[str, str]:
    """The special tokens by role, as the source's files name them; the config takes precedence."""
    said = {
        **vocabulary.special,
        **{role: text for role in ROLES if (text := token_text(config.get(role)))},
    }
    return {role: said[role] for role in ROLES if role in said}


def _source(vocabulary: Vocabulary, text_model_type: str, images: Sequence[str]) -> SourceTokenizer:
    from tokenizers import Tokenizer

    folder = vocabulary.folder
    own = read_beside(folder, "tokenizer_config.json")
    config = {key: value for key, value in own.items() if value is not None}
    config |= {key: False for key in _FLAGS if key in own and own[key] is None}
    # transformers before 4.34 writes no `added_tokens_decoder`. Without it, the map overrides the
    # config. With it, the map isn't read.
    roles = {} if "added_tokens_decoder" in own else read_beside(folder, "special_tokens_map.json")
    config |= {role: text for role in ROLES if (text := token_text(roles.get(role))) is not None}
    for role, text in special_tokens(vocabulary, config).items():
        if role in _OUTER and text not in vocabulary.ids:
            raise refuse(
                "LR113",
                f"the tokenizer files in {folder} say {role}: {text!r}, which isn't one of their "
                "tokens.",
                "Replace tokenizer_config.json and special_tokens_map.json by the original ones.",
            )
    named = config.get("tokenizer_class")
    whole, model = folder / "tokenizer.json", folder / "tokenizer.model"
    if has_file(whole):
        tokenizer = Tokenizer.from_str(read_text(whole))
        tokenizer.no_truncation()  # a prompt is never cut, whatever was baked in
        tokenizer.no_padding()
        added = _added(vocabulary, config, tokenizer.get_added_tokens_decoder())
        if named not in LLAMA:
            return _copied(tokenizer, _without_flags(config), added, images)
        # The class sets BOS and EOS, whatever the file says.
        default = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}
        usual = {
            role: text
            for role, text in {**default, **vocabulary.special}.items()
            if role not in own or own[role] is not None
        }
        config = {**usual, "add_bos_token": True, "add_eos_token": False, **config}
        _set_bos_and_eos(tokenizer, config, vocabulary)
        source = _copied(tokenizer, config, added, images)
        if has_file(model):
            plain = LlamaTokenizer(read_file(model), added, roles | config)
            source = replace(source, other=plain.encode)
        return source
    if not has_file(model) and not has_file(folder / "vocab.json"):  # Mistral's tekken.json
        tokenizer = Tokenizer.from_str(read_tekken(folder).tokenizer)
        added = _added(vocabulary, config, tokenizer.get_added_tokens_decoder())
        return SourceTokenizer(tekken_encoder(folder), [(tokenizer, ())], config, added)
    import transformers

    # A general class, chosen by the model's type, would cut words differently.
    if named in _GENERAL or not hasattr(transformers, str(named)):
        preset = TOKENIZERS.get(text_model_type, {})
        named = preset.get("tokenizer_class")
        config = {**preset, **config, "tokenizer_class": named}
    added = _added(vocabulary, config, {})
    if named in LLAMA and has_file(model):
        plain = LlamaTokenizer(read_file(model), added, roles | config)
        config = {
            **config,
            **{f"{role}_token": text for role, text in plain.roles.items()},
            "add_bos_token": bool(plain.before),
            "add_eos_token": bool(plain.behind),
            "legacy": plain.legacy,
        }
        added = _added(vocabulary, config, {})
        reference = LlamaTokenizer(read_file(model), added, roles | config)
        return SourceTokenizer(
            reference.encode, [(reference.backend(images), reference.seen(images))], config, added
        )
    if not has_file(model):
        config = _without_flags(config)
    with scratch_folder() as scratch:
        # Only the tokenizer's files: beside a LLaVA config, AutoTokenizer would look for a LLaVA
        # tokenizer.
        for file in BESIDE["tokenizer"]:
            if has_file(folder / file):
                (scratch / file).write_bytes(read_file(folder / file))
        # A role without a token stays null: its class may have a default for it.
        absent = dict.fromkeys(role for role in ROLES if role in own and own[role] is None)
        write_json(scratch / "tokenizer_config.json", {**absent, **config})
        if named is None:
            write_json(scratch / "config.json", {"model_type": text_model_type})
        opened = transformers.AutoTokenizer.from_pretrained(scratch, **AS_DATA)
    tokenizer = Tokenizer.from_str(opened.backend_tokenizer.to_str())
    config |= {
        role: str(token) for role in ROLES if (token := getattr(opened, role, None)) is not None
    }
    added = _added(vocabulary, config, tokenizer.get_added_tokens_decoder())
    if not has_file(model):
        return _copied(tokenizer, config, added, images)
    adds_bos = opened("")["input_ids"] != []
    reference = LlamaTokenizer(
        read_file(model), added, {**config, "legacy": True, "add_bos_token": adds_bos}
    )
    return SourceTokenizer(reference.encode, [(tokenizer, ())], config, added)


def _copied(
    tokenizer: Any, config: Mapping[str, Any], added: Mapping[int, Any], images: Sequence[str]
) -> SourceTokenizer:
    """A source whose own `tokenizer.json` is the reference.

    If its pre-tokenizer puts a space only before the first text, the text behind a picture needs a
    space too. The normalizers of the other candidates add this space. The second candidate's adds
    it only if the text doesn't begin with a space, as Metaspace does.
    """
    from tokenizers import Regex, Tokenizer, normalizers

    add_own(tokenizer, added)
    written = tokenizer.to_str()
    source, plain = Tokenizer.from_str(written), Tokenizer.from_str(written)
    candidates: list[tuple[Any, Collection[str]]] = [(plain, ())]
    between = "|".join(map(re.escape, images))
    for begins in ("[^ ▁]", r"[\s\S]") if images else ():
        spaced = Tokenizer.from_str(written)
        behind = normalizers.Replace(Regex(f"(?<={between})(?!{between})(?={begins})"), " ")
        spaced.normalizer = normalizers.Sequence(
            [*([spaced.normalizer] if spaced.normalizer else []), behind]
        )
        candidates.append((spaced, images))
    return SourceTokenizer(lambda text: list(source.encode(text).ids), candidates, config, added)


def _without_flags(config: Mapping[str, Any]) -> dict[str, Any]:
    """A config without the keys that only Llama's classes read; transformers 5 reads them for every
    class.
    """
    return {key: value for key, value in config.items() if key not in _FLAGS}


def _added(
    vocabulary: Vocabulary, config: Mapping[str, Any], known: Mapping[int, Any]
) -> dict[int, Any]:
    """The source's added tokens by id: those of its `tokenizer.json`, then those of its other
    files, then special tokens.

    Slow tokenizers look for added tokens in the unnormalized text, whatever a token's `normalized`
    says.
    """
    from tokenizers import AddedToken

    said = read_beside(vocabulary.folder, "special_tokens_map.json") | dict(config)
    listed = said.get("additional_special_tokens") or ()
    special = {text for token in (*map(said.get, ROLES), *listed) if (text := token_text(token))}
    tokens = {token.content: token for token in known.values()}
    for token in config.get("added_tokens_decoder", {}).values():
        if isinstance(token, Mapping) and (text := token_text(token)) not in tokens:
            flags = {
                flag: token[flag]
                for flag in FLAGS[1:]
                if flag in token and (known or flag != "normalized")
            }
            tokens[text] = AddedToken(text, **{"normalized": False, **flags})
    for text in (*read_beside(vocabulary.folder, "added_tokens.json"), *sorted(special)):
        if text not in tokens:
            tokens[text] = AddedToken(text, normalized=False, special=text in special)
    return {vocabulary.ids[text]: token for text, token in tokens.items() if text in vocabulary.ids}


def add_own(tokenizer: Any, added: Mapping[int, Any]) -> None:
    """Add those of the source's tokens that the tokenizer lacks, in the order of their ids."""
    there = {token.content for token in tokenizer.get_added_tokens_decoder().values()}
    for _, token in sorted(added.items()):
        if token.content not in there:
            (tokenizer.add_special_tokens if token.special else tokenizer.add_tokens)([token])


def _set_bos_and_eos(tokenizer: Any, config: Mapping[str, Any], vocabulary: Vocabulary) -> None:
    """Put BOS and EOS around texts if the config says so and `tokenizer.json` doesn't do it."""
    from tokenizers import processors

    special = special_tokens(vocabulary, config)
    added = (
        special.get(f"{role}_token", "") if config.get(f"add_{role}_token") else ""
        for role in ("bos", "eos")
    )
    bos, eos = ([text] if text in vocabulary.ids else [] for text in added)
    ids = {token: vocabulary.ids[token] for token in (*bos, *eos)}
    if tokenizer.encode("").ids != [*ids.values()]:
        tokenizer.post_processor = processors.TemplateProcessing(
            single=" ".join([*bos, "$A", *eos]),
            pair=" ".join([*bos, "$A", *eos, *bos, "$B", *eos]),
            special_tokens=[*ids.items()],
        )
