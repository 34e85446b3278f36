"""What a binarized layer does under other hands: writes, traces, compilers, transforms."""

from __future__ import annotations

import io
from collections.abc import Callable
from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.func import functional_call, grad, jacfwd, stack_module_state, vmap
from torch.nn.functional import cross_entropy

from mpt_bihalf import (
    MASKS,
    METHODS,
    SCORE_GRADIENTS,
    bake_weights,
    binarize,
    binarize_weights,
    binary_layers,
    binary_weights,
    contents,
    forget,
    global_score_masks,
    kernels,
    score_mask,
)
from mpt_bihalf.layer import Layer
from tests.processes import PROCESSES

CASES = [
    (name, scope)
    for name, method in METHODS.items()
    if name != "dense"
    for scope in (("layer", "filter", "global") if method.scoped else ("layer",))
]
FROZEN = [(name, scope) for name, scope in CASES if METHODS[name].trains == "scores"]


def network(seed: int = 0) -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return nn.Sequential(
            nn.Conv2d(3, 6, 3, padding=1), nn.ReLU(), nn.Conv2d(6, 5, 2), nn.Flatten(), nn.Linear(45, 3)
        )


def binarized(method: str, scope: str, seed: int = 0) -> nn.Module:
    return binarize_weights(network(seed), method, 0.5, scope=scope, seed=seed)


X, Y = torch.randn(4, 3, 4, 4, generator=torch.Generator().manual_seed(0)), torch.arange(4) % 3


