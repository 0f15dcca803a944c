"""Compares two tokenizers: words, added and special tokens, and the ids of some texts."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from llava_remap.checkpoint import BESIDE, Checkpoint, has_file, read_file
from llava_remap.core.limits import limit_reached
from llava_remap.core.problem import RemapError
from llava_remap.core.wording import one_line
from llava_remap.execute import FileDigest
from llava_remap.folder.scratch import panics_as_errors
from llava_remap.folder.source_tokenizer import FLAGS, open_source_tokenizer
from llava_remap.target_model import Vocabulary, read_vocabulary, text_config
from llava_remap.target_model.source_files import read_beside
from llava_remap.target_model.text_kind import text_kind
from llava_remap.verification.compare_files import compare_objects, read_json, rows
from llava_remap.verification.difference import Encoded, File, Row, Tokenizers

#: Texts with parts that tokenizers treat differently: spaces, line ends, digits, letters of other
#: scripts, emoji, code, special tokens, and the placeholder of a picture.
TEXTS = (
    "Hello, world!",
    "  two  spaces,\ta tab\n\n    and an indent ",
    "Ünïcödé, ﬁne, 图像描述, नमस्ते, 🙂👩‍👩‍👧",
    "1234567890 3.14159 1e-05",
    "def f(x):\n    return x['a'] + 1  # naïve",
    "<image>\nWhat is shown here?",
    "USER: <image>\nHello ASSISTANT: A boat.</s>USER: And behind it?",
    "<|im_start|>user\n<image>Hello<|im_end|>\n<|im_start|>assistant\n",
    "[INST] <image>\nHello [/INST]",
)
#: Files that aren't JSON, or that hold only words.
_PLAIN = ("tokenizer.model", "vocab.json", "merges.txt")
#: Files that give roles (`bos_token`, …) to words.
_WITH_ROLES = ("tokenizer_config.json", "special_tokens_map.json")


def compare_tokenizers(a: Checkpoint, b: Checkpoint) -> Tokenizers | None:
    """The differences of two tokenizers; None without differences or tokenizers.

    Raises:
        RemapError: LR100, LR102 or LR113 for a file that can't be read; LR510 if sentencepiece is
            needed and isn't installed.
    """
    folder_a, folder_b = a.folder, b.folder
    if folder_a is None or folder_b is None or _same_files(folder_a, folder_b):
        return None
    words_a, words_b = read_vocabulary(folder_a), read_vocabulary(folder_b)
    if (words_a is None) is not (words_b is None):
        return Tokenizers(only_in="b" if words_a is None else "a")
    texts, reason = list[Encoded](), "neither side has a file of words that can be read"
    if words_a is not None and words_b is not None:
        texts, reason = _texts((a, words_a), (b, words_b))
    words = [{} if one is None else one.ids for one in (words_a, words_b)]
    special = [{} if one is None else one.special for one in (words_a, words_b)]
    (ids_a, flags_a), (ids_b, flags_b) = _added(folder_a), _added(folder_b)
    found = Tokenizers(
        words=_rows(rows(*words), ids_a, ids_b),
        added=_rows((), flags_a, flags_b),
        special=_rows(rows(*special), _roles(a), _roles(b)),
        files=tuple(_files(a, b)),
        texts=tuple(text for text in texts if text.a != text.b),
        texts_tried=len(texts),
        reason=reason,
    )
    return found if found.differ or found.files else None


def _same_files(a: Path, b: Path) -> bool:
    """Whether all files of two tokenizers have the same bytes."""
    for name in BESIDE["tokenizer"]:
        there = [has_file(folder / name) for folder in (a, b)]
        if there[0] is not there[1]:
            return False
        if there[0] and read_file(a / name) != read_file(b / name):
            return False
    return True


_Files = list[dict[str, Any]]
"""For each of several files, its facts about tokens, by their text or role."""


def _rows(found: Iterable[Row], a: _Files, b: _Files) -> tuple[Row, ...]:
    """The found rows, and the rows in which files of the same name differ. If several files name a
    token, versions of transformers read different files.
    """
    every = {row.key: row for row in found}
    for here, there in zip(a, b, strict=True):
        for key in here:
            if key in there and here[key] != there[key]:
                every.setdefault(key, Row(key, here[key], there[key]))
    return tuple(every.values())


def _added(folder: Path) -> tuple[_Files, _Files]:
    """The ids of the added tokens in each file, and their flags: first the flags that transformers
    reads, then those in each file.
    """
    whole = read_beside(folder, "tokenizer.json").get("added_tokens") or ()
    config = read_beside(folder, "tokenizer_config.json").get("added_tokens_decoder", {})
    files = (
        [(token.get("id"), token) for token in whole if isinstance(token, Mapping)],
        [(int(number), token) for number, token in config.items()],
    )
    ids: _Files = [{str(t.get("content")): number for number, t in file} for file in files]
    flags: _Files = [
        {str(t.get("content")): {flag: t.get(flag) for flag in FLAGS[1:]} for _, t in file}
        for file in files
    ]
    return [*ids, read_beside(folder, "added_tokens.json")], [flags[0] | flags[1], *flags]


def _roles(checkpoint: Checkpoint) -> _Files:
    """Role → word of each file that gives roles."""
    return [
        {
            role: token.get("content") if isinstance(token, Mapping) else token
            for role, token in (read_json(checkpoint, name) or {}).items()
            if role.endswith("_token") and isinstance(token, (str, Mapping))
        }
        for name in _WITH_ROLES
    ]


def _files(a: Checkpoint, b: Checkpoint) -> Iterator[File]:
    """Other differences in the files: neither words, tokens nor chat templates."""
    for name in BESIDE["tokenizer"]:
        found = None
        if name in _PLAIN:
            found = compare_objects(name, _content(a, name), _content(b, name))
        elif name in _TRIMMED:
            whole = [read_json(one, name) for one in (a, b)]
            trimmed = [c if c is None else _TRIMMED[name](c) for c in whole]
            # The tokenizers library numbers added tokens by their order, whatever their `id`.
            orders = [_order(c or {}) for c in whole]
            for content, order in zip(trimmed, orders, strict=True):
                if content is not None:
                    content["added_tokens"] = [t for t in order if all(t in o for o in orders)]
            found = compare_objects(name, *trimmed)
        if found is not None:
            yield found


def _order(content: Mapping[str, Any]) -> dict[str, None]:
    """The added tokens of a `tokenizer.json` in their order."""
    tokens = content.get("added_tokens") or ()
    return {str(t.get("content")): None for t in tokens if isinstance(t, Mapping)}


def _content(checkpoint: Checkpoint, name: str) -> Mapping[str, Any] | None:
    """Size and digest of a file, in place of its content."""
    assert checkpoint.folder is not None
    path = checkpoint.folder / name
    return {"content": asdict(FileDigest.of(read_file(path)))} if has_file(path) else None


def _tokenizer(content: Mapping[str, Any]) -> dict[str, Any]:
    """A `tokenizer.json` without words, but with their scores, and with the rank of each merge."""
    found = {key: value for key, value in content.items() if key != "added_tokens"}
    if isinstance(model := content.get("model"), Mapping):
        found["model"] = {key: value for key, value in model.items() if key != "vocab"}
        if isinstance(words := model.get("vocab"), list):
            found["model"]["scores"] = {str(word): score for word, score in words}
        if isinstance(merges := model.get("merges"), list):
            texts = (" ".join(map(str, m)) if isinstance(m, list) else str(m) for m in merges)
            found["model"]["merges"] = {text: rank for rank, text in enumerate(texts)}
    return found


def _without_tokens(content: Mapping[str, Any]) -> dict[str, Any]:
    """A config without its tokens and chat template."""
    return {
        key: value
        for key, value in content.items()
        if key not in ("added_tokens_decoder", "chat_template")
        and not (key.endswith("_token") and isinstance(value, (str, Mapping, type(None))))
    }


_TRIMMED = {
    "tokenizer.json": _tokenizer,
    **dict.fromkeys(_WITH_ROLES, _without_tokens),
}


def _texts(
    a: tuple[Checkpoint, Vocabulary], b: tuple[Checkpoint, Vocabulary]
) -> tuple[list[Encoded], str]:
    """The ids of all texts, or the reason why there are none."""
    made: list[list[tuple[int, ...]]] = []
    for side, (checkpoint, vocabulary) in (("A", a), ("B", b)):
        try:
            encode = _opened(checkpoint, vocabulary)
            with panics_as_errors():
                made.append([tuple(encode(text)) for text in TEXTS])
        except ImportError as error:
            return [], f"{error.name or 'a library'} is not installed"
        except Exception as error:  # whatever a library raises: the files are the user's
            if limit_reached(error) is not None:
                raise
            said = error.problems[0].cause if isinstance(error, RemapError) else one_line(error)
            return [], f"the tokenizer of {side} gives no ids: {said.rstrip('.')}"
    return [Encoded(text, *ids) for text, *ids in zip(TEXTS, *made, strict=True)], ""


def _opened(checkpoint: Checkpoint, vocabulary: Vocabulary) -> Callable[[str], list[int]]:
    """The function that gives the ids of a text."""
    import transformers  # noqa: F401  without it, some tokenizers open and others don't

    try:
        kind, _ = text_kind(text_config([checkpoint.config or {}]) or {}, {}, None)
    except RemapError:  # the config doesn't tell
        kind = ""
    return open_source_tokenizer(vocabulary, kind, ()).encode
