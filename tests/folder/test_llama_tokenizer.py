"""The research code's tokenizer in three forms: transformers' slow class, `LlamaTokenizer.encode`,
and its `backend`.

Small SentencePiece models of every kind are trained here. Where the backend can't follow, that is
said and tested.
"""

from __future__ import annotations

import json
import random
import re
from functools import cache
from typing import Any

import pytest
import regex
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from tokenizers import AddedToken

from llava_remap.folder.llama_tokenizer import LlamaTokenizer
from tests.compat.run import missing
from tests.folder.sentencepieces import (
    CONFIGS,
    FRAGMENTS,
    IMAGE,
    KINDS,
    OWN,
    Kind,
    added_tokens,
    drawn,
    prompt_ids,
    tokenizer,
    trained,
)
from tests.folder.versions import Question, ask_versions, of_version

#: The oldest and the newest version with the slow class.
SLOW = ("4.46.3", "4.57.6")
#: Tokens with a role, and those that SentencePiece or the class cuts out of a text besides.
ROLES, PLAIN = ("<s>", "</s>", "<unk>"), ("<im_start>", "[SEG]")

WIDE = st.text(st.characters(exclude_categories=["Cs"]), max_size=3)
TEXTS = st.lists(st.sampled_from(FRAGMENTS) | WIDE, max_size=14).map("".join)
PROMPTS = st.lists(st.sampled_from((*FRAGMENTS, *[IMAGE] * 8)), max_size=16).map("".join)


# --- the slow class


@pytest.fixture(scope="session")
def asked(tmp_path_factory: pytest.TempPathFactory) -> tuple[list[Question], dict[str, Any]]:
    """Texts of a fixed seed for each kind of model and config, and what the slow class makes of
    them.
    """
    chance, work = random.Random(0), tmp_path_factory.mktemp("slow")
    questions: list[Question] = []
    for kind in KINDS:
        for name, config in CONFIGS.items():
            folder = work / f"{kind.name}, {name}"
            folder.mkdir()
            (folder / "tokenizer.model").write_bytes(trained(kind))
            added = {
                str(i): json.loads(token_json(token))
                for i, token in added_tokens(trained(kind)).items()
            }
            content = {**config, "tokenizer_class": "LlamaTokenizer", "added_tokens_decoder": added}
            (folder / "tokenizer_config.json").write_text(json.dumps(content))
            questions.append(
                (
                    folder,
                    "LlamaTokenizer",
                    ["", " ", "a", "</s>>(b", " <s>a", "[SEG]a", "<im_start>", *drawn(chance, 40)],
                )
            )
    return questions, ask_versions(dict.fromkeys(SLOW, questions), work)


def token_json(token: AddedToken) -> str:
    flags = ("content", "lstrip", "normalized", "rstrip", "single_word", "special")
    return json.dumps({flag: getattr(token, flag) for flag in flags})


@pytest.mark.parametrize("version", [of_version(version) for version in SLOW])
@pytest.mark.parametrize("name", CONFIGS)
def test_encode_is_the_slow_class(
    name: str, version: str, asked: tuple[list[Question], dict[str, Any]]
) -> None:
    """Id for id, of every kind of model.

    One difference is meant: `add_prefix_space: null`. The research code's transformers (4.37)
    doesn't read the key, and puts the space there; later versions take null for false.
    """
    if why := missing(version):
        pytest.fail(why)
    questions, given_by = asked
    seen = 0
    for (folder, _, texts), answer in zip(questions, given_by[version], strict=True):
        if folder.name.endswith(f", {name}"):
            kind = next(kind for kind in KINDS if folder.name == f"{kind.name}, {name}")
            config = (
                {"legacy": False, "add_prefix_space": False} if "null" in name else CONFIGS[name]
            )
            reference = tokenizer(kind, config)
            assert answer.get("class") == "LlamaTokenizer", answer
            assert dict(zip(texts, answer["ids"], strict=True)) == {
                text: reference.encode(text) for text in texts
            }, folder.name
            seen += 1
    assert seen == len(KINDS)


def test_a_prefix_of_null_is_no_false_one() -> None:
    null, absent, false = (
        tokenizer(Kind(), CONFIGS[f"legacy false{more}"])
        for more in (", prefix null", "", ", no prefix")
    )
    assert null.encode("fox") == absent.encode("fox") != false.encode("fox")


