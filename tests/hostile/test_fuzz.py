"""Any file gives a catalog whose tensors lie inside the file, or a refusal with a code, in bounded
time.

pytest tests/hostile/test_fuzz.py --hypothesis-profile=fuzz     # what `make fuzz` runs
"""

from __future__ import annotations

import io
import json
import re
import sys
import tempfile
import zipfile
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from types import FrameType
from typing import Any
from unittest.mock import patch

import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import save

from llava_remap.checkpoint import Checkpoint, open_checkpoint
from llava_remap.core.codes import CODES, Exit
from llava_remap.core.dtypes import DTYPE_BITS
from llava_remap.core.problem import RemapError
from llava_remap.rewrite import compile_all
from llava_remap.rulefile import load_rule_file, pattern
from llava_remap.target_model.vocabulary import read_vocabulary

from ..conftest import TINY

#: The most calls of functions for a file of this size, on any machine. Most files take some
#: thousands, the worst 100,000.
CALLS = 2_000_000
#: The most KiB that one file may add to this process at any moment. The test's own examples don't
#: count.
KIB = 100 * 1024
SHARDED = TINY / "llava-v1.5" / "released" / "sharded_safetensors"
SHIPPED = Path(__file__).parents[2] / "rules"


def forget_most_memory() -> bool:
    """Have Linux forget the worst moment so far; whether it can."""
    try:
        Path("/proc/self/clear_refs").write_text("5")
    except OSError:
        return False
    return True


def most_memory() -> int:
    """KiB that this process had at its worst moment."""
    found = re.search(r"VmHWM:\s+(\d+) kB", Path("/proc/self/status").read_text())
    assert found is not None
    return int(found[1])


def answers(ask: Callable[[], Any], exit_code: Exit) -> Any:
    """What `ask` returns, or None where it refuses; both after a number of calls, and with an
    amount of memory, that are bounded.
    """
    calls = 0
    before = most_memory() if forget_most_memory() else None

    def count(frame: FrameType, event: str, argument: Any) -> None:
        nonlocal calls
        calls += event in ("call", "c_call")
        assert calls <= CALLS

    sys.setprofile(count)
    try:
        return ask()
    except RemapError as error:
        for problem in error.problems:
            assert CODES[problem.code].exit is exit_code or problem.code == "LR104"
            assert "\n" not in problem.cause
            assert problem.cause.encode()
        return None
    finally:
        sys.setprofile(None)
        assert calls <= CALLS, "should it have been caught above"
        assert before is None or most_memory() - before < KIB


def opens_or_refuses(data: bytes, name: str = "weights.bin", **beside: bytes) -> bool:
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / name
        file.write_bytes(data)
        for stem, content in beside.items():
            (Path(folder) / f"{stem}.json").write_bytes(content)
        part = "adapter_config" in beside
        checkpoint = answers(lambda: open_checkpoint(file, part=part), Exit.INPUT)
        if checkpoint is not None:
            lies_inside(checkpoint)
        return checkpoint is not None


def lies_inside(checkpoint: Checkpoint) -> None:
    """Every tensor lies in its storage, every storage in its file, and no two storages of a file
    share a byte.
    """
    storages = set()
    for tensor in checkpoint.catalog.values():
        place = tensor.location
        if place is None:
            continue
        steps = zip(tensor.shape, place.stride or _row_major(tensor.shape), strict=True)
        last = sum((size - 1) * step for size, step in steps)
        nbytes = 0 if 0 in tensor.shape else (1 + last) * DTYPE_BITS[tensor.dtype] // 8
        start, size = place.storage
        assert 0 <= start <= place.offset
        assert place.offset + nbytes <= start + size <= place.file.stat().st_size
        storages.add((place.file, start, start + size))
    for (one, _, end), (other, start, _) in pairwise(sorted(storages)):
        assert one != other or end <= start


def _row_major(shape: tuple[int, ...]) -> tuple[int, ...]:
    steps = [1]
    for size in reversed(shape[1:]):
        steps.append(steps[-1] * size)
    return tuple(reversed(steps)) if shape else ()


def written(zipped: bool) -> bytes:
    stream = io.BytesIO()
    base = torch.arange(12, dtype=torch.float32).view(3, 4)
    value = {
        "state_dict": {"a": base, "b": base.t(), "c": torch.ones(2, dtype=torch.bfloat16)},
        "epoch": 1,
    }
    torch.save(value, stream, _use_new_zipfile_serialization=zipped)
    return stream.getvalue()


