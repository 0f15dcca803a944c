"""The shapes of what an operation took follow from the shapes of what it made."""

from __future__ import annotations

from typing import Any

import pytest

from llava_remap.planning.back import _LostError, _taken_shapes
from llava_remap.planning.place import MisfitError, PartOfWhole, place, viewed
from llava_remap.rulefile import AS_STORED, End, Join, Operation, Seen, Template

Places = dict[tuple[int, int], tuple[int, ...]]


def end(name: str, **seen: Any) -> End:
    return End(Template(name), Seen(**seen))


def shapes(operation: Operation, made: Places) -> Places:
    names = {place: f"{place[0]}-{place[1]}" for place in made}
    by_name = {names[place]: shape for place, shape in made.items()}
    return _taken_shapes(operation, names, by_name, {"heads": 4, "size": 3})


QKV = (end("{m}.q"), end("{m}.k"), end("{m}.v"))
GROUPED = Seen(view=("heads", "*", "size"))
ROPE = Seen(view=("heads", "*", 2), axes=(0, 2, 1))
EXPERTS = Join(along=1, stacked=0)


@pytest.mark.parametrize(
    ("operation", "made", "took"),
    [
        (
            Operation((end("{m}.qkv"),), QKV, Join(along=0)),
            {(0, 0): (8, 5), (1, 0): (4, 5), (2, 0): (4, 5)},
            {(0, 0): (16, 5)},
        ),
        (
            Operation(
                (end("{m}.qkv"),),
                QKV,
                Join(along=1),
                GROUPED,
                {"heads": "a", "size": "b"},
            ),
            {(0, 0): (24, 5), (1, 0): (12, 5), (2, 0): (12, 5)},
            {(0, 0): (48, 5)},
        ),
        (
            Operation((end("{m}.w"),), (end("{m}.v"),), Join(), Seen(axes=(1, 0))),
            {(0, 0): (3, 7)},
            {(0, 0): (7, 3)},
        ),
        (
            Operation((end("{m}.w"),), (end("{m}.v"),), Join(), Seen(axes=(2, 0, 1))),
            {(0, 0): (3, 7, 2, 5)},
            {(0, 0): (7, 2, 3, 5)},
        ),
        (
            Operation((end("{m}.w"),), (end("{m}.v"),), Join(), ROPE, {"heads": "a"}),
            {(0, 0): (16, 6)},
            {(0, 0): (16, 6)},
        ),
        (
            Operation((end("{m}.w"),), (end("{m}.v"),), Join(), ROPE, {"heads": "a"}),
            {(0, 0): (16,)},
            {(0, 0): (16,)},
        ),
        (
            Operation(
                (end("{m}.gu"),), (end("{m}.g"), end("{m}.u")), Join(stacked=1), Seen(view=("*", 2))
            ),
            {(0, 0): (6, 5), (1, 0): (6, 5)},
            {(0, 0): (12, 5)},
        ),
        (
            Operation((end("{m}.experts"),), (end("{m}.{e:each}.w"),), Join(stacked=0)),
            {(0, number): (6, 5) for number in range(3)},
            {(0, 0): (3, 6, 5)},
        ),
        (
            Operation(
                (end("{m}.gate_up"),),
                (end("{m}.{e:each}.g"), end("{m}.{e:each}.u")),
                EXPERTS,
            ),
            {(part, number): (6 - part, 5) for number in range(3) for part in range(2)},
            {(0, 0): (3, 11, 5)},
        ),
        (
            Operation((end("{m}.{e:each}.w"),), (end("{m}.experts"),), Join(stacked=0)),
            {(0, 0): (3, 6, 5)},
            {(0, number): (6, 5) for number in range(3)},
        ),
        (
            Operation((end("{m}.{e:each}.w"),), (end("{m}.experts"),), Join(stacked=2)),
            {(0, 0): (6, 5, 3)},
            {(0, number): (6, 5) for number in range(3)},
        ),
        (  # scalars
            Operation((end("{m}.scales"),), (end("{m}.{e:each}.scale"),), Join(stacked=0)),
            {(0, number): () for number in range(3)},
            {(0, 0): (3,)},
        ),
        (
            Operation((end("{m}.g"), end("{m}.u")), (end("{m}.gu"),), Join(stacked=0)),
            {(0, 0): (2, 6)},
            {(0, 0): (6,), (1, 0): (6,)},
        ),
    ],
)
def test_shapes_of_what_was_taken(operation: Operation, made: Places, took: Places) -> None:
    assert shapes(operation, made) == took


def test_what_is_put_together_along_an_axis_has_unknown_sizes() -> None:
    operation = Operation((end("{m}.a"), end("{m}.b")), (end("{m}.c"),), Join(along=0))
    with pytest.raises(_LostError, match="sizes of the tensors that it joined"):
        shapes(operation, {(0, 0): (8, 5)})


def test_another_number_of_tensors_than_the_axis_has() -> None:
    operation = Operation((end("{m}.g"), end("{m}.u")), (end("{m}.gu"),), Join(stacked=0))
    with pytest.raises(MisfitError, match="holds 3 tensors, not 2"):
        shapes(operation, {(0, 0): (3, 6)})


def test_a_view_alone_says_the_whole_shape() -> None:
    """The way back has only the rule: `[*, 4]` of a tensor that stays (12, 4) would be (48,)."""
    seen = Seen(view=("*", 4))
    for shape in ((12, 4), (1, 12, 4), (12, 4, 1)):
        with pytest.raises(MisfitError, match="its place in"):
            place(
                viewed("w", (12, 4), seen, {}),
                Join(),
                [[PartOfWhole(viewed("v", shape, AS_STORED, {}))]],
            )
    operation = Operation((end("{m}.w"),), (end("{m}.v"),), Join(), seen)
    assert shapes(operation, {(0, 0): (3, 4, 4)}) == {(0, 0): (12, 4)}
