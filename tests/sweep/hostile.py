"""A program that alters files so that reading them would cost much, reads them, and tells what came of it as JSON.

python -m tests.sweep.hostile KIND PLACE FIRST LAST; what is altered, and how, follows from the numbers of the cases.
"""

from __future__ import annotations

import io
import json
import os
import pickle
import random
import resource
import sys
import time
import zipfile
from collections import Counter, OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from torch import Tensor

from mpt_bihalf import binarize_weights, create_model
from mpt_bihalf.archive import read_archive
from mpt_bihalf.tickets import load_ticket, read_ticket, save_ticket
from mpt_bihalf.tickets.command import _about
from mpt_bihalf.tickets.file import _digest
from mpt_bihalf.tickets.sizes import size_table
from mpt_bihalf.training.build import build_model, build_optimizer
from mpt_bihalf.training.checkpoint import CHECKPOINT, _seal, load_checkpoint, read_history
from mpt_bihalf.training.run_data import kept_data
from tests.sweep.test_damage import OF_RUN, corrupted

ARCHITECTURE = {"name": "resnet20", "width": 0.25}


def refusal(read: Callable[[], object]) -> str:
    """Whether what lies there is refused, in one line, or read as something."""
    try:
        read()
    except ValueError as error:
        return "refused" if "\n" not in str(error) else f"refused in several lines: {error}"
    return "read"


