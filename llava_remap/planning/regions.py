"""Boxes in words that a user reads: which rows of a tensor go where. Pure."""

from __future__ import annotations

from math import prod

from llava_remap.planning.boxes import Box, Shape

_Spans = list[tuple[int, int]]
_ALL = "all"


def in_words(box: Box, shape: Shape, called: str = "") -> str:
    """A region of a tensor: `` `x` ``, ``rows 0..3 of `x` ``, or where a view is needed
    ``[all, 0..1] of `x` seen as [4, 8]``.

    Args:
        shape: of the tensor.
        called: how the words call the tensor; by default its name.
    """
    name, spans = called or f"`{box.name}`", _by_axis(box, shape)
    if spans is None:
        axes = [axis for axis in box.axes if box.view[axis] != 1]
        sizes = [size for size in box.view if size != 1]
        order = [sorted(axes).index(axis) for axis in axes]
        seen = f"{name} seen as {sizes}"
        if order != sorted(order):
            seen += f" in the order {order}"
        in_view = box.in_view()
        texts = [_span(*in_view[axis], box.view[axis]) for axis in axes]
        return f"[{', '.join(texts)}] of {seen}" if {*texts} != {_ALL} else seen
    texts = [_span(*span, size) for span, size in zip(spans, shape, strict=True)]
    limited = [axis for axis, text in enumerate(texts) if text != _ALL]
    if not limited:
        return name
    if limited not in ([0], [1]):
        return f"[{', '.join(texts)}] of {name}"
    several = "" if spans[limited[0]][1] - spans[limited[0]][0] == 1 else "s"
    return f"{('row', 'column')[limited[0]]}{several} {texts[limited[0]]} of {name}"


def _span(start: int, stop: int, size: int) -> str:
    if stop - start == size:
        return _ALL
    return str(start) if stop - start == 1 else f"{start}..{stop - 1}"


def _by_axis(box: Box, shape: Shape) -> _Spans | None:
    """The region as a span of each axis of the tensor; None where it has another form, or its axes
    are in another order.
    """
    order = [axis for axis in box.axes if box.view[axis] != 1]
    if order != sorted(order):
        return None
    spans, left = box.in_view(), order
    found: _Spans = []
    for size in shape:
        inside: list[int] = []
        while left and prod(box.view[axis] for axis in inside) < size:
            inside.append(left[0])
            left = left[1:]
        if prod(box.view[axis] for axis in inside) != size:
            return None
        # Rows are contiguous if every axis behind the first with several indices is whole.
        start, count, first = 0, 1, False
        for axis in inside:
            extent, whole = spans[axis][1] - spans[axis][0], box.view[axis]
            if first and extent != whole:
                return None
            first = first or extent > 1
            start, count = start * whole + spans[axis][0], count * extent
        found.append((start, start + count))
    return found if not left else None
