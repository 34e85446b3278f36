"""In a graph of a compiler or an exporter the same is decided as in eager mode, bit for bit."""

from __future__ import annotations

import io
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch._dynamo.testing import CompileCounter
from torch.fx.experimental.proxy_tensor import make_fx
from torch.nn.functional import cross_entropy

from mpt_bihalf import MASKS, METHODS, SCORE_GRADIENTS, binarize_weights, create_model, fix_masks, set_progress
from mpt_bihalf.layer import Layer
from mpt_bihalf.operators import (
    binary_weight,
    binary_weight_backward,
    global_masks,
    learned_scale_backward,
    method_of,
    rule_of,
)
from mpt_bihalf.scales import Learned
from mpt_bihalf.weights import set_prune_rate
from tests.test_parametrization import CASES, X, Y, binarized

TWO = [("mpt-bihalf", "global"), ("irnet", "layer")]
# One of each way to what is kept, its sign, its scale and its gradient; the other methods put these together.
KINDS = [*TWO, ("bop", "layer"), ("mpt-sign", "filter"), ("mpt-balanced", "layer"), ("magnitude-bihalf", "layer")]
COMPILED = [pytest.param(*case, marks=() if case in KINDS else pytest.mark.slow) for case in CASES]


@pytest.fixture(autouse=True)
def graphs() -> None:
    torch._dynamo.reset()


def same_step(graph: Any, model: nn.Module, eager: nn.Module) -> bool:
    """Whether output and gradients are equal. The graph is that of `model`, which has the state of `eager`."""
    for net in (model, eager):
        net.zero_grad()
    outputs = graph(X), eager(X)
    for out in outputs:
        cross_entropy(out, Y).backward()
    gradients = [(one.grad, other.grad) for one, other in zip(model.parameters(), eager.parameters(), strict=True)]
    assert all((one is None) == (other is None) for one, other in gradients)
    return all(torch.equal(one, other) for one, other in [outputs, *gradients] if one is not None)


@pytest.mark.parametrize(("method", "scope"), COMPILED)
def test_a_compiled_step_is_one_graph_with_eagers_bits(method: str, scope: str) -> None:
    model, eager = binarized(method, scope), binarized(method, scope)
    # Its graphs run as they are: what a compiler of graphs rounds otherwise is not ours.
    compiled = torch.compile(model, backend="aot_eager", fullgraph=True)
    assert same_step(compiled, model, eager)


def test_other_batches_and_passes_without_gradients_are_compiled_too() -> None:
    model, eager = binarized("mpt-bihalf", "layer"), binarized("mpt-bihalf", "layer")
    compiled = torch.compile(model, backend="aot_eager", fullgraph=True)
    for batch in (X, X[:3]):
        assert torch.equal(compiled(batch), eager(batch))
    with torch.no_grad():
        assert torch.equal(compiled(X), eager(X))


@pytest.mark.slow
@pytest.mark.parametrize("network", ["conv4", "resnet18"])
@pytest.mark.parametrize("method", METHODS)
def test_no_graph_breaks(method: str, network: str) -> None:
    scopes = ("layer", "filter", "global") if METHODS[method].scoped else ("layer",)
    for scope in scopes:
        for activations in ("real", "approx", "ede"):
            model = create_model(network, image_size=32, seed=0, width=0.125, activations=activations)
            told = torch._dynamo.explain(binarize_weights(model, method, scope=scope, seed=0))(
                torch.randn(2, 3, 32, 32)
            )
            assert (told.graph_count, told.graph_break_count) == (1, 0), told.break_reasons


@pytest.mark.parametrize(("method", "scope"), TWO)
def test_a_graph_follows_settings_and_writes(method: str, scope: str) -> None:
    model, eager = binarized(method, scope), binarized(method, scope)
    compiled = torch.compile(model, backend="aot_eager", fullgraph=True)
    for epoch in range(3):
        for net in (model, eager):
            set_progress(net, epoch / 3)
            set_prune_rate(net, 0.5 + epoch / 10)
            for parameter in net.parameters():
                parameter.data.mul_(-0.9)
        assert same_step(compiled, model, eager), epoch
    fixed = {name: torch.rand_like(b) < 0.5 for name, b in binarized_masks(eager).items()}
    for net in (model, eager):
        fix_masks(net, fixed)
    assert same_step(compiled, model, eager)


def binarized_masks(model: nn.Module) -> dict[str, Tensor]:
    return {name: layer.weight for name, layer in model.named_children() if hasattr(layer, "weight")}


def test_another_progress_compiles_nothing_anew() -> None:
    model = binarized("irnet", "layer")
    counter = CompileCounter()
    compiled = torch.compile(model, backend=counter)
    for epoch in range(20):
        set_progress(model, epoch / 20)
        compiled(X)
    assert counter.frame_count == 1


