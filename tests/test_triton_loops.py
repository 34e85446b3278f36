"""The kernels for accelerators give the bits of the loops for the CPU: Triton interprets them, and compiles them."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from torch import Tensor, nn

from mpt_bihalf import METHODS, binarize_weights, kernels
from mpt_bihalf.selection import Selection
from mpt_bihalf.standardise import Standard
from tests.reference import L1_FILTER, LEARNED, NEAREST

triton_loops = pytest.importorskip("mpt_bihalf.triton_loops", exc_type=ImportError)
pytestmark = pytest.mark.skipif(torch.cuda.is_available(), reason="benchmarks/on_device.py tries the real thing")

VALUES: dict[str, Callable[[Tensor], Tensor]] = {
    "drawn": lambda x: x,
    "tied": lambda x: (2 * x).round() / 2,
    "equal": torch.ones_like,
    "zeros of both signs": lambda x: torch.where(x > 0, 0.0, -0.0),
    "infinite": lambda x: x.masked_fill(x < -0.8, -torch.inf).masked_fill(x > 1, torch.inf),
    "subnormal": lambda x: x * 1e-39,
}


@pytest.fixture
def on_triton(monkeypatch: pytest.MonkeyPatch) -> None:
    """What lies in the host's memory is taken for an accelerator's."""
    monkeypatch.setattr(kernels, "suit", lambda *tensors: False)
    monkeypatch.setattr(kernels, "has_triton", lambda device: True)


@pytest.fixture(params=["short", "long"])
def rows(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Whether one program holds a row, or several look at it."""
    if request.param == "long":
        monkeypatch.setattr(triton_loops, "SHORT", 0)
        monkeypatch.setattr(triton_loops, "BLOCK", 128)
    return str(request.param)


