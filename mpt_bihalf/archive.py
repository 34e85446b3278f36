"""What `torch.save` wrote, read as tensors and plain values alone, in time and memory that its size bounds.

Its archive holds a pickle and the bytes of each tensor. The pickle is read here, by the few operations that tensors and
plain values take: nothing that it names is imported or called, and it builds a tree, in which nothing but texts and
numbers stands twice. `torch.load(weights_only=True)` runs no code either, but it builds values that take longer to look
at than there is time, and believes what a tensor says of its memory.
"""

from __future__ import annotations

import os
import pickle
import struct
import sys
import zipfile
from collections import OrderedDict
from collections.abc import Callable
from math import prod
from typing import Any, BinaryIO

import numpy as np
import torch
from torch import Tensor, nn

from .devices import HOST
from .files import refuse_deep

# By how much all tensors together may be larger than the file, where they are views of one memory, and all texts that
# stand in several places than the pickle. What this package writes has 1 of either at most.
REPEATED = 8
# Of a tensor, and of a tuple of numbers that stands in several places.
DIMENSIONS = 8
# Lists, dictionaries and tuples: far above the rows of any history, and each takes a byte to ask for and 70 to make.
CONTAINERS = 2**21
# Bytes read at a time.
PIECE = 2**20

REBUILD, REBUILD_AS, PARAMETER, SIZE, BYTES = (object() for _ in range(5))
# Kinds of tensors, as torch calls their storages.
WHOLE = ("Byte", "Char", "Short", "Int", "Long", "Bool")
BROKEN = ("Half", "BFloat16", "Float", "Double", "ComplexFloat", "ComplexDouble")
# Those that torch gives no storage of their own.
NEWER = ("uint16", "uint32", "uint64", "float8_e4m3fn", "float8_e4m3fnuz", "float8_e5m2", "float8_e5m2fnuz")
GLOBALS: dict[bytes, Any] = {
    b"collections OrderedDict": OrderedDict,
    b"torch._utils _rebuild_tensor_v2": REBUILD,
    **{f"torch {kind}Storage".encode(): getattr(torch, f"{kind}Storage")._dtype for kind in WHOLE + BROKEN},
    b"torch.storage UntypedStorage": torch.uint8,
    b"torch._utils _rebuild_tensor_v3": REBUILD_AS,
    b"torch._utils _rebuild_parameter": PARAMETER,
    b"torch Size": SIZE,
    b"_codecs encode": BYTES,
    **{f"torch {name}".encode(): getattr(torch, name) for name in NEWER},
}
# What is remembered in the place of what may not stand in several.
ONCE = object()


def read_archive(file: BinaryIO) -> Any:
    """The tensors, on the host, and the plain values that `torch.save` put into a file that is open to read.

    Raises ValueError, or BadZipFile as it comes, for a file of anything else, and for one of which torch makes more
    than it has bytes for: nested deeper than `files.DEEPEST`, with a list, a dictionary or a tensor in several places,
    with whole numbers beyond 64 bits, keys that are neither text nor whole numbers, or tensors beyond their memory.
    """
    size = file.seek(0, os.SEEK_END)
    with zipfile.ZipFile(file) as archive:
        parts = {part.filename.partition("/")[2]: part for part in archive.infolist()}
        if any(part.compress_type for part in parts.values()) or sum(part.file_size for part in parts.values()) > size:
            raise ValueError("it is compressed")
        if "byteorder" in parts and archive.read(parts["byteorder"]) != sys.byteorder.encode():
            raise ValueError("it comes from a machine with another order of bytes")
        try:
            value = _Reader(archive, parts, REPEATED * size).value()
        except (LookupError, TypeError, struct.error, UnicodeDecodeError) as fault:
            raise ValueError(f"it holds other things than tensors and plain values ({fault})") from fault
    refuse_deep(value)
    return value


