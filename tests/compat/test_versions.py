"""One folder for all versions: several versions of transformers open converted folders, and say and compute the same."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.compat.checkpoints import CASES, ROPED, convert, without_rope

ROOT = Path(__file__).parents[2]
#: Where `make versions` puts them, each in `transformers-VERSION`.
INSTALLED = Path(os.environ.get("LLAVA_REMAP_VERSIONS", ROOT / ".venv"))
VERSIONS = [line.split()[0] for line in (ROOT / ".ci" / "versions.txt").read_text().splitlines() if line[:1].isdigit()]
#: float32 logits here are below 2. All versions gave the same bits on the machine where this was written; one that adds in
#: another order would be some 1e-6 away. A config that is understood otherwise is 0.09 away at least (rope theta 10000 for 1e6).
LOGITS = 1e-5
#: Pixel values are about 2 at most; a few roundings of float32, and far below one step of an 8-bit colour (0.015).
PIXELS = 1e-6
#: Words of warnings that say something isn't as it was meant.
MEANT_OTHERWISE = (
    "newly initialized", "not used when initializing", "generation flags", "Unrecognized keys", "not implemented", "rope_scaling",
    "MISSING", "UNEXPECTED", "MISMATCH",
)  # fmt: skip


@dataclass(frozen=True)
class Seen:
    """What a version made of the folders: what it said of each, and arrays by `folder/name`."""

    said: dict[str, Any]
    arrays: Mapping[str, Any]


Look = dict[str, Seen]


@pytest.fixture(scope="session")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """All cases, converted."""
    work = tmp_path_factory.mktemp("compat")
    made = {name: work / "out" / name for name in CASES}
    for name, case in CASES.items():
        convert(case, work / name, made[name])
    for name in ROPED:
        without_rope(made[name], work / "out" / f"{name}-without-rope")
        made[f"{name}-without-rope"] = work / "out" / f"{name}-without-rope"
    return made


@pytest.fixture(scope="session")
def seen(folders: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Look:
    """Every version that is there, and the installed one (``), has looked at all folders; each in one process."""
    work = tmp_path_factory.mktemp("seen")
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    running = {}
    for version in ["", *(version for version in VERSIONS if missing(version) is None)]:
        path = {"PYTHONPATH": str(place(version).resolve())} if version else {}
        command = [
            sys.executable,
            str(Path(__file__).with_name("look.py")),
            str(work / f"v{version}"),
            *map(str, folders.values()),
        ]
        with (work / f"v{version}.log").open("wb") as log:
            running[version] = subprocess.Popen(command, env={**environment, **path}, cwd=work, stdout=log, stderr=log)
    found = {}
    for version, process in running.items():
        code = process.wait(timeout=600)
        assert code == 0, (work / f"v{version}.log").read_text()
        said = json.loads((work / f"v{version}.json").read_text())
        found[version] = Seen(said, dict(np.load(work / f"v{version}.npz")))
    return found


def place(version: str) -> Path:
    return INSTALLED / f"transformers-{version}"


@cache
def missing(version: str) -> str | None:
    """Why a version can't be asked, or None."""
    if (place(version) / "transformers" / "__init__.py").is_file():
        return None
    return f"transformers {version} is not in {place(version)}: run `make versions`, which installs it there."


def asked(seen: Look, version: str) -> Seen:
    if why := missing(version):
        pytest.fail(why)
    assert seen[version].said["transformers"] == version
    return seen[version]


def difference(one: Any, other: Any) -> float:
    assert one.shape == other.shape
    return float(np.abs(one - other).max())


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("name", CASES)
def test_it_says_and_computes_what_the_installed_version_does(name: str, version: str, seen: Look) -> None:
    """Tokens, prompts, ids and generated tokens equal; pixel values and logits within `PIXELS` and `LOGITS`."""
    old, new = asked(seen, version), seen[""]
    said, wanted = ({k: v for k, v in s.said[name].items() if k != "warned"} for s in (old, new))
    assert said == wanted
    arrays = [key for key in new.arrays if key.startswith(f"{name}/")]
    assert len(arrays) == 3
    for key in arrays:
        tolerance = PIXELS if key.endswith("pixel_values") else LOGITS
        assert difference(old.arrays[key], new.arrays[key]) <= tolerance, key


@pytest.mark.parametrize("version", ["", *VERSIONS])
@pytest.mark.parametrize("name", CASES)
def test_it_loads_strictly(name: str, version: str, seen: Look) -> None:
    said = asked(seen, version).said[name] if version else seen[""].said[name]
    assert "error" not in said, said["error"]
    assert said["left_over"] == {}
    assert said["class"] == "LlavaForConditionalGeneration"
    assert said["tied"] == (name == "interleave-tied")
    assert [text for text in said["warned"] if any(words in text for words in MEANT_OTHERWISE)] == []


@pytest.mark.parametrize("version", ["", *VERSIONS])
@pytest.mark.parametrize("name", ROPED)
def test_a_folder_without_rope_computes_otherwise(name: str, version: str, seen: Look) -> None:
    """So rope theta and rope scaling are read, and the comparison of logits could fail."""
    arrays = (asked(seen, version) if version else seen[""]).arrays
    for kind in ("picture_logits", "words_logits"):
        assert difference(arrays[f"{name}/{kind}"], arrays[f"{name}-without-rope/{kind}"]) > 1000 * LOGITS


@pytest.mark.parametrize("name", [name for name in CASES if name != "no-tokenizer"])
def test_what_all_say_is_what_the_files_say(name: str, folders: dict[str, Path], seen: Look) -> None:
    """Both forms of the chat template, the ids of the tokens and of the generation config."""
    folder, said = folders[name], seen[""].said[name]
    template = (folder / "chat_template.jinja").read_text()
    assert json.loads((folder / "chat_template.json").read_text()) == {"chat_template": template}
    assert said["chat_template"] == template
    config = json.loads((folder / "config.json").read_text())
    assert said["image_token"] == ["<image>", config["image_token_id"]]
    assert said["image_token_of_the_model"] == config["image_token_id"]
    assert said["roles"]["pad"] == said["generation"]["pad_token_id"] == config["pad_token_id"]
    assert said["picture"]["input_ids"][0].count(config["image_token_id"]) == config["image_seq_length"]
    tokens = ("eos_token_id", "bos_token_id")
    assert {key: said["generation"][key] for key in tokens} == {key: config["text_config"][key] for key in tokens}


def test_qwen2_tokenizers_of_both_kinds_cut_alike(seen: Look) -> None:
    files, one_file = (seen[""].said[name] for name in ("qwen2", "qwen2-one-file-tokenizer"))
    for key in ("sentences", "special", "roles", "picture"):
        assert files[key] == one_file[key]


def test_a_version_that_is_not_there_is_a_failure(monkeypatch: pytest.MonkeyPatch) -> None:
    """Never a silent skip; the message says what to run."""
    with pytest.raises(pytest.fail.Exception, match=r"transformers 4\.0\.0 is not in .*: run `make versions`"):
        asked({}, "4.0.0")