def test_absent_legacy_is_true() -> None:
    absent, true, false = (
        tokenizer(Kind(), CONFIGS[f"legacy {said}"]) for said in ("absent", "true", "false")
    )
    assert absent.encode("a</s>fox") == true.encode("a</s>fox") != false.encode("a</s>fox")


def test_a_text_behind_a_special_token_begins_with_its_own_first_piece() -> None:
    """Not with one that reaches into `<unk>`, behind which the class puts texts that begin with
    a space: `>(` is one piece.
    """
    reference = tokenizer(Kind(), CONFIGS["legacy false"])
    assert ">(" in reference.ids
    assert reference.encode("</s>(") == [1, 2, reference.ids["("]]


# --- the backend


@cache
def both(kind: Kind, name: str) -> tuple[LlamaTokenizer, Any, int]:
    """The reference, and the backend with its added tokens and a token for pictures, as
    `write_tokenizer` adds them.
    """
    model = trained(kind)
    reference = tokenizer(kind, CONFIGS[name])
    backend, seen = reference.backend([IMAGE]), reference.seen([IMAGE])
    for token in added_tokens(model).values():
        known = AddedToken(token.content, special=token.special, normalized=token.content in seen)
        (backend.add_special_tokens if token.special else backend.add_tokens)([known])
    backend.add_special_tokens([AddedToken(IMAGE, special=True, normalized=IMAGE in seen)])
    image: int = backend.token_to_id(IMAGE)
    return reference, backend, image


def assert_same(reference: LlamaTokenizer, ids: list[int], wanted: list[int], kind: Kind) -> None:
    """Equal ids; of two ways to cut a text with the same score, a unigram model may take the
    other one.
    """
    if ids != wanted and kind.unigram:
        assert sorted(ids) == sorted(wanted) or score(reference, ids) == pytest.approx(
            score(reference, wanted), abs=1e-4
        )
    else:
        assert ids == wanted


def score(reference: LlamaTokenizer, ids: list[int]) -> float:
    pieces = reference._proto.pieces
    return float(sum(pieces[i].score for i in ids if i < len(pieces)))


def begins(text: str, tokens: tuple[str, ...], before: str = r"\A") -> bool:
    return re.search(f"{before}({'|'.join(map(re.escape, tokens))})", text) is not None


def normalized(text: str) -> str:
    """As models with `nfkc` have a text before anything else."""
    written: str = both(Kind(nfkc=True), "legacy false, no prefix")[1].normalizer.normalize_str(
        text
    )
    return written.replace("▁", " ")


def is_beyond(kind: Kind, name: str, text: str) -> bool:
    """Whether a text is of a kind that no backend of ours reproduces; each kind has its test
    below.
    """
    own = OWN if kind.own else ()
    if kind.unigram and (re.search("<0x[0-9A-F]{2}>", text) or (kind.own and "***" in text)):
        return True
    parts = re.split("|".join(map(re.escape, (*ROLES, *PLAIN, IMAGE))), text)
    together = any(len(cluster) > 1 for cluster in regex.findall(r"\X", text))
    if kind.nfkc and (together or any(part and not normalized(part) for part in parts)):
        return True
    if "legacy false" not in name:
        made = (normalized(part) if kind.nfkc else part for part in parts)
        return kind.prefix and any(
            (part.strip(" ▁") if kind.strips else part) in own for part in made
        )
    if kind.nfkc and kind.strips:
        return True
    if "no prefix" in name:
        return begins(text, ROLES, rf"(\A|{IMAGE})[\s▁]")
    return begins(text, (*PLAIN, *own))


@pytest.mark.parametrize("name", CONFIGS)
@settings(max_examples=200)
@given(kind=st.sampled_from(KINDS), text=TEXTS)
def test_the_backend_makes_the_same_ids_of_texts(name: str, kind: Kind, text: str) -> None:
    assume(not is_beyond(kind, name, text))
    reference, backend, _ = both(kind, name)
    assert_same(reference, backend.encode(text).ids, reference.encode(text), kind)


@pytest.mark.parametrize("name", CONFIGS)
@settings(max_examples=200)
@given(kind=st.sampled_from(KINDS), prompt=PROMPTS)
def test_the_backend_makes_the_same_ids_of_prompts(name: str, kind: Kind, prompt: str) -> None:
    """Cut at the pictures, as the research code does."""
    assume(not is_beyond(kind, name, prompt))
    reference, backend, image = both(kind, name)
    assert_same(reference, backend.encode(prompt).ids, prompt_ids(reference, prompt, image), kind)


