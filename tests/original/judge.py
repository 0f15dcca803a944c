"""Answers compared with facts. What differs is given by kind, in words; an empty dictionary
where all is equal.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from tests.original.answer import Answer, FolderAnswer, Forward, Words
from tests.original.facts import IMAGE, Case, Family, Reading

#: By kind: `error`, `prompt`, `ids`, `pixels`, `logits`, `argmax`.
Differences = dict[str, str]


def token_of(case: Case, folder: FolderAnswer) -> int:
    """The token that stands for the case's pictures or video; -1 if the folder has none."""
    token = folder.video_token if case.video else folder.image_token
    return -1 if token is None else token


def nearest_reading(case: Case, answer: Answer, token: int) -> Reading:
    """Of a case's readings, the first of those that the answer agrees with most; ids weigh more
    than the prompt.
    """

    def agreement(reading: Reading) -> int:
        return 2 * (answer.ids == tuple(reading.ids_with(token))) + (
            answer.prompt == reading.prompt
        )

    return max(case.readings, key=agreement)


def compare(family: Family, case: Case, answer: Answer, token: int) -> Differences:
    """All that differs between a case's nearest reading and the whole way: template, processor,
    model.
    """
    reading = nearest_reading(case, answer, token)
    found: Differences = {}
    if answer.error:
        found["error"] = answer.error
    if answer.prompt is not None and answer.prompt != reading.prompt:
        found["prompt"] = f"{answer.prompt!r}, not {reading.prompt!r}"
    if answer.ids is not None and (
        words := compare_ids(answer.ids, reading.ids_with(token), token)
    ):
        found["ids"] = words
    if answer.pixels is not None and (words := _compare_pixels(family, case, answer)):
        found["pixels"] = words
    if answer.whole is not None:
        found |= compare_forward(family, reading, answer.whole, best="ids" not in found)
    return found


def compare_alone(family: Family, case: Case, answer: Answer) -> Differences:
    """All that differs where every reading's ids and the research code's pixels are given to the
    model.
    """
    found: Differences = {}
    for reading, forward in zip(case.readings, answer.alone, strict=True):
        for kind, words in compare_forward(family, reading, forward).items():
            found[kind] = f"{reading.name}: {words}"
    return found


def compare_forward(
    family: Family, reading: Reading, forward: Forward, *, best: bool = True
) -> Differences:
    """What differs in a forward pass. An error is a difference, also where the logits were computed
    another way.

    Args:
        best: whether the best tokens are compared, which is possible only where the ids are equal.
    """
    found: Differences = {}
    if forward.error:
        found["error"] = forward.error
    if not forward.logits:
        return found
    off = distance(reading, forward)
    if not off < family.tolerance:
        found["logits"] = f"{off:.1e} standard deviations off"
    if best:
        pairs = zip(forward.argmax, reading.argmax, strict=True)
        wrong = sum(got != wanted for got, wanted in pairs if wanted >= 0)
        if wrong:
            found["argmax"] = f"{wrong} of {len(reading.argmax)} best tokens differ"
    return found


def distance(reading: Reading, forward: Forward) -> float:
    """The largest difference of a logit, in standard deviations of the recorded ones."""
    return float(np.abs(np.subtract(forward.logits, reading.logits)).max()) / reading.sd


def compare_ids(ids: Sequence[int], wanted: Sequence[int], token: int) -> str | None:
    """What differs in two sequences of ids, the text and the positions of pictures told apart."""
    if list(ids) == list(wanted):
        return None
    text, wanted_text = ([one for one in both if one != token] for both in (ids, wanted))
    here = next(
        (i for i, (one, other) in enumerate(zip(text, wanted_text, strict=False)) if one != other),
        None,
    )
    at = min(len(text), len(wanted_text)) if here is None else here
    words = []
    if text != wanted_text:
        words.append(f"{len(text)} tokens of text, not {len(wanted_text)}, differ from {at} on: "
                     f"{text[at : at + 4]}, not {wanted_text[at : at + 4]}")  # fmt: skip
    if (pictures := list(ids).count(token)) != (wanted_pictures := list(wanted).count(token)):
        words.append(f"{pictures} positions of pictures, not {wanted_pictures}")
    return "; ".join(words) or "pictures stand elsewhere"


def one_for_each_run(ids: Sequence[int], token: int) -> list[int]:
    """Ids with one `IMAGE` for all positions of pictures that follow on each other."""
    marked = [IMAGE if one == token else one for one in ids]
    return [one for i, one in enumerate(marked) if one != IMAGE or i == 0 or marked[i - 1] != IMAGE]


def compare_words(
    family: Family, words: Words, folder: FolderAnswer
) -> tuple[list[str], list[str]]:
    """The texts, and the prompts of counted cases, that a tokenizer cuts otherwise than the
    research code's.
    """
    texts = [
        f"{text.text!r}: {list(ids)}, not {list(text.ids)}"
        for text, ids in zip(family.texts, words.texts, strict=True)
        if text.counted and ids != text.ids
    ]
    prompts = [
        f"{name}: {difference}"
        for name, case in family.cases.items()
        for reading, ids in zip(case.readings, words.prompts[name], strict=True)
        if case.counted
        and (
            difference := compare_ids(
                ids, reading.ids_with(token_of(case, folder)), token_of(case, folder)
            )
        )
    ]
    return texts, prompts


def _compare_pixels(family: Family, case: Case, answer: Answer) -> str | None:
    assert answer.pixels is not None
    if len(answer.pixels) != len(case.pixels):
        return f"pixels of {len(answer.pixels)} pictures, not {len(case.pixels)}"
    pairs = zip(answer.pixels, case.pixels, strict=True)
    found = [
        f"{key}: {words}" for got, key in pairs if (words := got.difference(family.pixels[key]))
    ]
    return "; ".join(found) or None
