"""The tokenizer of the research code: SentencePiece behind transformers' slow `LlamaTokenizer`.

`LlamaTokenizer.encode` gives the same ids as that class, with the SentencePiece library.
`LlamaTokenizer.backend` is a tokenizer of the tokenizers library that gives the same ids, and can
be written as a `tokenizer.json`.

Source of the rules: transformers 4.37 (`models/llama/tokenization_llama.py`), the version that
LLaVA pins, and 4.40 (LLaVA-NeXT).
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from copy import deepcopy
from typing import Any

SPACE = "▁"
#: A character that no text has: Unicode reserves it for programs.
_MARK = "\ufdd0"
#: The roles that special tokens have in every tokenizer.
ROLES = ("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token")
#: Kinds of pieces (`SentencePiece.Type` of `sentencepiece_model.proto`).
_NORMAL, _USER_DEFINED = 1, 4
#: `TrainerSpec.ModelType` of a model that merges pairs of pieces.
_BPE = 2


class LlamaTokenizer:
    """SentencePiece with added tokens around it.

    Args:
        model: the bytes of a `tokenizer.model`.
        added: the added tokens by id, as `tokenizers.AddedToken`. Each is one token wherever it
            stands; texts between them are encoded one by one.
        config: `tokenizer_config.json`. Its keys `legacy`, `add_prefix_space`, `add_bos_token`,
            `add_eos_token`, `additional_special_tokens` and those of roles are read.

    Raises:
        ValueError: for a file that isn't a SentencePiece model, and for `sp_model_kwargs`.
    """

    def __init__(self, model: bytes, added: Mapping[int, Any], config: Mapping[str, Any]) -> None:
        if config.get("sp_model_kwargs"):
            raise ValueError(
                "its sp_model_kwargs change how SentencePiece encodes, which no other tokenizer "
                "does"
            )
        #: The model's description, and SentencePiece with and without a space put before each text.
        self._proto, self._with_prefix, self._without_prefix = _load(model)
        self._added = {token.content: (i, token) for i, token in added.items()}
        longest_first = sorted(self._added, key=lambda token: (-len(token), token))
        self._splitter = re.compile("(" + "|".join(map(re.escape, longest_first)) + ")")
        #: Whether each text between added tokens gets a space before it. An absent key means true
        #: (transformers 4).
        self.legacy = config.get("legacy") is not False
        #: Whether, without `legacy`, a whole text gets a space. `null` means absent, as in the
        #: version that wrote the key.
        self.prefix = config.get("add_prefix_space") is not False
        self.ids = {piece.piece: i for i, piece in enumerate(self._proto.pieces)}
        trainer = self._proto.trainer_spec
        default = {
            "bos": trainer.bos_piece or "<s>",
            "eos": trainer.eos_piece or "</s>",
            "unk": trainer.unk_piece or "<unk>",
        }
        #: role (`bos`, `eos`, `unk`) → token.
        self.roles = {
            role: token_text(config.get(f"{role}_token")) or piece
            for role, piece in default.items()
        }
        listed = config.get("additional_special_tokens") or ()
        self._special = {*map(token_text, (*listed, *map(config.get, ROLES))), *self.roles.values()}
        adds = {"bos": config.get("add_bos_token", True), "eos": config.get("add_eos_token", False)}
        #: Ids before and behind every text.
        self.before, self.behind = (
            [self._id(self.roles[role])] if adds[role] else [] for role in ("bos", "eos")
        )

    def encode(self, text: str) -> list[int]:
        """The ids of a text, special tokens as the tokenizer adds them."""
        if not self.legacy and text:
            text = (SPACE if self.prefix else "") + text.replace(SPACE, " ")
        parts = self._split(text)
        made = [
            [self._id(part)] if part in self._added else self._encode_part(part) for part in parts
        ]
        if (
            not self.legacy
            and len(parts) > 1
            and made[0] == [self.ids.get(SPACE)]
            and parts[1] in self._special
        ):
            made = made[1:]
        return [*self.before, *(i for ids in made for i in ids), *self.behind]

    def _split(self, text: str) -> list[str]:
        """Added tokens and the texts between them. A token may take away the spaces next to it."""
        # Every second part is a token.
        parts = self._splitter.split(text) if self._added else [text]
        for number in range(1, len(parts), 2):
            token = self._added[parts[number]][1]
            if token.rstrip:
                parts[number + 1] = parts[number + 1].lstrip()
            if token.lstrip:
                parts[number - 1] = parts[number - 1].rstrip()
        return [part for part in parts if part]

    def _encode_part(self, text: str) -> list[int]:
        """The ids of a text without added tokens."""
        if self.legacy:
            return list(self._with_prefix.encode(text))
        # With a piece before the text, SentencePiece leaves spaces at its start alone.
        piece = self.roles["unk"] if text.startswith((SPACE, " ")) else ""
        length = len(self._without_prefix.encode(piece))
        return list(self._without_prefix.encode(piece + text))[length:]

    def _id(self, token: str) -> int:
        return self._added[token][0] if token in self._added else self.ids[token]

    def seen(self, images: Collection[str]) -> list[str]:
        """The tokens of pictures, and the added tokens, that `backend` has to see in a text: they
        have to be added with `normalized=True`.

        Without `legacy`, the first text and each text behind a picture get a space before them,
        even if they begin with an added token that isn't special to the class.
        """
        return [] if self.legacy else [*images, *self._plain]

    @property
    def _plain(self) -> list[str]:
        """Added tokens that have no role and aren't listed as special."""
        return [
            token.content
            for _, token in self._added.values()
            if not (token.lstrip or token.rstrip or token.content in self._special)
        ]

    def backend(self, images: Collection[str] = ()) -> Any:
        """A `tokenizers.Tokenizer` that should give the same ids once the added tokens are added.
        The caller compares the ids.

        Args:
            images: tokens that stand for pictures or videos. The research code cuts a prompt at
                these tokens and encodes the pieces one by one. Without `legacy`, each piece gets a
                space before it, so the text behind such a token gets one: see `seen`.
        """
        from tokenizers import (
            AddedToken,
            Regex,
            Tokenizer,
            decoders,
            models,
            normalizers,
            pre_tokenizers,
            processors,
        )

        proto = self._proto
        unknown = self.ids.get(self.roles["unk"])
        if proto.trainer_spec.model_type == _BPE:
            model: Any = models.BPE(
                vocab=self.ids,
                merges=self._merges(),
                unk_token=None if unknown is None else self.roles["unk"],
                fuse_unk=True,
                byte_fallback=bool(proto.trainer_spec.byte_fallback),
            )
        else:
            scores = [(piece.piece, piece.score) for piece in proto.pieces]
            model = models.Unigram(scores, unknown, bool(proto.trainer_spec.byte_fallback))
        tokenizer = Tokenizer(model)
        text = proto.normalizer_spec
        clean: list[Any] = (
            [normalizers.Precompiled(text.precompiled_charsmap)]
            if text.precompiled_charsmap
            else []
        )
        between = seen = "|".join(map(re.escape, images))
        if text.remove_extra_whitespaces:
            seen = "|".join(map(re.escape, self.seen(images)))  # before them no space stays, either
            ends = (
                rf"\A +|[ {SPACE}]+\z"
                if self.legacy
                else rf"[ {SPACE}]+(?=\z{'|' + seen if seen else ''})"
            )
            clean += [] if self.legacy else [normalizers.Replace(SPACE, " ")]  # as `encode` does
            # The first of a run of spaces stays, so that the start of a text is still recognised.
            clean += [
                normalizers.Replace(Regex(ends), ""),
                normalizers.Replace(Regex("(?<= ) +"), ""),
            ]
        spaces, stripped = normalizers.Replace(" ", SPACE), [decoders.Strip(" ", 1, 0)]
        if self.legacy and proto.normalizer_spec.add_dummy_prefix:
            own = "|".join(re.escape(piece) for piece in self._user_defined)
            prefix = (
                normalizers.Replace(Regex(rf"\A(?!(?:{own})\z)(?=[\s\S])"), SPACE)
                if own
                else normalizers.Prepend(SPACE)
            )
            tokenizer.normalizer = normalizers.Sequence([*clean, prefix, spaces])
        elif not self.legacy and self.prefix:
            behind = (
                [normalizers.Replace(Regex(f"(?<={between})(?!{seen})(?=[\\s\\S])"), SPACE)]
                if images
                else []
            )
            # The first step puts a space before a text even if the text begins with a space,
            # because the text's own spaces are `▁` by now.
            spaced: list[Any] = [
                pre_tokenizers.Metaspace(replacement=" ", prepend_scheme="first", split=False)
            ]
            own = "|".join(
                re.escape(token)
                for token in (*self._plain, *self._user_defined)
                if token not in images
            )
            if own and not text.remove_extra_whitespaces:  # it would take that space away, too
                # If a text begins with a token, Metaspace has no text to put the space before. A
                # mark stands in for that text, and is removed afterwards.
                behind.append(normalizers.Replace(Regex(rf"\A(?=(?:{own})[\s\S])"), _MARK))
                spaced.append(pre_tokenizers.Split(_MARK, "removed"))
            spaced.append(
                pre_tokenizers.Metaspace(replacement=SPACE, prepend_scheme="never", split=False)
            )
            tokenizer.normalizer = normalizers.Sequence([*clean, spaces, *behind])
            tokenizer.pre_tokenizer = pre_tokenizers.Sequence(spaced)
        else:
            tokenizer.normalizer, stripped = normalizers.Sequence([*clean, spaces]), []
        tokenizer.decoder = decoders.Sequence(
            [decoders.Replace(SPACE, " "), decoders.ByteFallback(), decoders.Fuse(), *stripped]
        )
        bos, eos = (
            [self.roles[role]] if ids else []
            for role, ids in (("bos", self.before), ("eos", self.behind))
        )
        if bos or eos:
            tokenizer.post_processor = processors.TemplateProcessing(
                single=" ".join([*bos, "$A", *eos]),
                pair=" ".join(
                    [*bos, "$A", *eos, *(f"{t}:1" for t in bos), "$B:1", *(f"{t}:1" for t in eos)]
                ),
                special_tokens=[(token, self._id(token)) for token in {*bos, *eos}],
            )
        tokenizer.add_tokens(
            [
                AddedToken(piece, normalized=True, special=False)
                for piece in self._user_defined
                if piece not in self._added
            ]
        )
        return tokenizer

    @property
    def _user_defined(self) -> list[str]:
        """Pieces that are cut out of a text before pairs are merged; SentencePiece puts no space
        behind them. Pieces with a space are left out: a text has no spaces left by then.
        """
        return [
            piece.piece
            for piece in self._proto.pieces
            if piece.type == _USER_DEFINED and " " not in piece.piece
        ]

    def _merges(self) -> list[tuple[str, str]]:
        """Every way to make a piece from two others, in SentencePiece's order of merges: by score.

        Scores don't always follow ids: pieces of spaces alone have the lowest scores and low ids.
        """
        scores = {p.piece: p.score for p in self._proto.pieces if p.type == _NORMAL}
        pairs = (
            (piece[:cut], piece[cut:])
            for piece in scores
            for cut in range(1, len(piece))
            if piece[:cut] in scores and piece[cut:] in scores
        )
        return sorted(
            pairs,
            key=lambda pair: (
                -scores[pair[0] + pair[1]],
                *(self.ids[piece] for piece in (pair[0] + pair[1], *pair)),
            ),
        )


def _load(model: bytes) -> tuple[Any, Any, Any]:
    from google.protobuf.message import DecodeError
    from sentencepiece import SentencePieceProcessor
    from sentencepiece import sentencepiece_model_pb2 as described

    proto: Any = described.ModelProto()
    try:
        proto.ParseFromString(model)
        with_prefix = SentencePieceProcessor(model_proto=model)
        without = deepcopy(proto)
        without.normalizer_spec.add_dummy_prefix = False
        return (proto, with_prefix, SentencePieceProcessor(model_proto=without.SerializeToString()))
    except (DecodeError, RuntimeError, OSError) as error:
        raise ValueError(f"not a SentencePiece model: {error}") from error


def token_text(token: Any) -> str | None:
    """The text of a special token, which a config has as a text or as a mapping with the text."""
    content = token.get("content") if isinstance(token, Mapping) else token
    return content if isinstance(content, str) else None