# --- its limits: what no normalizer can tell from what the normalizer sees


@pytest.mark.parametrize("token", [*PLAIN, "<usr>"])
def test_a_text_that_begins_with_a_token_without_a_role(token: str) -> None:
    """With `legacy: false` it has a space before the token, as behind a picture; the token
    alone, a limit, has none.
    """
    reference, backend, image = both(Kind(own=True), "legacy false")
    space = reference.ids["▁"]
    bos, first, *rest = reference.encode(f"{token}fox")
    assert first == space
    assert backend.encode(f"{token}fox").ids == [bos, first, *rest]
    assert backend.encode(f"a</s>{token}fox").ids == reference.encode(f"a</s>{token}fox")
    assert backend.encode(f"a{IMAGE}{token}fox").ids == prompt_ids(
        reference, f"a{IMAGE}{token}fox", image
    )
    assert backend.encode(f"a{IMAGE}{token}fox").ids[-len(rest) - 2 :] == [image, space, *rest]
    assert (reference.encode(token), backend.encode(token).ids) == (
        [bos, space, rest[0]],
        [bos, rest[0]],
    )


def test_limit_a_space_alone_before_a_special_token_stays() -> None:
    """With `add_prefix_space: false` the slow class drops it at a text's start."""
    reference, backend, _ = both(Kind(), "legacy false, no prefix")
    bos, *rest = reference.encode(" </s>fox")
    assert backend.encode(" </s>fox").ids == [bos, reference.ids["▁"], *rest]


def test_limit_a_piece_of_the_models_own_that_is_a_whole_text_lacks_its_space() -> None:
    """With `legacy: true`; with anything behind it, it has it."""
    reference, backend, _ = both(Kind(own=True), "legacy true")
    assert reference.encode("<usr>") == [1, reference.ids["▁"], reference.ids["<usr>"]]
    assert backend.encode("<usr>").ids == [1, reference.ids["<usr>"]]
    assert backend.encode("<usr>fox").ids == reference.encode("<usr>fox")


def test_limit_a_text_of_which_nothing_is_left_has_no_space() -> None:
    """`nmt_nfkc` drops control characters; SentencePiece puts its space before what is left."""
    reference, backend, _ = both(Kind(nfkc=True), "legacy true")
    assert (reference.encode("\x07"), backend.encode("\x07").ids) == ([1, reference.ids["▁"]], [1])


def test_limit_line_ends_that_become_spaces_and_are_stripped() -> None:
    """`nmt_nfkc` with `remove_extra_whitespaces` and `legacy: false`: the slow class strips
    some, by the letter before them.
    """
    reference, backend, _ = both(Kind(nfkc=True, strips=True), "legacy false, no prefix")
    assert reference.encode("\nfox") == reference.encode("fox") != backend.encode("\nfox").ids
    assert reference.encode(" fox") == backend.encode(" fox").ids == backend.encode("\nfox").ids


def test_limit_signs_that_are_one_letter_together() -> None:
    """`nmt_nfkc`: the tokenizers library looks for a letter with its marks as a whole, and
    `\\r\\n` is such a letter, too.
    """
    reference, backend, _ = both(Kind(nfkc=True), "legacy false, no prefix")
    space = reference.ids["▁"]
    assert (reference.encode("a\r\n\n")[-3:], backend.encode("a\r\n\n").ids[-2:]) == (
        [space] * 3,
        [space] * 2,
    )
    assert reference.encode("e\u0301\u1dc0") != backend.encode("e\u0301\u1dc0").ids
    assert reference.encode("cafe\u0301 ﬁ½") == backend.encode("cafe\u0301 ﬁ½").ids


def test_limit_the_name_of_a_byte_is_that_byte_to_a_unigram_model() -> None:
    """In the tokenizers library; not to a model that merges."""
    reference, backend, _ = both(Kind(unigram=True), "legacy false, no prefix")
    byte = reference.ids["<0x0A>"]
    assert backend.encode("<0x0A>").ids == [1, byte]
    assert byte not in reference.encode("<0x0A>")
    reference, backend, _ = both(Kind(), "legacy false, no prefix")
    assert (
        backend.encode("<0x0A>").ids == reference.encode("<0x0A>") != [1, reference.ids["<0x0A>"]]
    )
