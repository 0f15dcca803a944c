"""Finds libraries that don't work, before a config or a file is blamed."""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from importlib import import_module
from importlib.metadata import (
    PackageNotFoundError,
    distributions,
    packages_distributions,
    version,
)
from traceback import walk_tb
from types import FrameType, ModuleType

from llava_remap.core.escaped import quote
from llava_remap.core.limits import (
    ADDRESSES,
    limit_reached,
    process_limits,
    refuse_without_temporary_files,
    refuse_without_threads,
)
from llava_remap.core.problem import EndedBySignal, RemapError, refuse

#: The modules to import before libraries are asked. The last one imports most of transformers, so
#: it fails if transformers can't be used.
_ASKED = (
    "jinja2",
    "PIL.Image",
    "sentencepiece",
    "tokenizers",
    "torch",
    "transformers",
    "transformers.models.llava.modeling_llava",
)
#: Modules whose package has another name.
_PACKAGES = {"PIL": "pillow", "yaml": "PyYAML"}
#: Bytes of address space and of data that the imports take; a build for GPUs takes more.
_MAPPED, _DATA = 800 << 20, 340 << 20


def import_asked(modules: Collection[str] = _ASKED) -> None:
    """Import the libraries that know models and tokenizers.

    Raises:
        RemapError: LR510 for a library that can't be imported, if the current folder is gone, or
            if Python runs without docstrings and transformers is among the modules; LR501 and
            LR511 for a limit of the system at which torch would end the process during the import.
    """
    if "torch" in modules and "torch" not in sys.modules:
        _refuse_without_folder()
        _refuse_without_room()
        refuse_without_threads()
        refuse_without_temporary_files()
    if "transformers" in modules and sys.flags.optimize > 1:
        raise refuse(
            "LR510",
            "transformers builds its classes from docstrings, but this Python runs without "
            "docstrings.",
            "Unset PYTHONOPTIMIZE and leave out -OO.",
        )
    for module in modules:
        try:
            import_module(module)
        except EndedBySignal:
            raise
        except (Exception, SystemExit) as error:  # whatever goes wrong in somebody else's code
            raise limit_reached(error) or broken(module, error) from error


def check_libraries() -> None:
    """LR510 if a library fails in a trivial task. Its other errors are then no file's fault."""
    for module, task in _TASKS.items():
        try:
            task()
        except Exception as error:  # whatever goes wrong in somebody else's code
            raise limit_reached(error) or broken(module, error, "doesn't work") from error


def _fill_a_template() -> None:
    from jinja2 import Environment

    if Environment(autoescape=True).from_string("{{ 1 + 1 }}").render() != "2":
        raise ValueError("renders a template wrongly")


def _shrink_a_picture() -> None:
    from PIL import Image

    Image.new("RGB", (4, 4)).resize((2, 2))


def _open_no_sentencepiece() -> None:
    from sentencepiece import SentencePieceProcessor

    SentencePieceProcessor()


def _encode_a_word() -> None:
    from tokenizers import Tokenizer, models

    if Tokenizer(models.WordLevel({"a": 7}, unk_token="a")).encode("a").ids != [7]:
        raise ValueError("gives a word another id")


def _make_a_tensor() -> None:
    import torch

    torch.empty((2, 2), device="meta")


def _make_a_model() -> None:
    import torch
    import transformers

    text = transformers.LlamaConfig(
        vocab_size=8,
        hidden_size=8,
        intermediate_size=8,
        num_hidden_layers=1,
        num_attention_heads=1,
        num_key_value_heads=1,
    )
    tower = transformers.CLIPVisionConfig(
        hidden_size=8,
        intermediate_size=8,
        num_hidden_layers=1,
        num_attention_heads=1,
        image_size=4,
        patch_size=2,
    )
    with torch.device("meta"):
        transformers.LlavaForConditionalGeneration(
            transformers.LlavaConfig(vision_config=tower, text_config=text)
        )


#: For each library a task that doesn't depend on any file.
_TASKS: Mapping[str, Callable[[], None]] = {
    "jinja2": _fill_a_template,
    "PIL": _shrink_a_picture,
    "sentencepiece": _open_no_sentencepiece,
    "tokenizers": _encode_a_word,
    "torch": _make_a_tensor,
    "transformers": _make_a_model,
}


