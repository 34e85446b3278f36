"""What torch.save writes comes back as torch.load gives it; what no tree of tensors and plain values is, is refused."""

from __future__ import annotations

import io
import os
import pickle
import random
import zipfile
from collections import OrderedDict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.optim import SGD, Adam

from mpt_bihalf.archive import read_archive
from mpt_bihalf.files import DEEPEST
from tests.reference import one_line_error


def saved(value: Any) -> bytes:
    packed = io.BytesIO()
    torch.save(value, packed)
    return packed.getvalue()


def read(content: bytes) -> Any:
    return read_archive(io.BytesIO(content))


def archive(program: bytes, **more: bytes) -> bytes:
    """An archive of a pickle, which is given to no other program."""
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w") as parts:
        for name, content in {"data.pkl": program, **more}.items():
            parts.writestr(f"archive/{name}", content)
    return packed.getvalue()


def program_of(content: bytes) -> tuple[bytes, dict[str, bytes]]:
    with zipfile.ZipFile(io.BytesIO(content)) as parts:
        found = {name.partition("/")[2]: parts.read(name) for name in parts.namelist()}
    return found.pop("data.pkl"), found


def assert_same(value: Any, expected: Any) -> None:
    assert type(value) is type(expected)
    if isinstance(expected, Tensor):
        assert (value.dtype, value.stride()) == (expected.dtype, expected.stride())
        assert torch.equal(value, expected)
    elif isinstance(expected, dict):
        assert list(value) == list(expected)
        for name, inner in expected.items():
            assert_same(value[name], inner)
        assert getattr(value, "_metadata", None) == getattr(expected, "_metadata", None)
    elif isinstance(expected, list | tuple):
        assert len(value) == len(expected)
        for one, other in zip(value, expected, strict=True):
            assert_same(one, other)
    else:
        assert value == expected


def trained() -> list[Any]:
    """The states of a network and of an optimizer with two groups, which have settings in common."""
    states = []
    for make in (Adam, lambda groups: SGD(groups, lr=0.1, momentum=0.9)):
        model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(4, 2))
        optimizer = make([{"params": [parameter]} for parameter in model.parameters()])
        model(torch.randn(2, 3, 3, 3)).sum().backward()
        optimizer.step()
        states += [model.state_dict(), optimizer.state_dict()]
    return states


KINDS = (torch.float64, torch.float32, torch.float16, torch.bfloat16, torch.int64, torch.int32, torch.int16, torch.int8)
HONEST: list[Any] = [
    {"a": [1, -1, 255, 256, 65_536, -(2**31), 2**31, 2**63 - 1, -(2**63)], 3: (1.5, float("inf"), True, False, None)},
    ["", "ä€𝄞", "x" * 300, (), (1,), (1, 2), (1, 2, 3), (1, 2, 3, 4), [[]], {}],
    [torch.arange(6).to(kind).view(2, 3) for kind in (*KINDS, torch.uint8, torch.bool)],
    [torch.tensor(3.0), torch.zeros(0), torch.zeros(2, 0, 3), torch.randn(3, 4).t(), torch.randn(10)[2:9:3]],
    list(torch.randn(40, 5)),  # views of one memory
    nn.ModuleList([nn.Linear(9, 9)] * 80).state_dict(),  # a layer in many places
    [
        nn.Parameter(torch.randn(3)),
        nn.Parameter(torch.arange(3), requires_grad=False),
        torch.Size([2, 3]),
        b"a\xff",
    ],
    [torch.randn(3, dtype=kind) for kind in (torch.complex64, torch.complex128)],
    [torch.arange(6).to(kind).view(3, 2).t() for kind in (torch.uint16, torch.uint32, torch.uint64)],
    torch.randn(2, 3, 4, 4).to(memory_format=torch.channels_last),
    trained(),
    [{"layer": f"layer{i % 3}", "step": i, "entropy": i / 7} for i in range(2500)],
]


@pytest.mark.parametrize("value", HONEST, ids=range(len(HONEST)))
def test_what_torch_saves_comes_back_as_torch_loads_it(value: Any) -> None:
    content = saved(value)
    assert_same(read(content), torch.load(io.BytesIO(content), weights_only=True))


