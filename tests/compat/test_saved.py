"""What several versions of transformers save, taken to the classic layout: strictly loaded, and
the same logits.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import transformers
from safetensors.torch import load_file

from llava_remap.checkpoint import open_checkpoint
from llava_remap.jobs.apply import apply
from llava_remap.target_model import nearest_layout
from tests.compat.run import LOGITS, VERSIONS, missing, place
from tests.compat.save import logits, models
from tests.forks import HANGS

#: On disk, by version; what the installed one saves of a model built from scratch has no
#: `vision_model` level.
LAYOUT = {"": "classic-5.6", **dict.fromkeys(VERSIONS, "classic")}


@pytest.fixture(scope="session")
def saved(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """By version (`` is the installed one): the folder in which it saved its models; one process
    each.
    """
    work = tmp_path_factory.mktemp("saved")
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    found = {}
    for version in ["", *(version for version in VERSIONS if missing(version) is None)]:
        path = {"PYTHONPATH": str(place(version).resolve())} if version else {}
        found[version] = work / f"v{version}"
        command = [sys.executable, str(Path(__file__).with_name("save.py")), str(found[version])]
        ran = subprocess.run(
            command,
            env={**environment, **path},
            cwd=work,
            capture_output=True,
            text=True,
            timeout=HANGS,
        )
        assert ran.returncode == 0, ran.stderr
    return found


@pytest.mark.parametrize("name", models())
@pytest.mark.parametrize("version", ["", *VERSIONS])
def test_what_a_version_saves(
    version: str, name: str, saved: dict[str, Path], tmp_path: Path
) -> None:
    if version and (why := missing(version)):
        pytest.fail(why)
    source = saved[version] / name
    catalog = open_checkpoint(source).catalog
    layout, classic = nearest_layout(catalog)
    assert (layout, len(classic)) == (LAYOUT[version], len(catalog))
    out = apply("hf-layouts", [source], tmp_path / "out").output
    before, after = (
        load_file(source / "model.safetensors"),
        load_file(out / "model-00001-of-00001.safetensors"),
    )
    assert after.keys() == set(classic.values())
    assert all(torch.equal(after[target], before[stored]) for stored, target in classic.items())
    kind = getattr(transformers, models()[name][0].__name__)
    model, info = kind.from_pretrained(out, output_loading_info=True)
    assert not any(info.values()), info
    assert float((logits(model, name) - torch.load(source / "logits.pt")).abs().max()) <= LOGITS
