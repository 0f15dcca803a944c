"""What lies beside sound weights and is opened with transformers: configs, tokenizers,
processors. Run in-process.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from ..conftest import CLIP, Changed, Ran, Run, Tensors

#: What each folder with code of its own would run.
EVIL = "from pathlib import Path\nPath({marker!r}).touch()\nclass Evil: pass\n"


def planned(run: Run, source: Path, tower: Path = CLIP) -> Ran:
    return run(
        "apply",
        "llava-v1.5",
        "--source",
        source,
        "--source",
        f"vision_tower={tower}",
        "--dry-run",
        "--format",
        "json",
    )


def refusals(ran: Ran) -> list[tuple[str, str]]:
    return [(problem["code"], problem["message"]) for problem in ran.json["problems"]]


def with_tower(folder: Path, **preprocessor: Any) -> Path:
    shutil.copytree(CLIP, folder)
    file = folder / "preprocessor_config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), **preprocessor}))
    return folder


@pytest.mark.parametrize("layers", [1001, 10**9, 10**400])
def test_layers_without_end_are_not_built(layers: int, changed: Changed, run: Run) -> None:
    ran = planned(run, changed(config=lambda config: config.update(num_hidden_layers=layers)))
    ((code, message),) = refusals(ran)
    assert (ran.code, code) == (3, "LR112")
    assert "num_hidden_layers" in message


def test_a_layer_in_a_name_is_not_counted_up_to(changed: Changed, run: Run) -> None:
    """A tower's number of layers is that of its last one."""

    def far(tensors: Tensors) -> None:
        for name in [name for name in tensors if ".layers.0." in name]:
            tensors[name.replace(".layers.0.", ".layers.999999999.")] = tensors.pop(name)

    tower = changed(CLIP, tensors=far)
    ran = run(
        "apply",
        "llava-v1.5",
        "--source",
        CLIP.parent / "llava-v1.5/released/bin",
        "--source",
        f"vision_tower={tower}",
        "--dry-run",
    )
    assert ran.code in (1, 3)
    assert "LR" in ran.out + ran.err


@pytest.mark.parametrize(
    "sizes",
    [
        {"size": {"shortest_edge": 10**6}},
        {"size": 60_000},
        {"size": {"height": 28, "width": 10**8}},
        {"crop_size": {"height": 28, "width": 1e300}},
    ],
)
def test_pictures_without_end_are_not_made(
    sizes: dict[str, Any], changed: Changed, run: Run, tmp_path: Path
) -> None:
    ran = planned(run, changed(), with_tower(tmp_path / "tower", **sizes))
    ((code, message),) = refusals(ran)
    assert (ran.code, code) == (3, "LR113")
    assert "1 to 4096 px" in message


def test_code_beside_a_processor_is_not_run(changed: Changed, run: Run, tmp_path: Path) -> None:
    tower = with_tower(
        tmp_path / "tower",
        image_processor_type="Evil",
        auto_map={"AutoImageProcessor": "evil.Evil", "AutoProcessor": "evil.Evil"},
    )
    (tower / "evil.py").write_text(EVIL.format(marker=str(tmp_path / "executed")))
    ran = planned(run, changed(), tower)
    assert (ran.code, [code for code, _ in refusals(ran)]) == (3, ["LR113"])
    assert not (tmp_path / "executed").exists()
    assert "[y/N]" not in ran.out + ran.err


def test_code_beside_a_tokenizer_is_not_run(changed: Changed, run: Run, tmp_path: Path) -> None:
    source = changed()
    (source / "evil.py").write_text(EVIL.format(marker=str(tmp_path / "executed")))
    file = source / "tokenizer_config.json"
    config = {"tokenizer_class": "Evil", "auto_map": {"AutoTokenizer": ["evil.Evil", "evil.Evil"]}}
    file.write_text(json.dumps({**json.loads(file.read_text()), **config}))
    ran = planned(run, source)
    assert ran.code in (0, 3)
    assert not (tmp_path / "executed").exists()
    assert "[y/N]" not in ran.out + ran.err


@pytest.mark.parametrize(
    "part",
    [
        {"normalizer": {"type": "Precompiled", "precompiled_charsmap": "AAAA"}},
        {
            "post_processor": {
                "type": "TemplateProcessing",
                "single": [{"SpecialToken": {"id": "X", "type_id": 0}}],
                "pair": [],
                "special_tokens": {},
            }
        },
    ],
)
def test_a_tokenizer_that_makes_its_library_give_up(
    part: dict[str, Any], changed: Changed, run: Run
) -> None:
    """What it raises then is no `Exception`."""
    source = changed()
    words = {"<unk>": 0, "<s>": 1, "</s>": 2, **{f"w{number}": number for number in range(3, 320)}}
    empty: dict[str, Any] = {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [],
        "pre_tokenizer": None,
        "decoder": None,
    }
    content = {
        **empty,
        "normalizer": None,
        "post_processor": None,
        "model": {"type": "BPE", "vocab": words, "merges": []},
        **part,
    }
    (source / "tokenizer.json").write_text(json.dumps(content))
    ran = planned(run, source)
    assert (ran.code, [code for code, _ in refusals(ran)]) == (3, ["LR113"])