@pytest.fixture(params=["compiled", "numpy"])
def form(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    if request.param == "numpy":
        monkeypatch.setattr(kernels, "compiled", lambda: None)


# Writes


WRITES: dict[str, Callable[[Tensor, Tensor], object]] = {
    "through data": lambda t, new: t.data.copy_(new),
    "by NumPy": lambda t, new: t.detach().numpy().__setitem__(slice(None), new.numpy()),
    "in place": lambda t, new: t.detach().copy_(new),
    "other memory": lambda t, new: setattr(t, "data", new.clone()),
}


@pytest.mark.usefixtures("form")
@pytest.mark.parametrize("write", list(WRITES))
@pytest.mark.parametrize(("method", "scope"), FROZEN)
def test_the_next_pass_sees_every_write_to_frozen_weights_and_scores(method: str, scope: str, write: str) -> None:
    model, other = binarized(method, scope), binarized(method, scope, seed=1)
    model(X)
    next(iter(model.children())).weight.sum()  # of one layer alone, which leaves a global ranking half used
    for (_, part, weight), (_, its, theirs) in zip(binary_layers(model), binary_layers(other), strict=True):
        WRITES[write](weight, theirs.detach())
        WRITES[write](part.scores, its.scores.detach())
    for layer, theirs in zip(model.children(), other.children(), strict=True):
        if hasattr(layer, "bias"):
            layer.bias.data.copy_(theirs.bias.data)
    assert torch.equal(model(X), other(X))


@pytest.mark.usefixtures("form")
@pytest.mark.parametrize("one", [0, 1, 2])
def test_a_global_mask_follows_a_write_to_any_one_layer(one: int) -> None:
    model, other = binarized("mpt-sign", "global"), binarized("mpt-sign", "global")
    model[2].weight.sum()
    for net in (model, other):
        scores = [part.scores for _, part, _ in binary_layers(net)][one]
        scores.data.mul_(10)
    used = [layer.weight for layer in model if hasattr(layer, "weight")]
    assert all(torch.equal(u, layer.weight) for u, layer in zip(used, other[::2], strict=False))


@pytest.mark.usefixtures("form")
@pytest.mark.parametrize("read", ["binary_weights", "bake_weights", "a pass after forget"])
@pytest.mark.parametrize(("method", "scope"), FROZEN)
def test_where_the_host_cannot_look_forget_makes_the_next_pass_see(
    method: str, scope: str, read: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(contents, "host_reads_free", lambda tensor: False)  # as on an accelerator
    model, other = binarized(method, scope), binarized(method, scope, seed=1)
    model(X)
    for (_, part, weight), (_, its, theirs) in zip(binary_layers(model), binary_layers(other), strict=True):
        weight.data.copy_(theirs)
        part.scores.data.copy_(its.scores)
    expected = [bits for bits in binary_weights(other).values()]
    if read == "binary_weights":
        found = [*binary_weights(model).values()]
    elif read == "bake_weights":
        found = [layer.weight.sign() for layer in bake_weights(model) if hasattr(layer, "weight")]
    else:
        stale = [layer.weight.sign() for layer in model if hasattr(layer, "weight")]
        assert method == "mpt-bihalf" or not all(map(torch.equal, stale, expected))  # so it matters
        forget(model)
        found = [layer.weight.sign() for layer in model if hasattr(layer, "weight")]
    assert all(map(torch.equal, found, expected))


def follow_broadcasts(rank: int, store: str, out: str) -> None:
    """What one of two processes that begin with different weights gives before and after it has the first one's."""
    torch.set_num_threads(1)
    torch.distributed.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=2)
    outputs = {}
    for method, scope in FROZEN:
        model = binarized(method, scope, seed=rank)
        model(X)
        next(iter(model.children())).weight.sum()
        for parameter in model.parameters():
            torch.distributed.broadcast(parameter.detach(), 0)
        outputs[method, scope] = model(X).detach()
    torch.save(outputs, f"{out}{rank}")
    torch.distributed.destroy_process_group()


def test_processes_of_equal_states_answer_alike(tmp_path: Path) -> None:
    # Collectives do not raise the version of what they write to.
    torch.multiprocessing.start_processes(
        follow_broadcasts,
        (str(tmp_path / "store"), str(tmp_path / "out")),
        nprocs=2,
        start_method=PROCESSES.get_start_method(),
    )
    first, second = (torch.load(tmp_path / f"out{rank}", weights_only=True) for rank in range(2))
    assert first.keys() == second.keys() and len(first) == len(FROZEN)
    for case, out in first.items():
        assert torch.equal(out, second[case]), case
        assert torch.equal(out, binarized(*case)(X)), case


# Traces


@pytest.mark.filterwarnings("ignore:`torch.jit:FutureWarning")
@pytest.mark.usefixtures("form")
@pytest.mark.parametrize(("method", "scope"), CASES)
def test_a_trace_holds_the_weights_in_use(method: str, scope: str) -> None:
    model = binarized(method, scope)
    out = model(X)
    traced = torch.jit.trace(model, X)
    assert torch.equal(traced(X), out)
    file = io.BytesIO()
    torch.jit.save(traced, file)
    file.seek(0)
    assert torch.equal(torch.jit.load(file)(X), out)
    assert torch.equal(model(X), out)


@pytest.mark.filterwarnings("ignore:`torch.jit:FutureWarning")
def test_script_says_what_to_take() -> None:
    with pytest.raises(RuntimeError, match=r"script bake_weights\(model\)") as caught:
        torch.jit.script(binarized("mpt-bihalf", "layer"))
    assert len(str(caught.value).splitlines()) == 1


@pytest.mark.filterwarnings("ignore:`torch.jit:FutureWarning")
@pytest.mark.parametrize("form", ["trace", "compile"])
def test_masks_and_transport_by_themselves_are_traced_and_compiled(form: str) -> None:
    def both(weight: Tensor, scores: Tensor) -> tuple[Tensor, ...]:
        masks = global_score_masks([scores, 2 * scores], 0.6)
        return binarize(weight), binarize(weight, 0.3, score_mask(scores, 0.4, "filter")), *masks

    torch._dynamo.reset()
    first = torch.randn(3, 7), torch.randn(3, 7)
    graph: Any = torch.jit.trace(both, first) if form == "trace" else torch.compile(both, dynamic=True, backend="eager")
    for size in (7, 7) if form == "trace" else (7, 9):
        given = torch.randn(3, size), torch.randn(3, size)
        assert all(map(torch.equal, graph(*given), both(*given)))


# Transforms


def test_forward_mode_is_refused_with_what_to_take() -> None:
    model = binarized("mpt-bihalf", "layer")
    parameters = {name: p.detach() for name, p in model.named_parameters()}
    with pytest.raises(RuntimeError, match=r"take torch\.func\.jacrev"):
        jacfwd(lambda state: functional_call(model, state, (X,)))(parameters)


@pytest.mark.parametrize(("method", "scope"), CASES)
def test_lending_parameters_to_layers_that_share_a_weight_leaves_them_as_they_were(method: str, scope: str) -> None:
    tied = nn.Sequential(nn.Linear(8, 8), nn.Linear(8, 8))
    tied[1].weight = tied[0].weight
    model, x = binarize_weights(tied, method, scope=scope, seed=0), torch.randn(2, 8)
    before, out = dict(model.named_parameters()), model(x)
    lent = {name: torch.randn_like(p) for name, p in before.items()}
    other = functional_call(model, lent, (x,))
    assert not torch.equal(other, out) and torch.equal(model(x), out)
    assert all(p is before[name] for name, p in model.named_parameters())
    for name, parameter in model.named_parameters():
        parameter.data.copy_(lent[name])
    assert torch.equal(model(x), other)


def trained_and_frozen(model: nn.Module) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    parameters = dict(model.named_parameters())
    return tuple({n: p.detach() for n, p in parameters.items() if p.requires_grad is kind} for kind in (True, False))  # type: ignore


@pytest.mark.usefixtures("form")
@pytest.mark.parametrize(("method", "scope"), CASES)
def test_a_functional_gradient_is_that_of_backward(method: str, scope: str) -> None:
    model = binarized(method, scope)
    trained, frozen = trained_and_frozen(model)
    assert torch.equal(functional_call(model, {**frozen, **trained}, (X,)), model(X))
    assert torch.equal(functional_call(model, model.state_dict(), (X,)), model(X))

    def loss(trained: dict[str, Tensor], x: Tensor, y: Tensor) -> Tensor:
        return cross_entropy(functional_call(model, {**frozen, **trained}, (x,)), y)

    found, each = grad(loss)(trained, X, Y), vmap(grad(loss), (None, 0, 0))(trained, X[:, None], Y[:, None])
    cross_entropy(model(X), Y).backward()
    for name, parameter in model.named_parameters():
        if name in trained:
            assert parameter.grad is not None
            torch.testing.assert_close(found[name], parameter.grad)
            torch.testing.assert_close(each[name].mean(0), parameter.grad, rtol=1e-4, atol=1e-6)


@pytest.mark.usefixtures("form")
@pytest.mark.parametrize(("method", "scope"), CASES)
def test_an_ensemble_under_vmap_is_its_models_side_by_side(method: str, scope: str) -> None:
    models = [binarized(method, scope, seed) for seed in range(3)]
    stacked, held = stack_module_state(models)
    names = trained_and_frozen(models[0])[0].keys()
    trained = {name: value.detach() for name, value in stacked.items() if name in names}
    frozen = {name: value.detach() for name, value in stacked.items() if name not in names} | held

    def loss(trained: dict[str, Tensor], frozen: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
        out = functional_call(models[0], {**frozen, **trained}, (X,))
        return cross_entropy(out, Y), out

    found, out = vmap(grad(loss, has_aux=True))(trained, frozen)
    for i, model in enumerate(models):
        own = model(X)
        torch.testing.assert_close(out[i], own, rtol=1e-4, atol=1e-4)  # sums in another order
        cross_entropy(own, Y).backward()
        for name, parameter in model.named_parameters():
            if name in names:
                torch.testing.assert_close(found[name][i], parameter.grad, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("scope", ["layer", "filter", "global"])
def test_a_gradient_rule_of_ones_own_sees_under_transforms_what_it_sees_in_backward(scope: str) -> None:
    def kept_alone(g: Tensor, layer: Layer, positive: Tensor, alpha: Tensor) -> Tensor:
        return torch.where(MASKS["edge-popup"](layer), SCORE_GRADIENTS["latent"](g, layer, positive, alpha), 0)

    models = [
        binarize_weights(network(seed), "mpt-sign", 0.3, scope=scope, seed=seed, score_gradient=kept_alone)
        for seed in range(2)
    ]
    stacked = {name: value.detach() for name, value in stack_module_state(models)[0].items()}
    found = vmap(grad(lambda state: cross_entropy(functional_call(models[0], state, (X,)), Y)))(stacked)
    for i, model in enumerate(models):
        cross_entropy(model(X), Y).backward()
        for name, parameter in model.named_parameters():
            if name.endswith("scores"):
                assert parameter.grad is not None and not parameter.grad.all()
                torch.testing.assert_close(found[name][i], parameter.grad, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("reentrant", [False, True])
@pytest.mark.parametrize(("method", "scope"), CASES)
def test_checkpointed_activations_have_the_same_gradients(method: str, scope: str, reentrant: bool) -> None:
    model, other = binarized(method, scope), binarized(method, scope)
    x = X.clone().requires_grad_()
    cross_entropy(torch.utils.checkpoint.checkpoint(model, x, use_reentrant=reentrant), Y).backward()
    cross_entropy(other(X), Y).backward()
    for one, same in zip(model.parameters(), other.parameters(), strict=True):
        assert one.grad is same.grad is None or torch.equal(one.grad, same.grad)


@pytest.mark.parametrize(("method", "scope"), CASES)
def test_an_averaged_model_is_binary_too(method: str, scope: str) -> None:
    model, other = binarized(method, scope), binarized(method, scope, seed=1)
    average = torch.optim.swa_utils.AveragedModel(model)
    for net in (model, other):
        net(X)
        average.module(X)
        average.update_parameters(net)
    expected = deepcopy(model)
    for mean, one, two in zip(expected.parameters(), model.parameters(), other.parameters(), strict=True):
        mean.data.copy_(one.detach().lerp(two.detach(), 0.5))
    for mean, two in zip(expected.buffers(), other.buffers(), strict=True):  # which torch takes from the last
        mean.copy_(two)
    assert all(
        torch.equal(found, wanted)
        for found, wanted in zip(binary_weights(average).values(), binary_weights(expected).values(), strict=True)
    )


# What goes to a compiled loop


def test_no_size_and_no_address_goes_to_a_compiled_loop_unchecked() -> None:
    if not kernels.compiled():
        pytest.skip("no compiled loops")
    mask, totals = torch.ones(2, 4, dtype=torch.bool), torch.empty(2, dtype=torch.int64)
    with pytest.raises(TypeError, match="a number"):
        kernels._call("count", mask, torch.tensor(2), 4, totals)
    with pytest.raises(TypeError, match="a contiguous tensor"):
        kernels._call("count", mask.T, 4, 2, totals)
    with pytest.raises(TypeError, match="a contiguous tensor"):
        kernels._call("count", mask.to("meta"), 2, 4, totals)
    with pytest.raises(TypeError, match="a contiguous tensor"):
        kernels._call("count", 1234, 2, 4, totals)  # type: ignore[arg-type]
