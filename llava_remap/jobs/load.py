"""Load a plan as a model in memory. No file is written, and renamed tensors stay in the source's
files, mapped into memory.
"""

from __future__ import annotations

import errno
import json
import mmap
from pathlib import Path
from typing import TYPE_CHECKING, Literal, overload

from llava_remap.core.dtypes import TORCH_DTYPES
from llava_remap.core.libraries import import_asked
from llava_remap.core.problem import RemapError, refuse
from llava_remap.execute import Recipe, gathered, too_short
from llava_remap.folder.scratch import AS_DATA, scratch_folder
from llava_remap.jobs.apply import Dtype, Options, plan_mapping
from llava_remap.jobs.derived_problems import no_tokenizer_note
from llava_remap.jobs.job import Job
from llava_remap.jobs.output import refuse_changed
from llava_remap.planning import Mapped
from llava_remap.source.sources import Sources
from llava_remap.verification import loading_problems

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel, ProcessorMixin


@overload
def load_model(
    rules: str | Path,
    sources: Sources = ...,
    *,
    dtype: Dtype = ...,
    processor: Literal[False] = ...,
    offline: bool = ...,
) -> PreTrainedModel: ...


@overload
def load_model(
    rules: str | Path,
    sources: Sources = ...,
    *,
    dtype: Dtype = ...,
    processor: Literal[True],
    offline: bool = ...,
) -> tuple[PreTrainedModel, ProcessorMixin]: ...


def load_model(
    rules: str | Path,
    sources: Sources = (),
    *,
    dtype: Dtype = "keep",
    processor: bool = False,
    offline: bool = False,
) -> PreTrainedModel | tuple[PreTrainedModel, ProcessorMixin]:
    """Load the model that `apply` would write, without writing it.

    >>> model, processor = load_model("llava-v1.5", {"model": "llava-v1.5-7b",
    ...     "vision_tower": "clip-vit-large-patch14-336"}, processor=True)
    >>> type(model).__name__, type(processor).__name__
    ('LlavaForConditionalGeneration', 'LlavaProcessor')

    Class, config, names, dtypes and values are those of
    `AutoModelForImageTextToText.from_pretrained(folder, dtype="auto")`, in eval mode, on the CPU.
    The checks are those of `apply`, from headers and from values; then transformers' loader must
    report nothing either. The output's disk and folder are not checked.

    A renamed tensor is a view of its file, mapped copy-on-write: it is read at its first use, and
    changing it changes no file. Only these tensors take memory: tensors that post-load rules
    change, that are cast, that have another dtype than the config's (a float32 tower beside a
    float16 language model), that are strided or big-endian in their file, or that don't begin at a
    multiple of their elements' size. Tensors of a source in memory are copied, so that changing the
    model doesn't change the source. The source files must not change while the model is in use.

    Args:
        rules, sources, dtype, offline: as for `plan`.
        processor: whether to return the processor too: that of
            `AutoProcessor.from_pretrained(folder)`.

    Returns:
        The model; with `processor`, the model and the processor.

    Raises:
        RemapError: with every problem of the plan, LR111 for a manifest, LR102 for a source that
            changed meanwhile, LR501 if a file can't be mapped, LR601 if the loader disagrees, LR408
            for a processor without a tokenizer.
    """
    import_asked()

    job = plan_mapping(rules, sources, Options(dtype=dtype, offline=offline)).prove()
    made = _processor(job) if processor else None
    model = _model(job)
    return model if made is None else (model, made)


def _model(job: Job) -> PreTrainedModel:
    import transformers

    model_class = getattr(transformers, job.plan.target_class)
    config, generation = (
        json.loads(job.small_files[name]) for name in ("config.json", "generation_config.json")
    )
    model, info = model_class.from_pretrained(
        None,
        config=model_class.config_class.from_dict(config),
        generation_config=transformers.GenerationConfig.from_dict(generation),
        state_dict=_state_dict(job),
        ignore_mismatched_sizes=True,  # so they are reported, like missing and unexpected names
        output_loading_info=True,
    )
    if problems := loading_problems(info):
        raise RemapError(problems)
    refuse_changed(job.checkpoints)
    model.name_or_path = model.config.name_or_path = ""  # the model comes from no folder
    loaded: PreTrainedModel = model
    return loaded


def _processor(job: Job) -> ProcessorMixin:
    """The processor of the files that `apply` would write."""
    import transformers

    if "tokenizer_config.json" not in job.small_files:
        raise RemapError(no_tokenizer_note())
    with scratch_folder() as scratch:
        for name, content in job.small_files.items():
            (scratch / name).write_bytes(content)
        processor: ProcessorMixin = transformers.AutoProcessor.from_pretrained(scratch, **AS_DATA)
    if (tokenizer := getattr(processor, "tokenizer", None)) is not None:
        tokenizer.name_or_path = ""  # that folder is gone
    return processor


def _state_dict(job: Job) -> dict[str, torch.Tensor]:
    """Every tensor that `apply` would write, by its written name."""
    recipe = Recipe.of(job.plan.mapped, job.plan.post_load, job.checkpoints)
    mappings: dict[Path, mmap.mmap] = {}
    return {entry.target: _tensor(entry, recipe, mappings) for entry in job.plan.mapped}


def _tensor(entry: Mapped, recipe: Recipe, mappings: dict[Path, mmap.mmap]) -> torch.Tensor:
    import torch

    dtype = getattr(torch, TORCH_DTYPES[entry.dtype])
    if entry.nbytes == 0:
        return torch.empty(entry.shape, dtype=dtype)
    run = recipe.copied(entry.target)
    # torch doesn't promise to compute with elements that aren't aligned to their size.
    if run is not None and not run.in_memory and run.offset % dtype.itemsize == 0:
        mapping = _mapping(run.file, mappings)
        if len(mapping) < run.offset + run.nbytes:
            raise too_short(run.file, run.offset + run.nbytes - len(mapping))
        count = run.nbytes // dtype.itemsize
        found = torch.frombuffer(mapping, dtype=dtype, count=count, offset=run.offset)
        return found.view(entry.shape)
    data = gathered(recipe.pieces(entry.target), entry.nbytes)
    return torch.frombuffer(data, dtype=dtype).view(entry.shape)


def _mapping(file: Path, mappings: dict[Path, mmap.mmap]) -> mmap.mmap:
    """Map a whole file copy-on-write, once for all its tensors, which keep the mapping alive."""
    try:
        if file not in mappings:
            with file.open("rb") as opened:
                mappings[file] = mmap.mmap(opened.fileno(), 0, access=mmap.ACCESS_COPY)
        return mappings[file]
    except (OSError, ValueError) as error:  # ValueError: the file is empty now
        if getattr(error, "errno", None) == errno.ENOMEM:
            raise refuse(
                "LR501",
                f"{file} can't be mapped into memory: {error}.",
                "Close other programs, or use a larger machine.",
            ) from None
        raise refuse(
            "LR102", f"{file}: {error}.", "Leave the sources alone while a job runs."
        ) from None
