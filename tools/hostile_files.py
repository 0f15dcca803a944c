"""Files and folders that are broken or meant to do harm, each by its name.

    python -m tools.hostile_files DIR        # writes every one of them to DIR/NAME

Large ones are sparse: together they take some MB of disk.
"""

from __future__ import annotations

import json
import os
import pickle
import struct
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

Make = Callable[[Path], None]
#: Every case by its name: a function that writes it into a folder, which is there and empty.
CASES: dict[str, Make] = {}
#: What a pickle or a rule file that is executed would make, in its own folder.
MARKER = "executed"
GENUINE = Path(__file__).parents[1] / "tests" / "data" / "tiny"
_BIN = GENUINE / "llava-v1.5" / "released" / "bin" / "pytorch_model.bin"
_LEGACY = GENUINE / "llava-v1.5" / "legacy_pickle" / "pytorch_model.bin"

ENTRY: dict[str, Any] = {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}
POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a21\nsize 9976578928\n"


def case(make: Make) -> Make:
    CASES[make.__name__] = make
    return make


def _case(name: str, write: Callable[..., object], *arguments: object) -> None:
    """A case that is made by `write(folder, *arguments)`."""

    def make(folder: Path) -> None:
        write(folder, *arguments)

    CASES[name] = make


def main(folder: Path) -> None:
    for name, make in CASES.items():
        (folder / name).mkdir(parents=True)
        make(folder / name)


def _sparse(file: Path, nbytes: int) -> None:
    with file.open("ab") as stream:
        stream.truncate(nbytes)


# --- safetensors ---


def _safetensors(
    folder: Path, header: Any, body: bytes = bytes(8), *, length: int | None = None
) -> Path:
    data = header if isinstance(header, bytes) else json.dumps(header).encode()
    file = folder / "model.safetensors"
    file.write_bytes((len(data) if length is None else length).to_bytes(8, "little") + data + body)
    return file


def _headers(**headers: tuple[Any, int]) -> None:
    """Cases that are a header, with so many bytes behind it."""
    for name, (header, nbytes) in headers.items():
        _case(name, _safetensors, header, bytes(nbytes))


_TEXT = json.dumps(ENTRY).encode()
_headers(
    header_not_json=(b"{not JSON", 8),
    header_not_utf8=(b'{"\xff": 1}', 8),
    header_a_list=([ENTRY], 8),
    header_nested_100000=(b'{"a":' * 100_000, 8),
    header_of_tiny_values=(b'{"a":[' + b"[]," * 4_000_000 + b"1]}", 8),
    names_twice=(b'{"w":%b,"w":%b}' % (_TEXT, _TEXT), 8),
    names_equal_behind_escapes=(b'{"w":%b,"\\u0077":%b}' % (_TEXT, _TEXT), 8),
    names_half_a_character=(b'{"\\ud800":%b}' % _TEXT, 8),
    names_of_a_million_letters=({"w" * 10**6: ENTRY}, 8),
    names_of_ten_thousand_segments=({"a." * 10**4: ENTRY}, 8),
    names_that_climb=({"../../../etc/passwd": ENTRY}, 8),
    names_with_zero_bytes=({"w\0": ENTRY}, 8),
    names_that_steer_a_terminal=({"\x1b[2J\x1b[31mw\u202e[/bold]\r\n": ENTRY}, 8),
    offsets_overlapping=({"v": ENTRY, "w": {**ENTRY, "data_offsets": [4, 12]}}, 12),
    offsets_negative=({"w": {**ENTRY, "data_offsets": [-8, 0]}}, 8),
    offsets_backwards=({"w": {**ENTRY, "data_offsets": [8, 0]}}, 8),
    offsets_with_a_hole=({"v": ENTRY, "w": {**ENTRY, "data_offsets": [16, 24]}}, 24),
    offsets_beyond_the_end=({"w": {**ENTRY, "shape": [200], "data_offsets": [0, 800]}}, 8),
    bytes_behind_the_last_tensor=({"w": ENTRY}, 9),
    dtype_unknown=({"w": {**ENTRY, "dtype": "F4"}}, 8),
    shape_that_overflows=({"w": {**ENTRY, "shape": [2**32, 2**32]}}, 8),
    shape_of_another_size=({"w": {**ENTRY, "shape": [3]}}, 8),
    shape_of_5000_digits=(
        b'{"w":{"dtype":"F32","shape":[%b],"data_offsets":[0,8]}}' % (b"9" * 5000),
        8,
    ),
    shape_of_a_million_dimensions=({"w": {**ENTRY, "shape": [1] * 10**6}}, 8),
)


