"""Converted small twins of every family, questions about them, and transformers' answers."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from tests.compat.checkpoints import FAMILIES, convert_family
from tests.programs.run import ask_transformers

#: How many tokens are generated.
TOKENS = 8


@dataclass(frozen=True)
class Question:
    """A prompt, and what is shown with it.

    Attributes:
        prompt: the text that the folder's chat template makes, before tokenizing.
        messages: the conversation that the prompt is made of, as a chat template takes it.
        image: a PNG file, or None.
        video: an .npy file of uint8 frames, [frames, height, width, 3], or None.
    """

    prompt: str
    messages: list[dict[str, Any]]
    image: str | None
    video: str | None


@dataclass(frozen=True)
class Answer:
    """What a model makes of a question, greedily.

    Attributes:
        ids: the prompt's token ids, with all the tokens that stand for a picture or a video.
        tokens: the `TOKENS` generated ids. The token that ends a text ends nothing here.
        logprobs: the natural logarithm of each generated token's probability.
        lead: how far each generated token's logit is ahead of the next best.
    """

    ids: list[int]
    tokens: list[int]
    logprobs: list[float]
    lead: list[float]


@dataclass(frozen=True)
class Twins:
    """The converted twins.

    Attributes:
        folders: the converted folders in float32, by the family's name.
        questions: by the family's name, by kind: `text`, `picture`, `padded` (a picture that is
            not square), `video` (where the family has videos).
        answers: what the installed transformers answers in float32, by the same names.
    """

    folders: Mapping[str, Path]
    questions: Mapping[str, Mapping[str, Question]]
    answers: Mapping[str, Mapping[str, Answer]]

    def asked(self) -> dict[str, Any]:
        """Folders and questions as plain values, for a program's script."""
        return {
            name: {
                "folder": str(folder),
                "tokens": TOKENS,
                "questions": {kind: asdict(one) for kind, one in self.questions[name].items()},
            }
            for name, folder in self.folders.items()
        }


def make_twins(work: Path) -> Twins:
    """Convert a twin of every family, and ask transformers about it."""
    folders = {name: work / "out" / name for name in FAMILIES}
    for name, folder in folders.items():
        convert_family(name, work / name, folder, dtype="float32")
    asked = {
        name: {"folder": str(folder), "tokens": TOKENS, "shown": str(work / f"{name}.shown")}
        for name, folder in folders.items()
    }
    script = Path(__file__).with_name("ask_transformers.py")
    said = ask_transformers(script, asked, work)
    questions = {
        name: {kind: Question(**one["question"]) for kind, one in of.items()}
        for name, of in said.items()
    }
    answers = {
        name: {kind: Answer(**one["answer"]) for kind, one in of.items()}
        for name, of in said.items()
    }
    return Twins(folders, questions, answers)
