"""The compiled loops, if setup.py found a compiler, NumPy in their place, and torch in general give the same bits."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from torch import Tensor

from mpt_bihalf import METHODS, binarize_weights, create_model, kernels, numpy_loops
from mpt_bihalf.selection import Selection, count_kept, largest

VALUES = {
    "drawn": lambda g: torch.randn(6, 700, generator=g),
    "tied": lambda g: torch.randint(-3, 4, (6, 700), generator=g).float(),
    "equal": lambda g: torch.ones(6, 700),
    "zeros of both signs": lambda g: torch.where(torch.rand(6, 700, generator=g) < 0.5, 0.0, -0.0),
    "infinite": lambda g: torch.randn(6, 700, generator=g).masked_fill(
        torch.rand(6, 700, generator=g) < 0.2, -torch.inf
    ),
    "one long row": lambda g: torch.randn(1, 300_001, generator=g),
    "one long row of few values": lambda g: torch.randint(0, 5, (1, 300_001), generator=g).float(),
    "skewed": lambda g: torch.randn(6, 700, generator=g).exp().pow(8),
    "sorted": lambda g: torch.arange(300_001.0).unsqueeze(0),
    "one long row, each value twice": lambda g: (
        torch.randperm(300_000, generator=g).float().div(2).floor().unsqueeze(0)
    ),
}


def off(monkeypatch: pytest.MonkeyPatch, kind: str) -> None:
    """Without the compiled loops ("numpy"), or in the general form for all else ("torch")."""
    if kind == "numpy":
        monkeypatch.setattr(kernels, "compiled", lambda: None)
    else:
        monkeypatch.setattr(kernels, "suit", lambda *tensors: False)


def stable(values: Tensor, count: int, members: Tensor) -> Tensor:
    """The mask by a stable sort of each row's members, then of all others by their place in it."""
    out = torch.zeros_like(values, dtype=torch.bool)
    order = values.argsort(dim=1, stable=True)
    for row in range(len(values)):
        ranked = [int(i) for i in order[row] if members[row, i]]
        if count:
            lowest = ranked[len(ranked) - count]
            out[row, order[row, order[row].tolist().index(lowest) :]] = True
    return out


def hinted(hints: Tensor | None) -> Selection:
    """A selection that is at these hints."""
    selection = Selection()
    selection._hints = hints
    return selection


def odd_hints(rows: int, generator: torch.Generator) -> Tensor:
    """Some none, some infinite, some with half widths below 0."""
    drawn = torch.randn(rows, kernels.HINT, generator=generator)
    which = torch.rand(rows, kernels.HINT, generator=generator)
    return drawn.where(which > 0.2, torch.inf).where(which > 0.1, torch.nan)