@case
def header_beyond_the_file(folder: Path) -> None:
    _safetensors(folder, {"w": ENTRY}, length=1000)


@case
def header_of_2_63_bytes(folder: Path) -> None:
    _safetensors(folder, {"w": ENTRY}, length=2**63)


@case
def header_over_100_mb(folder: Path) -> None:
    _sparse(_safetensors(folder, {"w": ENTRY}, length=100_000_001), 200_000_000)


@case
def header_of_spaces(folder: Path) -> None:
    """Allowed, and as long as a header may be; the tensor is no model's."""
    data = json.dumps({"w": ENTRY}).encode()
    _safetensors(folder, data + b" " * (100_000_000 - len(data)))


# --- torch zip ---


def _zip(
    folder: Path, pickled: bytes, compression: int = zipfile.ZIP_STORED, **storages: bytes
) -> Path:
    file = folder / "pytorch_model.bin"
    with zipfile.ZipFile(file, "w", compression) as archive:
        archive.writestr("m/data.pkl", pickled)
        for key, data in storages.items():
            archive.writestr(f"m/data/{key.removeprefix('_')}", data)
    return file


def _tensor(
    key: bytes = b"0",
    *,
    numel: bytes = b"K\4",
    shape: bytes = b"K\4\x85",
    stride: bytes = b"K\1\x85",
) -> bytes:
    """A tensor of floats, as torch describes it; the arguments are instructions that leave the
    number or tuple.
    """
    storage = (
        b"(X\7\0\0\0storagectorch\nFloatStorage\nX"
        + struct.pack("<I", len(key))
        + key
        + b"X\3\0\0\0cpu"
        + numel
        + b"tQ"
    )
    return (
        b"ctorch._utils\n_rebuild_tensor_v2\n("
        + storage
        + b"K\0"
        + shape
        + stride
        + b"\x89ccollections\nOrderedDict\n)RtR"
    )


def _dict(**items: bytes) -> bytes:
    """A pickle of a dict whose values are these instructions."""
    entries = (
        b"X" + struct.pack("<I", len(key)) + key.encode() + value + b"s"
        for key, value in items.items()
    )
    return b"\x80\2}" + b"".join(entries) + b"."


def _rewritten(folder: Path, **options: Any) -> Path:
    """A genuine file's records as another program might write them."""
    file = folder / "pytorch_model.bin"
    with zipfile.ZipFile(_BIN) as old, zipfile.ZipFile(file, "w") as new:
        for record in old.infolist():
            with new.open(zipfile.ZipInfo(record.filename), "w", **options) as stream:
                stream.write(old.read(record))
    return file


def _pickles(**pickles: bytes) -> None:
    """Cases that are a zip archive with this `data.pkl` and a storage `0` of 16 bytes."""
    for name, data in pickles.items():
        _case(name, lambda folder, pickled: _zip(folder, pickled, _0=bytes(16)), data)