@pytest.mark.parametrize(
    ("method", "scope", "strict"), [*((*case, False) for case in KINDS), ("mpt-bihalf", "global", True)]
)
def test_an_exported_model_has_eagers_bits(method: str, scope: str, strict: bool) -> None:
    model = binarized(method, scope)
    out, exported = model(X), torch.export.export(model, (X,), strict=strict)
    assert torch.equal(exported.module()(X), out)
    file = io.BytesIO()
    torch.export.save(exported, file)
    file.seek(0)
    assert torch.equal(torch.export.load(file).module()(X), out)


@pytest.mark.parametrize(("method", "scope"), CASES)
def test_proxies_see_the_operators(method: str, scope: str) -> None:
    model = binarized(method, scope)
    assert torch.equal(make_fx(model)(X)(X), model(X))


def kept_alone(g: Tensor, layer: Layer, positive: Tensor, alpha: Tensor) -> Tensor:
    return torch.where(MASKS["edge-popup"](layer), SCORE_GRADIENTS["latent"](g, layer, positive, alpha), 0)


def test_parts_of_ones_own_are_compiled_too() -> None:
    mine = replace(METHODS["mpt-sign"], score_gradient=kept_alone)
    model, eager = (
        binarize_weights(
            nn.Sequential(nn.Flatten(), nn.Linear(48, 6, bias=False), nn.Linear(6, 3, bias=False)),
            mine,
            scope="global",
            seed=0,
        )
        for _ in range(2)
    )
    assert same_step(torch.compile(model, backend="aot_eager", fullgraph=True), model, eager)


def test_a_rule_is_read_back_as_what_it_was() -> None:
    for name, method in METHODS.items():
        read, *settings = method_of(rule_of(method, 0.3, "1/3", "filter"))
        assert all(getattr(read, part) == getattr(method, part) for part in ("trains", "binarizer", "mask", "scale"))
        assert (read.name, read.gradient) == (name, method.gradient)
        assert [*map(str, settings)] == ["3/10", "1/3", "filter"]


def test_a_part_that_takes_anothers_name_takes_its_place(monkeypatch: pytest.MonkeyPatch) -> None:
    for part in (kept_alone, lambda g, layer, positive, alpha: g):
        monkeypatch.setitem(SCORE_GRADIENTS, "mine", part)
        mine = replace(METHODS["mpt-sign"], name="mine", score_gradient=part)
        assert method_of(rule_of(mine, 0.5, 0.5, "layer"))[0].score_gradient is part


def test_a_part_that_is_not_registered_here_is_named() -> None:
    rule = rule_of(replace(METHODS["bihalf"], latent_gradient=kept_alone), 0, 0.5, "layer")
    for other in ("own-999999", "thermodynamic"):
        told = rule.replace(f'"latent_gradient": "{method_part(rule)}"', f'"latent_gradient": "{other}"')
        with pytest.raises(ValueError, match=f"there is no latent_gradient '{other}' here"):
            method_of(told)


def method_part(rule: str) -> str:
    return rule.split('"latent_gradient": "')[1].split('"', maxsplit=1)[0]


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("name", [name for name in METHODS if name != "dense"])
def test_torch_finds_no_fault_with_the_operators(name: str, layout: torch.memory_format) -> None:
    method, progress = METHODS[name], torch.tensor(0.25, dtype=torch.float64)
    weight, scores = (torch.randn(4, 3, 3, 3).contiguous(memory_format=layout) for _ in range(2))
    trained = scores if method.trains == "scores" else weight
    trained.requires_grad_()
    all_scores = [scores.detach(), torch.randn(5, 2)] if method.scoped else []
    rule = rule_of(method, 0.5, 0.5, "global" if method.scoped else "layer")
    given = scores if method.trains == "scores" else None
    learned = torch.rand(4, 1, 1, 1).requires_grad_() if isinstance(method.scale, Learned) else None
    torch.library.opcheck(binary_weight, (weight, given, all_scores, 0, rule, progress, None, learned))
    _, positive, alpha = binary_weight(weight, given, all_scores, 0, rule, progress, None, learned)
    if learned is not None:
        g, asked = torch.randn(4, 3, 3, 3), (weight.detach(), given, all_scores, 0, rule, progress)
        torch.library.opcheck(learned_scale_backward, (*asked, None, positive, learned.detach(), g))
    weight, given = weight.detach(), None if given is None else given.detach()
    torch.library.opcheck(
        binary_weight_backward,
        (weight, given, all_scores, 0, rule, progress, None, positive, alpha, torch.randn(4, 3, 3, 3)),
    )
    if all_scores:
        torch.library.opcheck(global_masks, (all_scores, rule))