def places(value: Any, way: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """The way to each part of a value, ten steps long at most."""
    if len(way) == 10:
        return []
    inner = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return [(*way, key) for key, _ in inner] + [place for key, part in inner for place in places(part, (*way, key))]


def put(value: Any, way: tuple[Any, ...], other: Any) -> Any:
    for key in way[:-1]:
        value = value[key]
    before, value[way[-1]] = value[way[-1]], other
    return before


# Tickets


def make_ticket(place: Path) -> bytes:
    model = binarize_weights(create_model(**ARCHITECTURE, seed=0), "mpt-bihalf", 0.9, skip=("first", "last"), seed=0)
    means = {"mean": [0.5] * 3, "std": [0.2] * 3, "classes": [f"class {i}" for i in range(10)]}
    save_ticket(model, place / "a.ticket", ARCHITECTURE, "a note", **means)
    return (place / "a.ticket").read_bytes()


def look(path: Path) -> None:
    """All that is done with a ticket before its network is used."""
    ticket = read_ticket(path)
    _about(ticket)
    json.dumps({"architecture": ticket.architecture, "about": ticket.about}, indent=2)
    size_table(path).text()
    load_ticket(path, into=None if ticket.architecture else create_model(**ARCHITECTURE))


def deep(levels: int) -> Any:
    inner: Any = []
    for _ in range(levels):
        inner = [inner]
    return inner


NUMBERS: list[Any] = [0, -1, 1, 2, 7, 2**10, 2**20, 2**25, 2**26, 2**30, 2**31, 2**62, 2**63, 2**64, 10**1000, 10**4000]
NUMBERS += [1.5, 1e300, float("inf"), float("nan"), True]
OTHERS: list[Any] = [None, "", "x" * 10**6, "torchvision:regnet_y_128gf", "torchvision:vit_h_14", "conv8", "seed"]
OTHERS += [[], {}, [2**15, 2**15], [2**20] * 3, [1] * 10**4, [2**30, 0, 2**30, 2**30], [10**4000] * 100, "\x1b["]
OTHERS += [deep(20), deep(900)]
OTHERS += [{"name": "torchvision:regnet_y_128gf", "num_classes": 2**20}, {"name": "vgg16", "width": 64.0}]
OTHERS += [[[2**13, 2**12], 0, 0], [[2**25], 2**25, 2**25], [[2**30], 2**30, 2**30], [[2**14, 2**11], 2**24, 2**23]]


def tensor(choose: random.Random) -> Tensor:
    kind = choose.choice([torch.uint8, torch.float32, torch.float16, torch.int64, torch.bool, torch.float8_e4m3fn])
    shape = choose.choice([(), (0,), (3,), (1000,), (1,) * 8, (1,) * 100, (0, 2**20), (100, 100)])
    return torch.zeros(shape, dtype=torch.uint8).to(kind)


def signed(content: bytes, choose: random.Random) -> bytes:
    """A ticket with one to three parts that are others, and a check sum that fits."""
    size = int.from_bytes(content[:8], "little")
    metadata, tensors = json.loads(content[8 : 8 + size])["__metadata__"], safetensors.torch.load(content)
    for _ in range(choose.randint(1, 3)):
        header = json.loads(metadata["header"])  # afresh, as the values that are put into it must stay as they are
        match choose.randrange(5):
            case 0:
                tensors[choose.choice(list(tensors))] = tensor(choose)
            case 1:
                tensors[choose.choice(["rest/more", "bits/more", "more"])] = tensor(choose)
            case 2:
                large = {**ARCHITECTURE, "image_size": 1000}
                header["architecture"] = choose.choice([None, large, choose.choice(OTHERS)])
            case _:
                put(header, choose.choice(places(header)), choose.choice(choose.choice([NUMBERS, OTHERS])))
        metadata["header"] = json.dumps(header)
    metadata["sha256"] = _digest(metadata, tensors)
    return safetensors.torch.save(tensors, metadata)


# Checkpoints. Their pickles are written here and read by this package alone.

MARK = "in this place"
MARKED = b"X" + len(MARK).to_bytes(4, "little") + MARK.encode()


class Forged:
    """A tensor that says of its memory what is not so."""

    def __init__(self, *said: Any, elements: int = 100) -> None:
        self.said, self.elements = said, elements

    def __reduce__(self) -> tuple[Any, ...]:
        storage = torch.zeros(self.elements)._typed_storage()
        return torch._utils._rebuild_tensor_v2, (storage, *self.said, False, OrderedDict())  # type: ignore[attr-defined]


class Trap:
    def __init__(self, call: Callable[..., Any], *arguments: Any) -> None:
        self.call, self.arguments = call, arguments

    def __reduce__(self) -> tuple[Any, ...]:
        return self.call, self.arguments


def doubled(levels: int) -> bytes:
    """Lists, each of which has the one before it twice, by their pickle."""
    program = b"]r\0\0\1\0"
    for level in range(levels):
        at = (2**16 + level).to_bytes(4, "little")
        program += b"0](j" + at + b"j" + at + b"er" + (2**16 + level + 1).to_bytes(4, "little")
    return program


# Pickles in the place of a value.
PROGRAMS: list[bytes] = [
    doubled(5),
    doubled(60),
    doubled(3000),
    b"]" * 10**5 + b"a" * (10**5 - 1),
    b")" + b"\x85" * 10**5,
    b"}" * 10**4 + b"K\1K\1s" + b"0" * (10**4 - 1),
    b"N\x85" + b"2\x86" * 60,
    b"\x8a\x09" + b"\xff" * 8 + b"\0",
    b"\x8a\xff" + b"\xff" * 255,
    b"\x8b\xff\xff\xff\x7f",
    b"\x8b\x40\x42\x0f\x00" + b"\x7f" * 10**6,
    b"I" + b"9" * 10**6 + b"\n",
    b"]r\xff\xff\xff\xff",
    b"]p" + b"9" * 15 + b"\n",
    b"X\xff\xff\xff\xffabc",
    b"\x96" + b"\xff" * 7 + b"\x7f",
    b"(" * 10**5,
    b"]" + b"(NNNe" * 10**4,
    b"X" + (10**5).to_bytes(4, "little") + b"x" * 10**5 + b"r\1\0\1\0](" + b"j\1\0\1\0" * 10**5 + b"e",
    b"}(" + b"".join(b"\x8a\x08" + (i << 40).to_bytes(8, "little") + b"N" for i in range(10**5)) + b"u",
    b"c__builtin__\neval\nX\x01\0\0\0" + b"1\x85R",
    b"cos\nmkdir\nX\x06\0\0\0" + b"sprung\x85R",
    b"\x82\x01",
    b"Q",
    b"NQ",
    b"N.",
]
VALUES: list[Callable[[], Any]] = [
    lambda: deep(20),
    lambda: deep(200),
    lambda: [deep(2)] * 3,
    lambda: {(1, 2): 3},
    lambda: {1.5: 3},
    lambda: 2**63,
    lambda: 2**63 - 1,
    lambda: -1,
    lambda: 10**5000,
    lambda: float("nan"),
    lambda: 1e308,
    lambda: None,
    lambda: True,
    lambda: "x" * 10**6,
    lambda: ["x" * 1000] * 10**4,
    lambda: [0] * 10**5,
    lambda: [{"epoch": 1, "layer": str(i)} for i in range(10**4)],
    lambda: {},
    lambda: {"a": 1},
    lambda: b"bytes",
    lambda: {1, 2},
    lambda: 1j,
    lambda: torch.float32,
    lambda: torch.zeros(3),
    lambda: torch.zeros(3, dtype=torch.float64),
    lambda: torch.full((3,), float("nan")),
    lambda: torch.zeros(1).expand(2**40),
    lambda: torch.zeros(1).expand(10**4),
    lambda: torch.zeros(0, 2**40),
    lambda: torch.zeros(3, device="meta"),
    lambda: torch.zeros(3).to_sparse(),
    lambda: [torch.zeros(1, 1000).expand(100, 1000)] * 2,
    lambda: list(torch.zeros(1, 1000).expand(10_000, 1000)),
    lambda: Forged(0, (2**40,), (1,)),
    lambda: Forged(0, (2**62, 2**62), (2**62, 1)),
    lambda: Forged(2**62, (3,), (1,)),
    lambda: Forged(-1, (3,), (1,)),
    lambda: Forged(0, (3,), (-1,)),
    lambda: Forged(0, (-3,), (1,)),
    lambda: Forged(0, (3, 3), (1,)),
    lambda: Forged(0, (3,), (2**62,)),
    lambda: Forged(0, (1,) * 1000, (1,) * 1000),
    lambda: Forged(0, (2.0,), (1,)),
    lambda: Forged(0, (101,), (1,)),
    lambda: Forged(0, "size", "step"),
    lambda: Forged(0, (0,), (1,), elements=0),
    lambda: Trap(os.mkdir, "sprung"),
    lambda: Trap(eval, "1"),
    lambda: Trap(torch.load, "x"),
    lambda: Trap(bytearray, 2**40),
]


def forged(content: bytes, choose: random.Random) -> bytes:
    """A checkpoint with another value in one place, a pickle of its own or another number for a tensor, and its sum."""
    value, program = read_archive(io.BytesIO(content)), b""
    ways = places(value)
    way = choose.choice(ways) if choose.randrange(2) else choose.choice([way for way in ways if len(way) < 3])
    if choose.randrange(2):
        put(value, way, choose.choice(VALUES)())
    else:
        program = choose.choice(PROGRAMS)
        put(value, way, MARK)
    packed = io.BytesIO()
    torch.save(value, packed)
    with zipfile.ZipFile(packed) as archive:
        parts = {part.filename: archive.read(part) for part in archive.infolist()}
    (name,) = (name for name in parts if name.endswith("/data.pkl"))
    parts[name] = parts[name].replace(MARKED, program) if program else parts[name]
    if choose.randrange(4) == 0:  # any byte of the pickle too
        changed = bytearray(parts[name])
        changed[choose.randrange(len(changed))] = choose.randrange(256)
        parts[name] = bytes(changed)
    memories = [part for part in parts if "/data/" in part]
    if memories and choose.randrange(8) == 0:  # or a memory of another size
        other = choose.choice(memories)
        parts[other] = bytes(choose.choice([0, 1, len(parts[other]) // 2, len(parts[other]) + 4]))
    altered = io.BytesIO()
    with zipfile.ZipFile(altered, "w") as archive:
        for part, data in parts.items():
            archive.writestr(part, data)
    _seal(altered)
    return altered.getvalue()


def main(kind: str, place: Path, first: int, last: int) -> None:
    os.chdir(place)
    torch.set_num_threads(1)
    if kind == "checkpoint":
        dataset = kept_data(OF_RUN)
        model, (folder,) = build_model(OF_RUN, dataset), place.glob("runs/*")
        path, steps = folder / CHECKPOINT, len(dataset.train) // OF_RUN.batch_size
        whole = (place / "whole") if (place / "whole").exists() else path.rename(place / "whole")
        content = whole.read_bytes()

        def read() -> None:
            read_history(folder, OF_RUN)
            load_checkpoint(folder, OF_RUN, model, build_optimizer(OF_RUN, model), steps)

        alter = forged
    else:
        path, content = place / "x.ticket", make_ticket(place)
        alter = corrupted if kind == "corrupted ticket" else signed

        def read() -> None:
            look(path)

    path.write_bytes(content)
    read()
    alter(content, random.Random(0))
    for value in VALUES if kind == "checkpoint" else ():  # what is made here takes memory too
        pickle.dumps(getattr(value(), "said", None))
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    told: Counter[str] = Counter()
    longest = 0.0
    for case in range(first, last):
        path.write_bytes(alter(content, random.Random(f"{kind} {case}")))
        started = time.monotonic()
        try:
            told[refusal(read)] += 1
        except BaseException:
            print(f"{kind} {case}", file=sys.stderr)
            raise
        longest = max(longest, time.monotonic() - started)
        if time.monotonic() - started > 2:
            print(f"{kind} {case}: {time.monotonic() - started:.1f} s", file=sys.stderr)
    assert not (place / "sprung").exists()
    memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    print(json.dumps({"told": told, "longest": longest, "memory": memory, "before": before}))


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]), int(sys.argv[3]), int(sys.argv[4]))