_2_60 = b"\x8a\x08" + (2**60).to_bytes(8, "little")
_pickles(
    pickle_nested_100000=b"\x80\2" + b"]" * 100_000 + b"a" * 99_999 + b".",
    pickle_of_nested_tuples=_dict(w=b")" + b"\x85" * 100_000),
    pickle_with_a_nested_key=b"\x80\2})" + b"\x85" * 100_000 + b"Ns.",
    pickle_of_2_60_elements=_dict(w=_tensor(numel=_2_60, shape=_2_60 + b"\x85")),
    pickle_of_2_60_elements_on_four=_dict(w=_tensor(shape=_2_60 + b"\x85", stride=b"K\0\x85")),
    pickle_of_a_shape_that_overflows=_dict(
        w=_tensor(shape=_2_60 + _2_60 + b"\x86", stride=b"K\0K\0\x86")
    ),
    pickle_of_laughs=_dict(
        w=b"NN\x86" + b"q\0h\0\x86" * 10_000
    ),  # 2 ** 10000 leaves, of 10,000 tuples
    pickle_that_copies=b"\x80\2]("
    + b"K\1" * 100_000
    + b"eq\0"
    + b"0ctorch\nSize\nq\1"
    + b"h\1h\0\x85R" * 100_000
    + b".",
    pickle_of_a_million_lists=b"\x80\2" + b"]" * 1_000_000 + b".",
    pickle_with_a_number_of_2_gb=b"\x80\2\x8b\xff\xff\xff\x7f.",
    pickle_with_a_text_of_2_63_bytes=b"\x80\4\x8d" + (2**63).to_bytes(8, "little") + b"a.",
    pickle_with_5000_digits=b"\x80\2I" + b"9" * 5000 + b"\n.",
    pickle_that_holds_itself=b"\x80\2}q\0X\5\0\0\0modelh\0s.",
    pickle_without_an_end=b"\x80\2}",
    pickle_that_extends_nothing=b"\x80\2e.",
    pickle_that_asks_for_eval=b"\x80\2cbuiltins\neval\nX\1\0\0\x001\x85R.",
    pickle_that_asks_for_a_method=b"\x80\4\x8c\5torch\x8c\x08hub.load\x93.",
)


class _Calls:
    def __init__(self, command: str) -> None:
        self.command = command

    def __reduce__(self) -> Any:
        return os.system, (self.command,)


def _command(folder: Path) -> bytes:
    return pickle.dumps({"w": _Calls(f"touch '{folder / MARKER}'")}, 2)


@case
def pickle_that_calls_os_system(folder: Path) -> None:
    _zip(folder, _command(folder))


@case
def pickle_compressed(folder: Path) -> None:
    """30 MB in 30 kB."""
    _zip(
        folder,
        _dict(w=b"X" + struct.pack("<I", 30_000_000) + bytes(30_000_000)),
        zipfile.ZIP_DEFLATED,
    )


@case
def storage_compressed(folder: Path) -> None:
    file = folder / "pytorch_model.bin"
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("m/data.pkl", _dict(w=_tensor()))
        archive.writestr("m/data/0", bytes(16), zipfile.ZIP_DEFLATED)


@case
def storage_too_short(folder: Path) -> None:
    _zip(folder, _dict(w=_tensor()), _0=bytes(12))


@case
def storage_missing(folder: Path) -> None:
    _zip(folder, _dict(w=_tensor()))


def _in_table(file: Path, record: bytes, at: int, value: bytes) -> None:
    """Overwrite bytes of a record's entry in the table of contents, `at` bytes from the entry's
    start.
    """
    data = bytearray(file.read_bytes())
    entry = data.rindex(record, data.index(b"PK\1\2")) - 46
    data[entry + at : entry + at + len(value)] = value
    file.write_bytes(data)


@case
def zip_with_two_sizes(folder: Path) -> None:
    _in_table(
        _zip(folder, _dict(w=_tensor()), _0=bytes(16)), b"m/data/0", 24, struct.pack("<I", 2**31)
    )


@case
def zip_with_sizes_beyond_the_file(folder: Path) -> None:
    _in_table(
        _zip(folder, _dict(w=_tensor()), _0=bytes(16)),
        b"m/data/0",
        20,
        struct.pack("<II", 2**31, 2**31),
    )


@case
def zip_with_a_record_beyond_the_file(folder: Path) -> None:
    _in_table(
        _zip(folder, _dict(w=_tensor()), _0=bytes(16)), b"m/data/0", 42, struct.pack("<I", 2**31)
    )


@case
def zip_with_records_that_overlap(folder: Path) -> None:
    """Two storages that are one: a quine of a checkpoint grows with every entry of its table."""
    file = _zip(folder, _dict(v=_tensor(b"0"), w=_tensor(b"1")), _0=bytes(16), _1=bytes(16))
    _in_table(file, b"m/data/1", 42, struct.pack("<I", file.read_bytes().index(b"m/data/0") - 30))


