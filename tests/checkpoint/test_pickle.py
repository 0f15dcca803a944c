"""The restricted pickle machine: what it refuses, and that refusing runs nothing."""

from __future__ import annotations

import collections
import io
import os
import pickle
import zipfile
from pathlib import Path
from typing import Any

import pytest
import torch

from llava_remap.checkpoint import open_checkpoint
from llava_remap.checkpoint.torch_pickle import unpickle
from llava_remap.core.problem import RemapError

SAMPLE = {
    "list": [1, -2, 2**40, 2.5, None, True, "ä", ["x", ("y",)]],
    "tuple": (1, (2, 3, 4, 5), ()),
    7: {"": {}},
    "n": -(2**100),
}


class Calls:
    """Pickled as a call of `function`."""

    def __init__(self, function: Any, *arguments: Any) -> None:
        self.call = (function, arguments)

    def __reduce__(self) -> Any:
        return self.call


def machine(data: bytes) -> Any:
    return unpickle(io.BytesIO(data), len(data), "x.bin")[0]


@pytest.mark.parametrize("protocol", range(1, 6))
def test_plain_values(protocol: int) -> None:
    assert machine(pickle.dumps(SAMPLE, protocol)) == SAMPLE
    shared = [1]
    found = machine(pickle.dumps([shared, shared], protocol))
    assert found[0] is found[1]
    assert machine(pickle.dumps(collections.OrderedDict(a=1, b=[2]), protocol)) == {
        "a": 1,
        "b": [2],
    }


def test_sets_stay_sequences() -> None:
    assert sorted(machine(pickle.dumps({3, 4}, 4))) == [3, 4]
    assert sorted(machine(pickle.dumps(frozenset({3, 4}), 4))) == [3, 4]


@pytest.mark.parametrize("zipped", [True, False], ids=["zip", "legacy"])
@pytest.mark.parametrize("protocol", [2, 4])
def test_a_call_is_refused_by_name_and_never_made(
    tmp_path: Path, zipped: bool, protocol: int
) -> None:
    marker = tmp_path / "executed"
    file = tmp_path / "evil.bin"
    value = {"w": torch.ones(2), "evil": Calls(os.system, f"touch {marker}")}
    torch.save(value, file, _use_new_zipfile_serialization=zipped, pickle_protocol=protocol)
    with pytest.raises(RemapError) as caught:
        open_checkpoint(file)
    (problem,) = caught.value.problems
    assert problem.code == "LR105"
    assert f"asks to build `{os.system.__module__}.system`" in problem.cause
    assert not marker.exists()
    torch.load(file, weights_only=False)  # the file is as evil as this test believes
    assert marker.exists()


@pytest.mark.parametrize(
    ("value", "wanted"),
    [
        (Calls(eval, "1"), "__builtin__.eval"),
        (Calls(getattr, "", "x"), "__builtin__.getattr"),
        (Calls(torch.load, "x"), "torch.serialization.load"),
        (collections.Counter("a"), "collections.Counter"),
        (torch.device("cpu"), "torch.device"),
        (torch.Tensor, "torch.Tensor"),
        (Path("x"), "pathlib"),
        (b"bytes", "_codecs.encode"),
        (Calls(torch.FloatStorage, 3), "torch.FloatStorage"),
        (Calls(torch._utils._rebuild_sparse_tensor, 3), "torch._utils._rebuild_sparse_tensor"),
    ],
)
def test_what_is_refused(value: Any, wanted: str) -> None:
    with pytest.raises(RemapError, match=f"LR105.*asks to build `{wanted}"):
        machine(
            pickle.dumps({"x": value}, 2)
        )  # in which Python 3's builtins go by the name that they had in Python 2


def test_the_name_of_what_is_refused_is_harmless_to_a_terminal() -> None:
    data = b"\x80\x04\x8c\x05a\x1b[1m\x8c\x02b\n\x93."
    with pytest.raises(RemapError) as caught:
        machine(data)
    assert str(caught.value).isprintable()


