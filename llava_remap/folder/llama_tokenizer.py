"""The tokenizer of the research code: SentencePiece behind transformers' slow `LlamaTokenizer`.

`LlamaTokenizer.encode` computes what that class computes, with the SentencePiece library itself.
`LlamaTokenizer.backend` is a tokenizer of the tokenizers library that gives the same ids, so that
it can be written as a `tokenizer.json`.

Source of the rules: transformers 4.37 (`models/llama/tokenization_llama.py`), the version that
LLaVA pins, and 4.40 (LLaVA-NeXT).
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

SPACE = "▁"
#: A character that no text has: Unicode keeps it for programs.
_MARK = "\ufdd0"
#: The roles that special tokens have in every tokenizer.
ROLES = ("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token")
#: Kinds of pieces (`SentencePiece.Type` of `sentencepiece_model.proto`).
_NORMAL, _USER_DEFINED = 1, 4
#: `TrainerSpec.ModelType` of a model that merges pairs of pieces.
_BPE = 2


@dataclass(frozen=True, slots=True, eq=False)
class _Models:
    """One SentencePiece model: its description, and the library's processors with and without a
    space put before each text.
    """

    proto: Any
    with_prefix: Any
    without_prefix: Any


class LlamaTokenizer:
    """SentencePiece with added tokens around it.

    Args:
        model: the bytes of a `tokenizer.model`.
        added: the added tokens by id, as `tokenizers.AddedToken`. Each is one token wherever it
            stands; texts between them are encoded one by one.
        config: `tokenizer_config.json`. Read of it: `legacy`, `add_prefix_space`, `add_bos_token`,
            `add_eos_token`, and which tokens have a role or are `additional_special_tokens`.

    Raises:
        ValueError: for a file that isn't a SentencePiece model, and for `sp_model_kwargs`.
    """

    def __init__(self, model: bytes, added: Mapping[int, Any], config: Mapping[str, Any]) -> None:
        if config.get("sp_model_kwargs"):
            raise ValueError(
                "its sp_model_kwargs change how SentencePiece encodes, which no other tokenizer "
                "does"
            )
        self._models = _load(model)
        self._added = {token.content: (i, token) for i, token in added.items()}
        listed = (
            config.get("additional_special_tokens") or (),
            (config.get(role) for role in ROLES),
        )
        self._special = {token_text(token) for tokens in listed for token in tokens}
        #: Whether each text between added tokens gets a space before it. An absent key means true
        #: (transformers 4).
        self.legacy = config.get("legacy") is not False
        #: Whether, without `legacy`, a whole text gets one. `null` stands for absent, as in the
        #: code that wrote it.
        self.prefix = config.get("add_prefix_space") is not False
        self.ids = {piece.piece: i for i, piece in enumerate(self._models.proto.pieces)}
        trainer = self._models.proto.trainer_spec
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
        self._special |= {*self.roles.values()}
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
        """Added tokens and the texts between them, which a token may take the spaces of that are
        next to it.
        """
        parts = (
            self._splitter.split(text) if self._splitter else [text]
        )  # every second one is a token
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
            return list(self._models.with_prefix.encode(text))
        if not text.startswith((SPACE, " ")):
            return list(self._models.without_prefix.encode(text))
        # Behind a piece of its own, so that SentencePiece leaves spaces at the start alone.
        unknown = self.roles["unk"]
        length = len(self._models.without_prefix.encode(unknown))
        return list(self._models.without_prefix.encode(unknown + text))[length:]

    def _id(self, token: str) -> int:
        return self._added[token][0] if token in self._added else self.ids[token]

    @cached_property
    def _splitter(self) -> re.Pattern[str] | None:
        longest_first = sorted(self._added, key=lambda token: (-len(token), token))
        return (
            re.compile("(" + "|".join(map(re.escape, longest_first)) + ")")
            if longest_first
            else None
        )

    def seen(self, images: Collection[str]) -> list[str]:
        """Of pictures' and added tokens those that `backend` is to see in a text: they have to be
        added with `normalized=True`.

        Without `legacy` a text, and the text behind a picture, gets a space before it, also where
        it begins with an added token that isn't special to the class.
        """
        return [] if self.legacy else [*images, *self._plain]

    @property
    def _plain(self) -> list[str]:
        """Added tokens that have no role and aren't listed as special."""
        tokens = (token for _, token in self._added.values() if not (token.lstrip or token.rstrip))
        return [token.content for token in tokens if token.content not in self._special]

    def backend(self, images: Collection[str] = ()) -> Any:
        """A `tokenizers.Tokenizer` that is to give the same ids once the added tokens are added;
        who writes it compares them.

        Args:
            images: tokens that stand for pictures or videos. The research code cuts a prompt at
                them and encodes the pieces one by one. Without `legacy` a piece gets a space before
                it, so the text behind such a token does: see `seen`.
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

        proto = self._models.proto
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
            # Of a run of spaces the first stays, so that a text's start is still known as such.
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
            # The first puts a space before a text, whether or not the text begins with one: its own
            # are written `▁` by now.
            spaced: list[Any] = [
                pre_tokenizers.Metaspace(replacement=" ", prepend_scheme="first", split=False)
            ]
            own = "|".join(
                re.escape(token)
                for token in (*self._plain, *self._user_defined)
                if token not in images
            )
            if own and not text.remove_extra_whitespaces:  # it would take away that space, too
                # Before a token there is no text to put a space before, so a mark stands there
                # until it is done.
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
        cut_out = [piece for piece in self._user_defined if piece not in self._added]
        tokenizer.add_tokens(
            [AddedToken(piece, normalized=True, special=False) for piece in cut_out]
        )
        return tokenizer

    @property
    def _user_defined(self) -> list[str]:
        """Pieces that are cut out of a text before pairs are merged; SentencePiece puts no space
        behind them.
        """
        found = [piece.piece for piece in self._models.proto.pieces if piece.type == _USER_DEFINED]
        return [piece for piece in found if " " not in piece]  # a text has none left by then

    def _merges(self) -> list[tuple[str, str]]:
        """Every way to make a piece from two others, in the order in which SentencePiece merges: by
        score.

        Scores don't always follow ids: pieces of spaces alone have the lowest scores and low ids.
        """
        scores = {p.piece: p.score for p in self._models.proto.pieces if p.type == _NORMAL}
        pairs = (
            (piece[:cut], piece[cut:])
            for piece in scores
            for cut in range(1, len(piece))
            if piece[:cut] in scores and piece[cut:] in scores
        )
        ids = self.ids
        return sorted(
            pairs,
            key=lambda pair: (
                -scores[pair[0] + pair[1]],
                ids[pair[0] + pair[1]],
                ids[pair[0]],
                ids[pair[1]],
            ),
        )


def _load(model: bytes) -> _Models:
    from google.protobuf.message import DecodeError
    from sentencepiece import SentencePieceProcessor
    from sentencepiece import sentencepiece_model_pb2 as described

    proto: Any = described.ModelProto()
    try:
        proto.ParseFromString(model)
        with_prefix = SentencePieceProcessor(model_proto=model)
        without: Any = type(proto)()
        without.CopyFrom(proto)
        without.normalizer_spec.add_dummy_prefix = False
        return _Models(
            proto, with_prefix, SentencePieceProcessor(model_proto=without.SerializeToString())
        )
    except (DecodeError, RuntimeError, OSError) as error:
        raise ValueError(f"not a SentencePiece model: {error}") from error


def token_text(token: Any) -> str | None:
    """A special token as a config has it: its text, or a mapping with it."""
    content = token.get("content") if isinstance(token, Mapping) else token
    return content if isinstance(content, str) else None