class _Reader:
    """The pickle of an archive, to be read once. room: bytes that its tensors may have together."""

    def __init__(self, archive: zipfile.ZipFile, parts: dict[str, zipfile.ZipInfo], room: int) -> None:
        self._archive, self._parts, self._room = archive, parts, room
        self._data, self._at = archive.read(parts["data.pkl"]), 0
        self._stack: list[Any] = []
        self._marked: list[list[Any]] = []  # what the stack was at each mark
        self._memo: dict[int, Any] = {}
        self._letters = 0  # of texts taken from the memo
        self._containers = 0
        self._memories: dict[str, Tensor] = {}

    def value(self) -> Any:
        data, stop, operations = self._data, pickle.STOP[0], OPERATIONS
        while (code := data[self._at]) != stop:
            self._at += 1
            operations[code](self)
        if self._letters > REPEATED * len(data):
            raise ValueError("it repeats its texts too often")
        (value,) = self._stack
        return value

    def bytes(self, count: int) -> bytes:
        start, self._at = self._at, self._at + count
        if self._at > len(self._data):
            raise IndexError("it ends early")
        return self._data[start : self._at]

    def byte(self) -> int:
        self._at += 1
        return self._data[self._at - 1]

    def number(self, form: struct.Struct) -> Any:
        (number,) = form.unpack_from(self._data, self._at)
        self._at += form.size
        return number

    def push(self, value: Any) -> None:
        self._stack.append(value)

    def push_container(self, value: Any) -> None:
        self._count_container()
        self._stack.append(value)

    def _count_container(self) -> None:
        self._containers += 1
        if self._containers > CONTAINERS:
            raise ValueError(f"it has more than {CONTAINERS:,} lists, dictionaries and tuples")

    def push_whole(self) -> None:
        count = self.byte()
        if count > 8:
            raise ValueError("it has a whole number beyond 64 bits")
        self.push(int.from_bytes(self.bytes(count), "little", signed=True))

    def push_global(self) -> None:
        ends = [self._data.index(b"\n", self._at)]
        ends.append(self._data.index(b"\n", ends[0] + 1))
        name = self.bytes(ends[1] + 1 - self._at)[:-1].replace(b"\n", b" ")
        if name not in GLOBALS:
            raise ValueError(f"it asks for {name[:80].decode(errors='replace')}")
        self.push(GLOBALS[name])

    def mark(self) -> None:
        self._count_container()
        self._marked.append(self._stack)
        self._stack = []

    def since_mark(self) -> list[Any]:
        items, self._stack = self._stack, self._marked.pop()
        return items

    def last(self, count: int) -> list[Any]:
        items = self._stack[-count:]
        del self._stack[-count:]
        if len(items) < count:
            raise IndexError("it takes what is not there")
        return items

    def append(self, items: list[Any]) -> None:
        values = self._stack[-1]
        if type(values) is not list:
            raise TypeError("it puts items into what is no list")
        values += items

    def set_items(self, items: list[Any]) -> None:
        values, keys = self._stack[-1], items[::2]
        if not isinstance(values, dict) or not {*map(type, keys)} <= {str, int}:
            raise TypeError("it has a key that is neither text nor a whole number")
        values.update(zip(keys, items[1::2], strict=True))

    def put(self, place: int) -> None:
        value = self._stack[-1]
        self._memo[place] = ONCE if isinstance(value, list | dict | Tensor) else value

    def get(self, place: int) -> None:
        value = self._memo[place]
        if type(value) in (str, bytes):
            self._letters += len(value)
        elif value is ONCE or (
            isinstance(value, tuple) and not (len(value) <= DIMENSIONS and {*map(type, value)} <= {int, float})
        ):
            raise ValueError("it has a list, a dictionary or a tensor in several places")
        self._stack.append(value)

    def reduce(self) -> None:
        function, arguments = self.last(2)
        if function is REBUILD:
            self.push(self._tensor(*arguments))
        elif function is REBUILD_AS:
            memory, *shape, dtype = arguments
            self.push(self._tensor(memory.view(dtype), *shape))
        elif function is PARAMETER:
            values, trained, _ = arguments
            self.push(nn.Parameter(values, trained is True))
        elif function is SIZE and all(type(count) is int for count in arguments[0]):
            self.push_container(torch.Size(*arguments))
        elif function is BYTES and arguments[1:] == ("latin1",):
            self.push(arguments[0].encode("latin1"))
        elif function is OrderedDict and arguments == ():
            self.push_container(OrderedDict())
        else:
            raise TypeError("it makes something of its own")

    def build(self) -> None:
        (state,) = self.last(1)
        values = self._stack[-1]
        # The versions of the modules, which torch hangs on what `state_dict` gives.
        if type(values) is not OrderedDict or type(state) is not dict or state.keys() != {"_metadata"}:
            raise TypeError("it gives a value other attributes than torch does")
        refuse_deep(state)
        values._metadata = state["_metadata"]  # type: ignore[attr-defined]

    def push_memory(self) -> None:
        """The memory of tensors, [elements]: ('storage', dtype, key, place, elements) says which."""
        ((kind, dtype, key, _, count),) = self.last(1)
        if kind != "storage" or not isinstance(dtype, torch.dtype) or type(key) is not str or type(count) is not int:
            raise TypeError("a tensor's memory is none")
        part = self._parts[f"data/{key}"]
        if part.file_size != count * dtype.itemsize:
            raise ValueError("a tensor has another memory than it says")
        if key not in self._memories:
            self._memories[key] = self._read(part)
        self.push(self._memories[key].view(dtype))

    def _read(self, part: zipfile.ZipInfo) -> Tensor:
        memory = torch.empty(part.file_size, dtype=torch.uint8, device=HOST)
        values, at = memory.numpy(), 0
        with self._archive.open(part) as content:
            while piece := content.read(PIECE):
                values[at : at + len(piece)] = np.frombuffer(piece, dtype=np.uint8)
                at += len(piece)
        if at < len(memory):
            raise ValueError("a tensor's memory ends early")
        return memory

    def _tensor(self, memory: Tensor, offset: int, size: Any, stride: Any, grad: bool, *hooks: Any) -> Tensor:
        counts = (offset, *size, *stride)
        if len(size) != len(stride) or len(size) > DIMENSIONS or any(type(n) is not int or n < 0 for n in counts):
            raise ValueError("a tensor has a shape that no tensor has")
        elements = prod(size)
        end = offset + 1 + sum((n - 1) * step for n, step in zip(size, stride, strict=True)) if elements else offset
        self._room -= max(0, elements - len(memory)) * memory.element_size()  # a mere view takes nothing
        if not isinstance(memory, Tensor) or memory.dim() != 1 or end > len(memory) or self._room < 0:
            raise ValueError("a tensor reaches beyond its memory")
        return memory.as_strided(size, stride, offset)


