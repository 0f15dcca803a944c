"""One folder for all versions: several versions of transformers open converted folders, and say and compute the same."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.compat.checkpoints import CASES, FAMILIES, ROPED
from tests.compat.run import LOGITS, ROOT, VERSIONS, Look, Seen, convert_all, differences, look_with_all, missing
from tests.compat.table import KNOWN, parts, table
from tests.original.table import without_column

#: 5.0.0 puts the theta into `rope_parameters` itself, and doesn't know it there where scaling is dynamic.
OWN_FAULT = ("5.0.0", "for 'rope_type'='dynamic': {'rope_theta'}")
TIED = ("interleave-tied", "llava-interleave-qwen-0.5b.released", "llava-onevision-qwen2-0.5b.released")
#: Words of warnings that say something isn't as it was meant.
MEANT_OTHERWISE = (
    "newly initialized", "not used when initializing", "generation flags", "Unrecognized keys", "not implemented", "rope_scaling",
    "MISSING", "UNEXPECTED", "MISMATCH",
)  # fmt: skip


@pytest.fixture(scope="session")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """All cases, converted."""
    return convert_all(tmp_path_factory.mktemp("compat"))


@pytest.fixture(scope="session")
def seen(folders: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Look:
    return look_with_all(folders, tmp_path_factory.mktemp("seen"))


def asked(seen: Look, version: str) -> Seen:
    if why := missing(version):
        pytest.fail(why)
    assert seen[version].said["transformers"] == version
    return seen[version]


def difference(one: Any, other: Any) -> float:
    assert one.shape == other.shape
    return float(np.abs(one - other).max())


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("name", [*CASES, *FAMILIES])
def test_it_says_and_computes_what_the_installed_version_does(name: str, version: str, seen: Look) -> None:
    """Tokens, prompts, ids and generated tokens equal; pixel values and logits within `PIXELS` and `LOGITS`."""
    assert differences(name, asked(seen, version), seen[""]) == list(KNOWN.get((name, version), ()))


@pytest.mark.parametrize("version", ["", *VERSIONS])
@pytest.mark.parametrize("name", [*CASES, *FAMILIES])
def test_it_loads_strictly(name: str, version: str, seen: Look, folders: dict[str, Path]) -> None:
    said = asked(seen, version).said[name] if version else seen[""].said[name]
    assert "error" not in said, said["error"]
    assert said["left_over"] == {}
    config = json.loads((folders[name] / "config.json").read_text())
    assert said["class"] == config["architectures"][0]
    assert said["tied"] == config["tie_word_embeddings"] == (name in TIED)
    warned = [text for text in said["warned"] if not (version == OWN_FAULT[0] and text.endswith(OWN_FAULT[1]))]
    assert [text for text in warned if any(words in text for words in MEANT_OTHERWISE)] == []


@pytest.mark.parametrize("name", [*CASES, *FAMILIES])
def test_all_logits_are_finite(name: str, seen: Look) -> None:
    """Of a picture, of words alone, and of a video where the class takes one."""
    logits = {key: array for key, array in seen[""].arrays.items() if key.startswith(f"{name}/") and key.endswith("_logits")}
    assert len(logits) == (3 if seen[""].said[name].get("opens_with_AutoProcessor") is False else 2)
    assert all(np.isfinite(array).all() for array in logits.values())


def test_the_table_of_the_readme(seen: Look) -> None:
    """`make compat` writes it. Its last column is tested in `tests/original`."""
    _, written, _ = parts((ROOT / "README.md").read_text())
    assert without_column(written) == table(seen)


@pytest.mark.parametrize("version", ["", *VERSIONS])
@pytest.mark.parametrize("name", ROPED)
def test_a_folder_without_rope_computes_otherwise(name: str, version: str, seen: Look) -> None:
    """So rope theta and rope scaling are read, and the comparison of logits could fail."""
    arrays = (asked(seen, version) if version else seen[""]).arrays
    for kind in ("picture_logits", "words_logits"):
        assert difference(arrays[f"{name}/{kind}"], arrays[f"{name}-without-rope/{kind}"]) > 1000 * LOGITS


@pytest.mark.parametrize("name", [name for name in (*CASES, *FAMILIES) if name != "no-tokenizer"])
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
    if "image_grid_pinpoints" not in config:
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