@case
def zip_with_a_record_twice(folder: Path) -> None:
    file = _zip(folder, _dict(w=_tensor()), _0=bytes(16), _1=bytes(16))
    file.write_bytes(file.read_bytes().replace(b"m/data/1", b"m/data/0"))


@case
def zip_with_two_pickles(folder: Path) -> None:
    file = _zip(folder, _dict(w=_tensor()), _0=bytes(16))
    with zipfile.ZipFile(file, "a") as archive:
        archive.writestr("n/data.pkl", b"}.")


@case
def zip_cut_off(folder: Path) -> None:
    (folder / "pytorch_model.bin").write_bytes(_BIN.read_bytes()[:100_000])


@case
def zip_with_a_table_of_90_gb(folder: Path) -> None:
    size = 90 << 30
    end = b"PK\6\6" + struct.pack("<QHHIIQQQQ", 44, 45, 45, 0, 0, 1, 1, size, 1024)
    end += b"PK\6\7" + struct.pack("<IQI", 0, 1024 + size, 1) + b"PK\5\6" + b"\xff" * 16 + b"\0\0"
    (folder / "pytorch_model.bin").write_bytes(b"PK\3\4")
    _sparse(folder / "pytorch_model.bin", 1024 + size)
    with (folder / "pytorch_model.bin").open("ab") as stream:
        stream.write(end)


@case
def zip64_that_is_sound(folder: Path) -> None:
    """The genuine file with headers for more than 4 GB: to be read like any other."""
    _rewritten(folder, force_zip64=True)
    (folder / "config.json").write_bytes((_BIN.parent / "config.json").read_bytes())


# --- legacy torch ---


def _legacy(folder: Path, *pickles: bytes, rest: bytes = b"") -> Path:
    file = folder / "pytorch_model.bin"
    head = [
        pickle.dumps(value, 2) for value in (0x1950A86A20F9469CFC6C, 1001, {"little_endian": True})
    ]
    file.write_bytes(b"".join([*head, *pickles, rest]))
    return file


@case
def legacy_that_calls_os_system(folder: Path) -> None:
    _legacy(folder, _command(folder), pickle.dumps([], 2))


@case
def legacy_nested_100000(folder: Path) -> None:
    _legacy(folder, b"\x80\2" + b"]" * 100_000 + b"a" * 99_999 + b".")


@case
def legacy_of_2_60_elements(folder: Path) -> None:
    tensor = _dict(w=_tensor(numel=_2_60, shape=_2_60 + b"\x85"))
    _legacy(folder, tensor, pickle.dumps(["0"], 2), rest=(2**60).to_bytes(8, "little") + bytes(16))


@case
def legacy_with_another_count(folder: Path) -> None:
    _legacy(
        folder,
        _dict(w=_tensor()),
        pickle.dumps(["0"], 2),
        rest=(3).to_bytes(8, "little") + bytes(16),
    )


@case
def legacy_with_a_storage_twice(folder: Path) -> None:
    storage = (4).to_bytes(8, "little") + bytes(16)
    _legacy(folder, _dict(w=_tensor()), pickle.dumps(["0", "0"], 2), rest=storage * 2)


@case
def legacy_cut_off(folder: Path) -> None:
    (folder / "pytorch_model.bin").write_bytes(_LEGACY.read_bytes()[:-1])


@case
def legacy_without_its_magic_number(folder: Path) -> None:
    (folder / "pytorch_model.bin").write_bytes(_command(folder))


# --- an index and its shards ---


def _index(folder: Path, content: Any) -> None:
    data = content if isinstance(content, bytes) else json.dumps({"weight_map": content}).encode()
    (folder / "model.safetensors.index.json").write_bytes(data)


def _shard(folder: Path) -> None:
    """One sound shard. `model.safetensors` would be read in the place of an index."""
    _safetensors(folder, {"w": ENTRY})
    (folder / "model.safetensors").rename(folder / "shard.safetensors")


