"""Broken and hostile files through the command line: a code, no execution, little memory, no
traceback, an end.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from llava_remap.checkpoint import open_checkpoint
from tools.hostile_files import CASES, MARKER

from ..conftest import CLIP, RELEASED
from .forked import ROOT, Forked, forking

#: The code with which each is refused, by `inspect` and by `apply --dry-run`, where it isn't the
#: one of a corrupt file.
CORRUPT = "LR102"
CODES = {
    "LR100": (
        "device_as_weights file_names_that_steer_a_terminal folder_as_weights "
        "index_of_a_link_in_a_circle index_of_a_pipe "
        "index_of_its_folder link_to_itself_as_weights nothing_at_all pipe_as_weights"
    ),
    "LR101": "git_lfs_pointer git_lfs_pointers_as_shards",
    "LR103": (
        "empty_index index_nested_100000 index_of_400000_tensors index_of_files_above_it "
        "index_of_files_elsewhere "
        "index_of_files_on_another_drive index_of_lists index_of_names_too_long "
        "index_of_names_with_zero_bytes "
        "index_of_numbers index_of_tensors_that_are_not_there index_that_is_a_list "
        "index_that_is_empty index_with_a_name_twice"
    ),
    "LR105": (
        "legacy_that_calls_os_system legacy_without_its_magic_number pickle_that_asks_for_a_method "
        "pickle_that_asks_for_eval "
        "pickle_that_calls_os_system"
    ),
    "LR106": (
        "dtype_unknown legacy_nested_100000 pickle_compressed pickle_nested_100000 "
        "pickle_of_a_million_lists pickle_of_laughs "
        "pickle_of_nested_tuples pickle_that_copies pickle_that_holds_itself "
        "pickle_with_a_nested_key storage_compressed "
        "zip_with_two_pickles"
    ),
    "LR113": (
        "adapter_nested_100000 adapter_of_a_rank_of_5000_digits config_a_list config_empty "
        "config_nested_100000 config_not_utf8 "
        "config_of_1_gb config_of_5000_digits config_of_no_number merges_of_1_tb "
        "sentencepiece_model_of_1_tb"
    ),
    "LR115": "adapter_of_another_kind adapter_with_infinite_alpha",
    "LR200": "rules_from_a_device rules_from_a_pipe rules_of_a_device_name",
    "LR201": (
        "rules_nested_100000 rules_nested_by_indents rules_not_utf8 rules_of_1_gb "
        "rules_of_a_key_of_lists rules_of_huge_numbers "
        "rules_of_laughs rules_that_call_os_system rules_that_extend_what_is_no_rule_file "
        "rules_that_steer_a_terminal "
        "rules_with_zero_bytes"
    ),
    "LR202": "rules_with_a_group_too_many",
    "LR206": "rules_that_run_away",
    "LR210": "rules_that_extend_themselves",
    # What can be read, and is no model's: `inspect` says that no rule file fits, and `apply` this.
    "LR305": "header_of_spaces names_that_climb names_that_steer_a_terminal names_with_zero_bytes",
}
EXITS = {"LR1": 3, "LR2": 2, "LR3": 1}
CODE = {name: code for code, names in CODES.items() for name in names.split()}
SOUND = {"zip64_that_is_sound"}

#: Peak memory of the whole process in MiB, by the kernel's accounting. Three files have 15 to 100
#: MB of text to be read.
MIB = 150
MORE = {"header_of_spaces": 300, "index_of_400000_tensors": 400, "header_of_tiny_values": 200}

#: Seconds of reading before they are refused, and the same by either command.
SLOW = {"index_of_400000_tensors", "pickle_of_a_million_lists"}


@pytest.fixture(scope="module")
def forked() -> Iterator[Forked]:
    with forking() as run:
        yield run


def made(folder: Path, name: str) -> Path:
    (folder / name).mkdir()
    CASES[name](folder / name)
    return folder / name


def commands(folder: Path) -> list[list[object]]:
    """Those in which the file or folder has a part."""
    model, tower = ["--source", RELEASED / "bin"], ["--source", f"vision_tower={CLIP}", "--dry-run"]
    if folder.name.startswith("rules"):
        return [["apply", folder / "rules.yaml", *model, *tower]]
    if folder.name.startswith("adapter"):
        return [["apply", "llava-v1.5", *model, "--source", f"adapter={folder}", *tower]]
    source = folder / "manifest.json" if (folder / "manifest.json").exists() else folder
    both: list[list[object]] = [
        ["inspect", source],
        ["apply", "llava-v1.5", "--source", source, *tower],
    ]
    return both[:1] if folder.name in SLOW else both


@pytest.mark.parametrize("name", sorted(CASES.keys() - SOUND))
def test_it_is_refused_and_harmless(name: str, tmp_path: Path, forked: Forked) -> None:
    folder = made(tmp_path, name)
    code = CODE.get(name, CORRUPT)
    for command in commands(folder):
        ended = forked(*command)
        found = re.findall(r"^(LR\d{3}) ", ended.out, re.MULTILINE)
        described = code == "LR305" and command[0] == "inspect"
        assert (ended.code, found) == ((0, []) if described else (EXITS[code[:3]], [code])), (
            ended.out
        )
        assert ended.kib < MORE.get(name, MIB) * 1024
        assert "Traceback" not in ended.out
        assert ended.out.replace("\n", "").isprintable()
        assert len(ended.out) < 5000
        assert not list(tmp_path.rglob(MARKER))
        assert not (ROOT / MARKER).exists()


def test_every_case_in_the_table_is_made() -> None:
    assert CODE.keys() <= CASES.keys()


def test_zip64_is_read(tmp_path: Path, forked: Forked) -> None:
    folder = made(tmp_path, "zip64_that_is_sound")
    for command in commands(folder)[:1]:
        assert forked(*command).code == 0
    found, genuine = (open_checkpoint(path).catalog for path in (folder, RELEASED / "bin"))
    assert {name: (t.dtype, t.shape) for name, t in found.items()} == {
        name: (t.dtype, t.shape) for name, t in genuine.items()
    }
