"""Load converted folders with SGLang's own loader, and say which parameters it leaves unset.

`ask_sglang.py QUESTIONS.json ANSWERS.json` loads all folders in one process. Nothing is computed:
SGLang's kernels want a GPU. `triton` and `sgl_kernel` are replaced by modules of placeholders, so
that SGLang can be imported without one. Loading calls neither.
"""

from __future__ import annotations

import json
import os
import sys
import tempfile
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import ModuleType
from typing import Any

os.environ["SGLANG_USE_CPU_ENGINE"] = "1"

#: What only a GPU needs.
REPLACED = ("triton", "sgl_kernel")


class Placeholder:
    """Stands for a function, a decorator, a type or a value that is named and never used."""

    def __init__(self, *arguments: Any, **more: Any) -> None:
        pass

    def __call__(self, *arguments: Any, **more: Any) -> Any:
        decorates = len(arguments) == 1 and not more and callable(arguments[0])
        return arguments[0] if decorates else self

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return self

    def __getitem__(self, key: Any) -> Any:
        return self


class PlaceholderModule(ModuleType):
    """Has every attribute: types under capitalized names, else placeholders."""

    __version__ = "99"

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return type(name, (Placeholder,), {}) if name.strip("_")[:1].isupper() else Placeholder()


class Replacing(MetaPathFinder, Loader):
    """Finds the modules of `REPLACED` where they are not installed."""

    def find_spec(self, name: str, path: Any = None, target: Any = None) -> ModuleSpec | None:
        wanted = name.partition(".")[0] in REPLACED
        return ModuleSpec(name, self, is_package=True) if wanted else None

    def create_module(self, spec: ModuleSpec) -> ModuleType:
        return PlaceholderModule(spec.name)

    def exec_module(self, module: ModuleType) -> None:
        pass


#: One process that does all.
ALONE = {
    **dict.fromkeys(("pp_size", "attn_tp_size", "attn_dp_size", "attn_dcp_size"), 1),
    **dict.fromkeys(("moe_ep_size", "moe_dp_size", "moe_tp_size"), 1),
    **dict.fromkeys(("tp_rank", "pp_rank", "attn_dp_rank", "attn_tp_rank", "attn_cp_rank"), 0),
    "moe_ep_rank": 0,
}


def load(folder: str, implementation: str) -> dict[str, Any]:
    """Load a folder into a model whose parameters are all NaN before.

    Returns:
        `class`, the number of `parameters`, and the names of those that are `unset`: NaN after
        loading; and of those that are `other` than what transformers loads, rows of padding aside.
    """
    import torch
    from sglang.srt.configs.device_config import DeviceConfig
    from sglang.srt.configs.load_config import LoadConfig
    from sglang.srt.configs.model_config import ModelConfig
    from sglang.srt.distributed import init_distributed_environment, initialize_model_parallel
    from sglang.srt.layers.dp_attention import initialize_dp_attention_flags
    from sglang.srt.model_loader import loader
    from sglang.srt.runtime_context import get_parallel, publish
    from sglang.srt.server_args import ServerArgs

    torch.set_num_threads(1)
    arguments = ServerArgs(
        model_path=folder, device="cpu", dtype="float32", model_impl=implementation
    )
    publish(arguments, role="encoder")
    get_parallel().override_permanently(**ALONE)
    if not torch.distributed.is_initialized():
        init_distributed_environment(
            backend="gloo",
            world_size=1,
            rank=0,
            local_rank=0,
            distributed_init_method=f"file://{tempfile.mkdtemp()}/meeting",
        )
        initialize_model_parallel()
    initialize_dp_attention_flags(arguments)
    make = loader._initialize_model

    def make_unset(*given: Any, **more: Any) -> Any:
        model = make(*given, **more)
        for parameter in model.parameters():
            parameter.data.fill_(float("nan"))
        return model

    loader._initialize_model = make_unset
    try:
        model = loader.get_model_loader(LoadConfig(), None).load_model(
            model_config=ModelConfig.from_server_args(arguments), device_config=DeviceConfig("cpu")
        )
    finally:
        loader._initialize_model = make
    parameters = dict(model.named_parameters())
    return {
        "class": type(model).__name__,
        "parameters": len(parameters),
        "unset": [name for name, one in parameters.items() if one.isnan().any()],
        "other": differences(folder, parameters),
    }


def differences(folder: str, parameters: dict[str, Any]) -> list[str]:
    """The names whose values are not those that transformers loads."""
    import torch
    from transformers import AutoModelForImageTextToText

    model = AutoModelForImageTextToText.from_pretrained(folder, dtype=torch.float32)
    wanted = dict(model.named_parameters())
    return sorted(
        name
        for name in wanted | parameters
        if name not in wanted
        or name not in parameters
        or not torch.equal(parameters[name][: len(wanted[name])], wanted[name])
    )


def main(given: Path, answered: Path) -> None:
    sys.meta_path.append(Replacing())  # before anything of SGLang is imported
    answers: dict[str, Any] = {}
    for name, of in json.loads(given.read_text()).items():
        answers[name] = {}
        for implementation in of["implementations"]:
            try:
                answers[name][implementation] = load(of["folder"], implementation)
            except Exception as error:
                said = {"error": f"{type(error).__name__}: {error}"}
                answers[name][implementation] = said
    answered.write_text(json.dumps(answers))


if __name__ == "__main__":
    main(*map(Path, sys.argv[1:]))
