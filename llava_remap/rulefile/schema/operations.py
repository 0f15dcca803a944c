"""Tensor operations of a rule file."""

from __future__ import annotations

import re
from typing import Annotated, Any

from pydantic import (
    AfterValidator,
    ConfigDict,
    Discriminator,
    Field,
    PlainValidator,
    PrivateAttr,
    Tag,
    WithJsonSchema,
    model_validator,
)

from llava_remap.rulefile.operation import AS_STORED, REST, End, Join, Operation, Seen
from llava_remap.rulefile.schema.part import (
    Id,
    Optional,
    Part,
    TemplateText,
    When,
    check,
    either,
)
from llava_remap.rulefile.template import PatternError, Template

Axis = Annotated[int, Field(ge=0, lt=8)]
_NAME = r"^([A-Za-z_][A-Za-z0-9_]*|\*)$"


def _size(value: Any) -> Any:
    is_number = type(value) is int and value >= 1
    is_name = isinstance(value, str) and re.search(_NAME, value)
    said = "a size is a whole number from 1, a name of `let`, or * in quotes"
    check("form", (not is_number and not is_name, said))
    return value


AnySize = Annotated[
    int | str,
    PlainValidator(_size),
    WithJsonSchema(
        {"anyOf": [{"type": "integer", "minimum": 1}, {"type": "string", "pattern": _NAME}]}
    ),
]

_KEY = r"^target\.[A-Za-z_][A-Za-z0-9_.]*$"


def _of_target(key: str) -> str:
    check("form", (not re.search(_KEY, key), f"`{key}` isn't `target.` and a key of its config"))
    return key


SizeKey = Annotated[
    str, AfterValidator(_of_target), WithJsonSchema({"type": "string", "pattern": _KEY})
]

#: The step for a mapping in `from` or `to`, in pydantic's path to an error.
SEEN = "{name}"
#: The step for a list of tensors.
LISTED = "[tensors]"


class _View(Part):
    """Divides and reorders the axes of a tensor."""

    view: tuple[AnySize, ...] = Field(
        (),
        description="sizes of the axes into which one axis is divided: numbers, names of `let`, "
        "and one * for the remaining size",
    )
    axis: Axis = Field(0, description="the axis that `view` divides")
    axes: tuple[Axis, ...] = Field(
        (), description="order of the axes after `view`; axes that aren't listed follow"
    )

    @property
    def seen(self) -> Seen:
        return Seen(self.axis, self.view, self.axes)

    @model_validator(mode="after")
    def _sound(self) -> _View:
        check(
            "form",
            (
                "axis" in self.model_fields_set and not self.view,
                "`axis` is only allowed with `view`",
            ),
        )
        try:
            _ = self.seen
        except PatternError as error:
            check("form", (True, str(error)))
        return self


class SeenTensor(_View):
    """A tensor with a view or another order of axes, or a dropped part."""

    model_config = either(("name",), ("drop",))

    name: TemplateText | None = Field(None, description="template of the tensor's name")
    drop: str | None = Field(
        None,
        min_length=1,
        description="in `to`: drops the part; the text is the reason, for the report",
    )
    size: AnySize = Field(
        REST, description="size of a dropped part along the axis; * for the remaining size"
    )

    @model_validator(mode="after")
    def _one(self) -> SeenTensor:
        dropped = self.drop is not None
        check(
            "form",
            (dropped is (self.name is not None), "give either `name` or `drop`"),
            (
                dropped and self.seen != AS_STORED,
                "a dropped part has neither `view` nor `axes`",
            ),
            (not dropped and self.size != REST, "`size` is only for parts with `drop`"),
        )
        return self

    @property
    def end(self) -> End:
        return End(self.name, self.seen, self.drop or "", self.size)


def _kind(value: Any) -> str | None:
    if isinstance(value, (dict, SeenTensor)):
        return SEEN
    return "str" if isinstance(value, (str, Template)) else None


