"""The record: how a folder was made, in the folder itself, so that it can be checked and taken back
later.

`llava_remap.json` holds the applied plan, the rule file's text, the sources' configs, size and
digest of every file that was written and of the small ones that were read, and the versions of what
made them. Of the sources' weight files it has the size: their bytes are in the output. It is
written last, and holds no time and nothing random: two runs give the same bytes. A digest of its
own content tells whether it was changed since, by accident: who changes it on purpose can change
the digest as well.
"""

from __future__ import annotations

import json
import platform
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Annotated, Any, Literal

import xxhash
from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError, model_validator

from llava_remap.checkpoint import BESIDE, has_file, read_file, read_object, unreadable
from llava_remap.core.problem import refuse
from llava_remap.core.version import __version__
from llava_remap.execute import INDEX, FileDigest, Unfinished, read_claim
from llava_remap.plan import (
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

#: The libraries that had a say in what was written.
_LIBRARIES = ("transformers", "tokenizers", "torch", "numpy", "safetensors")
_FIX = "Convert the checkpoint again; a record can't be mended by hand."


@dataclass(frozen=True, slots=True)
class RecordedSource:
    """A source as it was.

    Attributes:
        location: where it was.
        not_taken: how many of its tensors were not selected, or replaced by those of another
            source.
        files: size and digest of the small files read of it, by name.
        texts: those of its files that the record keeps whole, by name: its configs.
    """

    location: str
    not_taken: int
    files: Mapping[str, FileDigest]
    texts: Mapping[str, bytes]


@dataclass(frozen=True, slots=True)
class Record:
    """What of a record is needed to check a folder, and to take it back.

    Attributes:
        rules: name and version of the rule file.
        target_class: the transformers class that the folder is for.
        outputs: size and digest of every other file, by name.
        sources: by their names in the rule file.
        mapped, aliases, dropped, post_load: as in the plan.
        verified: how it was checked when it was written: `meta`, `full` or `none`.
    """

    rules: str
    target_class: str
    outputs: Mapping[str, FileDigest]
    sources: Mapping[str, RecordedSource]
    mapped: tuple[Mapped, ...]
    aliases: tuple[Alias, ...]
    dropped: tuple[Dropped, ...]
    post_load: tuple[PostLoadChange, ...]
    verified: str

    @property
    def locations(self) -> dict[str, str]:
        """Where each source was that a tensor was taken from."""
        used = _used_sources(self.mapped, self.aliases)
        return {name: source.location for name, source in self.sources.items() if name in used}

    @property
    def unused(self) -> list[str]:
        """The other sources: of which the config or the tokenizer alone was used, or nothing."""
        return [name for name in self.sources if name not in self.locations]

    def nbytes_to_read(self, *, compared: bool) -> int:
        """Bytes of which `verify_folder` reports progress: all files, and all tensors where they
        are compared.
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
    """The record of a job that was carried out.

    Args:
        sources: the files read of each source, by name relative to its folder; of a weight file its
            size.
        texts: of each source, as `read_texts` gives them.
        outputs: every file written but the record.
        verified: which check was made after writing: `meta`, `full` or `none`.
    """
    summary = plan.sources
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
                "location": summary[name].location,
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
    """The digest of a record's content without the entry for it, whatever its spaces and the
    order of its keys.
    """
    text = json.dumps(
        {key: value for key, value in content.items() if key != "digest"}, sort_keys=True
    )
    return {"xxh3_128": xxhash.xxh3_128_hexdigest(text.encode())}


def read_texts(files: Mapping[str, Path]) -> dict[str, str]:
    """The texts of a source's configs, to be kept in the record; what of them isn't UTF-8 is in
    them as surrogates.

    Args:
        files: the files read of it, by name.
    """
    return {
        name: read_file(files[name]).decode("utf-8", "surrogateescape")
        for name in BESIDE["config"]
        if name in files
    }


def read_record(folder: Path) -> Record:
    """The record in a folder.

    Raises:
        RemapError: LR113 where it isn't one, LR505 or LR606 where there is none, LR100 or LR102
            where nothing can be read.
    """
    path = folder / RECORD
    try:
        if (begun := read_claim(folder)) is not None:
            raise _unfinished(folder, begun)
        if not has_file(path):
            raise _no_record(folder)
        content = read_object(path, "LR113", _FIX, halves=True)
    except OSError as error:
        raise unreadable(error, path) from None
    if content.get("format") != FORMAT or content.get("format_version") != FORMAT_VERSION:
        said = f"{content.get('format')!r}, version {content.get('format_version')!r}"
        raise refuse(
            "LR113",
            f"{path} is of the format {said}; this version reads {FORMAT!r}, version "
            f"{FORMAT_VERSION}.",
            "Use the version of llava-remap that wrote it.",
        )
    if content.get("digest") != own_digest(content):
        raise refuse(
            "LR113",
            f"{path}: the record was changed since it was written, by its own digest.",
            _FIX,
        )
    try:
        text = _Text.model_validate(content)
        mapped = tuple(map(Mapped.from_json, text.plan.mapped))
        refuse_uncovered(mapped)
        aliases = tuple(map(Alias.from_json, text.plan.aliases))
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
    used = _used_sources(mapped, aliases)
    made = {entry.target: (entry.dtype, entry.shape) for entry in mapped}
    changes = [entry.change for entry in post_load]
    named = {alias.of for alias in aliases} | {read for change in changes for read in change.reads}
    from_sources = {entry.target for entry in mapped if not entry.is_made}
    befores = {entry.target: entry.shape_before for entry in mapped}
    agreed = all(befores.get(alias.of) == alias.shape for alias in aliases)
    agreed = (
        agreed
        and len(made) == len(mapped)
        and not made.keys() & {alias.target for alias in aliases}
    )
    # What changes, and how, stands in both lists.
    agreed = agreed and {
        entry.target: (entry.dtype, entry.shape, entry.post_load)
        for entry in mapped
        if entry.post_load is not None
    } == {
        entry.change.target: (
            entry.change.dtype,
            entry.change.shape_after,
            PostLoad(entry.use, entry.change.shape_before),
        )
        for entry in post_load
    }
    if not made or not agreed or not named <= from_sources or not used <= set(text.sources):
        raise refuse("LR113", f"{path}: the parts of the plan in it contradict each other.", _FIX)
    return Record(
        f"{text.rules.name} {text.rules.version}",
        text.plan.target.class_,
        {name: digest for name, file in text.outputs.items() if (digest := file.digest)},
        {
            name: RecordedSource(
                source.location,
                max(counts.tensors - counts.taken, 0)
                if (counts := text.plan.sources.get(name))
                else 0,
                {name: digest for name, file in source.files.items() if (digest := file.digest)},
                {
                    file: content.encode("utf-8", "surrogateescape")
                    for file, content in source.texts.items()
                },
            )
            for name, source in text.sources.items()
        },
        mapped,
        aliases,
        tuple(
            Dropped(entry.source, entry.name, entry.rule, entry.reason)
            for entry in text.plan.dropped
        ),
        post_load,
        text.verified,
    )


def _used_sources(mapped: Sequence[Mapped], aliases: Sequence[Alias]) -> set[str]:
    """The sources that tensors are taken from, matrices of adapters included."""
    used = {part.source for entry in mapped for part in entry.parts}
    used |= {entry.lora.a.source for entry in mapped if entry.lora is not None}
    used |= {entry.lora.b.source for entry in mapped if entry.lora is not None}
    return used | {alias.source.source for alias in aliases}


def _unfinished(folder: Path, begun: Unfinished) -> Exception:
    """LR505 where a job broke off, or still runs."""
    return refuse(
        "LR505",
        f"{folder} is unfinished: {begun}.",
        "Wait for the job that writes it; if it was killed, run its command again with "
        "--resume, "
        "or delete the folder.",
    )


def _no_record(folder: Path) -> Exception:
    """LR505 where a job that can't be gone on with was killed, LR606 for a folder that wasn't
    made here.
    """
    if not folder.is_dir():
        return refuse(
            "LR100", f"there is no folder {folder}.", "Give the folder that `apply` wrote."
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
        f"{folder} has no {RECORD}, so nothing tells what it should be.",
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
    """Built when a record is read, which most jobs never do."""

    model_config = ConfigDict(defer_build=True)


class _Sized(_Part):
    """A file; of a weight file of a source the size alone."""

    nbytes: int = Field(ge=0)
    xxh3_128: str | None = Field(None, pattern=r"^[0-9a-f]{32}$")

    @property
    def digest(self) -> FileDigest | None:
        return None if self.xxh3_128 is None else FileDigest(self.nbytes, self.xxh3_128)


class _Digested(_Sized):
    @model_validator(mode="after")
    def _has_one(self) -> _Digested:
        if self.digest is None:
            raise ValueError("it has no digest")
        return self


def _encodable(text: str) -> str:
    text.encode("utf-8", "surrogateescape")
    return text


class _Source(_Part):
    location: str
    files: dict[str, _Sized]
    #: Nothing else is ever written from a record.
    texts: dict[
        Literal["config.json", "generation_config.json"], Annotated[str, AfterValidator(_encodable)]
    ]


class _Rules(_Part):
    name: str
    version: str


class _Counts(_Part):
    tensors: int
    taken: int


class _Dropped(_Part):
    source: str
    name: str
    rule: str
    reason: str


class _Target(_Part):
    class_: str = Field(alias="class")


class _Plan(_Part):
    sources: dict[str, _Counts]
    target: _Target
    dropped: list[_Dropped]
    mapped: list[dict[str, Any]]
    aliases: list[dict[str, Any]]
    post_load: list[dict[str, Any]]


class _Text(_Part):
    """A record as it stands in the file, as far as it is read again."""

    verified: Literal["meta", "full", "none"]
    rules: _Rules
    sources: dict[str, _Source]
    #: No name may leave the folder.
    outputs: dict[Annotated[str, Field(pattern=r"^[^/\\]*[^/\\.][^/\\]*$")], _Digested]
    plan: _Plan
