"""What the comparisons rest on is made here as it was recorded, and the comparisons can fail."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from tests.original import pixels
from tests.original.answer import Answer, FolderAnswer, Forward
from tests.original.answers import Answers
from tests.original.convert import main_target
from tests.original.facts import (
    FAMILIES,
    IMAGE,
    Case,
    Family,
    Pixels,
    family,
    picture,
    picture_digest,
)
from tests.original.verdict import judge_case

TOKEN, VIDEO = 500, 501


@pytest.mark.parametrize("name", FAMILIES)
def test_the_pictures_are_the_recorded_ones(name: str) -> None:
    recorded = family(name).picture_digests
    assert {name: picture_digest(name) for name in recorded} == recorded


@pytest.mark.parametrize("name", FAMILIES)
def test_reference_pixels_are_the_recorded_ones(name: str) -> None:
    """So logits of the model alone are those of the research code's pixels."""
    seen = set()
    for case in family(name).cases.values():
        made = pixels.case_pixels(family(name), case, [picture(one) for one in case.pictures])
        for key, array in zip(case.pixels, made, strict=True):
            assert Pixels.of(array).difference(family(name).pixels[key]) is None
            seen.add(key)
    assert seen == family(name).pixels.keys()


@pytest.mark.parametrize(
    "name", [name for name in FAMILIES if pixels.recipe(family(name)).pinpoints]
)
def test_grids_are_the_recorded_ones(name: str) -> None:
    recipe = pixels.recipe(family(name))
    for case in family(name).cases.values():
        for of, grid in zip(case.pictures, case.grids, strict=True):
            assert grid in (None, pixels.best_grid(recipe, picture(of)))


def test_all_facts_are_read() -> None:
    """A folder without facts, or a case left out, would go unnoticed."""
    assert len(FAMILIES) == 14
    assert sum(len(family(name).cases) for name in FAMILIES) == 206
    assert all(case.readings for name in FAMILIES for case in family(name).cases.values())
    for case in (case for name in FAMILIES for case in family(name).cases.values()):
        for reading in case.readings:
            assert (
                reading.prompt.count("<image>")
                == reading.ids.count(IMAGE)
                == len(reading.image_positions)
            )


def right(facts: Family, case: Case) -> Answer:
    """An answer that meets the facts, with nothing of transformers."""
    reading = case.readings[0]
    forward = Forward(None, None, tuple(map(float, reading.logits)), reading.argmax)
    ids = tuple(reading.ids_with(VIDEO if case.video else TOKEN))
    return Answer(
        None,
        reading.prompt,
        ids,
        tuple(facts.pixels[key] for key in case.pixels),
        forward,
        (forward,),
    )


def wrong(
    name: str, case: str, version: str, answer: Answer, model_type: str = "llava"
) -> tuple[str, ...]:
    folder = FolderAnswer(
        version, None, None, False, model_type, TOKEN, VIDEO, None, None, None, {case: answer}
    )
    answers = Answers({}, {version: {main_target(name).name: folder}})
    return judge_case(family(name), family(name).cases[case], answers, version).wrong


def test_a_right_answer_is_right() -> None:
    facts = family("llava-1.5")
    assert wrong("llava-1.5", "landscape", "5.23.0", right(facts, facts.cases["landscape"])) == ()


def changes() -> dict[str, Answer]:
    """By what differs then."""
    facts = family("llava-1.5")
    answer = right(facts, facts.cases["landscape"])
    assert answer.prompt is not None
    assert answer.ids is not None
    assert answer.whole is not None
    one_more = tuple(np.add(answer.whole.logits, 2e-5 * facts.cases["landscape"].readings[0].sd))
    best = answer.whole.argmax
    return {
        "error": replace(answer, error="ValueError: no"),
        "prompt": replace(answer, prompt=answer.prompt + " "),
        "ids": replace(answer, ids=(*answer.ids, 1), whole=None),
        "pixels": replace(answer, pixels=(facts.pixels["336x336-1 single"],)),
        "logits": replace(answer, whole=replace(answer.whole, logits=one_more)),
        "argmax": replace(answer, whole=replace(answer.whole, argmax=(*best[:-1], best[-1] + 1))),
    }


@pytest.mark.parametrize("kind", changes())
def test_a_wrong_answer_is_wrong(kind: str) -> None:
    (words,) = wrong("llava-1.5", "landscape", "5.23.0", changes()[kind])
    assert words.startswith(f"{kind}: ")


@pytest.mark.parametrize(
    ("name", "case", "version", "model_type", "words"),
    [
        (
            "llava-1.6-vicuna",
            "landscape",
            "4.51.3",
            "llava_next",
            "tile shift: no difference in pixels",
        ),
        ("llava-1.5", "landscape", "4.46.3", "llava", "cropping: no difference in pixels"),
        ("llava-1.5", "text", "4.46.3", "llava", "words alone: no difference in error"),
        (
            "interleave",
            "two",
            "4.52.4",
            "llava_onevision",
            "several pictures: no difference in ids",
        ),
        (
            "onevision",
            "video",
            "5.0.0",
            "llava_onevision",
            "videos without torchvision: no difference in error",
        ),
    ],
)
def test_a_declared_fault_that_does_not_occur_is_wrong(
    name: str, case: str, version: str, model_type: str, words: str
) -> None:
    assert words in wrong(
        name, case, version, right(family(name), family(name).cases[case]), model_type
    )


def test_a_fault_explains_nothing_but_its_own_pixels() -> None:
    """Cropped pixels are what 4.46 makes; others aren't excused, nor are other ids."""
    facts = family("llava-1.5")
    case = facts.cases["landscape"]
    answer = right(facts, case)
    assert answer.ids is not None
    cropped = Pixels.of(pixels.cropped(pixels.recipe(facts), picture(case.pictures[0])))
    assert wrong("llava-1.5", "landscape", "4.46.3", replace(answer, pixels=(cropped,))) == ()
    (words,) = wrong(
        "llava-1.5",
        "landscape",
        "4.46.3",
        replace(answer, pixels=(facts.pixels["500x333-2 single"],)),
    )[:1]
    assert words.startswith("cropping: ")
    assert (
        wrong(
            "llava-1.5",
            "landscape",
            "4.46.3",
            replace(answer, pixels=(facts.pixels["336x336-1 single"],)),
        )
        != ()
    )
    assert (
        wrong(
            "llava-1.5",
            "landscape",
            "4.46.3",
            replace(answer, pixels=(cropped,), ids=answer.ids[1:], whole=None),
        )
        != ()
    )
