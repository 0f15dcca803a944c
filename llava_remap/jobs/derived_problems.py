"""Problems and notes of a derived target: configs that disagree, and the consequences of the
language model's class or of a missing tokenizer.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from llava_remap.checkpoint import Checkpoint
from llava_remap.core.problem import Problem
from llava_remap.jobs.source_configs import believed, overriding
from llava_remap.rewrite import contradictions
from llava_remap.rulefile import Condition, RuleFile
from llava_remap.target_model import (
    SCALED_PICTURES,
    Target,
    TargetConfig,
    TextModel,
    text_differences,
)


def config_problems(rules: RuleFile, checkpoints: Mapping[str, Checkpoint]) -> list[Problem]:
    """LR112 if the config of an overriding source changes what the first source's layers
    compute.
    """
    base = checkpoints[rules.first_source].config or {}
    problems = []
    for name in believed(rules, checkpoints):
        own = checkpoints[name].config or {}
        if (
            "hidden_size" in base
            and "hidden_size" in own
            and (found := text_differences(rules, own, base))
        ):
            problems.append(
                Problem(
                    "LR112",
                    f"the configs of `{name}` and `{rules.first_source}` disagree on the language "
                    f"model: {'; '.join(found)}.",
                    "Find out how the layers were trained, and correct the other config.json.",
                )
            )
    return problems


def activation_problems(
    rules: RuleFile, checkpoints: Mapping[str, Checkpoint], config: TargetConfig
) -> list[Problem]:
    """LR112 if a projector's own config names another activation than the target's config.

    A config with the sizes of a language model is not the projector's own.
    """
    wanted = config.config.get("projector_hidden_act")
    problems = []
    for name in overriding(rules, checkpoints):
        own = checkpoints[name].config or {}
        said = own.get("hidden_act")
        if "hidden_size" not in own and None not in (said, wanted) and said != wanted:
            cause = (
                f"the config of `{name}` says hidden_act: {said!r}, but {rules.name} writes a "
                f"projector with {wanted!r}."
            )
            line = f"target: {{config: {{projector_hidden_act: {{const: {said}}}}}}}"
            problems.append(
                Problem(
                    "LR112",
                    cause,
                    f"Write a rule file with `extends: [{rules.name}.yaml]` and `{line}`.",
                )
            )
    return problems


def text_problems(text: TextModel) -> list[Problem]:
    """LR314 if the target's class computes other logits than the language model's own class."""
    if not text.differs:
        return []
    fix = "No rule file can change that: the class for text and pictures can't compute it."
    if text.known_by:
        fix = (
            f"The language model is assumed to be {text.kind}, since the name `{text.known_by}` "
            f"has the same ending. {_another(text)}"
        )
    return [Problem("LR314", f"the language model, of type {text.kind}: {text.differs}.", fix)]


def text_notes(text: TextModel, target: Target) -> list[Problem]:
    """LR319 for a language model that was recognised by the end of a name, or that some versions
    of transformers don't open or compute differently.
    """
    notes = []
    if text.known_by:
        cause = (
            f"the language model is assumed to be {text.kind} of transformers, since the name "
            f"`{text.known_by}` in the config has the same ending."
        )
        notes.append(
            Problem(
                "LR319",
                cause,
                "If the research code computes something else, this folder doesn't. "
                f"{_another(text)}",
            )
        )
    if text.newer:
        notes.append(Problem("LR319", f"the language model, of type {text.kind}: {text.newer}."))
    if text.kind in SCALED_PICTURES:
        cause = (
            f"the language model, of type {text.kind}: transformers up to 5.0 multiplies the "
            "features of pictures, like the embeddings of words, by the root of hidden_size. From "
            "some later version on, 5.23 at the latest, only the embeddings of words are "
            "multiplied. So with pictures, the versions compute different logits."
        )
        notes.append(
            Problem(
                "LR319",
                cause,
                "Load the folder with a version that computes as in the training.",
            )
        )
    if target.joined:
        cause = (
            f"the loader of transformers 5 joins {target.joined} tensors (mostly experts) into "
            "larger parameters. Version 5.0 doesn't join them inside this class, and fills the "
            "parameters with random numbers. Use 4.x, which loads the tensors as they are, or a "
            "version after 5.0."
        )
        notes.append(Problem("LR319", cause))
    return notes


def _another(text: TextModel) -> str:
    line = f"target: {{text_models: {{{text.known_by}: TYPE}}}}"
    return f"If it has another type, name that type in a rule file that extends this one: `{line}`."


def notices(rules: RuleFile, config: Mapping[str, Any]) -> list[Problem]:
    """LR315 for each notice of the rule file that concerns a checkpoint with this config."""
    told = (
        n.text
        for n in rules.text.notices.values()
        if not contradictions(Condition(config=n.when), (), config)
    )
    return [Problem("LR315", text) for text in told]


def no_tokenizer_note() -> Problem:
    """LR408: no source has a tokenizer."""
    cause = (
        "no source has a tokenizer. The folder lacks the tokenizer (tokenizer.json, "
        "tokenizer_config.json), the processor (processor_config.json) and the chat template "
        "(chat_template.jinja, chat_template.json): the model opens, AutoProcessor doesn't. New "
        "tokens get the ids after the last row of embed_tokens."
    )
    fix = (
        "To add these files, convert with --source language_model=DIR, the folder with the "
        "language model's tokenizer files."
    )
    return Problem("LR408", cause, fix, lacks=True)