def drawn(seed: int, *shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def the_same(values: Tensor, count: int | Tensor, absolute: bool, among: Tensor | None = None) -> None:
    found = triton_loops.largest(values, count, absolute, among)
    assert torch.equal(found, Selection().largest(values, count, absolute, among)), (count, absolute)


@pytest.mark.parametrize("kind", VALUES)
@pytest.mark.parametrize("size", [1, 2, 127, 300])
def test_the_largest_are_those_of_the_cpu(kind: str, size: int, rows: str) -> None:
    values = VALUES[kind](drawn(size, 2, size))
    members = drawn(1, 2, size) < 0.3
    n = members.sum(1)
    for absolute in (False, True):
        for count in {0, 1, size // 3, size}:
            the_same(values, count, absolute)
        for counts in (n, n // 2, (n - 1).clamp(min=0), torch.zeros_like(n)):
            the_same(values, counts, absolute, members)


@pytest.mark.parametrize("kind", VALUES)
def test_of_both_groups_at_once_the_largest_are_those_of_the_cpu(kind: str, rows: str) -> None:
    values, members = VALUES[kind](drawn(0, 2, 300)), drawn(1, 2, 300) < 0.3
    fewest = int(min(members.sum(1).min(), (~members).sum(1).min()))
    for counts in ((0, 0), (0, 5), (fewest, 0), (fewest // 3, fewest // 2), (fewest, fewest)):
        found = triton_loops.largest_of_both(values, counts, True, members)
        assert torch.equal(found, Selection().largest_of_both(values, counts, members, absolute=True)), counts


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("kind", ["drawn", "subnormal"])
def test_narrow_scores_have_many_ties(kind: str, dtype: torch.dtype, rows: str) -> None:
    for absolute in (False, True):
        the_same(VALUES[kind](drawn(0, 1, 2000)).to(dtype), 1000, absolute)


def test_a_row_of_more_than_a_program_holds() -> None:
    size = triton_loops.SHORT + 5
    for values in (drawn(0, 1, size), VALUES["tied"](drawn(0, 1, size))):
        the_same(values, size // 10, True)


@pytest.mark.slow
@pytest.mark.timeout(3000)
@hypothesis_settings(max_examples=600, deadline=None)
@given(st.data())
def test_any_rows_are_those_of_the_cpu(data: st.DataObject) -> None:
    """Ties, signed zeros, infinities, rows of 1, counts of 0 and all, sizes that no block divides."""
    with pytest.MonkeyPatch.context() as patch:
        if data.draw(st.booleans()):
            patch.setattr(triton_loops, "SHORT", 0)
            patch.setattr(triton_loops, "BLOCK", data.draw(st.sampled_from([16, 128])))
        shape = data.draw(st.integers(1, 3)), data.draw(st.integers(1, 400))
        dtype = data.draw(st.sampled_from([torch.float32, torch.bfloat16, torch.float16]))
        values = VALUES[data.draw(st.sampled_from([*VALUES]))](drawn(data.draw(st.integers(0, 99)), *shape)).to(dtype)
        members = torch.rand(shape, generator=torch.Generator().manual_seed(3)) < data.draw(st.floats(0, 1))
        absolute = data.draw(st.booleans())
        n = members.sum(1)
        the_same(values, data.draw(st.integers(0, shape[1])), absolute)
        the_same(values, (n * data.draw(st.floats(0, 1))).long().minimum(n), absolute, members)
        fewest = int(n.min()), int((~members).sum(1).min())
        counts = data.draw(st.integers(0, fewest[0])), data.draw(st.integers(0, fewest[1]))
        found = triton_loops.largest_of_both(values, counts, absolute, members)
        assert torch.equal(found, Selection().largest_of_both(values, counts, members, absolute))


@pytest.mark.parametrize("shape", [(4, 700), (2, 3, 5, 5), (3, 1)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_signs_and_scale_are_those_of_the_cpu(shape: tuple[int, ...], dtype: torch.dtype) -> None:
    positive, mask = drawn(0, *shape) > 0, drawn(1, *shape) > 0.5
    for alpha in (torch.tensor(0.3), drawn(2, shape[0], *[1] * (len(shape) - 1))):
        for kept in (None, mask):
            expected = kernels.signed(positive, kept, alpha.to(dtype))
            assert torch.equal(triton_loops.signed(positive, kept, alpha.to(dtype)), expected)


@pytest.mark.parametrize("size", [1, 1024, 3001])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_gradients_of_scores_are_those_of_torch(size: int, dtype: torch.dtype) -> None:
    g, w, scores = (drawn(i, size).to(dtype) for i in range(3))
    scores[::3] = 0.0
    positive = drawn(3, size) > 0
    for factor in (w, torch.tensor(-0.7, dtype=dtype)):
        magnitude = g * factor.abs()
        expected = torch.where(positive == (scores >= 0), magnitude, -magnitude)
        # The interpreter cuts digits off where a device rounds to bfloat16 (findings/).
        near = 2**-7 if dtype == torch.bfloat16 else 0.0
        found = triton_loops.score_gradient(g, factor, positive, scores)
        torch.testing.assert_close(found, expected, rtol=near, atol=0)


@pytest.mark.parametrize("size", [1, 2, 27, 127, 128, 129, 300, 1000])
@pytest.mark.parametrize("masked", [False, True])
def test_standardised_rows_are_those_of_the_cpu(size: int, masked: bool) -> None:
    rows = drawn(0, 5, size)
    rows[1] = 0.1
    rows[2] += 1000
    mask = (drawn(1, 5, size) > 0) if masked else None
    if mask is not None:
        mask[3] = False
    expected = Standard.of(rows, mask)
    for ours, theirs in zip(triton_loops.standardise(rows, mask), expected, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=0, atol=0, equal_nan=True)


def trained(method: str, scope: str) -> list[Tensor]:
    model = nn.Sequential(nn.Conv2d(1, 3, 3), nn.ReLU(), nn.Flatten(), nn.Linear(48, 5, bias=False))
    binarize_weights(model, method, 0.7, 0.4, scope, seed=0, scale="kaiming" if method == "mpt-sign" else None)
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.1, momentum=0.9)
    x, seen = drawn(1, 16, 1, 6, 6), []
    for _ in range(2):
        optimizer.zero_grad()
        loss = nn.functional.cross_entropy(model(x), torch.arange(16) % 5)
        loss.backward()
        optimizer.step()
        seen.append(loss.detach())
    return [*seen, *(p.detach() for p in model.parameters())]


@pytest.mark.parametrize(
    ("method", "scope"),
    [(name, "layer") for name in METHODS if name != "dense"] + [("mpt-bihalf", "filter"), ("mpt-sign", "global")],
)
def test_a_training_has_the_bits_of_the_cpu(
    method: str, scope: str, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest
) -> None:
    torch.manual_seed(0)
    expected = trained(method, scope)
    request.getfixturevalue("on_triton")
    used: list[str] = []
    for name in ("largest", "largest_of_both", "signed", "score_gradient", "standardise"):
        ours = getattr(triton_loops, name)
        monkeypatch.setattr(triton_loops, name, lambda *a, f=ours, n=name: (used.append(n), f(*a))[1])
    torch.manual_seed(0)
    found = trained(method, scope)
    assert "signed" in used
    # Through IR-Net's sigmoids the gradient is torch's own on an accelerator, and so are sums over filters.
    near = {"irnet": 1e-6, **dict.fromkeys((*L1_FILTER, *NEAREST, *LEARNED), 1e-5)}.get(method, 0.0)
    torch.testing.assert_close(found, expected, rtol=near, atol=near)


def test_frozen_weights_are_ranked_by_selection(on_triton: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """Not by the order of the weights, which costs a sort and 8 bytes a weight."""
    sorted_ = lambda *a, **k: pytest.fail("a sort")  # noqa: E731
    monkeypatch.setattr(Tensor, "argsort", sorted_)
    monkeypatch.setattr(Tensor, "sort", sorted_)
    for method in METHODS:
        if method not in ("dense", "bnn+"):  # that one begins at a median, once
            model = binarize_weights(nn.Sequential(nn.Linear(40, 6)), method, 0.5, seed=0)
            model(torch.ones(1, 40)).sum().backward()


def test_what_they_are_not_for_is_left_to_torch(monkeypatch: pytest.MonkeyPatch) -> None:
    x = torch.ones(2, 3)
    assert kernels.on_accelerator(x) is None  # the host's
    assert kernels.on_accelerator(x.to("meta")) is None
    monkeypatch.setattr(kernels, "has_triton", lambda device: True)
    assert kernels.on_accelerator(x, None, x > 0) is triton_loops
    assert kernels.on_accelerator(x, x.double()) is None
    assert kernels.on_accelerator(x.T) is None
    assert kernels.on_accelerator(x.clone().requires_grad_()) is None
    seen = []
    torch.func.vmap(lambda row: (seen.append(kernels.on_accelerator(row)), row)[1])(x)
    assert seen == [None]


def test_where_triton_does_not_work_torch_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    """It has no C compiler, say, or is switched off."""
    monkeypatch.setattr(kernels, "has_triton", lambda device: True)
    kernels._triton_works.cache_clear()
    try:
        with monkeypatch.context() as patch:
            broken = RuntimeError("\nFailed to find C compiler")
            patch.setattr(triton_loops, "signed", lambda *a: (_ for _ in ()).throw(broken))
            with pytest.warns(UserWarning, match=r"Triton does not work here \(Failed to find C compiler\)"):
                assert kernels.on_accelerator(torch.ones(3)) is None
            assert kernels.on_accelerator(torch.ones(3)) is None  # said once
        kernels._triton_works.cache_clear()
        with monkeypatch.context() as patch:
            patch.setenv("MPT_BIHALF_KERNELS", "off")
            assert kernels.on_accelerator(torch.ones(3)) is None
    finally:
        kernels._triton_works.cache_clear()


def test_without_an_accelerator_triton_is_not_imported() -> None:
    code = """
import sys, torch
from mpt_bihalf import binarize_weights
model = binarize_weights(torch.nn.Sequential(torch.nn.Linear(8, 4)), "mpt-bihalf", 0.5, seed=0)
model(torch.ones(1, 8)).sum().backward()
assert "triton" not in sys.modules
"""
    subprocess.run([sys.executable, "-c", code], check=True)


COMPILE = """
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from mpt_bihalf import triton_loops as loops

FLAGS, NUMBERS = "*i8", "*fp32"
KNOWN = {
    "values": NUMBERS, "w": NUMBERS, "g": NUMBERS, "factor": NUMBERS, "scores": NUMBERS, "alphas": NUMBERS,
    "means": NUMBERS, "deviations": NUMBERS, "magnitudes": NUMBERS, "among": FLAGS, "mask": FLAGS, "positive": FLAGS,
    "counts": "*i64", "state": "*i64", "tallies": "*i32", "size": "i32", "count": "i32", "other_count": "i32",
    "shift": "i32", "blocks": "i32", "total": "i32",
}
short = {"ABSOLUTE": True, "WIDTH": 1024, "PLACES": 10}
long = {"ABSOLUTE": True, "WIDTH": 4096}
both, one = {"AMONG": True, "GROUPS": 2}, {"AMONG": False, "GROUPS": 1}
forms = [
    ("_short_rows", FLAGS, short | {"AMONG": True, "EACH": True, "BOTH": False}),
    ("_short_rows", FLAGS, short | {"AMONG": True, "EACH": False, "BOTH": True}),
    ("_short_rows", FLAGS, short | {"AMONG": False, "EACH": False, "BOTH": False}),
    ("_tally", "", long | both | {"OF_PLACES": True, "OPENING": False, "BITS": 11}),
    ("_tally", "", long | one | {"OF_PLACES": False, "OPENING": True, "BITS": 10}),
    ("_descend", "", {"AMONG": False, "OF_PLACES": True, "BITS": 11}),
    ("_descend", "", {"AMONG": True, "OF_PLACES": False, "BITS": 10}),
    ("_mark", FLAGS, long | both),
    ("_mark", FLAGS, long | one),
    ("_signed", NUMBERS, {"MASKED": True, "WIDTH": 1024}),
    ("_signed", NUMBERS, {"MASKED": False, "WIDTH": 1024}),
    ("_score_gradient", NUMBERS, {"ONE": True, "WIDTH": 1024}),
    ("_score_gradient", NUMBERS, {"ONE": False, "WIDTH": 1024}),
    ("_standardise", "", {"EPS": 1e-6, "MASKED": True, "LANES": 128}),
    ("_standardise", "", {"EPS": 1e-6, "MASKED": False, "LANES": 128}),
]
kernels = {name for name, value in vars(loops).items() if isinstance(value, triton.runtime.JITFunction)}
assert {name for name, *_ in forms} == kernels - {"_key", "_highest", "_chosen", "_members", "_folded"}, kernels
for name, out, constants in forms:
    kernel = getattr(loops, name)
    signature = {arg: "constexpr" if arg in constants else (KNOWN | {"out": out})[arg] for arg in kernel.arg_names}
    source = ASTSource(fn=kernel, signature=signature, constexprs=constants)
    assert triton.compile(source, target=GPUTarget("cuda", 90, 32)).asm["cubin"], name
"""


def test_they_compile_for_a_gpu_that_is_not_here(monkeypatch: pytest.MonkeyPatch, tmp_path: Any) -> None:
    monkeypatch.setenv("TRITON_INTERPRET", "0")
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    subprocess.run([sys.executable, "-c", COMPILE], check=True)
