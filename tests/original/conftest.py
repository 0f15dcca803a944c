"""One conversion of each family and one process of each version for all tests that were chosen."""

from __future__ import annotations

import pytest

from tests.original.answers import ALL_VERSIONS, Answers, ask_all
from tests.original.convert import targets
from tests.original.facts import FAMILIES


@pytest.fixture(scope="session")
def answers(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Answers:
    """What the versions made of the families, of those that the chosen tests name; of all if a
    test names none.
    """
    chosen = [
        item for item in request.session.items if "answers" in getattr(item, "fixturenames", ())
    ]
    named = [getattr(getattr(item, "callspec", None), "params", {}) for item in chosen]
    families = {params.get("family") for params in named}
    versions = {params.get("version") for params in named}
    return ask_all(
        targets(tuple(name for name in FAMILIES if None in families or name in families)),
        [version for version in ALL_VERSIONS if None in versions or version in versions],
        tmp_path_factory.mktemp("original"),
    )
