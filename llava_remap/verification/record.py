"""The record: a file in the folder that says how the folder was made, so that it can be checked and
reversed later.

`llava_remap.json` holds the applied plan, the rule file's text, the sources' configs, size and
digest of every written file and of every small file that was read, and the versions of the
software. For the sources' weight files it holds only sizes, as their bytes are in the output. The
record is written last, and holds no time and nothing random: two runs give the same bytes. A digest
of its own content shows accidental changes. A change on purpose can include the digest.
"""

from __future__ import annotations

import contextlib
import json
import platform
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Annotated, Any, Literal

import xxhash
from pydantic import AfterValidator, AliasPath, BaseModel, ConfigDict, Field, ValidationError

from llava_remap.checkpoint import BESIDE, has_file, read_file, read_object, readable
from llava_remap.core.problem import refuse
from llava_remap.core.version import __version__
from llava_remap.execute import CLAIM, INDEX, FileDigest, read_claim
from llava_remap.planning import (
    Alias,
    Dropped,
    Mapped,
    Plan,
    PostLoad,
    PostLoadChange,
    refuse_uncovered,
)
from llava_remap.post_load.run import provenance
from llava_remap.rulefile import RuleFile

RECORD = "llava_remap.json"
FORMAT = "llava-remap/record"
FORMAT_VERSION = 3

#: The libraries that the output depends on.
_LIBRARIES = ("transformers", "tokenizers", "torch", "numpy", "safetensors")
_FIX = "Convert the checkpoint again; a record can't be corrected by hand."


@dataclass(frozen=True, slots=True)
class RecordedSource:
    """A source at the time of the conversion.

    Attributes:
        location: its folder, file or hub repository.
        not_taken: number of its tensors that were not selected, or replaced by another source's.
        files: size and digest of the small files that were read, by name.
        texts: the texts of its configs, by name.
    """

    location: str
    not_taken: int
    files: Mapping[str, FileDigest]
    texts: Mapping[str, bytes]


@dataclass(frozen=True, slots=True)
class Record:
    """The parts of a record that are needed to check a folder, and to reverse it.

    Attributes:
        rules: name and version of the rule file.
        target_class: the transformers class that the folder is for.
        outputs: size and digest of every other file, by name.
        sources: the sources by their names in the rule file.
        mapped, aliases, dropped, post_load: as in the plan.
        plan: the whole plan, as JSON.
    """

    rules: str
    target_class: str
    outputs: Mapping[str, FileDigest]
    sources: Mapping[str, RecordedSource]
    mapped: tuple[Mapped, ...]
    aliases: tuple[Alias, ...]
    dropped: tuple[Dropped, ...]
    post_load: tuple[PostLoadChange, ...]
    plan: Mapping[str, Any] = field(repr=False)

    @property
    def locations(self) -> dict[str, str]:
        """The location of each source that a tensor was taken from."""
        used = _used_sources(self.mapped, self.aliases)
        return {name: source.location for name, source in self.sources.items() if name in used}

    @property
    def unused(self) -> list[str]:
        """The other sources, which gave only a config or a tokenizer, or nothing."""
        return [name for name in self.sources if name not in self.locations]

    def nbytes_to_read(self, *, compared: bool) -> int:
        """Bytes that `verify_folder` reads and reports: all files, and, if tensors are compared,
        all tensors.
        """
        tensors = sum(entry.nbytes for entry in self.mapped) if compared else 0
        return sum(file.nbytes for file in self.outputs.values()) + tensors


def record_json(
    plan: Plan,
    rules: RuleFile,
    sources: Mapping[str, Mapping[str, FileDigest | int]],
    texts: Mapping[str, Mapping[str, str]],
    outputs: Mapping[str, FileDigest],
    verified: str,
) -> dict[str, Any]:
    """The record of a finished job.

    Args:
        sources: the files that were read from each source, by name relative to its folder; for a
            weight file, its size.
        texts: the texts of each source's configs, from `read_texts`.
        outputs: every written file except the record.
        verified: the check after writing: `meta`, `full` or `none`.
    """
    content = {
        "format": FORMAT,
        "format_version": FORMAT_VERSION,
        "made_with": {
            "llava_remap": __version__,
            "python": platform.python_version(),
            **{library: version(library) for library in _LIBRARIES},
            "post_load": {change.use: provenance(change.use) for change in plan.post_load},
        },
        "verified": verified,
        "rules": {
            "name": plan.rules_name,
            "version": plan.rules_version,
            "sha256": plan.rules_sha256,
            "files": [{"name": name, "text": text} for name, text in rules.texts],
        },
        "sources": {
            name: {
                "location": plan.sources[name].location,
                "files": _files(files),
                "texts": dict(texts[name]),
            }
            for name, files in sources.items()
        },
        "outputs": _files(outputs),
        "plan": plan.to_json(),
    }
    return {**content, "digest": own_digest(content)}