def _indexes(**contents: Any) -> None:
    """Cases that are an index beside one sound shard with a tensor `w`."""

    def make(folder: Path, content: Any) -> None:
        _shard(folder)
        _index(folder, content)

    for name, content in contents.items():
        _case(name, make, content)


_indexes(
    index_of_files_above_it={"w": "../shard.safetensors"},
    index_of_files_elsewhere={"w": "/etc/passwd"},
    index_of_files_on_another_drive={"w": "C:\\model.safetensors"},
    index_of_names_with_zero_bytes={"w": "model\0.safetensors"},
    index_of_names_too_long={"w": "m" * 5000},
    index_of_itself={"w": "model.safetensors.index.json"},
    index_of_its_folder={"w": "."},
    index_of_numbers={"w": 1},
    index_of_lists={"w": ["shard.safetensors"]},
    index_that_is_a_list=["shard.safetensors"],
    index_that_is_empty={},
    index_of_tensors_that_are_not_there={"w": "shard.safetensors", "v": "shard.safetensors"},
    index_with_a_name_twice=b'{"weight_map": {"w": "a", "w": "shard.safetensors"}}',
    index_nested_100000=b'{"weight_map":' * 100_000,
)


@case
def index_of_400000_tensors(folder: Path) -> None:
    _shard(folder)
    _index(folder, {f"layers.{number}.weight": "shard.safetensors" for number in range(400_000)})


@case
def index_of_a_pipe(folder: Path) -> None:
    os.mkfifo(folder / "pipe")
    _index(folder, {"w": "pipe"})


@case
def index_of_a_link_in_a_circle(folder: Path) -> None:
    (folder / "a").symlink_to("b")
    (folder / "b").symlink_to("a")
    _index(folder, {"w": "a"})


# --- what is no file of weights ---


@case
def git_lfs_pointer(folder: Path) -> None:
    (folder / "model.safetensors").write_bytes(POINTER)


@case
def git_lfs_pointers_as_shards(folder: Path) -> None:
    for number in (1, 2):
        (folder / f"model-0000{number}-of-00002.safetensors").write_bytes(POINTER)
    _index(
        folder, {"v": "model-00001-of-00002.safetensors", "w": "model-00002-of-00002.safetensors"}
    )


@case
def nothing_at_all(folder: Path) -> None:
    pass


@case
def empty_safetensors(folder: Path) -> None:
    (folder / "model.safetensors").touch()


@case
def empty_bin(folder: Path) -> None:
    (folder / "pytorch_model.bin").touch()


@case
def empty_index(folder: Path) -> None:
    (folder / "model.safetensors.index.json").touch()


@case
def pipe_as_weights(folder: Path) -> None:
    os.mkfifo(folder / "model.safetensors")


@case
def device_as_weights(folder: Path) -> None:
    (folder / "model.safetensors").symlink_to("/dev/zero")


@case
def folder_as_weights(folder: Path) -> None:
    (folder / "model.safetensors").mkdir()


@case
def link_to_itself_as_weights(folder: Path) -> None:
    (folder / "model.safetensors").symlink_to("model.safetensors")


@case
def file_names_that_steer_a_terminal(folder: Path) -> None:
    (folder / "\x1b[2J\x1b[31mx").touch()


# --- configs beside sound weights ---


def _configs(**configs: bytes) -> None:
    """Cases that are a config.json beside sound weights."""

    def make(folder: Path, content: bytes) -> None:
        _safetensors(folder, {"w": ENTRY})
        (folder / "config.json").write_bytes(content)

    for name, content in configs.items():
        _case(name, make, content)


_configs(
    config_nested_100000=b"[" * 100_000,
    config_a_list=b"[]",
    config_not_utf8=b"\xff\xfe{}",
    config_of_5000_digits=b'{"hidden_size": %b}' % (b"9" * 5000),
    config_of_no_number=b'{"hidden_size": NaN}',
    config_empty=b"",
)


@case
def config_of_1_gb(folder: Path) -> None:
    _safetensors(folder, {"w": ENTRY})
    _sparse(folder / "config.json", 1 << 30)


