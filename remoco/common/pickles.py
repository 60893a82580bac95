"""Untrusted pickles of weights: an interpreter of the few opcodes and names that `torch.save` writes.

`torch.load(weights_only=True)` runs no code, but it calls what a file names with the arguments that the file gives:
`bytearray(10**10)`, a tensor of 10**10 values on a storage of one. Here nothing is called. A value is plain, or a
tensor whose place and shape were compared with a storage of the file.
"""

from __future__ import annotations

import io
import pickletools
from collections import Counter, OrderedDict
from collections.abc import Callable
from itertools import count
from typing import Any, NamedTuple

import torch

from remoco.common.errors import UserError

MAX_BYTES = 16 << 20  # of a pickle without its tensors; a run that trains all of SVD's UNet has 2 MB
MAX_OPCODES = 2_000_000
MAX_VALUES = 2_000_000  # what stands in two places counts twice
MAX_TENSORS = 100_000
MAX_DEPTH = 64
DAMAGED = "its pickle is damaged"
PLAIN = (str, bytes, int, float, bool, type(None))
DTYPES = {
    "DoubleStorage": torch.float64, "FloatStorage": torch.float32, "HalfStorage": torch.float16,
    "BFloat16Storage": torch.bfloat16, "LongStorage": torch.int64, "IntStorage": torch.int32,
    "ShortStorage": torch.int16, "CharStorage": torch.int8, "ByteStorage": torch.uint8, "BoolStorage": torch.bool,
}  # fmt: skip


class Storage(NamedTuple):
    """What a pickle says of a storage: its key in the file, the dtype and how many values it has."""

    key: str
    dtype: torch.dtype
    numel: int


class Stored(NamedTuple):
    """A tensor of a pickle: (shape, strides, first value) on a storage, inside it, dense, nothing read yet."""

    storage: Storage
    shape: tuple[int, ...]
    stride: tuple[int, ...]
    offset: int

    @property
    def numel(self) -> int:
        """How many values it has."""
        return _product(self.shape)


class _Name(str):
    """A global that a pickle names, as `module.name`."""


class _Mark:
    """Where the items of a list, tuple or dictionary begin on the stack."""


def read_pickle(data: bytes) -> tuple[Any, int]:
    """The value of a pickle, its tensors as `Stored`, and how many bytes of `data` it took.

    Raises:
        UserError: it names anything but what `torch.save` writes for tensors and plain values, a tensor is not dense
            or not inside its storage, or it stands for too many values; one line.
    """
    reader = _Reader()
    stream = io.BytesIO(data[:MAX_BYTES])
    try:
        value = reader.run(stream)
    except UserError:
        raise
    except (
        LookupError, TypeError, OverflowError, RecursionError, AttributeError, UnicodeError, StopIteration,
    ) as error:  # fmt: skip
        raise UserError(DAMAGED) from error
    except ValueError as error:
        whole = len(data) <= MAX_BYTES
        raise UserError(DAMAGED if whole else f"{DAMAGED} or longer than {MAX_BYTES} bytes") from error
    return value, stream.tell()


