"""The whole rule file."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Discriminator, Field, Tag, model_validator

from llava_remap.rulefile.kinds import Unwrap
from llava_remap.rulefile.schema.operations import TensorRule
from llava_remap.rulefile.schema.part import (
    Condition,
    Notice,
    Part,
    Requirement,
    TemplateText,
    check,
)
from llava_remap.rulefile.schema.rules import NameTest, Rule
from llava_remap.rulefile.schema.target import Processor, Target, Token
from llava_remap.rulefile.template import Template

SCHEMA_VERSIONS = (1,)
#: What a default that is a mapping is called in the place of an error; no field is called so.
NAMED = "{from}"


class Change(Part):
    """An entry of the file's history."""

    version: str = Field(description="the version of this rule file that brought it")
    what: str = Field(description="what changed, in a line")


class NamedDefault(Part):
    """A source's default that the sources' config names."""

    from_: str = Field(
        alias="from",
        description="key of the config that describes the language model; its value is a hub "
        "repository or a path",
    )
    map: dict[str, str] = Field(
        {}, description="what the config may call a repository → the repository"
    )
    default: str | None = Field(
        None, description="hub repository taken where the config names none"
    )


def _kind_of_default(value: Any) -> str | None:
    if isinstance(value, (dict, NamedDefault)):
        return NAMED
    return "str" if isinstance(value, str) else None


Default = Annotated[
    Annotated[str, Tag("str")] | Annotated[NamedDefault, Tag(NAMED)],
    Discriminator(
        _kind_of_default,
        custom_error_type="form",
        custom_error_message="a `default` is a hub repository, or {from: KEY} for the one that the "
        "source's config names",
    ),
]


class Source(Part):
    """A checkpoint that the file reads."""

    default: Default | None = Field(
        None,
        description="hub repository taken where none is given; or, not for the first source, "
        "{from: KEY, default: REPOSITORY}: "
        "what the source's config names, and the repository where it names none",
    )
    optional: bool = Field(False, description="whether a job goes on where it isn't given")
    use: tuple[Literal["tensors", "config", "tokenizer", "processor"], ...] = Field(
        ("tensors", "config", "tokenizer", "processor"),
        description="what is taken of it; all by default",
    )
    used_if_absent: TemplateText | None = Field(
        None, description="its tensors are taken only where no name of the first source matches"
    )
    select: TemplateText | tuple[TemplateText, ...] = Field(
        (),
        description="template of names, or a list; of its tensors only those are taken whose "
        "names, as `prepare` leaves them, "
        "match one",
    )
    prefix: str = Field("", description="put before each of its names, before any rule")
    overrides: bool = Field(
        False,
        description="its tensors take the place of those that other sources have for the same "
        "parameters, and if it is a LoRA "
        "adapter, it is merged; of two such sources the later wins. Less than a model will do: an "
        "adapter, a projector",
    )

    @property
    def selected(self) -> tuple[Template, ...]:
        """The templates of `select`; empty where every tensor is taken."""
        return (self.select,) if isinstance(self.select, Template) else self.select


class PostLoad(Part):
    """A post-load rule: it changes tensors after the rename, with shapes that the plan knows
    beforehand.
    """

    use: str = Field(description="name of an installed plug-in, e.g. expand_embeddings")
    with_: dict[str, Any] = Field({}, alias="with", description="its options")