@pytest.mark.parametrize(
    "code",
    [
        b"(c__main__\nCalls\n.",
        b"\x80\x02\x82\x01.",
        b"(ios\nsystem\n.",
        b"Pstorage\n.",
        b"\x80\x05\x97.",
    ],
)
def test_other_ways_to_build_are_refused(code: bytes) -> None:
    with pytest.raises(RemapError, match="LR105"):
        machine(code)


@pytest.mark.parametrize(
    "code",
    [
        b"",
        b".",
        b"0.",
        b"(.",
        b"h\x00.",
        b"]\x94s.",
        b"}(K\x01e.",
        b"}(K\x01u.",
        b"]K\x01K\x02s.",
        b"K\x01\x85\x86.",
        b"\x93.",
        b"NNR.",
        b"ctorch\nSize\nNR.",
        b"ctorch\nSize\n(tR)R.",
        b"NQ.",
        b")Q.",
        b"((lK\x01tQ.",
        b"X\xff\xff\xff\x7fab.",
        b"\x80",
        b"\x8a\xff.",
        b"\x8b\xff\xff\xff\x7f.",
        b"\x8e" + b"\xff" * 8 + b".",
        b"I" + b"9" * 6000 + b"\n.",
        b"}]]s.",
        b"\xff.",
        b"d.",
        b"(NNNd.",
        b"X\x01\x00\x00\x00\xff.",
        b"S'a\n.",
        b"Inot\n.",
        b"ctorch\n",
        b"K\x01",
        b"ctorch._utils\n_rebuild_tensor\n(NK\x00))tR.",
        b"ccollections\nOrderedDict\n((K\x01ltR.",
    ],
)
def test_broken_pickles(code: bytes) -> None:
    with pytest.raises(RemapError) as caught:
        machine(code)
    assert caught.value.problems[0].code == "LR102"


@pytest.mark.parametrize(
    ("key", "kind"),
    [
        ((), "tuple"),
        ((1, "a"), "tuple"),
        (b"", "bytes"),
        (2**70, "number of more than 64 bits"),
        (torch.Size, ""),
    ],
)
def test_keys_that_no_state_dict_has(key: Any, kind: str) -> None:
    """The file is whole, so nobody is told to download it again."""
    data = pickle.dumps({"x": {key: 1}}, 4)
    with pytest.raises(RemapError) as caught:
        machine(data)
    (problem,) = caught.value.problems
    assert problem.code == "LR106"
    assert (
        f"doesn't hold a state dict: a dict's key is a {kind or 'class or function'}"
        in problem.cause
    )
    assert "torch.save(model.state_dict()" in problem.fix
    assert "again" not in problem.message


def test_a_key_of_nested_tuples_is_not_hashed() -> None:
    """Hashing it overflows the C stack in CPython."""
    with pytest.raises(RemapError, match="a dict's key is a tuple"):
        machine(b"})" + b"\x85" * 200_000 + b"Ns.")


def test_depth_alone_is_harmless() -> None:
    with pytest.raises(RemapError, match="LR102"):
        machine(b"]" * 300_000)
    value = machine(b"](" + b"(" * 100_000 + b"l" * 100_000 + b"e.")
    assert isinstance(value, list)


def test_a_length_in_the_pickle_does_not_make_it_read_more() -> None:
    class Counted(io.BytesIO):
        largest = 0

        def read(self, size: int | None = -1) -> bytes:
            self.largest = max(self.largest, size or 0)
            return super().read(size)

    stream = Counted(b"X\xff\xff\xff\x7f" + bytes(1000))
    with pytest.raises(RemapError, match="it asks for 2147483647 bytes"):
        unpickle(stream, 1005, "x.bin")
    assert stream.largest < 1000


def zipped(folder: Path, pickled: bytes, storages: dict[str, bytes]) -> Path:
    file = folder / "model.bin"
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("m/data.pkl", pickled)
        for key, data in storages.items():
            archive.writestr(f"m/data/{key}", data)
    return file


