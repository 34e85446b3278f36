"""Bits near their Shannon bound: an entropy coder (asymmetric numeral systems, Duda 2013) for masks and signs."""

from __future__ import annotations

from math import log2

import constriction
import numpy as np

# How many bits are widened to what the coder takes at a time: few, as that is 32 times as much.
CHUNK = 2**16
WORD = np.dtype("<u4")


def bound(bits: int, ones: int) -> float:
    """The Shannon bound in bits: n H(k / n) for n bits of which k are 1."""
    zeros = bits - ones
    return sum(count * log2(bits / count) for count in (ones, zeros) if count)


def encode(parts: list[np.ndarray]) -> bytes:
    """Rows of bits, each bool [n], as one string of bytes, each row near the bound of its own share of ones."""
    coder = constriction.stream.stack.AnsCoder()
    for bits in reversed(parts):  # a stack: what is to be read first goes in last
        model = _model(len(bits), int(bits.sum()))
        for start in reversed(range(0, len(bits) if model else 0, CHUNK)):
            coder.encode_reverse(bits[start : start + CHUNK].astype(np.int32), model)
    return coder.get_compressed().astype(WORD).tobytes()


class Decoder:
    """The rows of `encode`, one after the other. Raises ValueError where the bytes cannot be what it wrote."""

    def __init__(self, packed: bytes) -> None:
        words = np.frombuffer(packed, dtype=np.uint8)
        if len(words) % WORD.itemsize:
            raise ValueError("its bits end within a word")
        self._coder = constriction.stream.stack.AnsCoder(words.view(WORD).astype(np.uint32))

    def decode(self, bits: int, ones: int) -> np.ndarray:
        """The next row, bool [bits], in which so many are 1."""
        row = np.full(bits, ones == bits and bits > 0)
        model = _model(bits, ones)
        for start in range(0, bits if model else 0, CHUNK):
            row[start : start + CHUNK] = self._coder.decode(model, min(CHUNK, bits - start))
        if np.count_nonzero(row) != ones:
            raise ValueError("its bits are not as many as it says")
        return row

    def end(self) -> None:
        """To be called after the last row."""
        if not self._coder.is_empty():
            raise ValueError("it has more bits than it says")


def _model(bits: int, ones: int) -> constriction.stream.model.Bernoulli | None:
    """What the coder expects; nothing where all bits are equal, which need none."""
    return constriction.stream.model.Bernoulli(ones / bits, perfect=False) if 0 < ones < bits else None
