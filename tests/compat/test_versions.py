"""One folder for all versions: several versions of transformers open converted folders, and say
and compute the same.
"""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.compat.checkpoints import CASES, FAMILIES, ROPED
from tests.compat.known import KNOWN, WITH_VIDEOS, Known, known, rules_of, unexplained
from tests.compat.run import LOGITS, VERSIONS, Look, Seen, convert_all, look_with_all, missing
from tests.original.table import without_column
from tools.compat_table import PAGE, parts, table

#: 5.0.0 puts the theta into `rope_parameters` itself, and doesn't know it there where scaling is
#: dynamic.
OWN_FAULT = ("5.0.0", "for 'rope_type'='dynamic': {'rope_theta'}")
TIED = (
    "interleave-tied", "llava-interleave-qwen-0.5b.released", "interleave-as-onevision",
    "llava-onevision-qwen2-0.5b.released",
)  # fmt: skip
#: The token that ends a turn, in folders where another one ends a text: generation stops at both.
TURN_ENDS = {
    **dict.fromkeys(
        ("qwen2", "qwen2-one-file-tokenizer", "qwen2-linear", "qwen2-head-dim-null"), "<|im_end|>"
    ),
    **dict.fromkeys(("onevision", "interleave", "interleave-tied"), "<|im_end|>"),
    "llava-next-llama3-8b.released": "<|eot_id|>",
}
#: Words of warnings that say something isn't as it was meant.
MEANT_OTHERWISE = (
    "newly initialized", "not used when initializing", "generation flags", "Unrecognized keys",
    "not implemented", "rope_scaling",
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
def test_it_says_and_computes_what_the_installed_version_does(
    name: str, version: str, seen: Look
) -> None:
    """Tokens, prompts, ids and generated tokens equal; pixel values and logits within `PIXELS` and
    `LOGITS`.

    What is known of a version has to occur, and to be proven.
    """
    asked(seen, version)
    assert unexplained(name, version, seen) == []


@pytest.mark.parametrize("name", [*CASES, *FAMILIES])
def test_the_installed_version_does_nothing_unknown(name: str, seen: Look) -> None:
    assert unexplained(name, "", seen) == []


@pytest.mark.parametrize("of", KNOWN, ids=[of.cell for of in KNOWN])
def test_what_is_known_and_does_not_occur_is_told(of: Known, seen: Look) -> None:
    """Here the installed version's answers are given as those of a version that does otherwise,
    or without their error.
    """
    version = next(
        version for version in VERSIONS if of.is_in(tuple(map(int, version.split(".")[:2])))
    )
    name = next(name for name in FAMILIES if of.concerns(name, asked(seen, version)))
    assert known(name, seen[version]) is of
    said = {**seen[""].said, "transformers": version, name: {**seen[""].said[name], "closed": None}}
    told = unexplained(name, version, {**seen, version: replace(seen[""], said=said)})
    for difference in of.shows:
        assert f"no difference in {difference}" in told
    assert ("AutoProcessor: None" in told) == bool(of.closes)


def test_cropped_pixels_are_proven(seen: Look) -> None:
    """Other pixels than those of the middle are told."""
    name = "llava-v1.5-7b.released"
    asked(seen, "4.46.3")
    arrays = {
        **seen["4.46.3"].arrays,
        f"{name}/pixel_values": seen["4.46.3"].arrays[f"{name}/pixel_values"] + 0.01,
    }
    told = unexplained(name, "4.46.3", {**seen, "4.46.3": replace(seen["4.46.3"], arrays=arrays)})
    assert told == ["the pixels of 4.46.3 are others"]


@pytest.mark.parametrize("version", ["", *VERSIONS])
@pytest.mark.parametrize("name", [*CASES, *FAMILIES])
def test_it_loads_strictly(name: str, version: str, seen: Look, folders: dict[str, Path]) -> None:
    said = asked(seen, version).said[name] if version else seen[""].said[name]
    assert "error" not in said, said["error"]
    assert said["left_over"] == {}
    config = json.loads((folders[name] / "config.json").read_text())
    assert said["class"] == config["architectures"][0]
    assert said["tied"] == config["tie_word_embeddings"] == (name in TIED)
    warned = [
        text
        for text in said["warned"]
        if not (version == OWN_FAULT[0] and text.endswith(OWN_FAULT[1]))
    ]
    assert [text for text in warned if any(words in text for words in MEANT_OTHERWISE)] == []


@pytest.mark.parametrize("name", [*CASES, *FAMILIES])
def test_all_logits_are_finite(name: str, seen: Look) -> None:
    """Of a picture, of made-up pixels, of words alone, and of a video where the class takes one."""
    logits = {
        key: array
        for key, array in seen[""].arrays.items()
        if key.startswith(f"{name}/") and key.endswith("_logits")
    }
    assert len(logits) == (4 if rules_of(name) in WITH_VIDEOS else 3)
    assert all(np.isfinite(array).all() for array in logits.values())


def test_the_table_of_the_readme(seen: Look) -> None:
    """`make compat` writes it. Its last column is tested in `tests/original`."""
    _, written, _ = parts(PAGE.read_text())
    assert without_column(written) == table(seen)


@pytest.mark.parametrize("version", ["", *VERSIONS])
@pytest.mark.parametrize("name", ROPED)
def test_a_folder_without_rope_computes_otherwise(name: str, version: str, seen: Look) -> None:
    """So rope theta and rope scaling are read, and the comparison of logits could fail."""
    arrays = (asked(seen, version) if version else seen[""]).arrays
    for kind in ("picture_logits", "words_logits"):
        assert (
            difference(arrays[f"{name}/{kind}"], arrays[f"{name}-without-rope/{kind}"])
            > 1000 * LOGITS
        )


@pytest.mark.parametrize("name", [name for name in (*CASES, *FAMILIES) if name != "no-tokenizer"])
def test_what_all_say_is_what_the_files_say(
    name: str, folders: dict[str, Path], seen: Look
) -> None:
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
        assert (
            said["picture"]["input_ids"][0].count(config["image_token_id"])
            == config["image_seq_length"]
        )
    text = config["text_config"]
    assert said["generation"]["bos_token_id"] == text["bos_token_id"]
    turn = [said["special"][TURN_ENDS[name]]] if name in TURN_ENDS else []
    assert said["generation"]["eos_token_id"] == (
        [text["eos_token_id"], *turn] if turn else text["eos_token_id"]
    )
    assert text["eos_token_id"] not in turn


def test_qwen2_tokenizers_of_both_kinds_cut_alike(seen: Look) -> None:
    files, one_file = (seen[""].said[name] for name in ("qwen2", "qwen2-one-file-tokenizer"))
    for key in ("sentences", "special", "roles", "picture"):
        assert files[key] == one_file[key]


def test_a_version_that_is_not_there_is_a_failure(monkeypatch: pytest.MonkeyPatch) -> None:
    """Never a silent skip; the message says what to run."""
    with pytest.raises(
        pytest.fail.Exception, match=r"transformers 4\.0\.0 is not in .*: run `make versions`"
    ):
        asked({}, "4.0.0")
