"""The twins that all programs are asked about, and what happens where a program is missing."""

from __future__ import annotations

import pytest

from tests.programs.run import PROGRAMS, demand
from tests.programs.twins import Twins, make_twins


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup(item: pytest.Item) -> None:
    """What a test needs is asked for before any fixture is made: `torchvision`, for the twins, and
    the program whose name it is marked with.
    """
    for program in PROGRAMS:
        if program == "torchvision" or item.get_closest_marker(program):
            demand(program)


@pytest.fixture(scope="session")
def twins(tmp_path_factory: pytest.TempPathFactory) -> Twins:
    return make_twins(tmp_path_factory.mktemp("twins"))
