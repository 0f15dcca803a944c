"""Pixels as the research code makes them, and as older versions of transformers make them."""

from __future__ import annotations

import ast
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from PIL import Image

from tests.original.facts import Case, Family, Floats

Grid = tuple[int, int]


@dataclass(frozen=True)
class Recipe:
    """How a checkpoint's pictures become pixels.

    Attributes:
        side: of the square that the tower takes.
        crops: CLIP's way, the shorter side resized and the middle cut out; else SigLIP's, both
            sides resized.
        mean: of each colour.
        std: of each colour.
        pads: whether a picture that isn't tiled is filled up to a square first.
        pinpoints: (width, height) of what a picture may be tiled into, as the checkpoint's config
            has them.
    """

    side: int
    crops: bool
    mean: tuple[float, ...]
    std: tuple[float, ...]
    pads: bool
    pinpoints: tuple[tuple[int, int], ...]


def recipe(family: Family) -> Recipe:
    """What a checkpoint's config and its tower's preprocessor say."""
    return recipe_of(family.config, family.content("vision_tower", "preprocessor_config.json"))


def recipe_of(config: Mapping[str, Any], tower: Mapping[str, Any]) -> Recipe:
    """The same, of the two files' content."""
    crops = "crop_size" in tower
    side = tower["crop_size" if crops else "size"]["height"]
    aspect = config.get("image_aspect_ratio")
    mean, std = tuple(tower["image_mean"]), tuple(tower["image_std"])
    return Recipe(
        side, crops, mean, std, aspect == "pad", _pinpoints(config.get("image_grid_pinpoints"))
    )


def original(recipe: Recipe, picture: Image.Image, mode: str, grid: Grid | None = None) -> Floats:
    """[3, side, side], or [tiles, 3, side, side] with the overview first; as the research code
    makes them.

    Args:
        mode: `single`, `several` or `video`, as in the keys of the facts.
        grid: rows and columns of the tiles, the overview not counted.
    """
    if grid is not None:
        return tiles(recipe, picture, grid)
    if recipe.pads or mode == "several":
        picture = _padded(recipe, picture)
    return _normal(recipe, _square(recipe, picture))


def cropped(recipe: Recipe, picture: Image.Image) -> Floats:
    """The middle of a picture that should have been filled up to a square."""
    return _normal(recipe, _square(recipe, picture))


def tiles(recipe: Recipe, picture: Image.Image, grid: Grid, *, evenly: bool = False) -> Floats:
    """The overview and the tiles.

    Args:
        evenly: up to transformers 4.51, an odd margin loses its last pixel, and a tile that is too
            narrow is resized.
    """
    side = recipe.side
    (width, height), (inner_width, inner_height) = (
        _page(recipe, grid),
        _fitted(recipe, picture, grid),
    )
    left, top = (width - inner_width) // 2, (height - inner_height) // 2
    if evenly:
        width, height = inner_width + 2 * left, inner_height + 2 * top
    page = Image.new("RGB", (width, height))
    page.paste(picture.resize((inner_width, inner_height), Image.Resampling.BICUBIC), (left, top))
    boxes = [
        (x, y, min(x + side, width), min(y + side, height))
        for y in range(0, height, side)
        for x in range(0, width, side)
    ]
    overview = picture.resize((side, side), Image.Resampling.BICUBIC)
    return np.stack(
        [_normal(recipe, _square(recipe, tile)) for tile in (overview, *map(page.crop, boxes))]
    )


def has_odd_margin(recipe: Recipe, picture: Image.Image, grid: Grid) -> bool:
    """Whether a tiled picture can't be put into the middle of its tiles exactly."""
    return any(
        (whole - inner) % 2
        for whole, inner in zip(_page(recipe, grid), _fitted(recipe, picture, grid), strict=True)
    )


def best_grid(recipe: Recipe, picture: Image.Image) -> Grid:
    """The rows and columns that LLaVA-NeXT chooses: as much of the picture as possible, then as
    little margin.
    """

    def worth(pinpoint: tuple[int, int]) -> tuple[int, int]:
        width, height = pinpoint
        scale = min(width / picture.width, height / picture.height)
        shown = min(
            int(picture.width * scale) * int(picture.height * scale), picture.width * picture.height
        )
        return shown, shown - width * height

    width, height = max(recipe.pinpoints, key=worth)
    return height // recipe.side, width // recipe.side


def case_pixels(family: Family, case: Case, pictures: list[Image.Image]) -> list[Floats]:
    """The pixels of a case's pictures, or of its video, as the research code makes them."""
    made = recipe(family)
    modes = [key.rsplit(" ", 1)[1] for key in case.pixels]
    if case.video:
        return [np.stack([original(made, frame, modes[0]) for frame in pictures])]
    return [
        original(made, one, mode, grid)
        for one, mode, grid in zip(pictures, modes, case.grids, strict=True)
    ]


def _pinpoints(said: Any) -> tuple[tuple[int, int], ...]:
    """A list, or a string that names one. One with dots (`(1x1),...,(6x6)`) isn't needed here,
    and none is given.
    """
    if isinstance(said, str):
        said = [] if "..." in said else ast.literal_eval(said)
    return tuple((width, height) for width, height in said or ())


def _page(recipe: Recipe, grid: Grid) -> tuple[int, int]:
    """Width and height of all tiles together."""
    return grid[1] * recipe.side, grid[0] * recipe.side


def _fitted(recipe: Recipe, picture: Image.Image, grid: Grid) -> tuple[int, int]:
    """Width and height of a picture once it fits into its tiles."""
    width, height = _page(recipe, grid)
    if width / picture.width < height / picture.height:
        return width, min(math.ceil(picture.height * (width / picture.width)), height)
    return min(math.ceil(picture.width * (height / picture.height)), width), height


def _padded(recipe: Recipe, picture: Image.Image) -> Image.Image:
    """Filled up to a square with the mean colour."""
    side = max(picture.size)
    red, green, blue = (int(value * 255) for value in recipe.mean)
    page = Image.new("RGB", (side, side), (red, green, blue))
    page.paste(picture, ((side - picture.width) // 2, (side - picture.height) // 2))
    return page


def _square(recipe: Recipe, picture: Image.Image) -> Image.Image:
    side = recipe.side
    if not recipe.crops:
        return picture.resize((side, side), Image.Resampling.BICUBIC)
    longer = int(side * max(picture.size) / min(picture.size))
    width, height = (side, longer) if picture.width <= picture.height else (longer, side)
    left, top = (width - side) // 2, (height - side) // 2
    return picture.resize((width, height), Image.Resampling.BICUBIC).crop(
        (left, top, left + side, top + side)
    )


def _normal(recipe: Recipe, picture: Image.Image) -> Floats:
    """Rescaled in float64, normalised in float32, as numpy's image processors do."""
    values = (np.asarray(picture).astype(np.float64) * (1 / 255)).astype(np.float32)
    mean, std = np.array(recipe.mean, np.float32), np.array(recipe.std, np.float32)
    made: Floats = ((values - mean) / std).transpose(2, 0, 1)
    return made