@pytest.mark.parametrize("threads", [1, 2, "numpy", "torch"])
@pytest.mark.parametrize("absolute", [False, True])
@pytest.mark.parametrize("kind", VALUES)
def test_largest_is_the_top_of_a_stable_sort_with_any_hint(
    kind: str, absolute: bool, threads: int | str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`threads` of the compiled loops, or another form."""
    if isinstance(threads, str):
        off(monkeypatch, threads)
        threads = 1
    g = torch.Generator().manual_seed(3)
    values = VALUES[kind](g)
    size = values.shape[1]
    ranked = values.abs() if absolute else values
    order = ranked.argsort(dim=1, stable=True)
    again = Selection()
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    for count in (0, 1, size // 3, size // 2, size // 2 + 1, size - 1, size):
        expected = torch.zeros_like(values, dtype=torch.bool).scatter_(1, order[:, size - count :], True)
        for selection in (again, Selection(), hinted(odd_hints(len(values), g))):
            assert torch.equal(selection.largest(values, count, absolute), expected), count
    torch.set_num_threads(before)


@pytest.mark.parametrize("form", ["compiled", "numpy", "torch"])
@pytest.mark.parametrize("kind", ["drawn", "tied", "equal", "zeros of both signs", "infinite", "skewed"])
def test_only_members_count_and_all_are_placed(kind: str, form: str, monkeypatch: pytest.MonkeyPatch) -> None:
    if form != "compiled":
        off(monkeypatch, form)
    g = torch.Generator().manual_seed(4)
    values = VALUES[kind](g)[:3]
    for share in (0.0, 0.02, 0.5, 1.0):
        members = torch.rand(values.shape, generator=g) < share
        n = members.sum(1)
        for counts in (torch.zeros_like(n), n, n // 2, (n - 1).clamp(min=0)):
            found = largest(values, counts, among=members)
            expected = torch.cat(
                [stable(values[i : i + 1], int(counts[i]), members[i : i + 1]) for i in range(len(values))]
            )
            assert torch.equal(found, expected)
            if int(n.min()) >= 3:
                same = largest(values, 3, among=members)
                assert torch.equal(
                    same & members, torch.cat([stable(v, 3, m) for v, m in _rows(values, members)]) & members
                )


@pytest.mark.parametrize("form", ["compiled", "numpy", "torch"])
@pytest.mark.parametrize("absolute", [False, True])
@pytest.mark.parametrize("kind", VALUES)
def test_of_members_and_of_others_the_largest(
    kind: str, absolute: bool, form: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With no hint, a wrong one, that of the last selection, and one that is right for one of the groups only."""
    if form != "compiled":
        off(monkeypatch, form)
    g = torch.Generator().manual_seed(5)
    values = VALUES[kind](g)[:3]
    rows = len(values)
    members = torch.rand(values.shape, generator=g) < torch.linspace(0.3, 0.7, rows).unsqueeze(1)
    fewest = int(min(members.sum(1).min(), (~members).sum(1).min()))
    order = (values.abs() if absolute else values).argsort(dim=1, stable=True)
    again = Selection()
    for counts in ((0, 0), (0, 5), (fewest, 0), (1, 1), (fewest // 3, fewest // 2), (fewest, 3), (fewest, fewest)):
        expected = torch.zeros_like(members)
        for row in range(rows):
            of_members = members[row, order[row]]
            for group, count in ((order[row, of_members], counts[0]), (order[row, ~of_members], counts[1])):
                expected[row, group[len(group) - count :]] = True
        selections = [Selection(), again, again, hinted(odd_hints(2 * rows, g))]
        if again._hints is not None:
            half_right = again._hints.clone()
            half_right[rows // 2 : rows + rows // 2] = torch.rand(rows, kernels.HINT, generator=g)
            selections.append(hinted(half_right))
        for selection in selections:
            assert torch.equal(selection.largest_of_both(values, counts, members, absolute), expected), counts


@pytest.mark.parametrize("form", ["compiled", "numpy"])
def test_of_equal_members_far_apart_the_later_are_chosen(form: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each value twice, one above the other half of the row: other blocks are looked at in turn."""
    if form != "compiled":
        off(monkeypatch, form)
    values = torch.arange(200_000.0).repeat(1, 3)
    members = torch.ones_like(values, dtype=torch.bool)
    members[:, 400_000:] = False
    for count in (1, 2, 199_999, 200_000):
        lowest = 200_000 - (count + 1) // 2
        expected = values > lowest - (count % 2 == 0)
        expected[:, lowest + 200_000 :: 200_000] = True
        assert torch.equal(largest(values, count, among=members), expected), count


def _rows(*tensors: Tensor) -> list[tuple[Tensor, ...]]:
    return [tuple(t[i : i + 1] for t in tensors) for i in range(len(tensors[0]))]


@pytest.mark.parametrize("share", [0.0, 0.3, 1.0])
@pytest.mark.parametrize("shape", [(1, 1), (3, 127), (2, 129), (5, 4096), (1, 70_000)])
def test_kept_weights_are_counted(shape: tuple[int, int], share: float) -> None:
    mask = torch.rand(shape, generator=torch.Generator().manual_seed(0)) < share
    assert torch.equal(count_kept(mask), mask.sum(1))
    assert numpy_loops.count_rows(mask.numpy()).tolist() == mask.sum(1).tolist()


def settings() -> Iterator[tuple[str, str, str]]:
    """Methods with what makes a difference to them: the scope, the gradient of scores."""
    for name, method in METHODS.items():
        for scope in ("layer", "filter", "global")[: 3 if method.scoped else 1]:
            for gradient in ("latent", "binary")[: 2 if method.trains == "scores" else 1]:
                if name != "dense":
                    yield name, scope, gradient


SUMMED = ("xnor", "bi-real", "least-squares", "abc", "bnn+", "xnor++", "rbnn", "rbnn-bihalf")


@pytest.mark.parametrize("init", ["kaiming_normal", "signed_constant"])
@pytest.mark.parametrize(("method", "scope", "score_gradient"), list(settings()))
def test_a_training_has_the_same_bits_without_them(
    method: str, scope: str, score_gradient: str, init: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def trained(lr: float) -> list[Tensor]:
        model = create_model("conv2", in_channels=1, image_size=8, seed=0, width=0.5)
        binarize_weights(model, method, 0.7, 0.4, scope, init=init, seed=0, score_gradient=score_gradient)
        optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=lr, momentum=0.9)
        x = torch.randn(16, 1, 8, 8, generator=torch.Generator().manual_seed(1))
        losses = []
        for _ in range(4):
            optimizer.zero_grad()
            loss = torch.nn.functional.cross_entropy(model(x), torch.arange(16) % 10)
            loss.backward()
            optimizer.step()
            losses.append(loss.detach())
        return [*losses, *(p.detach() for p in model.parameters())]

    compiled = trained(lr=0.1)
    with monkeypatch.context() as patch:
        off(patch, "numpy")
        torch.testing.assert_close(trained(lr=0.1), compiled, rtol=0, atol=0)
    if method == "mpt-sign":
        return  # other devices sum the L1 gain in an order of their own
    # They sum IR-Net's means in one too, by which some sign may turn, and what follows from whole filters: of their
    # scales a high rate makes much of the last digit.
    lr, near = (0.001, 1e-5) if method in SUMMED else (0.1, 1e-3 if method == "irnet" else 0.0)
    compiled = trained(lr) if method in SUMMED else compiled
    with monkeypatch.context() as patch:
        off(patch, "torch")
        torch.testing.assert_close(trained(lr), compiled, rtol=near, atol=near)


@pytest.mark.parametrize("size", [1, 7, 16, 17, 700, 4_099])
@pytest.mark.parametrize(("signs", "masked"), [(True, False), (True, True), (False, False), (False, True)])
def test_signed_sums(size: int, signs: bool, masked: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    g = torch.Generator().manual_seed(size)
    values = torch.randn(5, size, generator=g)
    values[0] = 0
    positive = torch.rand(5, size, generator=g) < 0.5 if signs else None
    mask = torch.rand(5, size, generator=g) < 0.3 if masked else None
    exact = (torch.where(positive, values, -values) if signs else values.abs()).double()  # type: ignore[arg-type]
    exact = (exact * mask if masked else exact).sum(1)
    found = {"compiled": kernels.signed_sums(values, positive, mask)}
    for form in ("numpy", "torch"):
        with monkeypatch.context() as patch:
            off(patch, form)
            found[form] = kernels.signed_sums(values, positive, mask)
    assert torch.equal(found["compiled"], found["numpy"])
    bound = values.abs().sum(1).double() * 1e-6
    assert all(((sums.double() - exact).abs() <= bound).all() for sums in found.values())
    assert kernels.signed_sums(values.half(), positive, mask).dtype == torch.float32
    assert kernels.signed_sums(values[:0], None, None).shape == (0,)


@pytest.mark.parametrize("of_rows", [True, False])
@pytest.mark.parametrize("masked", [True, False])
@pytest.mark.parametrize("shared", [True, False])
def test_clipped(of_rows: bool, masked: bool, shared: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    g = torch.Generator().manual_seed(0)
    weight, of_loss = 2 * torch.randn(2, 5, 701, generator=g)
    weight[0, :4] = torch.tensor([1.0, -1.0, torch.nan, -0.0])
    positive, mask = weight >= 0, torch.rand(5, 701, generator=g) < 0.5 if masked else None
    alpha = torch.rand(5, 1, generator=g) if of_rows or shared else torch.tensor(0.7)
    share = torch.randn(5, 1, generator=g) if shared else None
    expected = torch.where(weight.abs() >= 1, 0, alpha * of_loss)
    if shared:
        expected = expected + share * torch.where(positive, 1, -1) * (1 if mask is None else mask)  # type: ignore[operator]
    assert torch.equal(kernels.clipped(of_loss, weight, 1.0, alpha, positive, mask, share), expected)
    off(monkeypatch, "numpy")
    assert torch.equal(kernels.clipped(of_loss, weight, 1.0, alpha, positive, mask, share), expected)


def test_nan_does_not_hang_them() -> None:
    values = torch.randn(4, 1000)
    values[:, ::2] = torch.nan
    assert largest(values, 500).shape == values.shape
    assert largest(torch.full((2, 50), torch.nan), 20).shape == (2, 50)


def test_what_is_the_default_device_or_dtype_does_not_matter() -> None:
    """Tensors are made where the given ones lie, or the compiled loops would write to memory that is not there."""
    model = binarize_weights(create_model("conv2", in_channels=1, image_size=8, seed=0), "mpt-sign", 0.9, seed=0)
    x = torch.randn(2, 1, 8, 8)
    expected = model(x)
    torch.set_default_dtype(torch.float64)
    try:
        with torch.device("meta"):
            assert torch.equal(model(x), expected)
    finally:
        torch.set_default_dtype(torch.float32)


def test_a_model_can_come_back_from_another_device() -> None:
    model = binarize_weights(create_model("conv2", in_channels=1, image_size=8, seed=0), "mpt-bihalf", 0.9, seed=0)
    state = {name: value.clone() for name, value in model.state_dict().items()}
    x = torch.randn(2, 1, 8, 8)
    expected = model(x)
    model.to("meta")(x.to("meta"))
    model.to_empty(device="cpu").load_state_dict(state)
    assert torch.equal(model(x), expected)


def test_loops_built_from_another_source_are_not_used(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if kernels.compiled() is None:
        pytest.skip("no compiled loops here")
    changed = tmp_path / "sparse.cpp"
    changed.write_bytes(kernels.SOURCES[1].read_bytes() + b"\n")
    monkeypatch.setattr(kernels, "SOURCES", [kernels.SOURCES[0], changed])
    kernels.compiled.cache_clear()
    try:
        with pytest.warns(UserWarning, match="install again"):
            assert kernels.compiled() is None
    finally:
        kernels.compiled.cache_clear()


@pytest.mark.parametrize("shape", [(), (1,), (5, 1), (5,), (1, 5), (5, 5)])
def test_signs_take_a_scale_of_any_shape_that_broadcasts(shape: tuple[int, ...]) -> None:
    g = torch.Generator().manual_seed(4)
    alpha, positive, mask = torch.rand(shape, generator=g), *(torch.rand(2, 5, 5, generator=g) < 0.5)
    expected = torch.where(positive, alpha, -alpha)
    assert torch.equal(kernels.signed(positive, None, alpha), expected)
    assert torch.equal(kernels.signed(positive, mask, alpha), expected * mask)
