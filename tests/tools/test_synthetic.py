"""The made checkpoints are what they say: shapes of the real models, in files that the usual
libraries read.
"""

from __future__ import annotations

import json
from math import prod
from pathlib import Path

import pytest

from llava_remap import plan
from tools.bench import synthetic
from tools.bench.operations import KINDS, Kind


def test_size_grows_with_what_was_asked_for() -> None:
    sizes = [
        synthetic.total_nbytes(synthetic.shapes_for(nbytes))
        for nbytes in (0, 10**9, 3 * 10**9, 1 << 62)
    ]
    assert sizes == sorted(sizes)
    assert 10**9 < sizes[0] == sizes[1] < 1.1 * 10**9
    assert abs(sizes[2] - 3 * 10**9) < 0.4 * 10**9
    manifest = json.loads(synthetic.MANIFEST.read_text())
    assert len(synthetic.shapes_for(1 << 62)) == len(manifest["tensors"])


def test_110b_has_as_many_parameters_as_its_name_says(tmp_path: Path) -> None:
    synthetic.make_manifest_110b(tmp_path / "manifest.json")
    tensors = json.loads((tmp_path / "manifest.json").read_text())["tensors"]
    assert (
        round(sum(prod(entry["shape"]) for entry in tensors.values()) / 1e9) == 112
    )  # with 0.3 of the tower


def test_files_are_read_by_torch_and_safetensors(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import torch
    from safetensors.torch import load_file

    shapes = {"a": ("F16", (40, 4)), "b": ("F32", (3, 5)), "c": ("F16", (7,)), "d": ("F32", (15,))}
    monkeypatch.setattr(synthetic, "_BLOCK", 41)
    values = synthetic._values(shapes)
    synthetic._save_torch(tmp_path / "x.bin", shapes, values)
    synthetic._save_safetensors(tmp_path / "x.safetensors", shapes, values)
    loaded = torch.load(tmp_path / "x.bin", weights_only=True)
    other = load_file(tmp_path / "x.safetensors")
    assert {name: tuple(tensor.shape) for name, tensor in loaded.items()} == {
        name: shape for name, (_, shape) in shapes.items()
    }
    assert all(torch.equal(loaded[name], other[name]) for name in shapes)
    assert len({tensor.untyped_storage().data_ptr() for tensor in loaded.values()}) == len(shapes)
    assert len(set(map(tuple, loaded["a"].tolist()))) == len(loaded["a"]), "rows repeat"


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.name)
def test_a_checkpoint_for_an_operation_has_the_same_bytes_and_fits_its_rule_file(
    kind: Kind, tmp_path: Path
) -> None:
    manifest = json.loads(synthetic.MANIFEST.read_text())
    plain = synthetic.shapes_for(1 << 62)
    stored = kind.shapes(plain)
    assert synthetic.total_nbytes(stored) == synthetic.total_nbytes(plain)
    assert len(stored.keys() - plain.keys()) >= 32 * 7 + 2
    manifest["tensors"] = {
        name: {"dtype": dtype, "shape": shape} for name, (dtype, shape) in stored.items()
    }
    (tmp_path / "model.json").write_text(json.dumps(manifest))
    (tmp_path / "rules.yaml").write_text(kind.rules)
    planned = plan(tmp_path / "rules.yaml", str(tmp_path / "model.json"), dry_run=True).plan
    assert planned.problems == ()
    assert sum("tensors/matrices" in entry.rules for entry in planned.mapped) == 32 * 7 + 2
