"""The writer gives the bytes and digest of plain concatenation, however they get to the disk,
and shares blocks where it can.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import random
import shutil
import struct
import subprocess
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from xxhash import xxh3_128

from llava_remap.checkpoint import open_checkpoint
from llava_remap.core.problem import RemapError
from llava_remap.execute import writer
from llava_remap.execute.digests import FileDigest
from llava_remap.execute.writer import BLOCK, Writer
from llava_remap.jobs.apply import apply
from llava_remap.verification import verify_folder
from llava_remap.verification.record import read_record
from tests.conftest import CLIP, Changed, Tensors

BUFFER = 4 * BLOCK
SOURCE = random.Random(0).randbytes(10 * BUFFER + 123)

#: Bytes to write, or a run of the source to copy: offset and length.
Step = bytes | tuple[int, int]


def lengths(most: int) -> st.SearchStrategy[int]:
    """Of all sizes, and those around whole blocks and buffers."""
    around = st.builds(
        lambda n, d: max(n * BLOCK + d, 0), st.integers(0, most // BLOCK), st.integers(-2, 2)
    )
    return st.one_of(st.integers(0, most), around).map(lambda n: min(n, most))


@st.composite
def runs(draw: st.DrawFn) -> tuple[int, int]:
    offset = draw(lengths(len(SOURCE)))
    return offset, draw(lengths(len(SOURCE) - offset))


STEPS = st.lists(
    st.one_of(lengths(2 * BUFFER).map(lambda n: SOURCE[-n:] if n else b""), runs()), max_size=8
)


def written(file: Path, source: Path, steps: Sequence[Step]) -> tuple[FileDigest, int]:
    """The digest, and how many bytes were told of as progress."""
    told: list[int] = []
    with (
        file.open("xb", buffering=0) as target,
        source.open("rb", buffering=0) as copied,
        Writer(target, told.append) as out,
    ):
        for step in steps:
            out.write(step) if isinstance(step, bytes) else out.copy(copied.fileno(), source, *step)
        return out.finish(), sum(told)


def concatenated(steps: Sequence[Step]) -> bytes:
    return b"".join(
        step if isinstance(step, bytes) else SOURCE[step[0] : sum(step)] for step in steps
    )


def check(folder: Path, steps: Sequence[Step]) -> None:
    file, source = folder / "file", folder / "source"
    if not source.exists():
        source.write_bytes(SOURCE)
    try:
        digest, told = written(file, source, steps)
        wanted = concatenated(steps)
        assert file.read_bytes() == wanted
        assert digest == FileDigest(len(wanted), xxh3_128(wanted).hexdigest())
        assert told == len(wanted)
    finally:
        file.unlink()


def shared_by_copying(clones: list[range]) -> Callable[[int, int, bytes], None]:
    """What the system call does on XFS and btrfs, and its conditions."""

    def ioctl(target: int, request: int, run: bytes) -> None:
        assert request == 0x4020940D
        source, offset, nbytes, at = struct.unpack("qQQQ", run)
        assert nbytes
        assert not any(value % BLOCK for value in (offset, nbytes, at))
        data = os.pread(source, nbytes, offset)
        if len(data) < nbytes:
            raise OSError(22, "Invalid argument")
        cached = os.open(f"/proc/self/fd/{target}", os.O_WRONLY)
        with contextlib.closing(os.fdopen(cached, "wb", buffering=0)):
            assert os.pwrite(cached, data, at) == nbytes
            os.fdatasync(cached)
        clones.append(range(at, at + nbytes))

    return ioctl


@pytest.fixture
def small_buffers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(writer, "BUFFER_NBYTES", BUFFER)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("writer")


# The fixtures that each example shares don't change from one to the next.
every_step = given(STEPS)
without_fixture_checks = settings(max_examples=80, suppress_health_check=list(HealthCheck))


@without_fixture_checks
@every_step
def test_as_plain_concatenation(small_buffers: None, folder: Path, steps: list[Step]) -> None:
    check(folder, steps)


@without_fixture_checks
@every_step
def test_through_the_cache(small_buffers: None, folder: Path, steps: list[Step]) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(writer, "_past_the_cache", lambda file: False)
        patch.setattr(writer, "_FLUSH_NBYTES", BUFFER)
        check(folder, steps)


@without_fixture_checks
@every_step
def test_where_the_flag_is_taken_and_the_write_isnt(
    small_buffers: None, folder: Path, steps: list[Step]
) -> None:
    pwrite = os.pwrite

    def refused(file: int, data: Any, offset: int) -> int:
        if fcntl.fcntl(file, fcntl.F_GETFL) & os.O_DIRECT:
            raise OSError(22, "Invalid argument")
        return pwrite(file, data, offset)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "pwrite", refused)
        check(folder, steps)


@without_fixture_checks
@every_step
def test_with_few_bytes_at_a_time(small_buffers: None, folder: Path, steps: list[Step]) -> None:
    """No call has to take or give all that it is asked for."""
    pwrite, preadv = os.pwrite, os.preadv
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "pwrite", lambda file, data, offset: pwrite(file, data[:BLOCK], offset))
        patch.setattr(
            os, "preadv", lambda file, views, offset: preadv(file, [views[0][:1000]], offset)
        )
        check(folder, steps)


@without_fixture_checks
@every_step
def test_with_shared_blocks(small_buffers: None, folder: Path, steps: list[Step]) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(fcntl, "ioctl", shared_by_copying([]))
        check(folder, steps)


def test_whole_blocks_at_the_same_place_are_shared(
    small_buffers: None, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And no others."""
    clones: list[range] = []
    monkeypatch.setattr(fcntl, "ioctl", shared_by_copying(clones))
    check(
        folder,
        [bytes(BLOCK + 100), (100, 3 * BLOCK), b"x", (0, 2 * BLOCK), bytes(3), (104, 5 * BLOCK)],
    )
    assert clones == [range(2 * BLOCK, 4 * BLOCK), range(7 * BLOCK, 11 * BLOCK)]


