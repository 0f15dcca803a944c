"""Pictures of all shapes, filled up to a square where the checkpoint's config says so: the
research code's pixels, bit by bit.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.compat.checkpoints import SIGLIP, Twin, convert, convert_twin, qwen2
from tests.compat.run import missing
from tests.original import padded, pixels
from tests.original.answers import ALL_VERSIONS, INSTALLED, run_in_all
from tests.original.facts import Pixels, picture
from tests.original.padded import PICTURES, Made
from tests.original.pixels import Recipe

TWINS = {
    "llava-v1.5": Twin("llava-v1.5-7b.released", "llava-v1.5"),
    "sharegpt4v": Twin(
        "llava-v1.5-7b.released", "sharegpt4v", {"architectures": ["Share4VLlamaForCausalLM"]}
    ),
    "bakllava": Twin("bakllava-v1.released", "bakllava"),
    "llava-med-v1.5": Twin("llava-med-v1.5-mistral-7b.released", "llava-med-v1.5"),
    "vip-llava": Twin("vip-llava-7b", "vip-llava"),
}
#: LLaVA-1.5 with a SigLIP tower: its pictures are made square, not cropped.
WITH_SIGLIP = "llava-v1.5-siglip"
NAMES = (*TWINS, WITH_SIGLIP)
SQUARE = ("28x28-1", "45x45-6")
#: The last one of the tested versions that doesn't pad.
CROPS = "4.46.3"


@dataclass(frozen=True)
class Asked:
    """By folder: how its pictures have to be made; and by version, what it made of them."""

    recipes: Mapping[str, Recipe]
    made: Mapping[str, Mapping[str, Made]]

    def of(self, name: str, version: str) -> Made:
        if version not in self.made:
            pytest.fail(missing(version) or f"transformers {version} was not asked")
        return self.made[version][name]


@pytest.fixture(scope="module")
def asked(tmp_path_factory: pytest.TempPathFactory) -> Asked:
    work = tmp_path_factory.mktemp("padding")
    folders, recipes = [work / "out" / name for name in NAMES], {}
    for name, twin in TWINS.items():
        convert_twin(twin, work / name, work / "out" / name)
        recipes[name] = _recipe(work / name, work / name / "vision_tower")
    convert(qwen2(), work / WITH_SIGLIP, work / "out" / WITH_SIGLIP)
    recipes[WITH_SIGLIP] = _recipe(work / WITH_SIGLIP / "checkpoint", SIGLIP)
    made = run_in_all("tests.original.padded", ALL_VERSIONS, folders, work)
    return Asked(recipes, {version: padded.read(path) for version, path in made.items()})


def _recipe(source: Path, tower: Path) -> Recipe:
    config, preprocessor = source / "config.json", tower / "preprocessor_config.json"
    return pixels.recipe_of(json.loads(config.read_text()), json.loads(preprocessor.read_text()))


def filled_up(recipe: Recipe) -> dict[str, Pixels]:
    """As the research code makes them."""
    return {name: Pixels.of(pixels.original(recipe, picture(name), "single")) for name in PICTURES}


def not_filled_up(recipe: Recipe) -> dict[str, Pixels]:
    """As versions make them that know no padding: the middle, or, for SigLIP, all of the picture
    in another shape.
    """
    return {name: Pixels.of(pixels.cropped(recipe, picture(name))) for name in PICTURES}


@pytest.mark.parametrize("version", [version for version in ALL_VERSIONS if version != CROPS])
@pytest.mark.parametrize("name", NAMES)
def test_pixels_are_those_of_the_research_code(name: str, version: str, asked: Asked) -> None:
    """Digests are equal, and so are all bits."""
    assert asked.of(name, version) == filled_up(asked.recipes[name])


@pytest.mark.parametrize("name", [name for name in NAMES if name != "vip-llava"])
def test_an_old_version_crops(name: str, asked: Asked) -> None:
    """Exactly that, and nothing else."""
    assert asked.of(name, CROPS) == not_filled_up(asked.recipes[name])


def test_an_old_version_does_not_open_vip_llava(asked: Asked) -> None:
    """It says so, and crops nothing unseen."""
    said = asked.of("vip-llava", CROPS)
    assert isinstance(said, str)
    assert said.startswith("ValueError: Unrecognized image processor in ")


@pytest.mark.parametrize("name", NAMES)
def test_padding_can_be_seen(name: str, asked: Asked) -> None:
    """All that isn't square is otherwise without padding, so the tests above can fail;
    `recipe.pads` comes from the source.
    """
    recipe = asked.recipes[name]
    assert recipe.pads
    assert recipe.crops == (name != WITH_SIGLIP)
    padded, plain = filled_up(recipe), not_filled_up(recipe)
    assert {name for name in PICTURES if padded[name] == plain[name]} == set(SQUARE)


def test_siglip_fills_up_with_grey(asked: Asked) -> None:
    """The mean is 0.5, and the research code rounds 127.5 down: the first and the last row are
    127.
    """
    made = pixels.original(asked.recipes[WITH_SIGLIP], picture("100x37-3"), "single")
    assert made[:, [0, -1]] == pytest.approx((127 / 255 - 0.5) / 0.5, abs=1e-6)


def test_the_installed_version_was_asked(asked: Asked) -> None:
    assert set(asked.made[INSTALLED]) == set(NAMES)