ZIP, LEGACY = written(True), written(False)
SAFETENSORS = save(
    {"a": torch.ones(3, 4), "b": torch.ones(2).half(), "c": torch.ones(0)}, {"format": "pt"}
)
with zipfile.ZipFile(io.BytesIO(ZIP)) as _archive:
    PICKLE = _archive.read("archive/data.pkl")
LORA = (TINY / "llava-v1.5-lora" / "adapter_model.bin").read_bytes()

#: Numbers at which arithmetic with sizes and offsets may fail.
EDGES = [
    0,
    1,
    2**7,
    2**15,
    2**16 - 1,
    2**31 - 1,
    2**31,
    2**32 - 1,
    2**53,
    2**60,
    2**63 - 1,
    2**63,
    2**64 - 1,
]
places = st.integers(0, 2**18)
changes = st.one_of(
    st.tuples(st.just("bit"), places, st.integers(0, 7)),
    st.tuples(st.just("byte"), places, st.integers(0, 255)),
    st.tuples(st.just("number"), places, st.sampled_from(EDGES), st.sampled_from([2, 4, 8])),
    st.tuples(st.just("cut"), places, places),
    st.tuples(st.just("end"), places),
    st.tuples(st.just("insert"), places, st.binary(min_size=1, max_size=12)),
    st.tuples(st.just("copy"), places, places, st.integers(1, 200)),
)


def changed(data: bytes, change: tuple[Any, ...]) -> bytes:
    found, kind, at = bytearray(data), change[0], change[1] % (len(data) or 1)
    if kind == "bit" and found:
        found[at] ^= 1 << change[2]
    elif kind == "byte" and found:
        found[at] = change[2]
    elif kind == "number":
        found[at : at + change[3]] = (change[2] % 256 ** change[3]).to_bytes(change[3], "little")
    elif kind == "cut":
        del found[at : at + change[2] % 64]
    elif kind == "end":
        del found[at:]
    elif kind == "insert":
        found[at:at] = change[2]
    elif kind == "copy":
        source = change[2] % (len(data) or 1)
        found[at:at] = data[source : source + change[3]]
    return bytes(found)


def mutated(*seeds: bytes, first: int = 0) -> st.SearchStrategy[bytes]:
    """One of the seeds with up to six changes, none of them before byte `first`."""

    def apply(seed: bytes, how: list[tuple[Any, ...]]) -> bytes:
        rest = seed[first:]
        for change in how:
            rest = changed(rest, change)
        return seed[:first] + rest

    return st.builds(apply, st.sampled_from(seeds), st.lists(changes, min_size=1, max_size=6))


def with_pickle(data: bytes) -> bytes:
    stream = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(ZIP)) as old, zipfile.ZipFile(stream, "w") as new:
        for record in old.infolist():
            new.writestr(
                record.filename, data if record.filename.endswith("data.pkl") else old.read(record)
            )
    return stream.getvalue()


def test_the_unchanged_files_open() -> None:
    assert all(opens_or_refuses(data) for data in (ZIP, LEGACY, SAFETENSORS, with_pickle(PICKLE)))
    assert opens_or_refuses(
        LORA,
        "adapter_model.bin",
        adapter_config=(TINY / "llava-v1.5-lora/adapter_config.json").read_bytes(),
    )


@given(mutated(ZIP, LEGACY, SAFETENSORS))
def test_a_changed_file(data: bytes) -> None:
    opens_or_refuses(data)


@given(mutated(ZIP, first=ZIP.index(b"PK\1\2")))
def test_a_changed_table_of_contents(data: bytes) -> None:
    opens_or_refuses(data)


@given(mutated(SAFETENSORS, first=8), st.booleans())
def test_a_changed_header(data: bytes, mended: bool) -> None:
    """`mended`: with the length that it has since."""
    end = data.rfind(b"}") + 1
    opens_or_refuses(
        (max(0, end - 8).to_bytes(8, "little") if mended else data[:8]) + data[8:],
        "model.safetensors",
    )


@given(mutated(PICKLE).map(with_pickle))
def test_a_changed_pickle(data: bytes) -> None:
    opens_or_refuses(data)


@given(st.binary(max_size=200).map(with_pickle))
def test_any_pickle(data: bytes) -> None:
    opens_or_refuses(data)