def test_what_is_not_there_is_not_shared(
    small_buffers: None, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A source that has become shorter."""
    monkeypatch.setattr(fcntl, "ioctl", shared_by_copying([]))
    (folder / "source").write_bytes(SOURCE)
    with pytest.raises(RemapError) as caught:
        written(folder / "short", folder / "source", [(0, len(SOURCE) + 2 * BLOCK)])
    assert [problem.code for problem in caught.value.problems] == ["LR102"]


def test_ended_early(small_buffers: None, tmp_path: Path) -> None:
    def end() -> None:
        raise InterruptedError

    def write() -> None:
        with (
            (tmp_path / "file").open("xb", buffering=0) as file,
            Writer(file, on_buffer=end) as out,
        ):
            out.write(bytes(BUFFER))

    with pytest.raises(InterruptedError):
        write()


def test_a_write_that_fails_is_told(
    small_buffers: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It fails in the other thread."""

    def full(file: int, data: Any, offset: int) -> int:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "pwrite", full)
    (tmp_path / "source").write_bytes(SOURCE)
    with pytest.raises(OSError, match="No space left"):
        written(tmp_path / "file", tmp_path / "source", [(0, len(SOURCE))])


@pytest.fixture(scope="module", params=["xfs", "btrfs"])
def mounted(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Path]:
    """A folder on a file system that can share blocks, in a file of its own."""
    kind = request.param
    if os.geteuid() != 0:
        pytest.skip("only root may mount")
    if shutil.which(f"mkfs.{kind}") is None:
        pytest.skip(f"there is no mkfs.{kind}")
    image, folder = tmp_path_factory.mktemp(kind) / "image", tmp_path_factory.mktemp("mounted")
    image.touch()
    os.truncate(image, 400 << 20)
    for command in ([f"mkfs.{kind}", "-q", image], ["mount", "-o", "loop", image, folder]):
        ran = subprocess.run(list(map(str, command)), capture_output=True, text=True, check=False)
        if ran.returncode != 0:
            pytest.skip(f"{command[0]}: {ran.stderr.strip()}")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


