"""Two tokenizers: their words, added and special tokens, and the ids that they make of texts."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from llava_remap.checkpoint import BESIDE, Checkpoint, has_file, read_file
from llava_remap.core.limits import limit_reached
from llava_remap.core.problem import RemapError
from llava_remap.execute import FileDigest
from llava_remap.folder.scratch import one_line, panics_as_errors
from llava_remap.folder.source_tokenizer import FLAGS, open_source_tokenizer
from llava_remap.target_model import Vocabulary, read_vocabulary, text_config
from llava_remap.target_model.text_kind import text_kind
from llava_remap.verification.compare_files import compare_objects, read_json, rows
from llava_remap.verification.difference import Encoded, File, Row, Tokenizers

#: Texts with what tokenizers treat in different ways: spaces, line ends, digits, letters of other
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
#: Files that aren't JSON, or that hold the words alone.
_PLAIN = ("tokenizer.model", "vocab.json", "merges.txt")


def compare_tokenizers(a: Checkpoint, b: Checkpoint) -> Tokenizers | None:
    """How two tokenizers differ; None for no difference, or without any.

    Raises:
        RemapError: LR100, LR102 or LR113 for a file that can't be read; LR510 without
            sentencepiece where it is needed.
    """
    folder_a, folder_b = a.folder, b.folder
    if folder_a is None or folder_b is None or _same_files(folder_a, folder_b):
        return None
    words_a, words_b = read_vocabulary(folder_a), read_vocabulary(folder_b)
    if words_a is None or words_b is None:
        return None if words_a is words_b else Tokenizers(only_in="b" if words_a is None else "a")
    texts, reason = _texts((a, words_a), (b, words_b))
    found = Tokenizers(
        words=rows(words_a.ids, words_b.ids),
        added=tuple(_of_common(_added(a), _added(b))),
        special=rows(words_a.special, words_b.special),
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


def _added(checkpoint: Checkpoint) -> dict[str, dict[str, Any]]:
    """The flags of the added tokens, by their text."""
    whole = read_json(checkpoint, "tokenizer.json") or {}
    config = read_json(checkpoint, "tokenizer_config.json") or {}
    tokens = [
        *(config.get("added_tokens_decoder") or {}).values(),
        *(whole.get("added_tokens") or ()),
    ]
    return {
        str(token.get("content")): {flag: token.get(flag) for flag in FLAGS[1:]}
        for token in tokens
        if isinstance(token, Mapping)
    }


def _of_common(a: Mapping[str, Any], b: Mapping[str, Any]) -> Iterator[Row]:
    """The tokens of both sides that differ; the words tell the others."""
    for text in a.keys() & b.keys():
        if a[text] != b[text]:
            yield Row(text, a[text], b[text])


def _files(a: Checkpoint, b: Checkpoint) -> Iterator[File]:
    """What else differs in the files: neither words nor tokens, nor a chat template."""
    for name in BESIDE["tokenizer"]:
        found = None
        if name in _PLAIN:
            found = compare_objects(name, _content(a, name), _content(b, name))
        elif name in _TRIMMED:
            whole = (read_json(one, name) for one in (a, b))
            found = compare_objects(name, *(c if c is None else _TRIMMED[name](c) for c in whole))
        if found is not None:
            yield found


def _content(checkpoint: Checkpoint, name: str) -> Mapping[str, Any] | None:
    """Size and digest of a file, in place of its content."""
    assert checkpoint.folder is not None
    path = checkpoint.folder / name
    return {"content": asdict(FileDigest.of(read_file(path)))} if has_file(path) else None


def _tokenizer(content: Mapping[str, Any]) -> dict[str, Any]:
    """A `tokenizer.json` without words; its merges by their text, with their rank."""
    found = {key: value for key, value in content.items() if key != "added_tokens"}
    if isinstance(model := content.get("model"), Mapping):
        found["model"] = {key: value for key, value in model.items() if key != "vocab"}
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
    "tokenizer_config.json": _without_tokens,
    "special_tokens_map.json": _without_tokens,
}


def _texts(
    a: tuple[Checkpoint, Vocabulary], b: tuple[Checkpoint, Vocabulary]
) -> tuple[list[Encoded], str]:
    """The ids of all texts; and why there are none."""
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
    """What gives the ids of a text."""
    import transformers  # noqa: F401  without it, some tokenizers open and others don't

    try:
        kind, _ = text_kind(text_config([checkpoint.config or {}]) or {}, {}, None)
    except RemapError:  # the config doesn't tell
        kind = ""
    return open_source_tokenizer(vocabulary, kind, ()).encode
