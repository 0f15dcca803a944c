"""Problems."""

from __future__ import annotations

from llava_remap.core.problem import Problem


def test_a_cause_is_one_line() -> None:
    """A rule file may have a text of several lines where a word is expected, and messages quote
    it.
    """
    problem = Problem("LR202", "`one\ntwo\u2028three` has a space", "Mend it.")
    assert problem.cause == r"`one\ntwo\nthree` has a space"
