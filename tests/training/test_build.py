from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.optim import SGD

from mpt_bihalf import METHODS, binary_layers, sparse
from mpt_bihalf.data import Dataset
from mpt_bihalf.methods import find_method
from mpt_bihalf.training import Run, train
from mpt_bihalf.training.build import (
    build_model,
    build_network,
    build_optimizer,
    check_compiles,
    check_fits,
    check_network,
    compiled,
)
from mpt_bihalf.training.step import train_step
from tests.reference import one_line_error

SLOW = pytest.mark.slow


def test_methods_of_one_seed_begin_with_the_same_draw(small: Dataset, make_run: Callable[..., Run]) -> None:
    draws: dict[str, dict[str, Tensor]] = {}
    scores: dict[str, dict[str, Tensor]] = {}
    for method in METHODS:
        model = build_model(make_run(method=method, seed=11), small)
        named = {name: weight for name, _, weight in binary_layers(model)}
        named = named or {name.removesuffix(".weight"): weight for name, weight in model.named_parameters()}
        if find_method(method).clip_weights:  # begins as each step leaves it
            unclipped = {
                name: weight for name, _, weight in binary_layers(build_model(make_run(method="sign", seed=11), small))
            }
            assert all(torch.equal(weight, unclipped[name].clamp(-1, 1)) for name, weight in named.items())
            named = unclipped
        # Masked methods draw for the kept part of the fan: the same numbers, another spread.
        draws[method] = {name: weight.detach() / weight.detach().std() for name, weight in named.items()}
        scores[method] = {name: part.scores for name, part, _ in binary_layers(model) if part.scores is not None}
    for layer, draw in draws["mpt-sign"].items():
        assert torch.equal(draws["bop"].pop(layer) > 0, draw >= 0)  # no latent weights: the signs of the draw
    for method in METHODS:
        for layer, draw in draws["mpt-sign"].items() if method != "bop" else ():
            torch.testing.assert_close(draws[method][layer], draw, rtol=1e-4, atol=1e-5)
    for method in ("mpt-bihalf", "mpt-balanced"):
        for layer, score in scores["mpt-sign"].items():
            assert torch.equal(scores[method][layer], score)
    other = build_model(make_run(method="mpt-sign", seed=12), small)
    assert all(not torch.equal(part.scores, scores["mpt-sign"][name]) for name, part, _ in binary_layers(other))


@pytest.mark.parametrize("method", ["sign", "mpt-sign"])
def test_momentum_and_weight_decay_are_those_of_sgd_on_what_is_trained(
    method: str, small: Dataset, make_run: Callable[..., Run]
) -> None:
    run = make_run(method=method, lr=0.3, momentum=0.7, weight_decay=0.01)
    model = build_model(run, small)
    optimizer = build_optimizer(run, model)
    (group,) = optimizer.param_groups
    assert isinstance(optimizer, SGD)
    assert (group["lr"], group["momentum"], group["weight_decay"], group["nesterov"]) == (0.3, 0.7, 0.01, False)
    expected = {id(weight if part.scores is None else part.scores) for _, part, weight in binary_layers(model)}
    assert {id(parameter) for parameter in group["params"]} == expected


def test_a_check_lets_pass_only_batches_that_the_rest_of_a_holdout_fills(
    small: Dataset, make_run: Callable[..., Run]
) -> None:
    for share in np.linspace(0.01, 0.99, 99):
        left = 300 - round(share * 300)
        run = make_run(holdout=float(share), batch_size=max(left, 1))
        if left in (0, 300):
            continue
        check_fits(run, small)
        with pytest.raises(ValueError, match="batch_size"):
            check_fits(replace(run, batch_size=left + 1), small)


def test_a_check_refuses_images_that_the_network_does_not_take(small: Dataset, make_run: Callable[..., Run]) -> None:
    size = small.image_size
    with one_line_error(f"torchvision:alexnet does not take images of {size}x{size}: "):
        check_fits(make_run(model="torchvision:alexnet", width=1.0), small)