def test_a_tensor_is_its_own_and_not_the_files(tmp_path: Path) -> None:
    (tmp_path / "x").write_bytes(saved(torch.ones(1000)))
    with open(tmp_path / "x", "rb") as file:
        found = read_archive(file)
    (tmp_path / "x").write_bytes(bytes(10_000))
    assert found.add_(1).eq(2).all()


def test_eight_bit_floats_are_read_too() -> None:
    value = torch.randn(3, 4).to(torch.float8_e4m3fn)
    assert torch.equal(read(saved(value)).float(), value.float())


@pytest.mark.parametrize("operations", [b"}", b"]", b"N\x85", b"("], ids=["{}", "[]", "tuples", "marks"])
def test_what_asks_for_more_than_any_record_has_is_refused(operations: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mpt_bihalf.archive.CONTAINERS", 10)
    with pytest.raises(ValueError, match="more than 10 lists, dictionaries and tuples"):
        read(archive(b"\x80\x02" + operations * 11 + b"."))


class Trap:
    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.mkdir, ("sprung",)


def deep(levels: int) -> list[Any]:
    inner: list[Any] = []
    for _ in range(levels - 1):
        inner = [inner]
    return inner


ONE, TENSOR, DOUBLED = [1], torch.zeros(3), [0]
for _ in range(8):  # 2^8 numbers in 9 lists; a few more, and there would be no end to them
    DOUBLED = [DOUBLED, DOUBLED]  # type: ignore[list-item]

FOREIGN: dict[str, tuple[Any, str]] = {
    "code": (Trap(), "asks for (posix|nt) mkdir"),
    "a set": ({1}, "asks for .* set"),
    "a complex number": (1j, "asks for .* complex"),
    "an array": (np.zeros(3), "asks for numpy"),
    "a class": (nn.Linear, "asks for torch"),
    "a sparse tensor": (torch.zeros(3).to_sparse(), "_rebuild_sparse_tensor"),
    "a meta tensor": (torch.zeros(3, device="meta"), "_rebuild_meta_tensor"),
    "a whole number too large": ([2**63], "64 bits"),
    "one too small": ([-(2**63) - 1], "64 bits"),
    "one far too large": ([1 << 5000], "tensors and plain values"),
    "a key that is a tuple": ({(1, 2): 3}, "a key that is neither"),
    "a key that is a fraction": ({1.5: 3}, "a key that is neither"),
    "a key that is nothing": ({None: 3}, "a key that is neither"),
    "a list in two places": ([ONE, ONE], "in several places"),
    "a dictionary in two places": ([{}, HONEST[0], HONEST[0]], "in several places"),
    "a tensor in two places": ({"a": TENSOR, "b": TENSOR}, "in several places"),
    "a tuple of lists in two places": ([(ONE,)] * 2, "in several places"),
    "a long tuple in two places": ([(1, 2, 3, 4, 5, 6, 7, 8, 9)] * 2, "in several places"),
    "lists of lists in several places": (DOUBLED, "in several places"),
    "a text again and again": (["x" * 1000] * 100, "repeats its texts"),
    "lists too deep": (deep(DEEPEST + 2), "nested too deeply"),
    "tensors larger than the file": (torch.zeros(1).expand(20_000), "beyond its memory"),
    "nine dimensions": (torch.zeros([1] * 9), "a shape that no tensor has"),
}


@pytest.mark.parametrize("what", list(FOREIGN))
def test_what_is_no_tree_of_tensors_and_plain_values_is_refused(
    what: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    value, message = FOREIGN[what]
    with one_line_error(message):
        read(saved(value))
    assert not (tmp_path / "sprung").exists()


def test_as_deep_as_it_may_be() -> None:
    assert read(saved(deep(DEEPEST))) == deep(DEEPEST)


# Of a tensor of four numbers, which are views of a memory of four: what the pickle says, and what is said in its place.
SAID = {
    "size": (b"K\x04\x85", b"K\x05\x85"),
    "a size below 0": (b"K\x04\x85", b"J\xff\xff\xff\xff\x85"),
    "a size that is no number": (b"K\x04\x85", b"N\x85"),
    "a size of truth": (b"K\x04\x85", b"\x88\x85"),
    "sizes": (b"K\x04\x85", b"K\x04K\x04\x86"),
    "stride": (b"K\x01\x85", b"K\x02\x85"),
    "a stride below 0": (b"K\x01\x85", b"J\xff\xff\xff\xff\x85"),
    "a far stride": (b"K\x01\x85", b"\x8a\x08" + b"\xff" * 7 + b"\x7f\x85"),
    "offset": (b"QK\x00", b"QK\x01"),
    "a far offset": (b"QK\x00", b"Q\x8a\x08" + b"\xff" * 7 + b"\x7f"),
    "a larger memory": (b"K\x04t", b"K\x05t"),
    "a smaller memory": (b"K\x04t", b"K\x03t"),
    "another kind": (b"FloatStorage", b"DoubleStorage"),
    "another memory": (b"\x01\x00\x00\x000", b"\x01\x00\x00\x001"),
    "no memory": (b"Q", b"0"),
}


@pytest.mark.parametrize("what", list(SAID))
def test_a_tensor_beyond_its_memory_is_refused(what: str) -> None:
    program, parts = program_of(saved([torch.arange(4.0)]))
    assert torch.equal(read(archive(program, **parts))[0], torch.arange(4.0))
    truth, said = SAID[what]
    assert program.count(truth) == 1
    with one_line_error():
        read(archive(program.replace(truth, said), **parts))


def test_a_memory_that_is_not_all_there_is_refused() -> None:
    program, parts = program_of(saved([torch.arange(4.0)]))
    for bytes_there in (0, 15, 17):
        with one_line_error():
            read(archive(program, **parts | {"data/0": bytes(bytes_there)}))


PROGRAMS: dict[str, bytes] = {
    "nothing": b"",
    "no end": b"\x80\x02]",
    "two values": b"]].",
    "no value": b".",
    "a mark that is not there": b"]e.",
    "items for a number": b"K\x01K\x02a.",
    "items for a tensor's kind": b"ctorch\nFloatStorage\nK\x01a.",
    "half an item": b"}(K\x01u.",
    "a call of its own": b"ccollections\nOrderedDict\n]\x85R.",
    "a call of no function": b"]]R.",
    "attributes of a list": b"]}b.",
    "other attributes": b"ccollections\nOrderedDict\n)R}X\x05\x00\x00\x00itemsK\x01sb.",
    "a text beyond the end": b"X\xff\xff\xff\x7fabc.",
    "no text": b"X\x01\x00\x00\x00\xff.",
    "a name without an end": b"ccollections\n.",
    "what nobody remembered": b"h\x07.",
    "bytes in plenty": b"\x96\xff\xff\xff\xff\xff\xff\xff\x7f.",
    "an operation of a later time": b"\x80\x04\x8f.",
    "an extension": b"\x82\x01.",
}


@pytest.mark.parametrize("what", list(PROGRAMS))
def test_a_pickle_that_torch_does_not_write_is_refused(what: str) -> None:
    with one_line_error():
        read(archive(PROGRAMS[what]))


def test_a_place_far_up_in_the_memory_takes_none() -> None:
    assert read(archive(b"]r\xff\xff\xff\xffK\x01a.")) == [1]


def test_a_pickle_may_end_nowhere_and_whatever_is_changed_is_read_or_refused() -> None:
    program, parts = program_of(saved([{"a": torch.arange(4.0), "b": [1, 2.5, "x", None]}, OrderedDict(c=3)]))
    for end in range(len(program)):
        with one_line_error():
            read(archive(program[:end], **parts))
    choose, refused = random.Random(0), 0
    for _ in range(1000):
        changed = bytearray(program)
        changed[choose.randrange(len(program))] = choose.randrange(256)
        try:
            read(archive(bytes(changed), **parts))
        except ValueError:
            refused += 1
    assert refused > 300


def test_only_an_archive_as_torch_writes_it_is_read() -> None:
    program = pickle.dumps([1], 2)
    assert read(archive(program, byteorder=b"little")) == [1]
    with one_line_error("another order of bytes"):
        read(archive(program, byteorder=b"big"))
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED) as parts:
        parts.writestr("archive/data.pkl", program)
    with one_line_error("compressed"):
        read(packed.getvalue())
    with one_line_error("data.pkl"):
        read(archive(b"").replace(b"data.pkl", b"data.pk1"))
    for other in (b"", b"x" * 100, program):
        with pytest.raises(zipfile.BadZipFile):
            read(other)
