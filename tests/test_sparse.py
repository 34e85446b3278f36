"""Convolutions and linear layers by what the weights keep: right, and to the bit the sums that sparse.cpp states."""

from __future__ import annotations

import ctypes
import itertools
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional as F

from mpt_bihalf import kernels, sparse
from mpt_bihalf.images_last import are_last, images_last

pytestmark = pytest.mark.skipif(not sparse.available(), reason="no compiled loops with AVX2 here")

Array = np.ndarray[Any, np.dtype[np.float32]]
CAPABILITIES = ["AVX2", "AVX512"]


@pytest.fixture(params=CAPABILITIES)
def flavour(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """The compiled loops for each kind of processor that this one can stand in for."""
    here = torch.backends.cpu.get_cpu_capability()
    if CAPABILITIES.index(request.param) > CAPABILITIES.index(here):
        pytest.skip(f"this processor has {here}")
    (file,) = Path(kernels.__file__).parent.glob(f"_kernels_{request.param.lower()}.*")
    library = ctypes.CDLL(str(file))
    monkeypatch.setattr(kernels, "compiled", lambda: library)
    return str(request.param)


@pytest.fixture(params=[1, 2, 5])
def threads(request: pytest.FixtureRequest) -> Iterator[int]:
    before = torch.get_num_threads()
    torch.set_num_threads(request.param)
    yield request.param
    torch.set_num_threads(before)


def two_valued(*shape: int, kept: float, seed: int = 0) -> Tensor:
    """alpha times -1, 0, 1, with one alpha a filter; the first filter keeps nothing."""
    g = torch.Generator().manual_seed(seed)
    signs = torch.rand(shape, generator=g).lt(0.5) * 2.0 - 1
    w = signs * (torch.rand(shape, generator=g) < kept) * torch.rand(shape[0], *[1] * (len(shape) - 1), generator=g)
    w[0] = 0
    return w


def drawn(*shape: int, seed: int = 1) -> Tensor:
    return images_last(torch.randn(shape, generator=torch.Generator().manual_seed(seed)))


def fused(sums: Array, x: Array, y: Array) -> Array:
    """sums + x y, rounded once: by sums in double precision that are rounded to odd first."""
    product = x.astype(np.float64) * y.astype(np.float64)  # exact
    wide = sums.astype(np.float64)
    total = product + wide
    part = total - product
    lost = (product - (total - part)) + (wide - part)
    even = (np.ascontiguousarray(total).view(np.int64) & 1) == 0
    odd = np.where((lost != 0) & even, np.nextafter(total, np.where(lost > 0, np.inf, -np.inf)), total)
    return odd.astype(np.float32)


def alphas(w: Array) -> Array:
    return np.abs(w).reshape(len(w), -1).max(1)


def forward(x: Array, w: Array, bias: Array | None, step: int, pad: tuple[int, int]) -> Array:
    """The stated sum of each output, one weight after the other."""
    padded = np.pad(x, ((0, 0), (0, 0), (pad[0], pad[0]), (pad[1], pad[1])))
    k = w.shape[2]
    height, width = ((size - k) // step + 1 for size in padded.shape[2:])
    y = np.zeros((len(x), len(w), height, width), np.float32)
    for f, c, i, j in zip(*np.nonzero(w), strict=True):
        seen = padded[:, c, i : i + (height - 1) * step + 1 : step, j : j + (width - 1) * step + 1 : step]
        y[:, f] += np.sign(w[f, c, i, j]) * seen
    y *= alphas(w)[:, None, None]
    return y if bias is None else y + bias[:, None, None]


def to_input(g: Array, w: Array, shape: tuple[int, ...], step: int, pad: tuple[int, int]) -> Array:
    x = np.zeros((shape[0], shape[1], shape[2] + 2 * pad[0] + 2, shape[3] + 2 * pad[1] + 2), np.float32)
    height, width = g.shape[2:]
    scaled = g * alphas(w)[:, None, None]
    for f, c, i, j in zip(*np.nonzero(w), strict=True):
        place = np.s_[:, c, i : i + (height - 1) * step + 1 : step, j : j + (width - 1) * step + 1 : step]
        x[place] += np.sign(w[f, c, i, j]) * scaled[:, f]
    return x[:, :, pad[0] : pad[0] + shape[2], pad[1] : pad[1] + shape[3]]


def tiles(x: Array, top: int, left: int, down: int, across: int, size: int, step: int) -> Array:
    """[N, C, down, across, size, size]: windows of x, from (top, left) on, `step` apart; zero outside."""
    space = max(x.shape[2:]) + size + step * max(down, across)
    wide = np.pad(x, ((0, 0), (0, 0), (space, space), (space, space)))[:, :, space + top :, space + left :]
    seen = np.lib.stride_tricks.sliding_window_view(wide, (size, size), axis=(2, 3))
    return seen[:, :, : down * step : step, : across * step : step][:, :, :down, :across]


def pairs(x: Array, axis: int, factors: bool) -> Array:
    """Two factors, or four inputs, of F(3, 2) at its points."""
    x = np.moveaxis(x, axis, 0)
    at = [x[0], x[0] + x[1], x[0] - x[1], x[1]] if factors else [x[0] - x[2], x[1] + x[2], x[2] - x[1], x[3] - x[1]]
    return np.moveaxis(np.stack(at), 0, axis)


def outputs(m: Array, axis: int) -> Array:
    half, m = np.float32(0.5), np.moveaxis(m, axis, 0)
    y = [m[0] + half * (m[1] + m[2]), half * (m[1] - m[2]), half * (m[1] + m[2]) + m[3]]
    return np.moveaxis(np.stack(y), 0, axis)


def to_weight(x: Array, g: Array, k: int, step: int, pad: tuple[int, int]) -> Array:
    """The stated sums: see the head of sparse.cpp."""
    channels, filters = x.shape[1], g.shape[1]
    minimal = k == 3 and step == 1 and channels > 7
    down, across = (-(-size // 4) for size in g.shape[2:])
    blocks = tiles(g, 0, 0, down * 4, across * 4, 1, 1)[..., 0, 0].reshape(len(g), filters, down, 4, across, 4)
    blocks = blocks.transpose(0, 1, 2, 4, 3, 5)  # [N, F, down, across, 4, 4]
    points = 16 if minimal else k * k
    total = np.zeros((points, filters, channels), np.float32)
    for first in range(0, len(x), 32):
        part = np.zeros_like(total)
        for u, v, n in itertools.product(range(down), range(across), range(first, min(first + 32, len(x)), 16)):
            top, left = u * 4 * step - pad[0], v * 4 * step - pad[1]
            window = np.zeros_like(total)
            seen, of_y = x[n : n + 16], blocks[n : n + 16, :, u, v]
            for i, j in itertools.product(range(2 if minimal else 4), repeat=2):
                if minimal:
                    tile = tiles(seen, top + 2 * i, left + 2 * j, 1, 1, 4, 1)[:, :, 0, 0]
                    at = pairs(pairs(tile, 3, False), 2, False).reshape(len(seen), channels, 16)
                    by = pairs(pairs(of_y[:, :, 2 * i : 2 * i + 2, 2 * j : 2 * j + 2], 3, True), 2, True)
                    by = by.reshape(len(seen), filters, 16)
                else:
                    tile = tiles(seen, top + step * i, left + step * j, 1, 1, k, 1)[:, :, 0, 0]
                    at = tile.reshape(len(seen), channels, points)
                    by = np.repeat(of_y[:, :, i, j, None], points, 2)
                for image in range(len(seen)):
                    window = fused(window, by[image].T[:, :, None], at[image].T[:, None, :])
            part = part + window
        total = total + part
    if minimal:
        return outputs(outputs(total.reshape(4, 4, filters, channels), 0), 1).transpose(2, 3, 0, 1)
    return total.transpose(1, 2, 0).reshape(filters, channels, k, k)


def to_bias(g: Array) -> Array:
    sums = np.zeros((16, g.shape[1]), np.float32)
    for first, i, j in itertools.product(range(0, len(g), 16), range(g.shape[2]), range(g.shape[3])):
        here = g[first : first + 16, :, i, j]
        sums[: len(here)] += here
    while len(sums) > 1:
        sums = sums[: len(sums) // 2] + sums[len(sums) // 2 :]
    return sums[0]


# images, inputs, outputs, height, width, kernel, stride, padding, kept
CONVOLUTIONS = [
    (3, 5, 6, 7, 9, 3, 1, (1, 1), 0.3),
    (33, 9, 5, 4, 6, 3, 1, (1, 1), 0.5),
    (17, 20, 18, 5, 5, 3, 1, (1, 1), 0.1),
    (1, 8, 3, 3, 3, 3, 1, (0, 1), 1.0),
    (40, 3, 4, 6, 5, 3, 1, (1, 1), 0.4),
    (9, 10, 7, 8, 7, 3, 2, (1, 1), 0.4),
    (2, 4, 5, 9, 6, 3, 2, (0, 2), 0.4),
    (5, 17, 4, 5, 6, 1, 1, (0, 0), 0.4),
    (35, 6, 5, 7, 5, 1, 2, (0, 0), 0.5),
    (4, 3, 5, 4, 4, 1, 2, (1, 1), 0.5),
    (2, 70, 67, 2, 2, 3, 1, (1, 1), 0.05),
]


@pytest.mark.parametrize("case", CONVOLUTIONS, ids=str)
@pytest.mark.usefixtures("flavour")
def test_a_convolution_is_the_stated_sums_to_the_bit(case: tuple[Any, ...], threads: int) -> None:
    n, inputs, filters, height, width, k, step, pad, kept = case
    w, b = two_valued(filters, inputs, k, k, kept=kept), drawn(1, filters)[0]
    x = drawn(n, inputs, height, width).requires_grad_()
    w, b = w.requires_grad_(), b.clone().requires_grad_()
    y = sparse.convolve(x, w, b, (step, step), pad)
    g = drawn(*y.shape, seed=2)
    y.backward(g)
    plain_x, plain_w, plain_g = (t.detach().contiguous().numpy() for t in (x, w, g))
    np.testing.assert_array_equal(y.detach().numpy(), forward(plain_x, plain_w, b.detach().numpy(), step, pad))
    for found, expected in (
        (x.grad, to_input(plain_g, plain_w, plain_x.shape, step, pad)),
        (w.grad, to_weight(plain_x, plain_g, k, step, pad)),
        (b.grad, to_bias(plain_g)),
    ):
        assert found is not None
        np.testing.assert_array_equal(found.numpy(), expected)


@pytest.mark.parametrize("case", [(1, 5, 6, 0.5), (33, 100, 7, 0.2), (130, 9, 200, 0.1), (300, 150, 3, 1.0)], ids=str)
@pytest.mark.usefixtures("flavour")
def test_a_linear_layer_is_the_stated_sums_to_the_bit(case: tuple[Any, ...], threads: int) -> None:
    n, inputs, filters, kept = case
    x, w = drawn(n, inputs).requires_grad_(), two_valued(filters, inputs, kept=kept).requires_grad_()
    b = drawn(1, filters)[0].clone().requires_grad_()
    y = sparse.multiply(x, w, b)
    g = drawn(n, filters, seed=2)
    y.backward(g)
    as_images = [t.detach().contiguous().numpy()[:, :, None, None] for t in (x, w, g)]
    expected = forward(as_images[0], as_images[1], b.detach().numpy(), 1, (0, 0))
    np.testing.assert_array_equal(y.detach().numpy(), expected[:, :, 0, 0])
    of_x = to_input(as_images[2], as_images[1], as_images[0].shape, 1, (0, 0))
    of_w = np.zeros(w.shape, np.float32)
    for row, of_y in zip(as_images[0], as_images[2], strict=True):
        of_w = fused(of_w, of_y[:, :, 0], row[:, 0].T)
    for found, right in ((x.grad, of_x[:, :, 0, 0]), (w.grad, of_w), (b.grad, to_bias(as_images[2]))):
        assert found is not None
        np.testing.assert_array_equal(found.numpy(), right)


@st.composite
def layers(draw: st.DrawFn) -> tuple[Any, ...]:
    k, step = draw(st.sampled_from([1, 3])), draw(st.sampled_from([1, 2]))
    pad = draw(st.integers(0, 3)), draw(st.integers(0, 3))
    sizes = [draw(st.integers(max(1, k - 2 * p), 11)) for p in pad]
    n, inputs, filters = draw(st.integers(1, 40)), draw(st.integers(1, 24)), draw(st.integers(1, 24))
    return n, inputs, filters, *sizes, k, step, pad, draw(st.sampled_from([0.0, 0.02, 0.1, 0.5, 1.0]))


@given(case=layers(), last=st.booleans(), valued=st.booleans(), biased=st.booleans(), seed=st.integers(0, 1000))
@settings(max_examples=60)
def test_it_is_near_to_a_convolution_in_double_precision(
    case: tuple[Any, ...], last: bool, valued: bool, biased: bool, seed: int
) -> None:
    n, inputs, filters, height, width, k, step, pad, kept = case
    w = drawn(filters, inputs, k, k, seed=seed) if valued else two_valued(filters, inputs, k, k, kept=kept, seed=seed)
    x, b = drawn(n, inputs, height, width, seed=seed), drawn(1, filters)[0].clone() if biased else None
    x = (x if last else x.contiguous()).requires_grad_()
    w = w.contiguous().requires_grad_()
    y = sparse.convolve(x, w, b, (step, step), pad, valued)
    assert y.shape[0] == 1 or are_last(y)
    wide = [t.detach().double().requires_grad_() for t in (x, w)]
    right = F.conv2d(*wide, None if b is None else b.double(), step, pad)
    g = torch.randn(y.shape, generator=torch.Generator().manual_seed(seed))
    y.backward(g)
    right.backward(g.double())
    torch.testing.assert_close(y.double(), right, rtol=1e-5, atol=3e-5)
    for found, expected, terms in ((x.grad, wide[0].grad, filters), (w.grad, wide[1].grad, n * y[0, 0].numel())):
        assert found is not None and expected is not None
        torch.testing.assert_close(found.double(), expected, rtol=1e-5, atol=3e-6 * max(terms, 10) ** 0.5 + 2e-5)


def test_all_pruned_gives_the_bias_and_no_gradient() -> None:
    x, w = drawn(3, 4, 5, 5).requires_grad_(), torch.zeros(6, 4, 3, 3, requires_grad=True)
    y = sparse.convolve(x, w, torch.arange(6.0), (1, 1), (1, 1))
    assert torch.equal(y, torch.arange(6.0).view(1, 6, 1, 1).expand_as(y))
    y.sum().backward()
    assert x.grad is not None and w.grad is not None
    assert not x.grad.any() and w.grad.any()


@pytest.mark.parametrize("odd", [0.3, float("nan")])
def test_a_weight_of_other_values_is_said_and_computed_densely(odd: float) -> None:
    x, w = drawn(3, 4, 5, 5).requires_grad_(), two_valued(6, 4, 3, 3, kept=0.5)
    w[2, 1, 0, 2] = odd
    w.requires_grad_()
    with pytest.warns(sparse.NotTwoValues, match="not alpha times -1, 0, 1"):
        y = sparse.convolve(x, w, None, (1, 1), (1, 1))
    assert torch.equal(y.isnan(), F.conv2d(x, w, None, 1, 1).isnan())
    if odd == odd:
        torch.testing.assert_close(y, F.conv2d(x, w, None, 1, 1))
        y.sum().backward()
        assert x.grad is not None and w.grad is not None


@pytest.mark.parametrize("linear", [False, True])
def test_gradients_of_gradients_are_those_of_torch(linear: bool) -> None:
    shape = (2, 3) if linear else (2, 3, 4, 4)
    w = two_valued(4, 3, kept=0.7) if linear else two_valued(4, 3, 3, 3, kept=0.7)

    def second(layer: Any, bias: Tensor) -> list[Tensor]:
        x, weight = drawn(*shape).requires_grad_(), w.clone().requires_grad_()
        first = torch.autograd.grad(layer(x, weight, bias).pow(2).sum(), [x, weight], create_graph=True)
        return [*torch.autograd.grad(sum(g.pow(2).sum() for g in first), [x, weight, bias])]

    bias = torch.arange(4.0, requires_grad=True)
    ours = sparse.multiply if linear else lambda x, w, b: sparse.convolve(x, w, b, (1, 1), (1, 1))
    theirs = F.linear if linear else lambda x, w, b: F.conv2d(x, w, b, 1, 1)
    for found, expected in zip(second(ours, bias), second(theirs, bias), strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)


def test_what_is_written_to_after_it_was_used_is_an_error_as_with_torch() -> None:
    x = drawn(2, 3, 4, 4).requires_grad_() * 1
    y = sparse.convolve(x, two_valued(4, 3, 3, 3, kept=0.5).requires_grad_(), None, (1, 1), (1, 1))
    x.add_(1)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        y.sum().backward()


def test_inputs_that_are_parts_and_repetitions_of_others_are_read_right() -> None:
    w = two_valued(4, 3, 3, 3, kept=0.5)
    whole = drawn(6, 3, 9, 12)
    for x in (whole[:, :, 1:8, ::2], whole[1:4], whole[:, :1].expand(6, 3, 9, 12), whole[::2], whole.flip(3)):
        found = sparse.convolve(x, w, None, (1, 1), (1, 1))
        torch.testing.assert_close(found, F.conv2d(x, w, None, 1, 1))


def test_whole_numbers_stay_whole_to_the_last_bit() -> None:
    signs = drawn(8, 40, 6, 6).sign()
    w = two_valued(10, 40, 3, 3, kept=0.5).sign()
    assert torch.equal(sparse.convolve(signs, w, None, (1, 1), (1, 1)), F.conv2d(signs, w, None, 1, 1))


def test_the_gradient_of_a_weight_is_as_near_to_double_precision_as_torchs() -> None:
    """Of activations with a mean, as ReLU leaves them, and of gradients of which max pooling leaves a quarter."""
    x, g = drawn(64, 16, 16, 16).relu() + 0.5, drawn(64, 24, 16, 16, seed=2)
    g = images_last(g * (drawn(64, 24, 16, 16, seed=3) > 0.67))
    w = two_valued(24, 16, 3, 3, kept=0.1).requires_grad_()
    sparse.convolve(x, w, None, (1, 1), (1, 1)).backward(g)
    right = torch.nn.grad.conv2d_weight(x.double(), w.shape, g.double(), padding=1)
    torchs = torch.nn.grad.conv2d_weight(x.contiguous(), w.shape, g.contiguous(), padding=1)
    assert w.grad is not None
    assert (w.grad - right).norm() <= 1.5 * (torchs - right).norm()


def test_on_the_processor_of_the_oldest_kind_there_is_none() -> None:
    """Under ATEN_CPU_CAPABILITY=default torch, and so we, do without AVX2."""
    code = "from mpt_bihalf import sparse, kernels; print(kernels.compiled() is None, sparse.available())"
    told = subprocess.run(
        [sys.executable, "-c", code],
        env={"ATEN_CPU_CAPABILITY": "default", "PATH": ""},
        capture_output=True,
        text=True,
        check=True,
    )
    assert told.stdout.split() == ["False", "False"]


def test_it_is_not_for_other_dtypes_devices_and_modes() -> None:
    x, w = drawn(2, 3, 4, 4), two_valued(4, 3, 3, 3, kept=0.5)
    assert sparse.suits(x, w) and sparse.suits(x, nn.Parameter(w))
    assert sparse.suits(x, w, torch.zeros(4))
    for bias in (torch.zeros(4).double(), torch.zeros(4).half(), torch.zeros(3), torch.zeros(4, device="meta")):
        assert not sparse.suits(x, w, bias)
    assert not sparse.suits(x.double(), w)
    assert not sparse.suits(x.to("meta"), w)
    assert not sparse.suits(x[:0], w)
    assert not sparse.suits(x.to_sparse(), w)
    with torch.autocast("cpu"):
        assert not sparse.suits(x, w)
    with torch.autograd.forward_ad.dual_level():
        assert not sparse.suits(x, w)
    assert torch.func.vmap(lambda one: torch.tensor(sparse.suits(one, w)))(x).tolist() == [False, False]