class RuleText(Part):
    """A rule file of llava-remap, or a part that rule files extend: how the names of a family of
    checkpoints become others.
    """

    schema_: int = Field(
        alias="schema",
        description="version of the rule language",
        json_schema_extra={"enum": list(SCHEMA_VERSIONS)},
    )
    name: str | None = Field(
        None, description="what it is called by, and what the record of a conversion names"
    )
    version: str | None = Field(
        None, pattern=r"^\d+\.\d+\.\d+$", description="version of this rule file: three numbers"
    )
    summary: str | None = Field(
        None, description="what it is for, in a line: `rules list` shows it"
    )
    changes: tuple[Change, ...] = Field((), description="its history, the newest last")
    extends: tuple[str, ...] = Field(
        (),
        description="files to build on, relative to this file or named as the shipped ones are "
        "(parts/wrappers.yaml); this "
        "file's own rules stand before theirs, and a rule with the id of one of theirs replaces it",
    )
    detect: Condition = Field(
        Condition(),
        description="which checkpoints the file is for; names are those of the first source and of "
        "the ones that override it, as "
        "`prepare` left them",
    )
    requires: dict[str, Requirement] = Field(
        {},
        description="by a name of their own, conditions as in `detect`, for checkpoints that look "
        "alike and compute something "
        "else: where one doesn't hold, the job is refused with what differs",
    )
    notices: dict[str, Notice] = Field(
        {}, description="by a name of their own, what users of the folder have to know"
    )
    config_keys: dict[str, Literal["unused", "told", "refused"]] = Field(
        {},
        description="key of the source's config that neither a rule nor the language model's class "
        "reads, with * for any signs: "
        "unused (nothing that is computed depends on it), told (the report names it), or refused, "
        "as any other key is. What "
        "stands for the key itself counts, else the first pattern that matches",
    )
    sources: dict[str, Source] = Field(
        {}, description="the checkpoints that are read, by name; the first is the main one"
    )
    target: Target | None = Field(None, description="the model that is wanted")
    tokens: tuple[Token, ...] = Field(
        (), description="tokens that the tokenizer must have; they are added where they are absent"
    )
    prepare: tuple[Rule, ...] = Field(
        (),
        description="clean-up of names (wrappers off, buffers dropped): every rule in turn, each "
        "at most once a name",
    )
    names: tuple[Rule, ...] = Field(
        (),
        description="translation: the first rule that matches takes the name; one that none "
        "matches is an error",
    )
    tensors: tuple[TensorRule, ...] = Field(
        (),
        description="operations on tensors, by the names that `names` made: divide, join, reorder "
        "axes. The first that matches takes the tensor",
    )
    layouts: tuple[str, ...] = Field(
        (),
        description="layouts of transformers (the shipped files in `layouts/`, by name): the "
        "`names` of that one count, behind "
        "this file's own, which takes most of the checkpoint's names; of two the first",
    )
    post_load: tuple[PostLoad, ...] = Field(
        (), description="what changes tensors after the rename, in order"
    )
    processor: Processor | None = Field(
        None, description="image processor, chat template, number of image tokens"
    )
    tests: tuple[NameTest, ...] = Field(
        (), description="what must become of which name; `rules test` runs them"
    )

    @model_validator(mode="after")
    def _complete(self) -> RuleText:
        """A part may leave out what the files that extend it say; a file with a target may not."""
        unwraps = [rule.id for rule in self.names if isinstance(rule.kind, Unwrap)]
        texts, roles = [t.text for t in self.tokens], [t.role for t in self.tokens]
        first = next(iter(self.sources.values()), Source())
        missing = [
            field for field in ("name", "version", "summary") if getattr(self, field) is None
        ]
        if not self.sources:
            missing.append("sources")
        if self.processor is not None and self.processor.class_ is None:
            missing.append("processor.class")
        check(
            "form",
            (
                unwraps,
                f"`unwrap` is for `prepare`; `{', '.join(unwraps[:1])}` is a rule of `names`",
            ),
            (len({*texts}) < len(texts), f"two of `tokens` have one text: {', '.join(texts)}"),
            (len({*roles}) < len(roles), f"two of `tokens` have one role: {', '.join(roles)}"),
            (first.overrides, "the first of `sources` has none before it to override"),
            (
                isinstance(first.default, NamedDefault),
                "the first of `sources` has none before it whose config could name its default",
            ),
            (
                self.target is not None
                and self.target.as_ is not None
                and (self.tokens or self.post_load or self.processor),
                "`target.as` goes with none of `tokens`, `post_load` and `processor`",
            ),
            (
                self.target is not None and self.target.is_said and missing,
                f"a rule file with a target needs {', '.join(missing)}",
            ),
        )
        return self