def own_digest(content: Mapping[str, Any]) -> dict[str, str]:
    """The digest of a record's content without the entry of the digest itself. It doesn't depend on
    spaces or on the order of keys.
    """
    rest = {key: value for key, value in content.items() if key != "digest"}
    return {"xxh3_128": xxhash.xxh3_128_hexdigest(json.dumps(rest, sort_keys=True).encode())}


def read_texts(files: Mapping[str, Path]) -> dict[str, str]:
    """The texts of a source's configs, for the record. Bytes that aren't UTF-8 become surrogates.

    Args:
        files: the files that were read from the source, by name.
    """
    return {
        name: read_file(files[name]).decode("utf-8", "surrogateescape")
        for name in BESIDE["config"]
        if name in files
    }


def is_finished(folder: Path) -> bool:
    """Whether a folder holds a finished job: it has the record, which is written last. A path that
    the system refuses holds no finished job.
    """
    with contextlib.suppress(OSError):
        return (folder / RECORD).is_file() and not (folder / CLAIM).exists()
    return False


def read_record(folder: Path) -> Record:
    """The record in a folder.

    Raises:
        RemapError: LR113 for a file that isn't a record, LR505 if a job broke off or still runs,
            LR505 or LR606 without a record, LR100 or LR102 if nothing can be read.
    """
    path = folder / RECORD
    with readable(path):
        if (begun := read_claim(folder)) is not None:
            raise refuse(
                "LR505",
                f"{folder} is unfinished: {begun}.",
                "Wait for the job that writes it. If that job was killed, run its command again "
                "with --resume, or delete the folder.",
            )
        if not has_file(path):
            raise _no_record(folder)
        content = read_object(path, "LR113", _FIX, halves=True)
    if content.get("format") != FORMAT or content.get("format_version") != FORMAT_VERSION:
        raise refuse(
            "LR113",
            f"{path} is of the format {content.get('format')!r}, version "
            f"{content.get('format_version')!r}; this version reads {FORMAT!r}, version "
            f"{FORMAT_VERSION}.",
            "Use the version of llava-remap that wrote the record.",
        )
    if content.get("digest") != own_digest(content):
        raise refuse(
            "LR113",
            f"{path}: by its own digest, the record was changed after it was written.",
            _FIX,
        )
    try:
        text = _Text.model_validate(content)
        mapped = tuple(map(Mapped.from_json, text.plan.mapped))
        refuse_uncovered(mapped)
        aliases = tuple(map(Alias.from_json, text.plan.aliases))
        dropped = tuple(map(Dropped.from_json, text.plan.dropped))
        post_load = tuple(PostLoadChange.from_json(entry) for entry in text.plan.post_load)
    except ValidationError as error:
        first = error.errors()[0]
        raise refuse(
            "LR113", f"{path}: `{'.'.join(map(str, first['loc']))}`: {first['msg']}.", _FIX
        ) from None
    except (AttributeError, KeyError, TypeError, ValueError, OverflowError) as error:
        raise refuse(
            "LR113",
            f"{path}: the plan in it can't be read ({type(error).__name__}: {error}).",
            _FIX,
        ) from None
    if not _used_sources(mapped, aliases) <= text.sources.keys() or not _agree(
        mapped, aliases, post_load
    ):
        raise refuse("LR113", f"{path}: the parts of the plan in it contradict each other.", _FIX)
    counts = text.plan.sources
    return Record(
        f"{text.rules_name} {text.rules_version}",
        text.plan.target_class,
        _digests(text.outputs),
        {
            name: RecordedSource(
                source.location,
                max(counts[name].tensors - counts[name].taken, 0) if name in counts else 0,
                _digests(source.files),
                {
                    file: content.encode("utf-8", "surrogateescape")
                    for file, content in source.texts.items()
                },
            )
            for name, source in text.sources.items()
        },
        mapped,
        aliases,
        dropped,
        post_load,
        content["plan"],
    )


