"""The program of a network for `inference.cpp`: what is done to which values, in order, and the weights as bits."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor

# As inference.cpp has them.
MAGIC, VERSION = 0x3154504D, 1
CONVOLUTION, LINEAR, POOLING, POINTWISE, CHANNELS, FLATTEN = range(6)
AFFINE, ADD, MULTIPLY, CLAMP, PRELU, FUNCTION, HALVE, SIGN, THRESHOLD = range(9)
MOST_TAPS, MOST_SIGNS = 127, 32767  # of a convolution of signs; that a filter of one keeps
MOST_NUMBERS, MOST_STEPS = 2**26, 64  # of a value; of an operation
MOST_SIDE, MOST_OF_KERNEL = 64, 1024  # of a kernel, its stride and so on; taps

Shape = tuple[int, int, int]
Word = int | np.ndarray


@dataclass
class Step:
    """See `Step` of inference.cpp. exact: what torch does in its place, to values [F] of whole numbers' channels."""

    kind: int
    a: Tensor | None = None
    b: Tensor | None = None
    operand: int = 0
    low: float = 0.0
    high: float = 0.0
    exact: Callable[[Tensor], Tensor] | None = None

    @property
    def joins(self) -> bool:
        """Whether it has an operand that is a value."""
        return self.kind in (ADD, MULTIPLY)


@dataclass
class Operation:
    """See `Operation` of inference.cpp. words: its own numbers; an array stands for its place.

    whole: how large sums can be [F], where they are whole numbers: of signs, by binary weights.
    """

    kind: int
    into: int
    out: int
    words: list[Word] = field(default_factory=list)
    steps: list[Step] = field(default_factory=list)
    whole: Tensor | None = None

    def takes(self, step: Step) -> bool:
        """Whether this may come behind the steps that it has."""
        if self.kind in (CHANNELS, FLATTEN) or (self.steps and self.steps[-1].kind == SIGN):
            return False
        if len(self.steps) >= MOST_STEPS - 1:  # a maximum may come yet
            return False
        return not (step.joins and any(one.kind == HALVE for one in self.steps))

    def then(self, step: Step) -> None:
        last = self.steps[-1] if self.steps else None
        if last is None or last.kind != AFFINE or step.kind != AFFINE:
            self.steps.append(step)
            return
        a, b, before, after = cast(Any, (last.a, last.b, last.exact, step.exact))
        self.steps[-1] = Step(AFFINE, a * step.a, b * step.a + step.b, exact=lambda z: after(before(z)))

    def halves(self) -> bool:
        """Whether the maximum of 2 x 2 pixels may be its last step, but for a sign."""
        return self.kind == CONVOLUTION and not any(step.joins or step.kind == HALVE for step in self.steps)

    def halve(self) -> None:
        self.steps.insert(len(self.steps) - (bool(self.steps) and self.steps[-1].kind == SIGN), Step(HALVE))


@dataclass(frozen=True)
class Value:
    """What a node of the network gives for one image: value `number` of the program. flat: [N, C], not [N, C, 1, 1]."""

    number: int
    shape: Shape
    sign: bool = False
    flat: bool = False

    @property
    def map(self) -> bool:
        return self.shape[1] * self.shape[2] > 1

    @property
    def sizes(self) -> torch.Size:
        """In a batch of one."""
        return torch.Size((1, *self.shape[:1])) if self.flat else torch.Size((1, *self.shape))


def bits(binary: Tensor) -> np.ndarray:
    """Of B [F, ...] which are kept and then which are negative: a row of 64-bit words a filter."""
    rows = binary.flatten(1).numpy()
    out = np.zeros((2, len(rows), -(-rows.shape[1] // 64) * 8), dtype=np.uint8)
    for kept, negative, row in zip(*out, rows, strict=True):  # by rows, which takes little memory
        for words, flags in ((kept, row != 0), (negative, row < 0)):
            words[: -(-len(row) // 8)] = np.packbits(flags, bitorder="little")
    return out


def numbers(values: Tensor) -> np.ndarray:
    return values.detach().contiguous().to(torch.float32).numpy()


def packed(values: list[Value], operations: list[Operation], into: int, out: int) -> bytes:
    """The words of the program; arrays stand behind them, at multiples of 8 bytes."""
    words: list[int] = [MAGIC, VERSION, len(values), len(operations), into, out, 0, 0]
    for value in values:
        words += [*value.shape, int(value.sign)]
    arrays: list[bytes] = []
    end = len(words) + 32 * len(operations)

    def place(array: np.ndarray) -> int:
        nonlocal end
        content = array.tobytes()
        arrays.append(content + bytes(-len(content) % 8))
        end += len(arrays[-1]) // 4
        return end - len(arrays[-1]) // 4

    for operation in operations:
        steps = np.zeros((len(operation.steps), 8), dtype=np.int32)
        for row, step in zip(steps, operation.steps, strict=True):
            row[0], row[3] = step.kind, step.operand
            for column, array in ((1, step.a), (2, step.b)):
                if array is not None:
                    row[column] = place((array if array.dtype == torch.int32 else array.float()).contiguous().numpy())
            row[4:6] = np.array([step.low, step.high], dtype=np.float32).view(np.int32)
        one = [operation.kind, operation.into, operation.out, place(steps), len(steps)]
        one += [place(word) if isinstance(word, np.ndarray) else word for word in operation.words]
        words += [*one, *[0] * (32 - len(one))]
    return np.array(words, dtype=np.uint32).tobytes() + b"".join(arrays)