@without_fixture_checks
@every_step
def test_on_a_file_system_that_shares_blocks(
    small_buffers: None, mounted: Path, steps: list[Step]
) -> None:
    check(mounted, steps)


def shared_nbytes(path: Path) -> int:
    """Bytes of a file that lie in blocks of another, too (FS_IOC_FIEMAP, synchronised;
    FIEMAP_EXTENT_SHARED).
    """
    head, extent, most = struct.Struct("=QQIIII"), struct.Struct("=QQQQQIIII"), 1000
    buffer = bytearray(head.pack(0, 2**64 - 1, 1, 0, most, 0) + bytes(extent.size * most))
    with path.open("rb") as file:
        fcntl.ioctl(file, 0xC020660B, buffer)
    count = head.unpack_from(buffer)[3]
    assert count < most
    extents = [
        extent.unpack_from(buffer, head.size + number * extent.size) for number in range(count)
    ]
    return sum(fields[2] for fields in extents if fields[5] & 0x2000)


ROWS = 40_000


@pytest.fixture
def large(changed: Changed) -> Path:
    """A checkpoint with two matrices of 5 MB."""

    def grow(tensors: Tensors) -> None:
        generator = torch.Generator().manual_seed(0)
        for name in ("model.embed_tokens.weight", "lm_head.weight"):
            tensors[name] = torch.randn(ROWS, tensors[name].shape[1], generator=generator).to(
                tensors[name].dtype
            )

    source = changed(tensors=grow, config=lambda config: config.update(vocab_size=ROWS))
    (source / "added_tokens.json").write_text(
        '{"<own>": 320}'
    )  # so that the rows behind it are from padding
    return source


@pytest.mark.parametrize("vocab", ["keep", "pad"])
def test_a_job_shares_most_blocks(vocab: Any, mounted: Path, large: Path) -> None:
    source, output, elsewhere = (
        mounted / f"source-{vocab}",
        mounted / f"out-{vocab}",
        Path("elsewhere"),
    )
    shutil.copytree(large, source)
    sources = [str(source), f"vision_tower={CLIP}"]
    apply("llava-v1.5", sources, output, vocab=vocab, verify="full")
    assert verify_folder(output, read_record(output)).problems == ()
    apply("llava-v1.5", [str(large), f"vision_tower={CLIP}"], elsewhere, vocab=vocab, verify="none")
    weights = sorted(path.name for path in output.glob("*.safetensors"))
    for name in weights:
        assert (output / name).read_bytes() == (elsewhere / name).read_bytes()
    total = sum((output / name).stat().st_size for name in weights)
    assert sum(shared_nbytes(output / name) for name in weights) > 0.95 * total


def test_most_bytes_keep_their_place_within_a_block(large: Path) -> None:
    """Wherever it is written: so the bytes are the same on every machine."""
    apply("llava-v1.5", [str(large), f"vision_tower={CLIP}"], "out", vocab="keep", verify="none")
    source = open_checkpoint(large).catalog
    kept, total = 0, 0
    for entry in json.loads(Path("out/llava_remap.json").read_text())["plan"]["mapped"]:
        [origin] = entry["from"]
        if origin["source"] != "model" or entry["then"]:
            continue
        old = source[origin["name"]].location
        index = json.loads(Path("out/model.safetensors.index.json").read_text())["weight_map"]
        new = open_checkpoint(Path("out") / index[entry["target"]]).catalog[entry["target"]]
        assert old is not None
        assert new.location is not None
        total += new.nbytes
        kept += new.nbytes * ((new.location.offset - old.offset) % BLOCK == 0)
    assert kept > 0.95 * total > 0