#: Instructions of a pickle with arguments that make sense, so that more than the first few are run.
INSTRUCTIONS = [
    b"(",
    b".",
    b"0",
    b"1",
    b"2",
    b"]",
    b"}",
    b")",
    b"N",
    b"\x88",
    b"\x85",
    b"\x86",
    b"\x87",
    b"t",
    b"l",
    b"d",
    b"e",
    b"a",
    b"s",
    b"u",
    b"R",
    b"\x81",
    b"Q",
    b"b",
    b"\x94",
    b"h\0",
    b"h\1",
    b"q\0",
    b"q\1",
    b"\x8f",
    b"\x90",
    b"\x91",
    b"\x93",
    b"K\0",
    b"K\1",
    b"K\3",
    b"M\0\1",
    b"J\xff\xff\xff\xff",
    b"\x8a\x08" + b"\xff" * 8,
    b"\x8a\x09" + b"\xff" * 8 + b"\0",
    b"ctorch._utils\n_rebuild_tensor_v2\n",
    b"ctorch._utils\n_rebuild_tensor_v3\n",
    b"ctorch._utils\n_rebuild_parameter\n",
    b"ccollections\nOrderedDict\n",
    b"ctorch\nSize\n",
    b"ctorch\nFloatStorage\n",
    b"ctorch\nfloat32\n",
    b"cos\nsystem\n",
    b"X\1\0\0\0a",
    b"X\1\0\0\x000",
    b"X\7\0\0\0storage",
    b"X\3\0\0\0cpu",
    b"\x8c\5model",
    b"X\1\0\0\0\xff",
    b"\x80\2",
    b"\x95" + bytes(8),
    b"(X\7\0\0\0storagectorch\nFloatStorage\nX\1\0\0\x000X\3\0\0\0cpuK\x0ctQ",
    b"ctorch._utils\n_rebuild_tensor_v2\n((X\7\0\0\0storagectorch\nFloatStorage\n"
    b"X\1\0\0\x000X\3\0\0\0cpuK\x0ctQ"
    b"K\0K\3K\4\x86K\4K\1\x86\x89ccollections\nOrderedDict\n)RtR",
]


@given(st.lists(st.sampled_from(INSTRUCTIONS), max_size=40))
def test_a_pickle_of_any_instructions(instructions: list[bytes]) -> None:
    opens_or_refuses(with_pickle(b"".join(instructions) + b"."))
    opens_or_refuses(with_pickle(b"}X\1\0\0\0w" + b"".join(instructions) + b"s."))


json_values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.sampled_from(EDGES)
    | st.floats()
    | st.text(max_size=4),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3)
    ),
    max_leaves=8,
)
offsets = st.integers(-1, 40) | st.sampled_from(EDGES)
entries = json_values | st.fixed_dictionaries(
    {
        "dtype": st.sampled_from(["F32", "F16", "U8", "F4", "", 3]),
        "shape": st.lists(offsets, max_size=3) | json_values,
        "data_offsets": st.lists(offsets, max_size=3) | json_values,
    }
)


@given(
    st.dictionaries(st.text(max_size=4), entries, max_size=3),
    st.integers(0, 60),
    st.integers(-3, 3),
)
def test_any_safetensors_header(header: dict[str, Any], nbytes: int, more: int) -> None:
    data = json.dumps(header).encode()
    opens_or_refuses(
        max(0, len(data) + more).to_bytes(8, "little") + data + bytes(nbytes), "model.safetensors"
    )


@given(st.data())
def test_a_header_that_nearly_fits(data: st.DataObject) -> None:
    """Tensors one behind the other; of one of them one number is another."""
    header, at = {}, 0
    for number in range(data.draw(st.integers(1, 4))):
        shape = data.draw(st.lists(st.integers(0, 4), max_size=3))
        nbytes = torch.Size(shape).numel() * 2
        header[f"t{number}"] = {"dtype": "F16", "shape": shape, "data_offsets": [at, at + nbytes]}
        at += nbytes
    entry: Any = header[data.draw(st.sampled_from(sorted(header)))]
    key = data.draw(st.sampled_from(["shape", "data_offsets", "data_offsets"]))
    if entry[key]:
        entry[key][data.draw(st.integers(0, len(entry[key]) - 1))] = data.draw(offsets)
    text = json.dumps(header).encode()
    opens_or_refuses(len(text).to_bytes(8, "little") + text + bytes(at), "model.safetensors")


