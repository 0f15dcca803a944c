"""Known faults of versions of transformers, which no folder can mend: one table, with a proof for
each.

A proof shows that the fault is the only one: what it concerns is what that version is known to
make, and the rest is equal.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

from PIL import Image

from tests.original import pixels
from tests.original.answer import Answer, FolderAnswer
from tests.original.facts import Case, Family, Floats, Pixels, picture
from tests.original.judge import Differences, nearest_reading, one_for_each_run, token_of
from tests.original.pixels import Recipe

#: What a proof leaves open, in words.
Proof = Callable[[Family, Case, Answer, FolderAnswer], Iterator[str]]


@dataclass(frozen=True)
class Fault:
    """A fault of some versions.

    Attributes:
        name: in the table of docs/versions.md.
        versions: the first and the last minor version that has it, None where there is no bound.
        concerns: whether it shows in a case.
        shows: kinds of differences that it always makes; without them it didn't occur.
        excuses: kinds of differences that follow from it.
        alone: whether the plain forward pass with the research code's own ids and pixels fails as
            well.
        proof: what isn't explained by this fault.
    """

    name: str
    versions: tuple[tuple[int, int] | None, tuple[int, int] | None]
    concerns: Callable[[Family, Case, FolderAnswer], bool]
    shows: frozenset[str]
    excuses: frozenset[str]
    alone: bool
    proof: Proof

    def is_in(self, version: str) -> bool:
        """Whether a version of transformers has this fault."""
        major, minor = version.split(".")[:2]
        first, last = self.versions
        return (first is None or first <= (int(major), int(minor))) and (
            last is None or (int(major), int(minor)) <= last
        )

    def unexplained(
        self, found: Differences, family: Family, case: Case, answer: Answer, folder: FolderAnswer
    ) -> list[str]:
        """Differences that don't come of this fault, in words; also that it didn't occur."""
        others = [
            f"{kind}: {words}"
            for kind, words in found.items()
            if kind not in self.shows | self.excuses
        ]
        absent = [
            f"{self.name}: no difference in {kind}"
            for kind in sorted(self.shows)
            if kind not in found
        ]
        return (
            others
            + absent
            + [f"{self.name}: {words}" for words in self.proof(family, case, answer, folder)]
        )


def _is_tiled(family: Family, case: Case, folder: FolderAnswer) -> bool:
    return any(
        grid and pixels.has_odd_margin(pixels.recipe(family), picture(name), grid)
        for name, grid in zip(case.pictures, case.grids, strict=True)
    )


def _shifted(family: Family, case: Case, answer: Answer, folder: FolderAnswer) -> Iterator[str]:
    """The pixels are those of tiles cut from a page without the odd pixel of its margin."""
    yield from _explained(
        answer, [_made_evenly(pixels.recipe(family), picture(name)) for name in case.pictures]
    )


def _made_evenly(recipe: Recipe, picture: Image.Image) -> Floats:
    return pixels.tiles(recipe, picture, pixels.best_grid(recipe, picture), evenly=True)


def _explained(answer: Answer, made: list[Floats]) -> Iterator[str]:
    """Where an answer's pixels aren't the ones made here."""
    if answer.pixels is None or len(answer.pixels) != len(made):
        yield "no pixels to explain"
        return
    for n, (got, array) in enumerate(zip(answer.pixels, made, strict=True), 1):
        if words := got.difference(Pixels.of(array)):
            yield f"picture {n} isn't what this fault makes of it: {words}"


def _is_cropped(family: Family, case: Case, folder: FolderAnswer) -> bool:
    oblong = any(height != width for height, width in case.sizes)
    return oblong and not case.video and pixels.recipe(family).pads and not any(case.grids)


def _cropped(family: Family, case: Case, answer: Answer, folder: FolderAnswer) -> Iterator[str]:
    """The pixels are those of the middles of the pictures."""
    yield from _explained(
        answer, [pixels.cropped(pixels.recipe(family), picture(name)) for name in case.pictures]
    )


def _has_no_picture(family: Family, case: Case, folder: FolderAnswer) -> bool:
    return not case.pictures and folder.model_type in ("llava", "llava_next")


#: What 4.46 says where it looks at pixels that there are none of.
_NO_PIXELS = tuple(
    f"AttributeError: 'NoneType' object has no attribute '{name}'" for name in ("dtype", "shape")
)


def _language_model(
    family: Family, case: Case, answer: Answer, folder: FolderAnswer
) -> Iterator[str]:
    """The error is the known one; the language model alone, asked instead, gave the logits,
    which are compared as any.
    """
    for forward in (answer.whole, *answer.alone):
        known = forward is not None and forward.error in _NO_PIXELS
        if not (forward and known and forward.around and forward.logits):
            yield f"not the known error: {forward and forward.error}"


def _has_several(family: Family, case: Case, folder: FolderAnswer) -> bool:
    return len(case.pixels) > 1 and folder.model_type == "llava_onevision"


def _each_tiled(family: Family, case: Case, answer: Answer, folder: FolderAnswer) -> Iterator[str]:
    """Each picture is tiled as if it were alone; text tokens are the right ones, and so are the
    logits of one tile each.
    """
    evenly = TILE_SHIFT.is_in(folder.version)
    recipe, named = pixels.recipe(family), [picture(name) for name in case.pictures]
    yield from _explained(
        answer,
        [pixels.tiles(recipe, one, pixels.best_grid(recipe, one), evenly=evenly) for one in named],
    )
    token = token_of(case, folder)
    wanted = nearest_reading(case, answer, token).ids_with(token)
    if one_for_each_run(answer.ids or (), token) != one_for_each_run(wanted, token):
        yield "other ids than those of pictures differ"
    if not all(forward.around and forward.logits for forward in answer.alone):
        yield "no logits of one tile each"


def _needs_torchvision(family: Family, case: Case, folder: FolderAnswer) -> bool:
    return case.video and not folder.has_torchvision


#: Of what AutoProcessor says without torchvision: one is in it, the library's name or the module
#: that chooses video processors.
WITHOUT_TORCHVISION = ("orchvision", "video_processing_auto")


def _closed(family: Family, case: Case, answer: Answer, folder: FolderAnswer) -> Iterator[str]:
    """AutoProcessor failed over torchvision, or in the module that chooses video processors; the
    prompt is there.
    """
    if not any(words in (folder.closed or "") for words in WITHOUT_TORCHVISION):
        yield f"AutoProcessor failed over something else: {folder.closed}"
    if answer.prompt is None:
        yield "no prompt"


_LOGITS = frozenset({"logits", "argmax"})

TILE_SHIFT = Fault(
    "tile shift", (None, (4, 51)), _is_tiled, frozenset({"pixels"}), _LOGITS, False, _shifted
)
CROPPING = Fault(
    "cropping", (None, (4, 46)), _is_cropped, frozenset({"pixels"}), _LOGITS, False, _cropped
)
NO_PICTURE = Fault(
    "words alone",
    (None, (4, 46)),
    _has_no_picture,
    frozenset({"error"}),
    frozenset(),
    True,
    _language_model,
)
SEVERAL = Fault(
    "several pictures",
    (None, (4, 52)),
    _has_several,
    frozenset({"ids", "pixels"}),
    _LOGITS,
    True,
    _each_tiled,
)
TORCHVISION = Fault(
    "videos without torchvision",
    ((4, 52), None),
    _needs_torchvision,
    frozenset({"error"}),
    frozenset(),
    False,
    _closed,
)
FAULTS = (TILE_SHIFT, CROPPING, NO_PICTURE, SEVERAL, TORCHVISION)


def fault_of(family: Family, case: Case, folder: FolderAnswer) -> Fault | None:
    """The declared fault of a case in the version that gave an answer, if there is one."""
    found = [
        fault
        for fault in FAULTS
        if fault.is_in(folder.version) and fault.concerns(family, case, folder)
    ]
    assert len(found) < 2, f"{family.name}, {case.name}: several faults"
    return found[0] if found else None