@pytest.mark.parametrize("name", ["vit_h_14", "inception_v3"])
def test_a_network_is_not_refused_before_its_images_size_is_known(name: str, make_run: Callable[..., Run]) -> None:
    check_network(make_run(model=f"torchvision:{name}", width=1.0))
    with one_line_error("does not take images of 33x33"):
        check_network(make_run(model=f"torchvision:{name}", width=1.0, image_size=33))


def test_mixed_precision_decides_the_same_signs_and_masks(small: Dataset, make_run: Callable[..., Run]) -> None:
    for method in ("bihalf", "mpt-bihalf"):
        models = [build_model(make_run(method=method, precision=precision), small) for precision in ("fp32", "bf16")]
        for (_, part, weight), (_, other, same) in zip(*map(binary_layers, models), strict=True):
            with torch.autocast("cpu", torch.bfloat16):
                assert torch.equal(part.binary(weight), other.binary(same))


@pytest.mark.parametrize(
    "fields",
    [{"method": "mpt-bihalf", "prune_rate": 0.8, "prune_epochs": 2}, pytest.param({"method": "irnet"}, marks=SLOW)],
)
def test_a_compiled_run_decides_as_any_other(
    fields: dict[str, Any],
    small: Dataset,
    make_run: Callable[..., Run],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    eager = train(make_run(**fields), tmp_path / "eager", small, [])
    torch._dynamo.reset()
    with monkeypatch.context() as patch:  # its graphs run as they are: a compiler's own roundings are not ours
        patch.setattr(torch, "compile", partial(torch.compile, backend="aot_eager"))
        compiled = train(make_run(compile=True, **fields), tmp_path / "compiled", small, [])
    assert compiled == eager
    assert make_run(compile=True, **fields).name != make_run(**fields).name


def test_each_rate_of_a_rising_one_may_have_a_graph(make_run: Callable[..., Run]) -> None:
    with torch._dynamo.config.patch(recompile_limit=8):  # monkeypatch would leave the setting unreadable
        compiled(make_run(compile=True, prune_rate=0.9, prune_epochs=30), torch.nn.Linear(2, 2))
        assert torch._dynamo.config.recompile_limit > 30


def test_where_torch_cannot_compile_the_run_is_refused_in_one_line(
    make_run: Callable[..., Run], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch, "compile", broken)
    with one_line_error(r"torch.compile does not work here \(no compiler\): leave compile out"):
        check_compiles(make_run(compile=True))
    check_compiles(make_run())


def broken(function: object) -> Callable[..., object]:
    def call(*arguments: object) -> object:
        raise RuntimeError("no compiler\nand much else")

    return call


@pytest.mark.parametrize("name", ["conv2", "conv4", "conv6", "conv8"])
@pytest.mark.parametrize("method", ["mpt-sign", "magnitude-bihalf"])
def test_steps_of_sparse_compute_have_the_same_bits_at_any_number_of_threads(name: str, method: str) -> None:
    if not sparse.available():
        pytest.skip("no compiled loops with AVX2 here")
    run = Run(model=name, method=method, prune_rate=0.9, width=0.25, device="cpu", compute="sparse")
    g = torch.Generator().manual_seed(0)
    x, y = torch.randn(40, 3, 32, 32, generator=g), torch.randint(10, (40,), generator=g)
    threads, ends = torch.get_num_threads(), []
    try:
        for count in (1, 2, 3, 8):
            torch.set_num_threads(count)
            model = build_network(run, 10, 3, 32)
            optimizer = build_optimizer(run, model)
            figures = [train_step(model, optimizer, x, y) for _ in range(3)]
            ends.append([*figures, *(p.detach() for p in model.parameters())])
    finally:
        torch.set_num_threads(threads)
    for end in ends[1:]:
        assert all(torch.equal(one, other) for one, other in zip(end, ends[0], strict=True))
