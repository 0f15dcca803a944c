"""Multiplies tensors by a factor that the training code applied outside the model."""

from collections.abc import Iterator, Mapping, Sequence

from pydantic import BaseModel, ConfigDict, Field

from llava_remap.post_load import Before, Change, Effect, Reader, from_float64, refuse


class Multiply(BaseModel):
    """Options of `use: multiply`."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)

    targets: list[str] = Field(description="names of the tensors in the model")
    factor: float = Field(allow_inf_nan=False)

    def plan(self, before: Before) -> Effect:
        """Dtypes and shapes stay; values are read, so inf and NaN are looked for first."""
        changes = []
        for name in self.targets:
            if name not in before.tensors:
                raise refuse(
                    "LR212",
                    f"`multiply`: the model has no `{name}`.",
                    "A dry run with --format json lists the names.",
                )
            dtype, shape = before.tensors[name]
            changes.append(Change(name, dtype, shape, shape, reads=(name,)))
        return Effect(tuple(changes))

    def pieces(self, changes: Sequence[Change], read: Reader) -> Mapping[str, Iterator[bytes]]:
        """All changed tensors, by name."""
        return {change.target: self._rows(change, read) for change in changes}

    def _rows(self, change: Change, read: Reader) -> Iterator[bytes]:
        """Some rows at a time, computed in float64 and rounded once."""
        rows = change.shape_after[0]
        for start in range(0, rows, 1000):
            yield from_float64(
                self.factor * read(change.target, start, min(start + 1000, rows)), change.dtype
            )