@case
def merges_of_1_tb(folder: Path) -> None:
    _safetensors(folder, {"w": ENTRY})
    _sparse(folder / "merges.txt", 1 << 40)


@case
def sentencepiece_model_of_1_tb(folder: Path) -> None:
    _safetensors(folder, {"w": ENTRY})
    _sparse(folder / "tokenizer.model", 1 << 40)


@case
def manifest_of_2_60_elements(folder: Path) -> None:
    tensors = {"w": {"dtype": "F16", "shape": [2**60]}}
    content = {"format": "llava-remap/manifest", "format_version": 1, "tensors": tensors}
    (folder / "manifest.json").write_text(json.dumps(content))


# --- adapters ---


def _adapters(**changes: Any) -> None:
    """Cases that are a genuine adapter with another value or, as bytes, another text in its
    config.
    """
    genuine = GENUINE / "llava-v1.5-lora"

    def make(folder: Path, change: Any) -> None:
        for file in ("adapter_model.bin", "non_lora_trainables.bin"):
            (folder / file).write_bytes((genuine / file).read_bytes())
        config = json.loads((genuine / "adapter_config.json").read_text())
        text = change if isinstance(change, bytes) else json.dumps({**config, **change}).encode()
        (folder / "adapter_config.json").write_bytes(text)

    for name, change in changes.items():
        _case(name, make, change)


_adapters(
    adapter_nested_100000=b'{"r":' * 100_000,
    adapter_of_a_rank_of_5000_digits=b'{"peft_type": "LORA", "r": %b}' % (b"9" * 5000),
    adapter_with_infinite_alpha={"lora_alpha": 1e300},
    adapter_of_another_kind={"peft_type": "\x1b[31mos.system"},
)


# --- rule files ---


def _rules(**texts: bytes) -> None:
    for name, text in texts.items():
        _case(name, lambda folder, content: (folder / "rules.yaml").write_bytes(content), text)


_rules(
    rules_of_laughs=b"a: &a [x, x]\n"
    + b"".join(b"%c: &%c [*%c, *%c]\n" % (c + 1, c + 1, c, c) for c in b"abcdefgh"),
    rules_nested_100000=b"names: " + b"[" * 100_000,
    rules_nested_by_indents=b"".join(b" " * depth + b"a:\n" for depth in range(1000)),
    rules_that_call_os_system=b"schema: !!python/object/apply:os.system ['touch executed']\n",
    rules_with_zero_bytes=b"schema: 1\nname: a\0b\n",
    rules_not_utf8=b"schema: 1\nname: \xff\n",
    rules_of_huge_numbers=b"schema: " + b"9" * 100_000 + b"\n",
    rules_of_a_key_of_lists=b"? [a, b]\n: c\n",
    rules_that_extend_themselves=b"schema: 1\nextends: [rules.yaml]\n",
    rules_that_extend_what_is_no_rule_file=b"schema: 1\nextends: [/etc/passwd]\n",
    rules_with_a_group_too_many=b"schema: 1\nnames: [{id: a, match: "
    b"'((((a{1000}){1000}){1000}){1000})', replace: x}]\n",
    rules_that_steer_a_terminal=b'schema: 1\n"\\e[31mname\\e[0m": x\n',
    rules_of_a_device_name=b"schema: 1\nextends: [/dev/zero]\n",
)


@case
def rules_that_run_away(folder: Path) -> None:
    """A regex that takes for ever on the names of any model."""
    (folder / "rules.yaml").write_text(
        "schema: 1\nname: x\nversion: 1.0.0\nsummary: x\nextends: [llava-v1.5.yaml]\n"
        "names: [{id: a, match: '^([a-z_0-9.]|[a-z_0-9.][a-z_0-9.])+[A-Z]$', replace: x}]\n"
    )


@case
def rules_of_1_gb(folder: Path) -> None:
    _sparse(folder / "rules.yaml", 1 << 30)


@case
def rules_from_a_pipe(folder: Path) -> None:
    os.mkfifo(folder / "rules.yaml")


@case
def rules_from_a_device(folder: Path) -> None:
    (folder / "rules.yaml").symlink_to("/dev/zero")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