class _Reader:
    def __init__(self) -> None:
        self.stack: list[Any] = []
        self.memo: dict[int, Any] = {}
        self.tensors = 0
        self.made = 0  # bytes that calls gave, in dictionaries and sets 8 for each item

    def run(self, stream: io.BytesIO) -> Any:
        for number, (opcode, argument, _) in enumerate(pickletools.genops(stream)):
            if number >= MAX_OPCODES:
                raise UserError(f"its pickle has more than {MAX_OPCODES} opcodes")
            self.step(opcode.name, argument)
        (value,) = self.stack
        if isinstance(value, (_Name, _Mark)):
            raise UserError(DAMAGED)
        return value

    def step(self, name: str, argument: Any) -> None:
        """One opcode; those that `torch.load(weights_only=True)` knows, but EMPTY_SET, which it does not write."""
        stack = self.stack
        if name in ("BININT", "BININT1", "BININT2", "BINFLOAT", "BINUNICODE", "SHORT_BINSTRING", "LONG1"):
            stack.append(argument)
        elif name in CONSTANTS:
            stack.append(CONSTANTS[name])
        elif name in ("EMPTY_LIST", "EMPTY_DICT"):
            stack.append([] if name == "EMPTY_LIST" else {})
        elif name in ("BINPUT", "LONG_BINPUT"):
            self.memo[argument] = stack[-1]
        elif name in ("BINGET", "LONG_BINGET"):
            stack.append(self.memo[argument])
        elif name == "MARK":
            stack.append(_Mark())
        elif name == "GLOBAL":
            stack.append(_global(argument))
        elif name in ("TUPLE", "TUPLE1", "TUPLE2", "TUPLE3"):
            stack.append(tuple(self.pop(int(name[5:])) if name[5:] else self.marked()))
        elif name in ("APPEND", "APPENDS"):
            items = self.pop(1) if name == "APPEND" else self.marked()
            _of(stack[-1], list).extend(items)
        elif name in ("SETITEM", "SETITEMS"):
            items = self.pop(2) if name == "SETITEM" else self.marked()
            _of(stack[-1], dict).update(zip(map(_key, items[::2]), items[1::2], strict=True))
        elif name == "REDUCE":
            function, arguments = self.pop(2)
            stack.append(self.call(_of(function, _Name), _of(arguments, tuple)))
        elif name == "BUILD":  # `_metadata` of a state_dict: versions of its modules, which nothing here reads
            state = stack.pop()
            if type(stack[-1]) is not OrderedDict or type(state) is not dict:
                raise UserError("its pickle sets attributes of what is no dictionary")
        elif name == "BINPERSID":
            stack.append(_storage(stack.pop()))
        elif name not in ("PROTO", "STOP"):
            raise UserError(f"its pickle has the opcode {name}, which torch.save does not write")

    def pop(self, number: int) -> list[Any]:
        items = self.stack[-number:]
        if len(items) < number or any(isinstance(item, _Mark) for item in items):
            raise UserError(DAMAGED)
        del self.stack[-number:]
        return items

    def marked(self) -> list[Any]:
        start = next(i for i in range(len(self.stack) - 1, -1, -1) if isinstance(self.stack[i], _Mark))
        items = self.stack[start + 1 :]
        del self.stack[start:]
        return items

    def call(self, name: str, arguments: tuple[Any, ...]) -> Any:
        """What a name in `CALLS` stands for; nothing that the file names is called."""
        if name not in CALLS:
            raise UserError(f"it names {name} as a function, expected tensors and plain values")
        if name.startswith("torch._utils."):
            self.tensors += 1
            if self.tensors > MAX_TENSORS:
                raise UserError(f"it holds more than {MAX_TENSORS} tensors")
        value = CALLS[name](*arguments)
        self.made += len(value) if isinstance(value, bytes) else 8 * len(value) if isinstance(value, (dict, set)) else 0
        if self.made > MAX_BYTES:  # arguments may be those of another call, so a short pickle could make any amount
            raise UserError(f"it stands for more than {MAX_BYTES} bytes")
        return value


CONSTANTS: dict[str, Any] = {"NONE": None, "NEWTRUE": True, "NEWFALSE": False, "EMPTY_TUPLE": ()}


def _global(argument: str) -> Any:
    module, _, name = argument.partition(" ")
    path = f"{module.replace('__builtin__', 'builtins')}.{name}"
    if module == "torch" and name in DTYPES:
        return DTYPES[name]
    if module == "torch" and isinstance(dtype := getattr(torch, name, None), torch.dtype):
        return dtype
    if module.startswith("torch") and path not in CALLS:
        kind = name.removeprefix("_rebuild_")[:60]
        raise UserError(f"it holds {kind!r} of {module[:60]}, expected plain, dense tensors of numbers")
    if path not in CALLS:
        raise UserError(f"it names {path[:100]!r}, expected tensors and plain values; nothing of it was run")
    return _Name(path)


def _of(value: Any, kind: type) -> Any:
    if not isinstance(value, kind):
        raise UserError(DAMAGED)
    return value


def _key(key: Any) -> Any:
    # a tuple of tuples takes for ever to hash, and numbers that are far apart may all have one hash
    if type(key) not in PLAIN or (type(key) is int and abs(key) >= 2**48):
        raise UserError("a dictionary in it has keys that are no names or numbers")
    return key