def _agree(
    mapped: Sequence[Mapped], aliases: Sequence[Alias], post_load: Sequence[PostLoadChange]
) -> bool:
    """Whether the lists of a plan agree: each change has to be in `mapped` and in `post_load`."""
    by_target = {entry.target: entry for entry in mapped}
    changed = {
        entry.target: (entry.dtype, entry.shape, entry.post_load)
        for entry in mapped
        if entry.post_load is not None
    }
    changes = {
        entry.change.target: (
            entry.change.dtype,
            entry.change.shape_after,
            PostLoad(entry.use, entry.change.shape_before),
        )
        for entry in post_load
    }
    named = {alias.of for alias in aliases}.union(*(entry.change.reads for entry in post_load))
    return (
        0 < len(by_target) == len(mapped)
        and changed == changes
        and named <= {entry.target for entry in mapped if not entry.is_made}
        and by_target.keys().isdisjoint(alias.target for alias in aliases)
        and all(by_target[alias.of].shape_before == alias.shape for alias in aliases)
    )


def _used_sources(mapped: Sequence[Mapped], aliases: Sequence[Alias]) -> set[str]:
    """The sources that tensors are taken from, matrices of adapters included."""
    loras = [lora for entry in mapped for lora in entry.loras]
    return {
        *(part.source for entry in mapped for part in entry.parts),
        *(matrix.source for lora in loras for matrix in (lora.a, lora.b)),
        *(alias.source.source for alias in aliases),
    }


def _no_record(folder: Path) -> Exception:
    """LR505 if a job that can't be resumed was killed, LR606 for a folder that llava-remap didn't
    make.
    """
    if not folder.is_dir():
        return refuse(
            "LR100", f"the folder {folder} doesn't exist.", "Give the folder that `apply` wrote."
        )
    names = [path.name for path in folder.iterdir()]
    partial = [name for name in names if name.endswith(".partial")]
    if partial or (
        any(name.endswith(".safetensors") and "-of-" in name for name in names)
        and INDEX not in names
    ):
        return refuse(
            "LR505",
            f"{folder} is unfinished, and has no {RECORD}.",
            "Delete it and convert again.",
            partial,
        )
    return refuse(
        "LR606",
        f"{folder} has no {RECORD}, so its intended content isn't known.",
        "Give a folder that `apply` wrote.",
    )


def _files(files: Mapping[str, FileDigest | int]) -> dict[str, Any]:
    return {
        name: {"nbytes": file}
        if isinstance(file, int)
        else {"nbytes": file.nbytes, "xxh3_128": file.xxh3_128}
        for name, file in sorted(files.items())
    }


class _Part(BaseModel):
    """A part of a record. The models are built only if a record is read, as most jobs read none."""

    model_config = ConfigDict(defer_build=True)


_Hex = Annotated[str, Field(pattern=r"^[0-9a-f]{32}$")]


class _Sized(_Part):
    """A file. A source's weight file has only a size."""

    nbytes: int = Field(ge=0)
    xxh3_128: _Hex | None = None


class _Digested(_Sized):
    xxh3_128: _Hex


def _digests(files: Mapping[str, _Sized]) -> dict[str, FileDigest]:
    """The files that have a digest."""
    return {
        name: FileDigest(file.nbytes, file.xxh3_128)
        for name, file in files.items()
        if file.xxh3_128 is not None
    }


def _encodable(text: str) -> str:
    text.encode("utf-8", "surrogateescape")
    return text


class _Source(_Part):
    location: str
    files: dict[str, _Sized]
    #: Only these files are ever written from a record.
    texts: dict[
        Literal["config.json", "generation_config.json", "params.json"],
        Annotated[str, AfterValidator(_encodable)],
    ]


class _Counts(_Part):
    tensors: int
    taken: int


class _Plan(_Part):
    sources: dict[str, _Counts]
    target_class: str = Field(validation_alias=AliasPath("target", "class"))
    dropped: list[dict[str, Any]]
    mapped: list[dict[str, Any]]
    aliases: list[dict[str, Any]]
    post_load: list[dict[str, Any]]


class _Text(_Part):
    """The parts of a record's file that are read again."""

    verified: Literal["meta", "full", "none"]
    rules_name: str = Field(validation_alias=AliasPath("rules", "name"))
    rules_version: str = Field(validation_alias=AliasPath("rules", "version"))
    sources: dict[str, _Source]
    #: No name may leave the folder.
    outputs: dict[Annotated[str, Field(pattern=r"^[^/\\]*[^/\\.][^/\\]*$")], _Digested]
    plan: _Plan
