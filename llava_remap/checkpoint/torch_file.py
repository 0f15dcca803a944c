"""Reads a file of `torch.save`.

Since torch 1.6 it is a zip archive of `data.pkl`, which describes the tensors, and `data/KEY`, the
storages. torch's `PyTorchStreamWriter` (caffe2/serialize/inline_container.cc) writes each record
uncompressed and in one piece.

Before torch 1.6, the file was five pickles and then the storages, each preceded by its number of
elements. The pickles are a magic number, the protocol's version, facts about the machine, the
value, and the keys of the storages in the order of the file. See `_legacy_save` in
torch/serialization.py and `THPStorage_writeFileRaw` in torch/csrc/serialization.cpp.
"""

from __future__ import annotations

import struct
from collections.abc import Mapping
from itertools import pairwise
from pathlib import Path
from typing import IO, BinaryIO, cast
from zipfile import ZIP_STORED, ZipFile, ZipInfo

from llava_remap.checkpoint.catalog import WeightFile
from llava_remap.checkpoint.source_file import corrupt
from llava_remap.checkpoint.state_dict import find_state_dict, place_tensors
from llava_remap.checkpoint.torch_pickle import BARE, LARGEST, STORAGES, Storage, unpickle
from llava_remap.core import quoted, refuse

_LOCAL_HEADER = struct.Struct("<4s22xHH")
_ENCRYPTED = 0x1
#: The most bytes of the table of contents, which has about 80 for each record. Reading an entry
#: takes some 700 bytes of memory.
_LARGEST_TABLE = 8 * 1024 * 1024
#: The most bytes from the last record of an archive to its end, with a comment of up to 64 kB.
_LARGEST_END = 128 * 1024
#: The values in the first two pickles of the older format.
_MAGIC, _PROTOCOL = 0x1950A86A20F9469CFC6C, 1001


class _Bounded:
    """A file for `ZipFile`, with limited reads: a size stated in the file can't make `ZipFile` read
    more than the largest table of contents.
    """

    def __init__(self, stream: BinaryIO) -> None:
        self.seek, self.tell, self._read = stream.seek, stream.tell, stream.read

    def read(self, size: int = -1) -> bytes:
        if size > _LARGEST_TABLE:
            raise ValueError(f"it has {size} bytes; at most {_LARGEST_TABLE} are read")
        return self._read(size if size >= 0 else _LARGEST_END)


def read_torch_zip(file: Path) -> WeightFile:
    """The tensors of a file since torch 1.6. Reads the table of contents and `data.pkl`.

    Checksums are not compared: torch can be told to leave them out
    (`torch.serialization.set_crc32_options`).

    Raises:
        RemapError: LR102, LR105, LR106.
    """
    size = file.stat().st_size
    with file.open("rb") as stream:
        records = _records(stream, file, size)
        pickles = [name for name in records if name.count("/") == 1 and name.endswith("/data.pkl")]
        if len(pickles) != 1:
            raise refuse(
                "LR106",
                f"{quoted(file.name)} is a zip archive with {len(pickles)} records "
                "`data.pkl`; "
                "torch writes one.",
                "Give a file that was saved with `torch.save`.",
            )
        root = pickles[0].removesuffix("data.pkl")
        start, nbytes = _extent(stream, file, size, records[pickles[0]])
        if nbytes > LARGEST:
            raise refuse(
                "LR106",
                f"{quoted(file.name)} holds more than tensors: its `data.pkl` has {nbytes} "
                f"bytes, more than {LARGEST}.",
                BARE,
            )
        big_endian = _is_big_endian(stream, file, size, records.get(f"{root}byteorder"))
        stream.seek(start)
        state = find_state_dict(unpickle(stream, nbytes, file.name)[0], file)
        places = {
            key: _extent(stream, file, size, record)
            for key in dict.fromkeys(tensor.storage.key for tensor in state.tensors.values())
            if (record := records.get(f"{root}data/{key}")) is not None
        }
    _refuse_overlap(file, {**places, "data.pkl": (start, nbytes)})
    return place_tensors("torch .bin", file, state, places, big_endian=big_endian)


def _records(stream: BinaryIO, file: Path, size: int) -> dict[str, ZipInfo]:
    try:
        every = ZipFile(cast("IO[bytes]", _Bounded(stream))).infolist()
    except OSError:
        raise
    # zipfile also raises struct's, Unicode's and arithmetic errors.
    except Exception as error:
        raise refuse(
            "LR102",
            f"{quoted(file.name)} is a zip archive of {size} bytes without a readable table "
            f"of contents at its end ({error}).",
            "The file is truncated: download or copy it again.",
        ) from None
    records = {record.filename: record for record in every}
    if len(records) < len(every):
        raise corrupt(file, "two of its records have one name")
    return records


