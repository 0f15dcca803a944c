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
#: The step for a default that is a mapping, in pydantic's path to an error. No field has this name.
NAMED = "{from}"


class Change(Part):
    """An entry of the file's history."""

    version: str = Field(description="the version of this rule file that has the change")
    what: str = Field(description="what changed, in one line")


class NamedDefault(Part):
    """A default repository that the language model's config names."""

    from_: str = Field(
        alias="from",
        description="key of the config that describes the language model; its value is a hub "
        "repository or a path",
    )
    map: dict[str, str] = Field(
        {}, description="a value that the config may have → the repository that it stands for"
    )
    default: str | None = Field(None, description="hub repository to use if the config names none")


def _kind_of_default(value: Any) -> str | None:
    if isinstance(value, (dict, NamedDefault)):
        return NAMED
    return "str" if isinstance(value, str) else None


Default = Annotated[
    Annotated[str, Tag("str")] | Annotated[NamedDefault, Tag(NAMED)],
    Discriminator(
        _kind_of_default,
        custom_error_type="form",
        custom_error_message="a `default` is a hub repository, or {from: KEY} for the "
        "repository that the source's config names",
    ),
]


class Source(Part):
    """A checkpoint that the rule file reads."""

    default: Default | None = Field(
        None,
        description="hub repository to use if the job gives none. Every source but the first "
        "may have {from: KEY, default: REPOSITORY} instead: the repository that the config names "
        "under KEY, or REPOSITORY if it names none",
    )
    optional: bool = Field(False, description="whether a job may leave this source out")
    use: tuple[Literal["tensors", "config", "tokenizer", "processor"], ...] = Field(
        ("tensors", "config", "tokenizer", "processor"),
        description="which parts of the source are used; all by default",
    )
    used_if_absent: TemplateText | None = Field(
        None,
        description="template: this source's tensors are used only if the template matches no "
        "name of the first source",
    )
    select: TemplateText | tuple[TemplateText, ...] = Field(
        (),
        description="template of names, or a list of templates: only tensors whose names match "
        "one are used. Names are matched after `prepare`",
    )
    prefix: str = Field(
        "", description="text to put before each name of the source, before any rule applies"
    )
    overrides: bool = Field(
        False,
        description="this source's tensors replace those of other sources for the same "
        "parameters, and a LoRA adapter is merged. If two such sources have one parameter, the "
        "later source wins. The source may be less than a model: an adapter, a projector",
    )

    @property
    def selected(self) -> tuple[Template, ...]:
        """The templates of `select`; empty where every tensor is taken."""
        return (self.select,) if isinstance(self.select, Template) else self.select


class PostLoad(Part):
    """A plug-in that changes tensors after the rename. The plan knows their new shapes."""

    use: str = Field(description="name of an installed plug-in, e.g. expand_embeddings")
    with_: dict[str, Any] = Field({}, alias="with", description="the plug-in's options")


class RuleText(Part):
    """A rule file of llava-remap, or a part that rule files extend: the translation of a checkpoint
    family's tensor names.
    """

    schema_: int = Field(
        alias="schema",
        description="version of the rule language",
        json_schema_extra={"enum": list(SCHEMA_VERSIONS)},
    )
    name: str | None = Field(
        None, description="name of this rule file, which the record of a conversion repeats"
    )
    version: str | None = Field(
        None, pattern=r"^\d+\.\d+\.\d+$", description="version of this rule file: three numbers"
    )
    summary: str | None = Field(None, description="the purpose in one line, for `rules list`")
    changes: tuple[Change, ...] = Field(
        (), description="history of this rule file, the newest entry last"
    )
    extends: tuple[str, ...] = Field(
        (),
        description="files to build on: paths relative to this file, or names of shipped files "
        "(parts/wrappers.yaml). This file's own rules stand before inherited ones; a rule with "
        "the id of an inherited rule replaces that rule in its place",
    )
    detect: Condition = Field(
        Condition(),
        description="which checkpoints the file is for. The names are those of the first source "
        "and of the sources that override it, after `prepare`",
    )
    requires: dict[str, Requirement] = Field(
        {},
        description="conditions as in `detect`, each under a name of its own, for checkpoints "
        "that look alike and compute something else. If a condition doesn't hold, the job is "
        "refused with the text of its `else`",
    )
    notices: dict[str, Notice] = Field(
        {},
        description="what users of the output folder have to know, each notice under a name of "
        "its own",
    )
    config_keys: dict[str, Literal["unused", "told", "refused"]] = Field(
        {},
        description="for keys of the source's config that neither a rule nor the language "
        "model's class reads: key, with * for any characters → unused (no computation depends on "
        "the key), told (the report names the key), or refused (the job is refused, as for an "
        "unlisted key). The exact key counts before patterns, and the first matching pattern "
        "before later ones",
    )
    sources: dict[str, Source] = Field(
        {}, description="the checkpoints to read, by name; the first is the main one"
    )
    target: Target | None = Field(None, description="the model to write")
    tokens: tuple[Token, ...] = Field(
        (), description="tokens that the tokenizer must have; missing ones are added"
    )
    prepare: tuple[Rule, ...] = Field(
        (),
        description="clean-up of names (removes wrappers, drops buffers): every rule is tried "
        "in turn, each at most once per name",
    )
    names: tuple[Rule, ...] = Field(
        (),
        description="translation of names: the first rule that matches takes the name; a name "
        "that no rule matches is an error",
    )
    tensors: tuple[TensorRule, ...] = Field(
        (),
        description="operations on tensors: divide, join, reorder axes. They match the names "
        "that `names` made; the first operation that matches takes the tensor",
    )
    layouts: tuple[str, ...] = Field(
        (),
        description="shipped layouts of transformers (the files in `layouts/`), by name. The "
        "layout that takes most of the checkpoint's names is used; on a tie, the first one "
        "listed. Its `names` stand behind this file's own",
    )
    post_load: tuple[PostLoad, ...] = Field(
        (), description="plug-ins that change tensors after the rename, in order"
    )
    processor: Processor | None = Field(
        None, description="image processor, chat template, and number of image tokens"
    )
    tests: tuple[NameTest, ...] = Field(
        (), description="example names and what must become of them; `rules test` runs the tests"
    )

    @model_validator(mode="after")
    def _complete(self) -> RuleText:
        """A file with a target must have all fields; a part may leave some to its children."""
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
            (first.overrides, "the first of `sources` has no source before it to override"),
            (
                isinstance(first.default, NamedDefault),
                "the first of `sources` has no source before it whose config could name its "
                "default",
            ),
            (
                self.target is not None
                and self.target.as_ is not None
                and (self.tokens or self.post_load),
                "`target.as` goes with neither `tokens` nor `post_load`",
            ),
            (
                self.target is not None
                and self.target.as_ is not None
                and self.target.config_file is None
                and self.processor is not None,
                "with `target.as`, a `processor` is for a `target.config_file`",
            ),
            (
                self.target is not None and self.target.is_said and missing,
                f"a rule file with a target needs {', '.join(missing)}",
            ),
        )
        return self
