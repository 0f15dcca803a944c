"""Folders whose weights don't lie there as a checkpoint: each is told for what it is, and the
command that is told makes one.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections import OrderedDict
from pathlib import Path

import pytest
import torch
from torch.distributed.checkpoint.state_dict_saver import save

from llava_remap.checkpoint import PartsApartError, StepsError, gather_command, open_checkpoint
from llava_remap.checkpoint.foreign import Listing, explain_folder
from llava_remap.core.problem import Problem, RemapError

STATE = {
    "model.norm.weight": torch.ones(4),
    "model.embed_tokens.weight": torch.arange(8.0).view(2, 4),
}
STATES, OPTIMIZER = "mp_rank_00_model_states.pt", "bf16_zero_pp_rank_0_mp_rank_00_optim_states.pt"
#: With the arguments of DeepSpeed's script, before it wrote a folder and since; what it puts
#: together lies ready beside it, so that it needs no torch.
SCRIPTS = {
    "folder": 'a.add_argument("output_dir")\nfile = lambda o: os.path.join(o.output_dir, '
    '"pytorch_model.bin")',
    "file": 'a.add_argument("output_file")\nfile = lambda o: o.output_file',
}


def told(path: Path) -> Problem:
    with pytest.raises(RemapError) as caught:
        open_checkpoint(path)
    [problem] = caught.value.problems
    return problem


def ran(problem: Problem) -> None:
    """Run the command in a fix, as it is copied: everything behind the colon."""
    found = re.search(r", then give `[^`]*`: (.+)$", problem.fix)
    assert found is not None, problem.fix
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    subprocess.run(found[1], shell=True, check=True, env={**os.environ, "PATH": path})


def touched(folder: Path, *names: str) -> Path:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).touch()
    return folder


def step(folder: Path, name: str = "global_step10", **more: object) -> Path:
    """A step of ZeRO-2, with the values that DeepSpeed writes beside the model."""
    place = folder / name
    place.mkdir(parents=True)
    beside = {
        "buffer_names": [], "optimizer": None,
        "param_shapes": [OrderedDict((n, t.shape) for n, t in STATE.items())],
        "frozen_param_shapes": None, "shared_params": {}, "frozen_param_fragments": None,
        "lr_scheduler": {"last_epoch": 10},
        "data_sampler": None, "sparse_tensor_module_names": {"a"}, "skipped_steps": 0,
        "global_steps": 10,
        "dp_world_size": 2, "mp_world_size": 1, "ds_config": {"bf16": {"enabled": True}},
        "ds_version": "0.12.6",
    }  # fmt: skip
    torch.save({"module": STATE, **beside, **more}, place / STATES)
    torch.save(
        {
            "optimizer_state_dict": {"base_optimizer_state": [torch.zeros(4)]},
            "ds_version": "0.12.6",
        },
        place / OPTIMIZER,
    )
    return place


@pytest.fixture
def training(tmp_path: Path) -> Path:
    """A folder that DeepSpeed's ZeRO-2 wrote two steps into, with a name that a shell would take
    apart.
    """
    folder = tmp_path / "my run's checkpoint"
    step(folder, "global_step5", module={"model.norm.weight": torch.zeros(4)})
    step(folder)
    (folder / "config.json").write_text('{"model_type": "llava"}')
    (folder / "latest").write_text("global_step10")
    return folder


def test_a_training_folder_of_zero_2_is_read(training: Path) -> None:
    checkpoint = open_checkpoint(training)
    assert set(checkpoint.catalog) == set(STATE)
    assert [file.relative_to(training).as_posix() for file in checkpoint.files] == [
        f"global_step10/{STATES}"
    ]
    assert (
        "the model states are read, in the dtype of the training: "
        "global_step10/mp_rank_00_model_states.pt" in checkpoint.form
    )


@pytest.mark.parametrize("inside", ["", STATES])
def test_a_step_of_it_is_read_with_the_config_above(training: Path, inside: str) -> None:
    checkpoint = open_checkpoint(training / "global_step5" / inside)
    assert (list(checkpoint.catalog), checkpoint.config) == (
        ["model.norm.weight"],
        {"model_type": "llava"},
    )
    (training / "config.json").unlink()
    assert open_checkpoint(training / "global_step5" / inside).config is None


def test_several_steps_and_nothing_says_which(training: Path) -> None:
    (training / "latest").unlink()
    problem = told(training)
    assert "DeepSpeed checkpoint of 2 steps (`global_step5`, `global_step10`)" in problem.cause
    assert problem.fix == f"Give the right step, such as `{training}/global_step10`."
    (training / "latest").write_text("global_step20\n")
    problem = told(training)
    assert "`latest` names the step `global_step20`, which doesn't exist" in problem.cause
    assert f"`{training}/global_step10`" in problem.fix


@pytest.fixture
def cut_up(tmp_path: Path) -> Path:
    """What ZeRO-3 leaves, of two ranks."""
    folder = tmp_path / "zero 3"
    for rank in (0, 1):
        touched(folder, f"global_step7/zero_pp_rank_{rank}_mp_rank_00_model_states.pt")
        touched(folder, f"global_step7/bf16_zero_pp_rank_{rank}_mp_rank_00_optim_states.pt")
    return folder


@pytest.mark.parametrize("script", SCRIPTS.values(), ids=SCRIPTS)
@pytest.mark.parametrize("latest", ["global_step7", None])
@pytest.mark.parametrize(
    "place", ["", "global_step7", "global_step7/zero_pp_rank_1_mp_rank_00_model_states.pt"]
)
def test_zero_3_is_put_together_by_its_script(
    cut_up: Path, script: str, latest: str | None, place: str
) -> None:
    (cut_up / "zero_to_fp32.py").write_text(
        "import argparse, os, shutil\na = argparse.ArgumentParser()\n"
        f"a.add_argument('checkpoint_dir')\n{script}\n"
        "a.add_argument('-t', '--tag')\no = a.parse_args()\n"
        "tag = o.tag or open(os.path.join(o.checkpoint_dir, 'latest')).read().strip()\n"
        "assert os.path.isfile(os.path.join(o.checkpoint_dir, tag, "
        "'zero_pp_rank_0_mp_rank_00_model_states.pt'))\n"
        "shutil.copy('ready', file(o))\n"
    )
    torch.save({"a": torch.ones(2)}, cut_up / "ready")
    if latest is not None:
        (cut_up / "latest").write_text(latest)
    problem = told(cut_up / place)
    assert problem.code == "LR106"
    assert "DeepSpeed checkpoint (ZeRO), divided by ranks" in problem.cause
    ran(problem)
    assert f"then give `{cut_up}`: " in problem.fix
    assert list(open_checkpoint(cut_up).catalog) == ["a"]


def test_zero_3_without_its_script_or_its_values(cut_up: Path) -> None:
    assert "python -m deepspeed.utils.zero_to_fp32 . . --tag global_step7" in told(cut_up).fix
    assert "python -m deepspeed.utils.zero_to_fp32" in gather_command(cut_up)
    for file in cut_up.glob("*/*_optim_states.pt"):
        file.unlink()
    problem = told(cut_up)
    assert "The values are in files `…_optim_states.pt`, which are missing." in problem.cause
    assert f"Copy those files into `{cut_up}/global_step7`" in problem.fix


def test_a_model_that_was_cut_up_by_tensors(tmp_path: Path) -> None:
    touched(tmp_path, f"global_step7/{STATES}", "global_step7/mp_rank_01_model_states.pt")
    problem = told(tmp_path)
    assert "its model is divided by layers or tensors" in problem.cause
    assert "Save the whole model with the training code" in problem.fix


@pytest.mark.filterwarnings("ignore")
def test_a_sharded_checkpoint_of_fsdp_is_put_together_by_torch(tmp_path: Path) -> None:
    """As accelerate saves it; written by torch itself, and the command is run. Whichever of its
    files is given, the answer is the same.
    """
    folder = tmp_path / "run 1" / "checkpoint-500"
    for name, state in (
        ("pytorch_model_fsdp_0", {"model": STATE}),
        ("optimizer_0", {"optimizer": {"a": torch.ones(2)}}),
    ):
        save(state, checkpoint_id=str(folder / name), no_dist=True)
    (folder / "config.json").write_text('{"model_type": "llava"}')
    problem = told(folder)
    assert "is a checkpoint of torch.distributed, as FSDP writes it" in problem.cause
    for inside in ("", "__0_0.distcp", ".metadata"):
        same = told(folder / "pytorch_model_fsdp_0" / inside)
        assert "is a checkpoint of torch.distributed, as FSDP writes it" in same.cause
        assert same.fix == problem.fix
    ran(problem)
    assert f"then give `{folder}`: " in problem.fix
    checkpoint = open_checkpoint(folder)
    assert set(checkpoint.catalog) == set(STATE)
    assert checkpoint.config is not None


def test_a_sharded_checkpoint_without_its_metadata(tmp_path: Path) -> None:
    problem = told(touched(tmp_path, "pytorch_model_fsdp_0/__0_0.distcp"))
    assert "`.metadata` is missing" in problem.cause
    assert problem.fix == f"Copy that file into `{tmp_path}/pytorch_model_fsdp_0`."


@pytest.mark.parametrize("place", ["", "actor", "actor/model_world_size_2_rank_0.pt"])
def test_verl(tmp_path: Path, place: str) -> None:
    touched(
        tmp_path,
        *(
            f"actor/{what}_world_size_2_rank_{rank}.pt"
            for what in ("model", "optim")
            for rank in (0, 1)
        ),
    )
    problem = told(tmp_path / place)
    assert "is a checkpoint of verl, divided by ranks" in problem.cause
    at = f"{tmp_path}/actor"
    assert (
        f"verl.model_merger merge --backend fsdp --local_dir {at} --target_dir {at}-merged"
        in problem.fix
    )


@pytest.mark.parametrize(
    ("file", "said"),
    [
        ("llava-v1.5-7b-Q4_K_M.gguf", r"GGUF file for llama\.cpp"),
        ("flax_model.msgpack", "Flax"),
        ("tf_model.h5", "TensorFlow"),
        ("weights.npz", "NumPy"),
        ("model.onnx", "ONNX"),
        ("llava.nemo", "NeMo"),
        ("latest_checkpointed_iteration.txt", "Megatron"),
    ],
)
def test_formats_of_other_programs(tmp_path: Path, file: str, said: str) -> None:
    touched(tmp_path, file, "config.json", "README.md")
    for path in (tmp_path, tmp_path / file):
        problem = told(path)
        assert problem.code == "LR106"
        assert re.search(said, problem.cause)
        assert "with the weights" not in problem.fix
        assert problem.fix


@pytest.mark.parametrize(
    ("name", "how"),
    [
        ("model.layers.0.mlp.up_proj.weight.absmax", "bitsandbytes"),
        ("model.layers.0.mlp.up_proj.qweight", "GPTQ or AWQ"),
        ("model.layers.0.mlp.up_proj.weight_packed", "compressed-tensors"),
        ("model.layers.0.mlp.up_proj.weight_scale_inv", "FP8"),
        ("model.layers.0.mlp.up_proj.q_scale", "EXL2"),
        ("model.layers.0.mlp.up_proj.W_q", "HQQ"),
        ("model.layers.0.mlp.up_proj.codebooks", "AQLM"),
    ],
)
def test_quantised_weights_are_told_by_how(tmp_path: Path, name: str, how: str) -> None:
    torch.save(
        {"model.norm.weight": torch.ones(2), name: torch.ones(2)}, tmp_path / "pytorch_model.bin"
    )
    problem = told(tmp_path)
    assert f"is quantised by {how}" in problem.cause
    assert problem.names == (name,)
    torch.save(
        {name: torch.ones(2), name.rpartition(".")[0] + ".g_idx": torch.ones(2)},
        tmp_path / "pytorch_model.bin",
    )
    assert how != "GPTQ or AWQ" or "is quantised by GPTQ:" in told(tmp_path).cause


@pytest.mark.filterwarnings("ignore")
def test_a_program_of_torchscript(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    torch.jit.save(torch.jit.script(torch.nn.Linear(2, 3)), "it's clip.pt")
    problem = told(Path("it's clip.pt"))
    assert "is a TorchScript program" in problem.cause
    command = problem.fix.partition(": ")[2].replace("python", sys.executable, 1)
    subprocess.run(command, shell=True, check=True)
    assert set(open_checkpoint(Path("it's clip.pt.state.pt")).catalog) == {"weight", "bias"}


def test_a_folder_for_each_part(tmp_path: Path) -> None:
    for name in (
        "llm/model.safetensors",
        "vision_tower/model.safetensors",
        "mm_projector/model.safetensors",
    ):
        touched(tmp_path, name)
    with pytest.raises(PartsApartError) as caught:
        open_checkpoint(tmp_path)
    assert caught.value.parts == {
        "model": f"{tmp_path}/llm", "vision_tower": f"{tmp_path}/vision_tower",
        "projector": f"{tmp_path}/mm_projector"
    }  # fmt: skip
    assert f"--source model={tmp_path}/llm" in caught.value.problems[0].fix


def test_steps_below(tmp_path: Path) -> None:
    touched(
        tmp_path,
        *(f"checkpoint-{number}/model.safetensors" for number in (500, 1000, 1500)),
        "logs/events.out",
    )
    touched(
        tmp_path,
        "checkpoint-2000/pytorch_model_fsdp_0/__0_0.distcp",
        "checkpoint-2000/pytorch_model_fsdp_0/.metadata",
    )
    problem = told(tmp_path)
    assert (
        "they are in `checkpoint-500`, `checkpoint-1000`, `checkpoint-1500`, `checkpoint-2000`"
        in problem.cause
    )
    assert "The newest of these steps of a training" in problem.cause
    assert "is a checkpoint of torch.distributed" in problem.cause
    assert "dcp_to_torch" in problem.fix


def test_the_newest_step_below(tmp_path: Path) -> None:
    touched(
        tmp_path,
        *(f"checkpoint-{number}/model.safetensors" for number in (500, 1000)),
        "checkpoint-2000/trainer_state.json",
        "old/model.safetensors",
    )
    with pytest.raises(StepsError) as caught:
        open_checkpoint(tmp_path)
    assert caught.value.newest == f"{tmp_path}/checkpoint-1000"
    [problem] = caught.value.problems
    assert "the newest, `checkpoint-1000`, is a checkpoint" in problem.cause
    assert problem.fix.endswith(f": llava-remap convert {tmp_path}/checkpoint-1000")
    adapter = "checkpoint-2500/adapter_config.json", "checkpoint-2500/adapter_model.safetensors"
    touched(tmp_path, *adapter)
    assert "the newest, `checkpoint-2500`, is an adapter" in told(tmp_path).cause
    touched(
        tmp_path,
        *(
            f"checkpoint-3000/global_step3000/zero_pp_rank_{rank}_mp_rank_00_{kind}_states.pt"
            for rank in (0, 1)
            for kind in ("model", "optim")
        ),
        "checkpoint-3000/latest",
    )
    (tmp_path / "checkpoint-3000/latest").write_text("global_step3000")
    problem = told(tmp_path)
    assert "checkpoint-3000` is a DeepSpeed checkpoint (ZeRO), divided by ranks" in problem.cause
    assert problem.fix.endswith("python -m deepspeed.utils.zero_to_fp32 . .")


def test_checkpoints_below_that_are_no_steps(tmp_path: Path) -> None:
    touched(tmp_path, "one/model.safetensors", "two/model.safetensors")
    fix = f"Give one of these folders: llava-remap inspect {tmp_path}/two"
    assert told(tmp_path).fix == fix
    touched(tmp_path, "epoch-3/model.safetensors", "step-200/model.safetensors")
    assert told(tmp_path).fix == fix, "nothing orders these"


def test_what_is_not_known_stays_so(tmp_path: Path) -> None:
    problem = told(touched(tmp_path, "README.md", "src/train.py"))
    assert "has no weight file" in problem.cause


def test_a_repository_is_downloaded_first() -> None:
    """A script that lies in a repository is never to be run."""
    files = [
        "latest",
        "zero_to_fp32.py",
        *(
            f"global_step7/zero_pp_rank_0_mp_rank_00_{what}_states.pt"
            for what in ("model", "optim")
        ),
    ]
    error = explain_folder(Listing.of_repository("org/name", "v1", files))
    assert error is not None
    [problem] = error.problems
    assert (
        ": hf download org/name --revision v1 --local-dir name && cd name && python -m "
        "deepspeed.utils.zero_to_fp32 . ." in problem.fix
    )