@given(
    st.binary(max_size=300),
    st.sampled_from(["x.bin", "model.safetensors", "x.index.json", "x.json"]),
)
def test_anything(data: bytes, name: str) -> None:
    opens_or_refuses(data, name)


@given(json_values, json_values)
def test_any_index_or_manifest(first: Any, second: Any) -> None:
    opens_or_refuses(json.dumps({"weight_map": first}).encode(), "x.index.json")
    content = {
        "format": "llava-remap/manifest",
        "format_version": 1,
        "config": second,
        "tensors": first,
        "aliases": second,
    }
    opens_or_refuses(json.dumps(content).encode(), "x.json")


@given(mutated((SHARDED / "model.safetensors.index.json").read_bytes()))
def test_a_changed_index(data: bytes) -> None:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for shard in SHARDED.glob("*.safetensors"):
            (folder / shard.name).symlink_to(shard)
        (folder / "model.safetensors.index.json").write_bytes(data)
        checkpoint = answers(lambda: open_checkpoint(folder), Exit.INPUT)
        if checkpoint is not None:
            lies_inside(checkpoint)


@given(
    mutated(LORA) | st.just(LORA),
    st.dictionaries(st.text(max_size=4), json_values, max_size=3),
    st.data(),
)
def test_a_changed_adapter(weights: bytes, more: dict[str, Any], data: st.DataObject) -> None:
    config = json.loads((TINY / "llava-v1.5-lora" / "adapter_config.json").read_text())
    config[data.draw(st.sampled_from(sorted(config)))] = data.draw(json_values)
    opens_or_refuses(
        weights, "adapter_model.bin", adapter_config=json.dumps({**config, **more}).encode()
    )


@given(
    json_values | st.fixed_dictionaries({"vocab": json_values, "type": st.just("BPE")}),
    json_values,
    st.lists(json_values, max_size=2),
)
def test_any_tokenizer_files(model: Any, special: Any, added: Any) -> None:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "tokenizer.json").write_text(json.dumps({"model": model, "added_tokens": added}))
        (folder / "tokenizer_config.json").write_text(
            json.dumps({"pad_token": special, "added_tokens_decoder": model})
        )
        (folder / "special_tokens_map.json").write_text(json.dumps(special))
        answers(lambda: read_vocabulary(folder), Exit.INPUT)


RULES = [path.read_bytes() for path in sorted(SHIPPED.glob("*.yaml"))]
#: Texts with a special meaning in YAML, the rule language and regexes.
SIGNS = [
    b"{", b"}", b"[", b"]", b"- ", b": ", b"&a ", b"*a", b"!!python/object/apply:os.system ['x']",
    b"<<: ", b"|\n", b">\n", b"? ",
    b"%YAML 1.1\n", b"---\n", b"...\n", b"#", b"'",
    b'"', b"\t", b"\0", b"\x85", b"\xef\xbb\xbf", b"no", b"~", b"0x1F", b"1e999",
    b".nan", b"9" * 400,
    b"{x}", b"{x...}", b"{x:int}", b"(a+)+$",
    b"(?<x>", b"\\1", b"{rest...}", b"extends: [x]\n", b"schema: 2\n",
]  # fmt: skip


@given(st.data())
def test_a_changed_rule_file(data: st.DataObject) -> None:
    text = data.draw(mutated(*RULES) | st.sampled_from(RULES))
    for sign, at in data.draw(st.lists(st.tuples(st.sampled_from(SIGNS), places), max_size=4)):
        at %= len(text) + 1
        text = text[:at] + sign + text[at:]
    loads_or_refuses(text)


@given(
    st.lists(
        st.sampled_from(SIGNS)
        | st.sampled_from([b"names:\n", b"  - id: a\n", b"from: ", b"to: ", b"match: ", b"\n"])
    )
)
def test_any_rule_file(signs: list[bytes]) -> None:
    loads_or_refuses(b"schema: 1\n" + b"".join(signs))


def loads_or_refuses(text: bytes) -> None:
    """Also compiled and asked for names."""

    def ask() -> None:
        program = compile_all(load_rule_file(path))
        for name in (
            "model.layers.0.mlp.up_proj.weight",
            "model.mm_projector.2.bias",
            "a" * 200,
            "",
        ):
            program.rewrite(name)

    with tempfile.TemporaryDirectory() as folder, patch.object(pattern, "TIME_LIMIT", 0.02):
        path = Path(folder) / "rules.yaml"
        path.write_bytes(text)
        answers(ask, Exit.USAGE)