def _numbers(values: Any) -> tuple[int, ...]:
    if type(values) is tuple and len(values) > 16:
        raise UserError("a tensor has more than 16 axes")
    if type(values) is not tuple or not all(type(value) is int and 0 <= value < 2**48 for value in values):
        raise UserError("a tensor's shape or strides are no whole numbers of at least 0")
    return values


def _product(shape: tuple[int, ...]) -> int:
    product = 1
    for size in shape:
        product *= size
    return product


def _storage(identity: Any) -> Storage:
    kind, dtype, key, _, numel, *view = identity
    if kind not in ("storage", b"storage") or not isinstance(dtype, torch.dtype) or not isinstance(key, (str, bytes)):
        raise UserError("it holds a storage of no known kind")
    if type(numel) is not int or not 0 <= numel < 2**48 or any(view):
        raise UserError("a storage in it has no sane size")
    return Storage(key.decode() if isinstance(key, bytes) else key, dtype, numel)


def _tensor(storage: Storage, offset: int, shape: tuple, stride: tuple, *_: Any) -> Stored:
    """A dense tensor: its strides are those of a contiguous one in some order of its axes."""
    stored = Stored(_of(storage, Storage), _numbers(shape), _numbers(stride), *_numbers((offset,)))
    if len(shape) != len(stride) or stored.offset + stored.numel > storage.numel:
        raise UserError("a tensor reaches beyond its storage")
    expected = 1
    for step, size in sorted((step, size) for size, step in zip(shape, stride) if size > 1) if stored.numel else ():
        if step != expected:
            raise UserError(f"a tensor of shape {shape} and strides {stride} is not dense: its values repeat or skip")
        expected *= size
    return stored


def _encoded(text: str, encoding: str) -> bytes:
    if encoding not in ("latin1", b"latin1"):
        raise UserError("it holds bytes in an encoding that torch.save does not write")
    return _of(text, str).encode("latin1")


def _ordered(pairs: Any = ()) -> OrderedDict:
    return OrderedDict((_key(key), value) for key, value in pairs)


def _counter(counts: Any = None) -> Counter:
    return Counter(_of(counts or {}, dict))


CALLS: dict[str, Callable[..., Any]] = {
    "collections.OrderedDict": _ordered,
    "collections.Counter": _counter,
    "builtins.set": lambda items: {_key(item) for item in _of(items, list)},
    "_codecs.encode": _encoded,
    "torch.Size": lambda sizes: torch.Size(_numbers(sizes)),
    "torch._utils._rebuild_tensor": _tensor,
    "torch._utils._rebuild_tensor_v2": _tensor,
    "torch._utils._rebuild_parameter": lambda tensor, *_: _of(tensor, Stored),
}


def with_tensors(value: Any, make: Callable[[Stored], torch.Tensor]) -> Any:
    """The value with a tensor for every `Stored`.

    Single numbers may stand in several places, as the best score does in a checkpoint.

    Raises:
        UserError: two tensors have values in common, or it stands for more values, or deeper ones, than a sane file.
    """
    taken: dict[str, list[tuple[int, int]]] = {}
    counter, tensors = count(), count()

    def walk(value: Any, depth: int) -> Any:
        if next(counter) >= MAX_VALUES or depth > MAX_DEPTH:
            raise UserError(f"it holds more than {MAX_VALUES} values, or is nested deeper than {MAX_DEPTH}")
        if type(value) in (dict, OrderedDict, Counter):
            return type(value)({key: walk(inner, depth + 1) for key, inner in value.items()})
        if type(value) in (list, tuple):
            return type(value)([walk(inner, depth + 1) for inner in value])
        if isinstance(value, Stored):
            if next(tensors) >= MAX_TENSORS:
                raise UserError(f"it holds more than {MAX_TENSORS} tensors")
            if value.numel > 1:
                size = value.storage.dtype.itemsize
                place = (value.offset * size, (value.offset + value.numel) * size)
                taken.setdefault(value.storage.key, []).append(place)
            return make(value)
        if isinstance(value, (_Name, _Mark, Storage)):
            raise UserError("it holds a storage or a function where a value belongs")
        return value

    result = walk(value, 0)
    for places in taken.values():
        places.sort()
        if any(end > start for (_, end), (start, _) in zip(places, places[1:])):
            raise UserError("two of its tensors share their values, expected each to have its own")
    return result
