"""Which tests go to one worker when several run them (`make test`)."""

from __future__ import annotations

from pathlib import PurePosixPath

from xdist.scheduler import LoadScopeScheduling

#: Folders whose tests share what is made once for all of them, at length.
TOGETHER = ("tests/original", "tests/programs")
#: What takes long on its own, the longest first; begun last, one of them would keep one worker busy
#: while the others have nothing left to do.
FIRST = (
    "tests/text_models/test_matrix.py",
    "tests/original",
    "tests/compat/test_versions.py",
    "tests/cli/test_libraries.py",
    "tests/hostile/test_hostile.py",
    "tests/target_model/test_vocabulary.py",
    "tests/jobs/test_inspection.py",
    "tests/hostile/test_memory.py",
    "tests/source/hub/test_command.py",
    "tests/compat/test_saved.py",
    "tests/folder/test_tokenizer.py",
    "tests/report/test_html_in_browser.py",
    "tests/tools/docs/test_pages.py",
    "tests/source/test_parts.py",
    "tests/authoring/test_draft.py",
    "tests/source/hub/test_not_trusted.py",
    "tests/end_to_end/test_broken_off.py",
    "tests/cli/test_terminal.py",
    "tests/end_to_end/test_killed.py",
    "tests/end_to_end/test_resume.py",
    "tests/core/test_cache.py",
    "tests/jobs/test_convert.py",
    "tests/post_load/test_linear_projector.py",
    "tests/authoring/shrink/test_shrink.py",
    "tests/end_to_end/test_codes.py",
    "tests/authoring/lint/test_command.py",
    "tests/end_to_end/test_prismatic.py",
    "tests/end_to_end/test_mistral_params.py",
    "tests/end_to_end/test_operation_families.py",
    "tests/end_to_end/test_foreign_towers.py",
    "tests/end_to_end/test_examples.py",
    "tests/text_models/test_experts.py",
    "tests/end_to_end/test_interrupt.py",
    "tests/cli/test_convert.py",
    "tests/jobs/test_revert.py",
    "tests/folder/test_prompts.py",
    "tests/cli/test_progress.py",
    "tests/jobs/test_facts.py",
    "tests/checkpoint/test_foreign.py",
    "tests/rulefile/test_strangers_rules.py",
    "tests/source/hub/test_download.py",
)


def unit(nodeid: str) -> str:
    """The file of a test, or the folder whose tests stay together. Fixtures of modules and of
    such a folder are made once, since one worker gets all of a unit.
    """
    file = nodeid.partition("::")[0]
    parents = map(str, PurePosixPath(file).parents)
    return next((folder for folder in parents if folder in TOGETHER), file)


def rank(nodeid: str) -> int:
    """Where its unit stands in `FIRST`; behind all of them if it isn't there."""
    of = unit(nodeid)
    return FIRST.index(of) if of in FIRST else len(FIRST)


class ByUnit(LoadScopeScheduling):  # type: ignore[misc]
    """A worker that is free takes the next unit."""

    def _split_scope(self, nodeid: str) -> str:
        return unit(nodeid)