class Description:
    """Pickled as torch would a tensor of one storage `0` of `numel` elements."""

    def __init__(
        self,
        numel: Any,
        offset: Any,
        shape: Any,
        stride: Any,
        kind: Any = torch.FloatStorage,
        *rest: Any,
    ) -> None:
        self.arguments = (Id(kind, numel), offset, shape, stride, False, {}, *rest)

    def __reduce__(self) -> Any:
        rebuild = (
            torch._utils._rebuild_tensor_v3
            if len(self.arguments) > 6
            else torch._utils._rebuild_tensor_v2
        )
        return rebuild, self.arguments


class Id:
    def __init__(self, kind: Any, numel: Any) -> None:
        self.id = ("storage", kind, "0", "cpu", numel)


class Pickler(pickle.Pickler):
    def persistent_id(self, obj: Any) -> Any:
        return obj.id if isinstance(obj, Id) else None


def described(folder: Path, description: Description, storage: bytes = bytes(16)) -> Path:
    stream = io.BytesIO()
    Pickler(stream, 2).dump({"w": description})
    return zipped(folder, stream.getvalue(), {"0": storage})


def test_the_description_as_such_is_read(tmp_path: Path) -> None:
    assert open_checkpoint(described(tmp_path, Description(4, 1, (3,), (1,)))).catalog[
        "w"
    ].shape == (3,)
    eight = Description(16, 2, (3,), (1,), torch.UntypedStorage, torch.float8_e5m2)
    assert open_checkpoint(described(tmp_path, eight)).catalog["w"].dtype == "F8_E5M2"


@pytest.mark.parametrize(
    ("description", "says"),
    [
        (Description(4, 0, (5,), (1,)), "extends to byte 20 of its storage, which has 16"),
        (Description(4, 2, (3,), (1,)), "extends to byte 20 of its storage, which has 16"),
        (Description(4, 0, (2, 2), (4, 1)), "extends to byte 24"),
        (Description(4, 5, (0,), (1,)), "extends to byte 20"),
        (
            Description(5, 0, (4,), (1,)),
            "a storage of 20 bytes by the pickle, but the file has 16 bytes",
        ),
        (Description(2**60, 0, (2**60,), (1,)), "a storage of"),
        (Description(4, 0, (2**60,), (0,)), "impossible"),
        (Description(4, 0, (2**31, 2**31), (0, 0)), "impossible"),
        (Description(4, 0, (10**5000,), (0,)), "impossible"),
        (Description(4, 0, (1,) * 65, (1,) * 65), "impossible"),
        (Description(4, -1, (2,), (1,)), "impossible"),
        (Description(4, 2, (2,), (-1,)), "impossible"),
        (Description(4, 0, (-1,), (1,)), "impossible"),
        (Description(4, 0, (2.0,), (1,)), "impossible"),
        (Description(4, 0, (True,), (1,)), "impossible"),
        (Description(4, None, (2,), (1,)), "impossible"),
        (Description(-1, 0, (0,), (1,)), "an impossible size"),
        (Description("4", 0, (0,), (1,)), "an impossible size"),
        (Description(10**5000, 0, (0,), (1,)), "an impossible size"),
        (Description(4, 0, (2, 2), (1,)), "a shape and a stride of different lengths"),
        (Description(4, 0, [2], [1]), "a shape and a stride of different"),
        (Description(4, 0, 3, 1), "a shape and a stride of different"),
        (
            Description(16, 0, (2,), (1,), torch.UntypedStorage, torch.Size),
            "something that isn't a dtype",
        ),
        (Description(16, 0, (2,), (1,), torch.UntypedStorage, "float32"), "is broken"),
    ],
)
def test_descriptions_that_leave_their_storage(
    tmp_path: Path, description: Description, says: str
) -> None:
    with pytest.raises(RemapError) as caught:
        open_checkpoint(described(tmp_path, description))
    (problem,) = caught.value.problems
    assert problem.code == "LR102"
    assert says in problem.cause
    assert len(problem.cause) < 300


def test_a_storage_that_is_not_there(tmp_path: Path) -> None:
    stream = io.BytesIO()
    Pickler(stream, 2).dump({"w": Description(4, 0, (4,), (1,))})
    with pytest.raises(RemapError, match=r"LR102.*storage `0` of `w` is missing"):
        open_checkpoint(zipped(tmp_path, stream.getvalue(), {"1": bytes(16)}))
