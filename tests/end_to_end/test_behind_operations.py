"""What stands behind a plan with operations: value checks, sources beside, ties, forms of storage,
what can't be restored.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from llava_remap import InMemory, apply, plan, revert, verify
from llava_remap.checkpoint import manifest_text, open_checkpoint
from llava_remap.core.problem import RemapError
from tests.conftest import Tensors
from tests.fused import HEAD, PLAIN, changed_checkpoint, same, sources, weights

WIDE = """\
  - {id: up, from: '{m...}.wide.weight', to: ['{m}.up_proj.weight', {drop: padding, size: '*'}], \
how: {split: 0}}
"""
TURNED = """\
  - {id: embed, from: 'language_model.model.embed_tokens.turned', to: \
'language_model.model.embed_tokens.weight', how: {axes: [1, 0]}}
"""

Make = Callable[[str, Callable[[Tensors], None]], Path]


@pytest.fixture
def make(tmp_path: Path) -> Make:
    """A rule file with one operation, and the checkpoint that it is for."""

    def made(operation: str, change: Callable[[Tensors], None]) -> Path:
        (tmp_path / "rules.yaml").write_text(HEAD + operation)
        return changed_checkpoint(tmp_path / "source", change)

    return made


def widened(tensors: Tensors) -> None:
    for name in [name for name in tensors if "up_proj" in name]:
        value = tensors.pop(name)
        tensors[name.replace("up_proj", "wide")] = torch.cat([value, torch.ones_like(value[:5])])


def refused(tmp_path: Path, folder: Path, **options: object) -> dict[str, str]:
    with pytest.raises(RemapError) as error:
        apply(tmp_path / "rules.yaml", sources(folder), "made", **options)  # type: ignore[arg-type]
    assert not Path("made").exists()
    return {problem.code: str(problem) for problem in error.value.problems}


def test_what_was_dropped_in_part_is_told_and_not_restored(make: Make, tmp_path: Path) -> None:
    folder = make(WIDE, widened)
    apply("llava-v1.5", sources(PLAIN), "plain")
    apply(tmp_path / "rules.yaml", sources(folder), "made", verify="full")
    assert same(weights(Path("plain")), weights(Path("made")))
    assert verify("made", against=sources(folder)).problems == ()
    done = revert("made", "back")
    original = load_file(folder / "model.safetensors")
    wanted = {name: value for name, value in original.items() if ".wide." not in name}
    assert same(weights(Path("back/model")), wanted)
    told = done.to_json()["sources"]["model"]["dropped"]
    assert {entry["name"] for entry in told if entry["in_part"]} == original.keys() - wanted.keys()


def test_a_value_that_does_not_fit_is_told_once(make: Make, tmp_path: Path) -> None:
    """Of a tensor that becomes several parameters."""

    def large(tensors: Tensors) -> None:
        for name in [name for name in tensors if "up_proj" in name]:
            both = torch.cat([tensors.pop(name.replace("up", "gate")), tensors.pop(name)]).float()
            both[0, 0] = 1e30
            tensors[name.replace("up_proj", "both")] = both

    operation = (
        "  - {id: both, from: '{m...}.both.weight', to: ['{m}.gate_proj.weight', "
        "'{m}.up_proj.weight'], how: {split: 0}}\n"
    )
    told = refused(tmp_path, make(operation, large), dtype="float16")
    assert "values of 2 tensors don't fit" in told["LR406"]


def test_a_copy_of_a_table_that_an_operation_makes_is_not_dropped_unseen(
    make: Make, tmp_path: Path
) -> None:
    """The model ties both; whether both are the same isn't known."""

    def tied(tensors: Tensors) -> None:
        spare = torch.zeros(64, tensors["lm_head.weight"].shape[1], dtype=torch.float16)
        table = torch.cat([tensors.pop("model.embed_tokens.weight"), spare])
        tensors["model.embed_tokens.turned"] = table.T
        tensors["lm_head.weight"] = table + 1

    folder = make(TURNED, tied)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(
        json.dumps({**config, "tie_word_embeddings": True, "vocab_size": 384})
    )
    told = refused(tmp_path, folder)
    assert "unknown whether the values are equal" in told.get("LR405", ""), told


def test_tensors_in_memory(fused_source: Path, fused_rules: Path) -> None:
    tensors = load_file(fused_source / "model.safetensors")
    config = json.loads((fused_source / "config.json").read_text())
    given = {**sources(fused_source), "model": InMemory(tensors, config, fused_source)}
    apply("llava-v1.5", sources(PLAIN), "plain")
    apply(fused_rules, given, "made", max_shard_nbytes=30_000)
    assert same(weights(Path("plain")), weights(Path("made")))


def test_strided_tensors_in_several_files(fused_source: Path, fused_rules: Path) -> None:
    file = fused_source / "model.safetensors"
    tensors = load_file(file)
    file.unlink()
    shards: dict[str, Tensors] = {f"pytorch_model-0000{n}-of-00002.bin": {} for n in (1, 2)}
    for number, (name, value) in enumerate(tensors.items()):
        turned = value.T.contiguous().T if value.ndim == 2 else value
        [*shards.values()][number % 2][name] = turned
    for name, shard in shards.items():
        torch.save(shard, fused_source / name)
    index = {name: shard for shard, held in shards.items() for name in held}
    (fused_source / "pytorch_model.bin.index.json").write_text(
        json.dumps({"metadata": {}, "weight_map": index})
    )
    apply("llava-v1.5", sources(PLAIN), "plain")
    apply(fused_rules, sources(fused_source), "made", verify="full")
    assert same(weights(Path("plain")), weights(Path("made")))


def test_a_manifest_is_planned_from(fused_source: Path, fused_rules: Path) -> None:
    Path("manifest.json").write_text(manifest_text(open_checkpoint(fused_source)))
    given = {**sources(fused_source), "model": "manifest.json"}
    from_manifest = plan(fused_rules, given, dry_run=True).plan
    from_files = plan(fused_rules, sources(fused_source), dry_run=True).plan
    assert from_manifest.problems == ()
    assert {(m.target, m.parts, m.then) for m in from_manifest.mapped} == {
        (m.target, m.parts, m.then) for m in from_files.mapped
    }