SHORT, INT, UINT, FLOAT = (struct.Struct(form) for form in ("<H", "<i", "<I", ">d"))

# By its code, what each operation does; see `pickletools` for what they are called.
OPERATIONS: dict[int, Callable[[_Reader], Any]] = {
    code[0]: operation
    for code, operation in {
        pickle.PROTO: _Reader.byte,
        pickle.MARK: _Reader.mark,
        pickle.NONE: lambda it: it.push(None),
        pickle.NEWTRUE: lambda it: it.push(True),
        pickle.NEWFALSE: lambda it: it.push(False),
        pickle.BININT: lambda it: it.push(it.number(INT)),
        pickle.BININT1: lambda it: it.push(it.byte()),
        pickle.BININT2: lambda it: it.push(it.number(SHORT)),
        pickle.LONG1: _Reader.push_whole,
        pickle.BINFLOAT: lambda it: it.push(it.number(FLOAT)),
        pickle.BINUNICODE: lambda it: it.push(it.bytes(it.number(UINT)).decode("utf-8", "surrogatepass")),
        pickle.GLOBAL: _Reader.push_global,
        pickle.BINPERSID: _Reader.push_memory,
        pickle.BINPUT: lambda it: it.put(it.byte()),
        pickle.LONG_BINPUT: lambda it: it.put(it.number(UINT)),
        pickle.BINGET: lambda it: it.get(it.byte()),
        pickle.LONG_BINGET: lambda it: it.get(it.number(UINT)),
        pickle.EMPTY_LIST: lambda it: it.push_container([]),
        pickle.APPEND: lambda it: it.append(it.last(1)),
        pickle.APPENDS: lambda it: it.append(it.since_mark()),
        pickle.EMPTY_DICT: lambda it: it.push_container({}),
        pickle.SETITEM: lambda it: it.set_items(it.last(2)),
        pickle.SETITEMS: lambda it: it.set_items(it.since_mark()),
        pickle.EMPTY_TUPLE: lambda it: it.push(()),
        pickle.TUPLE1: lambda it: it.push_container((*it.last(1),)),
        pickle.TUPLE2: lambda it: it.push_container((*it.last(2),)),
        pickle.TUPLE3: lambda it: it.push_container((*it.last(3),)),
        pickle.TUPLE: lambda it: it.push((*it.since_mark(),)),
        pickle.REDUCE: _Reader.reduce,
        pickle.BUILD: _Reader.build,
    }.items()
}