def _extent(stream: BinaryIO, file: Path, size: int, record: ZipInfo) -> tuple[int, int]:
    """Offset from the start of the file and size of a record's bytes.

    The offset depends on the extra field of the record's own header, which torch pads to 64 bytes;
    the table's entry for the record has another extra field.
    """
    name = quoted(record.filename)
    if record.compress_type != ZIP_STORED or record.flag_bits & _ENCRYPTED:
        raise refuse(
            "LR106",
            f"in {quoted(file.name)} the record {name} is compressed or encrypted, which "
            "torch never does.",
            "Another program packed the archive again: save the file with torch.",
        )
    if record.compress_size != record.file_size:
        raise corrupt(
            file,
            f"its record {name} has {record.file_size} bytes by one field and "
            f"{record.compress_size} by another",
        )
    if not 0 <= record.header_offset <= size - _LOCAL_HEADER.size:
        raise corrupt(
            file,
            f"its record {name} starts at byte {record.header_offset}, but the file has {size} "
            "bytes",
        )
    stream.seek(record.header_offset)
    signature, name_length, extra_length = _LOCAL_HEADER.unpack(stream.read(_LOCAL_HEADER.size))
    if signature != b"PK\3\4":
        raise corrupt(
            file,
            f"no record starts at byte {record.header_offset}, where its record {name} should "
            "start",
        )
    start = record.header_offset + _LOCAL_HEADER.size + name_length + extra_length
    if start + record.file_size > size:
        raise corrupt(
            file,
            f"its record {name} ends at byte {start + record.file_size}, but the file has {size} "
            "bytes",
        )
    return start, record.file_size


def _refuse_overlap(file: Path, places: Mapping[str, tuple[int, int]]) -> None:
    """LR102 if records share bytes: a small file could then describe a large checkpoint."""
    ordered = sorted(places.items(), key=lambda item: item[1])
    for (one, (start, nbytes)), (other, (begin, _)) in pairwise(ordered):
        if begin < start + nbytes:
            raise corrupt(file, f"its records {quoted(one)} and {quoted(other)} overlap")


def _is_big_endian(stream: BinaryIO, file: Path, size: int, record: ZipInfo | None) -> bool:
    if record is None:  # torch before 2.1 doesn't write it
        return False
    start, nbytes = _extent(stream, file, size, record)
    stream.seek(start)
    order = stream.read(min(nbytes, 16))
    if order not in (b"little", b"big"):
        raise corrupt(
            file, f"its byte order is {quoted(order.decode('latin-1'))}, not `little` or `big`"
        )
    return order == b"big"


def read_torch_legacy(file: Path) -> WeightFile:
    """The tensors of a file from before torch 1.6. Reads the pickles and 8 bytes of each storage.

    Counts and elements of this format are never big-endian, whatever the machine.

    Raises:
        RemapError: LR102, LR105, LR106.
    """
    size = file.stat().st_size
    with file.open("rb") as stream:

        def pickled() -> tuple[object, dict[str, Storage]]:
            return unpickle(stream, min(size - stream.tell(), LARGEST), file.name)

        if pickled()[0] != _MAGIC:
            raise refuse(
                "LR106",
                f"{quoted(file.name)} is a pickle, but not one of torch's: the magic number "
                "is missing.",
                "Give a file that was saved with `torch.save`.",
            )
        if pickled()[0] != _PROTOCOL:
            raise corrupt(
                file, f"its protocol version isn't {_PROTOCOL}, the only existing version"
            )
        pickled()  # the machine's byte order and sizes, which nothing in the file depends on
        value, storages = pickled()
        state = find_state_dict(value, file)
        places = _places(stream, file, size, storages, pickled()[0])
    return place_tensors("torch .bin from before 1.6", file, state, places)


def _places(
    stream: BinaryIO, file: Path, size: int, storages: dict[str, Storage], keys: object
) -> dict[str, tuple[int, int]]:
    """Offset from the start of the file and size in bytes of each storage; `stream` stands where
    the storages begin.
    """
    if not isinstance(keys, list) or not all(
        isinstance(key, str) and key in storages for key in keys
    ):
        raise corrupt(file, "its list of storages names a storage that no tensor uses")
    places: dict[str, tuple[int, int]] = {}
    end = stream.tell()
    for key in keys:
        stream.seek(end)
        prefix = stream.read(8)
        count = int.from_bytes(prefix, "little")
        # The unit is an element of the type in the storage's first mention, both in torch's writer
        # and in its reader.
        start, nbytes = end + 8, count * STORAGES[storages[key].kind][0]
        end = start + nbytes
        if end > size or len(prefix) < 8:
            raise corrupt(
                file, f"the storage {quoted(key)} ends at byte {end}, but the file has {size} bytes"
            )
        if count != storages[key].numel:
            raise corrupt(
                file,
                f"the storage {quoted(key)} has {count} elements, but the pickle gives another "
                "number",
            )
        if key in places:
            raise corrupt(file, f"the storage {quoted(key)} occurs twice")
        places[key] = (start, nbytes)
    return places
