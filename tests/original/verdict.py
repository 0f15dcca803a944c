"""What comparisons come to: equal, equal but for a declared fault of that version, or wrong."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from tests.original.answers import Answers
from tests.original.convert import main_target
from tests.original.facts import Case, Family, family
from tests.original.faults import Fault, fault_of
from tests.original.judge import compare, compare_alone, compare_words, token_of

TEXTS = "texts"


@dataclass(frozen=True)
class Verdict:
    """Of one case in one version.

    Attributes:
        wrong: what differs and isn't explained, in words.
        fault: the declared fault that explains the rest.
    """

    wrong: tuple[str, ...]
    fault: Fault | None = None


def judge_case(facts: Family, case: Case, answers: Answers, version: str) -> Verdict:
    """The whole way: prompt, ids, pixels, logits. A case that isn't counted only must not fail."""
    folder = answers.of(main_target(facts.name), version)
    if isinstance(folder, str):
        return Verdict((folder,))
    answer, fault = folder.cases[case.name], fault_of(facts, case, folder)
    found = compare(facts, case, answer, token_of(case, folder))
    if not case.counted:
        found = {kind: words for kind, words in found.items() if kind == "error"}
    if fault is None:
        return Verdict(tuple(f"{kind}: {words}" for kind, words in found.items()))
    if not case.counted and not fault.shows & {"error"}:
        return Verdict(tuple(found.values()))
    alone = judge_alone(facts, case, answers, version).wrong
    return Verdict((*fault.unexplained(found, facts, case, answer, folder), *alone), fault)


def judge_alone(facts: Family, case: Case, answers: Answers, version: str) -> Verdict:
    """The model alone, with the research code's own ids and pixels. A case that isn't counted
    only must not fail.
    """
    folder = answers.of(main_target(facts.name), version)
    if isinstance(folder, str):
        return Verdict((folder,))
    found, fault = (
        compare_alone(facts, case, folder.cases[case.name]),
        fault_of(facts, case, folder),
    )
    if not case.counted:
        found = {kind: words for kind, words in found.items() if kind == "error"}
    if fault is None or not fault.alone:
        return Verdict(tuple(f"model alone, {kind}: {words}" for kind, words in found.items()))
    absent = () if found.pop("error", None) else (f"{fault.name}: the model alone takes it",)
    return Verdict(
        (*(f"model alone, {kind}: {words}" for kind, words in found.items()), *absent), fault
    )


def judge_words(
    facts: Family, answers: Answers, version: str, *, slow: bool = False
) -> tuple[list[str], list[str]]:
    """The texts and the prompts that a tokenizer cuts otherwise; why there is none, as both."""
    folder = answers.of(main_target(facts.name), version)
    if isinstance(folder, str):
        return [folder], [folder]
    words = folder.slow if slow else folder.fast
    if words is None:
        why = f"no tokenizer: {folder.no_slow}"
        return [why], [why]
    return compare_words(facts, words, folder)


def judge_family(name: str, answers: Answers, version: str) -> Iterator[tuple[str, Verdict]]:
    """Everything that is counted: the texts, and all cases by name."""
    facts = family(name)
    yield TEXTS, Verdict(tuple(judge_words(facts, answers, version)[0]))
    for case in facts.cases.values():
        if case.counted:
            yield case.name, judge_case(facts, case, answers, version)