def _refuse_without_folder() -> None:
    """LR510 if the current folder was deleted: oneMKL, a part of torch, would end the process."""
    try:
        os.getcwd()  # noqa: PTH109 - the system itself is asked
    except OSError as error:
        raise refuse(
            "LR510",
            f"torch can't be imported while the current folder is unknown: {error.strerror}.",
            "The folder was deleted: change to another folder (`cd`), and give the same command.",
        ) from None


def _refuse_without_room() -> None:
    for free, what in process_limits():
        needed = _MAPPED if what == ADDRESSES else _DATA
        if free < needed:
            raise refuse(
                "LR501",
                f"torch and transformers take {needed:,} bytes to import, and `{what}` leaves "
                f"{max(free, 0):,}.",
                f"Raise the limit: `{what} unlimited`.",
            )


def imported(error: BaseException) -> str | None:
    """The top-level module of the library whose import failed; None if the error arose elsewhere.

    This is the library that lacks a name. For an error of another kind, and for a name that belongs
    to no known package, it is the innermost library whose module was being run. It is never this
    package or a part of Python.
    """
    lacking = ""
    if isinstance(error, ImportError) and error.name:
        lacking = error.name
    elif isinstance(error, AttributeError) and isinstance(error.obj, ModuleType):
        lacking = error.obj.__name__
    library = lacking.partition(".")[0]
    ours = isinstance(error, AttributeError) and library in sys.stdlib_module_names
    if ours or library == "llava_remap":
        return None
    frames = [
        frame for frame, _ in walk_tb(error.__traceback__) if frame.f_code.co_name == "<module>"
    ]
    return library if library and _is_known(library) else next(_others(frames), library or None)


def _is_known(library: str) -> bool:
    """Whether a module belongs to an installed package, or has the name of a package that an
    installed one requires. A package with any other name may be a stranger's.
    """
    if library in packages_distributions() or library in _PACKAGES:
        return True
    required = (line for package in distributions() for line in package.requires or ())
    names = (re.split(r"[^\w.-]", line, maxsplit=1)[0] for line in required)
    return library in {re.sub(r"[-.]", "_", name).lower() for name in names}


def raised_in(error: BaseException) -> tuple[str, str] | None:
    """The library whose code raised an error: its package with version, and the command that
    installs it anew. None for an error of this package's own code.
    """
    frames = [frame for frame, _ in walk_tb(error.__traceback__)]
    ours = [i for i, frame in enumerate(frames) if _library(frame) == "llava_remap"]
    library = next(_others(frames[ours[-1] + 1 :] if ours else frames), None)
    return None if library is None else (_with_version(library), _install(library))


def _others(frames: Sequence[FrameType]) -> Iterator[str]:
    """The libraries whose code was being run, the innermost first, except this package and Python
    itself.
    """
    names = map(_library, reversed(frames))
    return (name for name in names if name not in {*sys.stdlib_module_names, "llava_remap"})


def _library(frame: FrameType) -> str:
    return str(frame.f_globals.get("__name__")).partition(".")[0]


def _with_version(library: str) -> str:
    package = _package(library)
    try:
        return f"{package} {version(package)}"
    except PackageNotFoundError:
        return package


def _package(library: str) -> str:
    """The package to which a top-level module belongs."""
    return _PACKAGES.get(library) or packages_distributions().get(library, [library])[0]


def _install(library: str) -> str:
    return f"`{quote(sys.executable)} -m pip install --force-reinstall {_package(library)}`"


def broken(module: str, error: BaseException, how: str = "can't be imported") -> RemapError:
    """LR510 for a library that doesn't work, with its own message.

    Args:
        module: the module to import or use. `error` may show that another one failed.
        error: the error that was raised.
        how: the failure in words.
    """
    module = imported(error) or module
    library = module.partition(".")[0]
    text = " ".join(f"{type(error).__name__}: {error}".split())[:500]
    fix = f"Reinstall the library, then give the same command again: {_install(library)}"
    return refuse("LR510", f"{_with_version(library)} {how}: {text}.", fix)