Tensor = Annotated[
    Annotated[TemplateText, Tag("str")] | Annotated[SeenTensor, Tag(SEEN)],
    Discriminator(
        _kind,
        custom_error_type="form",
        custom_error_message="a tensor is a template of names, {name: TEMPLATE, view: …, axes: …} "
        "or {drop: REASON}",
    ),
]
Tensors = Annotated[
    Annotated[TemplateText, Tag("str")]
    | Annotated[SeenTensor, Tag(SEEN)]
    | Annotated[tuple[Tensor, ...], Field(min_length=1), Tag(LISTED)],
    Discriminator(
        lambda value: LISTED if isinstance(value, (list, tuple)) else _kind(value),
        custom_error_type="form",
        custom_error_message="`from` and `to` need a tensor or a list of tensors",
    ),
]


class How(_View):
    """What an operation does. `view` and `axes` apply to the single tensor: the tensor to divide,
    or the tensor made by joining.
    """

    # For editors: an operation divides or joins. The validator checks the same.
    model_config = ConfigDict(
        json_schema_extra={
            "not": {
                "anyOf": [
                    {"required": [divides, joins]}
                    for divides in ("split", "unstack")
                    for joins in ("concat", "stack")
                ]
            }
        }
    )

    split: Axis | None = Field(
        None, description="the axis along which the tensor is divided, in the order of `to`"
    )
    concat: Axis | None = Field(
        None, description="the axis along which tensors are joined, in the order of `from`"
    )
    stack: Axis | None = Field(
        None,
        description="the new axis along which tensors are stacked, ordered by {x:each} or by "
        "`from`",
    )
    unstack: Axis | None = Field(
        None, description="the axis to remove: each index along it becomes a tensor"
    )

    @model_validator(mode="after")
    def _one_way(self) -> How:
        check(
            "form",
            (
                self.divides and self.joins,
                "`split` and `unstack` divide, `concat` and `stack` join",
            ),
        )
        return self

    @property
    def divides(self) -> bool:
        """Whether one tensor is divided."""
        return bool({"split", "unstack"} & self.model_fields_set)

    @property
    def joins(self) -> bool:
        """Whether several tensors are joined into one."""
        return bool({"concat", "stack"} & self.model_fields_set)

    @property
    def join(self) -> Join:
        along = self.split if self.split is not None else self.concat
        return Join(along, self.unstack if self.unstack is not None else self.stack)


class TensorRule(Part):
    """One tensor operation: the tensors of `from`, under the names that `names` made, become the
    tensors of `to`. Sizes come from the tensors and from `let`, and must add up.
    """

    id: Id
    from_: Tensors = Field(alias="from", description="the tensor to take, or the list of tensors")
    to: Tensors = Field(description="the tensor to make, or the list of tensors")
    how: How = Field(description="how the tensors are divided or joined")
    let: dict[str, SizeKey] = Field(
        {}, description="name for a size → key of the target's config (target.text_config.…)"
    )
    when: When = None
    optional: Optional = False

    _operation: Operation = PrivateAttr()

    @property
    def operation(self) -> Operation:
        """The rule, compiled."""
        return self._operation

    @model_validator(mode="after")
    def _compile(self) -> TensorRule:
        sources, targets = _ends(self.from_), _ends(self.to)
        check(
            "form",
            (
                self.how.divides and len(sources) > 1,
                "`split` and `unstack` take one tensor, but `from` has several",
            ),
            (
                self.how.joins and len(targets) > 1,
                "`concat` and `stack` make one tensor, but `to` has several",
            ),
        )
        try:
            self._operation = Operation(
                sources,
                targets,
                self.how.join,
                self.how.seen,
                {name: key.removeprefix("target.") for name, key in self.let.items()},
            )
        except PatternError as error:
            check("form", (True, str(error)))
        return self


def _ends(given: Template | SeenTensor | tuple[Template | SeenTensor, ...]) -> tuple[End, ...]:
    tensors = given if isinstance(given, tuple) else (given,)
    return tuple(End(one) if isinstance(one, Template) else one.end for one in tensors)
