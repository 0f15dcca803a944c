"""Reads the pickles inside torch files as data.

A pickle is a program for a small stack machine. The machine here has the instructions for plain
values. In place of Python's constructors, it has a fixed table of functions that describe tensors,
so it can call nothing else. `pickletools` decodes the instructions and their arguments, and
executes none.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pickletools import OpcodeInfo, genops
from typing import IO, Any, BinaryIO, cast

from llava_remap.core import RemapError, quote, quoted, refuse
from llava_remap.core.dtypes import DTYPES, TORCH_DTYPES

#: The most bytes of a pickle. 30,000 tensors take about 4 MB.
LARGEST = 32 * 1024 * 1024
#: The most steps: instructions, and items that a call copies from its arguments. A step can take
#: some 70 bytes of memory, and uncounted copies of one list could take any amount. A tensor takes
#: 33 steps in torch's own pickles, so this is enough for 30,000 tensors.
MOST_STEPS = 1_000_000


@dataclass(frozen=True, slots=True)
class Storage:
    """A run of bytes in the file, described by a persistent id.

    Attributes:
        kind: torch's name of its type, e.g. `HalfStorage`.
        key: its name in the file.
        numel: its size in elements of `kind`.
        view: None, or the first element and the number of elements of a part (legacy files only).
    """

    kind: str
    key: str
    numel: int
    view: tuple[int, int] | None = None


@dataclass(frozen=True, slots=True)
class Described:
    """The arguments with which torch would rebuild a tensor, unchecked.

    Attributes:
        storage: the storage with its bytes.
        offset: elements from the start of the storage to the tensor's first element.
        shape, stride: in elements.
        dtype: torch's name, e.g. `float8_e4m3fn`, or None if the storage's kind gives it.
        altered: whether torch shows the stored values negated or conjugated.
    """

    storage: Storage
    offset: Any
    shape: Any
    stride: Any
    dtype: str | None = None
    altered: bool = False


@dataclass(frozen=True, slots=True)
class Name:
    """The name of a class or function in a pickle; never the object itself."""

    module: str
    name: str


def _tensor(storage: Storage, offset: Any, shape: Any, stride: Any) -> Described:
    return Described(storage, offset, shape, stride)


def _tensor_v2(
    storage: Storage,
    offset: Any,
    shape: Any,
    stride: Any,
    grad: Any,
    hooks: Any,
    metadata: Any = None,
) -> Described:
    return Described(storage, offset, shape, stride, altered=bool(metadata))


def _tensor_v3(
    storage: Storage,
    offset: Any,
    shape: Any,
    stride: Any,
    grad: Any,
    hooks: Any,
    dtype: Name,
    metadata: Any = None,
) -> Described:
    if dtype.module != "torch" or dtype.name not in BY_TORCH_NAME:
        raise TypeError("a tensor of something that isn't a dtype")
    return Described(storage, offset, shape, stride, dtype.name, bool(metadata))


def _parameter(data: Described, grad: Any, hooks: Any, state: Any = None) -> Described:
    return data


def _ordered_dict(pairs: Any = ()) -> dict[Any, Any]:
    return _filled([item for key, value in pairs for item in (key, value)])


_BUILDERS: dict[tuple[str, str], Callable[..., Any]] = {
    ("torch._utils", "_rebuild_tensor"): _tensor,
    ("torch._utils", "_rebuild_tensor_v2"): _tensor_v2,
    ("torch._utils", "_rebuild_tensor_v3"): _tensor_v3,
    ("torch._utils", "_rebuild_parameter"): _parameter,
    ("torch._utils", "_rebuild_parameter_with_state"): _parameter,
    ("torch", "Size"): tuple,
    ("collections", "OrderedDict"): _ordered_dict,
    ("builtins", "set"): list,  # DeepSpeed's model states have one; its items need no hash
    ("__builtin__", "set"): list,  # the same in protocol 2
}

#: Type of a storage → bytes per element, and dtype. Dtypes that safetensors doesn't name have
#: torch's name, in small letters.
STORAGES: dict[str, tuple[int, str]] = {
    **{dtype.storage: (dtype.bits // 8, name) for name, dtype in DTYPES.items() if dtype.storage},
    "UntypedStorage": (1, "U8"), "ComplexDoubleStorage": (16, "complex128"),
    "QInt8Storage": (1, "qint8"), "QUInt8Storage": (1, "quint8"), "QInt32Storage": (4, "qint32"),
    "QUInt4x2Storage": (1, "quint4x2"), "QUInt2x4Storage": (1, "quint2x4"),
    "TypedStorage": (1, "typed storage without a type"),
}  # fmt: skip

#: Torch's name of a dtype → dtype. Dtypes that a catalog can't have are included, so that a refusal
#: can name them.
BY_TORCH_NAME: dict[str, str] = {
    **{torch_name: name for name, torch_name in TORCH_DTYPES.items()},
    **{name: name for name in (
        "complex32", "complex128", "float8_e4m3fnuz", "float8_e5m2fnuz", "float8_e8m0fnu",
        "float4_e2m1fn_x2", "qint8", "quint8", "qint32", "quint4x2", "quint2x4",
    )},
}  # fmt: skip

#: The advice for a torch file that holds more than a state dict.
BARE = "Save only the state dict: `torch.save(model.state_dict(), FILE)`."
#: Instructions that push their argument.
_VALUES = frozenset({
    "INT", "BININT", "BININT1", "BININT2", "LONG", "LONG1", "LONG4", "FLOAT", "BINFLOAT", "STRING",
    "BINSTRING",
    "SHORT_BINSTRING", "UNICODE", "BINUNICODE", "SHORT_BINUNICODE", "BINUNICODE8", "BINBYTES",
    "SHORT_BINBYTES", "BINBYTES8",
    "BYTEARRAY8",
})  # fmt: skip
_TUPLES = frozenset({"TUPLE", "TUPLE1", "TUPLE2", "TUPLE3", "FROZENSET"})
_CONSTANTS: dict[str, object] = {
    "NONE": None,
    "NEWTRUE": True,
    "NEWFALSE": False,
    "EMPTY_TUPLE": (),
}
#: Instructions that take the items since the last mark.
_SINCE_MARK = frozenset({
    "POP_MARK", "TUPLE", "FROZENSET", "LIST", "APPENDS", "ADDITEMS", "DICT", "SETITEMS",
})  # fmt: skip
#: Instructions that take a fixed number of items.
_TAKEN = {"POP": 1, "TUPLE1": 1, "TUPLE2": 2, "TUPLE3": 3, "APPEND": 1, "SETITEM": 2}
#: Words for keys of a dict whose type here isn't the saved type.
_KEYS: dict[type, str] = {
    Described: "tensor",
    Name: "class or function",
    int: "number of more than 64 bits",
}


class _OtherError(Exception):
    """The pickle holds something else than a state dict. It need not be damaged."""


class _Bounded:
    """A file for `genops`, limited to `left` bytes: no length in the pickle can make `genops` read
    more.
    """

    def __init__(self, stream: BinaryIO, left: int) -> None:
        self._stream = stream
        self._left = left

    def read(self, size: int) -> bytes:
        if size > self._left:
            raise EOFError(f"it asks for {size} bytes, but only {self._left} are left")
        return self._counted(self._stream.read(size))

    def readline(self) -> bytes:
        return self._counted(self._stream.readline(self._left))

    def _counted(self, data: bytes) -> bytes:
        self._left -= len(data)
        return data


def unpickle(stream: BinaryIO, nbytes: int, file: str) -> tuple[Any, dict[str, Storage]]:
    """Read the pickle that starts where `stream` stands; `stream` then stands behind the pickle.

    Args:
        nbytes: the most bytes that the pickle can have.
        file: the file's name, for messages.

    Returns:
        a value of plain Python types, `Described` and `Name`; and its storages by key, each as in
        its first mention.

    Raises:
        RemapError: LR105 if it names anything outside the tables above, LR106 for a quantised
            tensor and for anything that isn't part of a state dict, LR102 for an invalid pickle.
    """
    storages: dict[str, Storage] = {}
    operations = genops(cast("IO[bytes]", _Bounded(stream, nbytes)))
    try:
        return _run(operations, storages, file), storages
    except (RemapError, OSError):
        raise
    except _OtherError as error:
        raise refuse(
            "LR106",
            f"the pickle in {quoted(file)} doesn't hold a state dict: {error}.",
            BARE,
        ) from None
    except Exception as error:  # the file can make any step of the stack machine fail
        raise refuse(
            "LR102",
            f"the pickle in {quoted(file)} is broken "
            f"({quoted(str(error) or type(error).__name__)[1:-1]}).",
            "Download or copy the file again.",
        ) from None


def _run(
    operations: Iterator[tuple[OpcodeInfo, Any, int | None]],
    storages: dict[str, Storage],
    file: str,
) -> Any:
    """Execute instructions as `pickletools` decodes them. Returns the last top of the stack."""
    stack: list[Any] = []
    below: list[list[Any]] = []  # the stacks under each open mark
    memo: dict[int, Any] = {}
    steps = 0

    def counted(more: int) -> None:
        nonlocal steps
        steps += more
        if steps > MOST_STEPS:
            raise _OtherError(f"it takes more than {MOST_STEPS} steps; a tensor takes 33")

    for opcode, argument, _ in operations:
        counted(1)
        code, items = opcode.name, list[Any]()
        if code in _SINCE_MARK:
            items, stack = stack, below.pop()
        elif code in _TAKEN:
            items = [stack.pop() for _ in range(_TAKEN[code])][::-1]
        if code in _VALUES:
            stack.append(argument)
        elif code in _CONSTANTS:
            stack.append(_CONSTANTS[code])
        elif code in ("PROTO", "FRAME", "POP", "POP_MARK"):
            pass
        elif code == "MARK":
            below.append(stack)
            stack = []
        elif code == "DUP":
            stack.append(stack[-1])
        elif code in _TUPLES:  # sets become sequences: hashing a file's values is not safe
            stack.append(tuple(items))
        elif code in ("LIST", "EMPTY_LIST", "EMPTY_SET"):
            stack.append(items)
        elif code in ("APPEND", "APPENDS", "ADDITEMS"):
            _extend(stack[-1], items)
        elif code in ("DICT", "EMPTY_DICT"):
            stack.append(_filled(items))
        elif code in ("SETITEM", "SETITEMS"):
            _fill(stack[-1], items)
        elif code in ("GET", "BINGET", "LONG_BINGET"):
            stack.append(memo[argument])
        elif code in ("PUT", "BINPUT", "LONG_BINPUT"):
            memo[argument] = stack[-1]
        elif code == "MEMOIZE":
            memo[len(memo)] = stack[-1]
        elif code == "GLOBAL":
            module, _, name = argument.partition(" ")
            stack.append(_name(module, name, file))
        elif code == "STACK_GLOBAL":
            name = stack.pop()
            stack.append(_name(stack.pop(), name, file))
        elif code in ("REDUCE", "NEWOBJ"):
            arguments = stack.pop()
            counted(sum(len(item) for item in arguments if hasattr(item, "__len__")))
            stack.append(_build(stack.pop(), arguments, file))
        elif code == "BUILD":  # attributes such as a state dict's `_metadata`; none is a tensor's
            stack.pop()
        elif code == "BINPERSID":
            counted(len(stack[-1]))
            storage = _storage(stack.pop())
            storages.setdefault(storage.key, storage)
            stack.append(storage)
        elif code == "STOP":
            return stack.pop()
        else:
            raise _refused(f"something by the pickle instruction {code}", file)
    raise EOFError("it has no end")


def _extend(target: Any, items: list[Any]) -> None:
    if type(target) is not list:
        raise TypeError("items for something that is not a list")
    target.extend(items)


def _filled(items: list[Any]) -> dict[Any, Any]:
    found: dict[Any, Any] = {}
    _fill(found, items)
    return found


def _fill(target: Any, items: list[Any]) -> None:
    """Put keys and values, which alternate in `items`, into a dict. Hashing a key of nested tuples
    could crash Python, so such a key is refused.
    """
    if type(target) is not dict or len(items) % 2:
        raise TypeError("keys and values for something that is not a dict")
    for key, value in zip(items[::2], items[1::2], strict=True):
        if not isinstance(key, (str, float, type(None))) and not (
            isinstance(key, int) and key.bit_length() <= 64
        ):
            if isinstance(key, (list, dict)):  # Python can't have saved such a key
                raise TypeError(f"a dict's key is a {type(key).__name__}")
            raise _OtherError(f"a dict's key is a {_KEYS.get(type(key), type(key).__name__)}")
        target[key] = value


def _name(module: Any, name: Any, file: str) -> Name:
    if not isinstance(module, str) or not isinstance(name, str):
        raise TypeError("the name of a global is not a string")
    if (
        (module, name) in _BUILDERS
        or (module in ("torch", "torch.cuda", "torch.storage") and name in STORAGES)
        or (module == "torch" and name in BY_TORCH_NAME)
    ):
        return Name(module, name)
    if module == "torch._utils" and name == "_rebuild_qtensor":
        raise refuse(
            "LR106",
            f"{quoted(file)} holds quantised tensors, which can't be converted.",
            "Give the unquantised checkpoint, in F16, BF16 or F32.",
        )
    if module.partition(".")[0] == "__torch__":
        save = (
            f"import torch; torch.save(torch.jit.load({file!r}, 'cpu').state_dict(), "
            f"{f'{file}.state.pt'!r})"
        )
        raise refuse(
            "LR106",
            f"{quoted(file)} is a TorchScript program, such as OpenAI's release of CLIP, and not "
            "a state dict.",
            f"If you trust the file, extract its weights, in its folder: python -c {quote(save)}",
        )
    raise _refused(quoted(f"{module}.{name}"), file)


def _build(callee: Any, arguments: Any, file: str) -> Any:
    if not isinstance(callee, Name) or type(arguments) is not tuple:
        raise TypeError("it calls something that is not a name")
    builder = _BUILDERS.get((callee.module, callee.name))
    if builder is None:
        raise _refused(quoted(f"{callee.module}.{callee.name}"), file)
    built = builder(*arguments)
    if isinstance(built, Described) and not isinstance(built.storage, Storage):
        raise TypeError("a tensor without a storage")
    return built


def _storage(persistent_id: Any) -> Storage:
    """The storage of the tuple `('storage', type, key, location, numel)`. In legacy files, None or
    a part's `(key, offset, size)` follows.
    """
    label, kind, key, _location, numel, *view = persistent_id
    if (
        label != "storage"
        or not isinstance(kind, Name)
        or kind.name not in STORAGES
        or not isinstance(key, str)
    ):
        raise TypeError("a persistent id that is not a storage's")
    if not view or view[0] is None:
        return Storage(kind.name, key, numel)
    _view_key, first, size = view[0]
    return Storage(kind.name, key, numel, (first, size))


def _refused(wanted: str, file: str) -> RemapError:
    return refuse(
        "LR105",
        f"{quoted(file)} asks to build {wanted}, which isn't a tensor.",
        f"It wasn't built. {BARE}",
    )
