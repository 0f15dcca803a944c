"""Whole jobs of random checkpoints against an oracle of a few lines, which knows no rule file:
names, values, shapes, index.
"""

from __future__ import annotations

import json
import re
import shutil
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import torch
from hypothesis import Phase, given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

from llava_remap.jobs.apply import apply
from tests.conftest import CLIP, RELEASED

Tensors = dict[str, torch.Tensor]
#: Some 25 in a normal run, a thousand in `make fuzz`.
EXAMPLES = max(settings.default.max_examples // 4, 1) if settings.default else 25
DTYPES = (torch.float16, torch.bfloat16, torch.float32)
#: New names by old ones; what none matches isn't written.
ORACLE = (
    (r"^model\.mm_projector\.0\.", "multi_modal_projector.linear_1."),
    (r"^model\.mm_projector\.2\.", "multi_modal_projector.linear_2."),
    (
        r"^(?:model\.vision_tower\.vision_tower\.)?vision_model\.(?!.*position_ids)",
        "vision_tower.vision_model.",
    ),
    (r"^lm_head\.", "language_model.lm_head."),
    (r"^model\.(?=embed_tokens|norm|layers(?!.*inv_freq))", "language_model.model."),
)
#: The two matrices that get rows.
GROWING = ("language_model.model.embed_tokens.weight", "language_model.lm_head.weight")


def oracle(given_tensors: Tensors) -> Tensors:
    found = {}
    for name, tensor in given_tensors.items():
        for pattern, new in ORACLE:
            if re.search(pattern, name):
                found[re.sub(pattern, new, name)] = tensor
                break
    return found


def raw(tensor: torch.Tensor) -> bytes:
    return np.ascontiguousarray(tensor.contiguous().view(torch.uint8).numpy()).tobytes()


def write(folder: Path, tensors: Tensors, form: str, prefix: str, files: list[list[str]]) -> None:
    folder.mkdir()
    for path in (RELEASED / "safetensors").iterdir():
        if path.name != "model.safetensors":
            shutil.copyfile(path, folder / path.name)
    stem, end = ("model", "safetensors") if form == "safetensors" else ("pytorch_model", "bin")
    weight_map: dict[str, str] = {}
    for number, names in enumerate(files, 1):
        name = (
            f"{stem}.{end}" if len(files) == 1 else f"{stem}-{number:05}-of-{len(files):05}.{end}"
        )
        part: Any = {prefix + one: tensors[one] for one in names}
        weight_map |= dict.fromkeys(part, name)
        if form == "safetensors":
            save_file(part, folder / name, {"format": "pt"})
        else:
            torch.save(
                {"state_dict": part} if form == "wrapped" else part,
                folder / name,
                _use_new_zipfile_serialization=form != "legacy",
            )
    if len(files) > 1:
        (folder / f"{stem}.{end}.index.json").write_text(
            json.dumps({"metadata": {}, "weight_map": weight_map})
        )


@st.composite
def checkpoints(draw: st.DrawFn) -> tuple[Tensors, bool, str, str, list[list[str]]]:
    """Tensors in some order, each of a dtype, some views; whether the tower is inside; form,
    prefix, files.
    """
    tensors = load_file(RELEASED / "safetensors" / "model.safetensors")
    inside = draw(st.booleans())
    if inside:
        tower = load_file(CLIP / "model.safetensors")
        tensors |= {
            f"model.vision_tower.vision_tower.{name}": one
            for name, one in tower.items()
            if name.startswith("vision_model.")
        }
    form = draw(st.sampled_from(["safetensors", "zip", "legacy", "wrapped"]))
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**31)))
    dtypes = draw(st.lists(st.sampled_from(DTYPES), min_size=1, max_size=3))
    made: Tensors = {}
    for number, (name, tensor) in enumerate(sorted(tensors.items())):
        if not tensor.is_floating_point():
            made[name] = tensor
            continue
        language_model = not ("vision" in name or "mm_projector" in name)
        dtype = dtypes[0] if language_model else dtypes[number % len(dtypes)]
        one = (torch.randn(tensor.shape, generator=generator) * 0.05 + ("norm" in name)).to(dtype)
        turned = form != "safetensors" and one.dim() == 2 and draw(st.booleans())
        made[name] = one.t().contiguous().t() if turned else one
    names = draw(st.permutations(sorted(made)))
    cuts = sorted(draw(st.sets(st.integers(1, len(names) - 1), max_size=3)))
    files = [list(names[a:b]) for a, b in zip([0, *cuts], [*cuts, len(names)], strict=True)]
    prefix = draw(st.sampled_from(["", "module.", "_orig_mod.", "module._orig_mod."]))
    return made, inside, form, prefix, files


@settings(
    max_examples=EXAMPLES, phases=[Phase.generate]
)  # to make a failing one smaller takes minutes
@given(checkpoints(), st.sampled_from([None, 50_000, 200_000]), st.sampled_from([1, 3]))
def test_against_the_oracle(
    checkpoint: tuple[Tensors, bool, str, str, list[list[str]]], most: int | None, jobs: int
) -> None:
    tensors, inside, form, prefix, files = checkpoint
    with tempfile.TemporaryDirectory() as name:
        source, output = Path(name, "source"), Path(name, "output")
        write(source, tensors, form, prefix, files)
        sources = [str(source), *([] if inside else [f"vision_tower={CLIP}"])]
        apply(
            "llava-v1.5",
            sources if not inside else [*sources, f"vision_tower={CLIP}"],
            output,
            max_shard_nbytes=most,
            jobs=jobs,
        )
        wanted = oracle(tensors if inside else {**tensors, **load_file(CLIP / "model.safetensors")})
        index = json.loads((output / "model.safetensors.index.json").read_text())
        written = {file.name: load_file(file) for file in sorted(output.glob("*.safetensors"))}
    found = {name: tensor for part in written.values() for name, tensor in part.items()}
    assert sum(map(len, written.values())) == len(found)
    assert index["weight_map"] == {name: file for file, part in written.items() for name in part}
    assert index["metadata"]["total_size"] == sum(len(raw(tensor)) for tensor in found.values())
    assert found.keys() == wanted.keys()
    for name, tensor in wanted.items():
        assert found[name].dtype == tensor.dtype
        rows = len(tensor)
        assert found[name].shape == ((384, *tensor.shape[1:]) if name in GROWING else tensor.shape)
        assert raw(found[name][:rows]) == raw(tensor)
        assert torch.isfinite(found[name].float()).all()
