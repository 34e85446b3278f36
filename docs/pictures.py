"""The pictures of methods.md, drawn by the package's own functions whenever the pages are built (conf.py)."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import matplotlib
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import Tensor, nn

from mpt_bihalf import (
    ACTIVATION_GRADIENTS,
    MASKS,
    METHODS,
    SCALES,
    BinaryActivation,
    Bop,
    InitialMask,
    Threshold,
    binarize_weights,
    binary_layers,
    binary_weights,
    create_model,
    initial_masks,
    parameter_groups,
    score_mask,
)
from mpt_bihalf.data import load_dataset
from mpt_bihalf.data.batches import ClassBatches
from mpt_bihalf.files import write_whole
from mpt_bihalf.layer import Layer
from mpt_bihalf.masks import SCOPES, find_initial_mask, initial_mask_names
from mpt_bihalf.report.figures import COLOURS
from mpt_bihalf.scales import Learned, scale_of

POSITIVE, NEGATIVE, PRUNED = COLOURS[0], COLOURS[1], "0.65"
FILTERS, CONNECTIONS = 4, 24
# Methods whose gradient ends at 1: their weights are drawn four times as large, so that some are beyond it.
CLIPPED = ("xnor", "bi-real", "least-squares", "xnor++", "real-to-binary")


def draw_all(folder: Path) -> None:
    """Draw each picture into the folder as an SVG file; what was there is drawn anew."""
    folder.mkdir(exist_ok=True)
    for name in METHODS:
        _save(draw_bop() if name == "bop" else draw_method(name), folder / f"{name}.svg")
    for name, draw in PARTS.items():
        _save(draw(), folder / f"{name}.svg")


def draw_method(name: str) -> Figure:
    """One filter of a layer under a method: the weights in use, and what a gradient of 1 at each of them brings."""
    model = _binarized(name)
    layer: Any = model[0]
    scores = next((part.scores for _, part, _ in binary_layers(model)), None)
    trained, of_what = (_latent(model), "W") if scores is None else (scores, "S")
    used = layer.weight
    used.sum().backward()  # so that g = 1
    latent, used, binary = _latent(model).detach(), used.detach(), _binary(model)
    figure, (left, right) = _panels(2)
    for label, colour, those in _kinds(binary[0]):
        left.vlines(latent[0][those], 0, used[0][those], colour, alpha=0.5)
        left.plot(latent[0][those], used[0][those], "o", color=colour, label=label)
    left.set(title="a filter", xlabel="latent weight W", ylabel="weight in use")
    left.legend(fontsize="small")
    if name == "irnet":
        x = torch.linspace(-3, 3, 601)
        for progress in (0.0, 0.5, 1.0):
            right.plot(x, _activation_gradient("ede", x, progress), label=f"epoch / epochs = {progress:g}")
        right.set(title="its gradient, g = 1 / alpha", xlabel="standardised weight x", ylabel="dL/dx")
        right.legend(fontsize="small")
        return figure
    for _, colour, those in _kinds(binary[0]):
        right.plot(latent[0][those], trained.grad[0][those], "o", color=colour)
    right.set(title="its gradient, g = 1, S > 0" if of_what == "S" else "its gradient, g = 1")
    right.set(xlabel="latent weight W", ylabel=f"dL/d{of_what}")
    right.axhline(0, color="0.8", zorder=0)
    return figure


def draw_bop() -> Figure:
    """One weight under a gradient that turns: the mean gradient, and the flips."""
    model = binarize_weights(nn.Sequential(nn.Linear(1, 1, bias=False)), "bop", seed=0)
    optimizer = Bop(parameter_groups(model), gamma=0.1, tau=0.3)
    weight = _latent(model)
    gradients = torch.linspace(0, 4 * torch.pi, 121).sin() + 0.1
    mean, signs = [], []
    for u in gradients:
        weight.grad = u.view(1, 1)
        optimizer.step()
        mean.append(optimizer.state[weight]["mean_gradient"].item())
        signs.append(weight.item())
    figure, (left, right) = _panels(2)
    left.plot(gradients, color=PRUNED, label="gradient u")
    left.plot(mean, color=COLOURS[2], label="its mean m, gamma = 0.1")
    for tau in (-0.3, 0.3):
        left.axhline(tau, color="black", linestyle="--", linewidth=1, label="± tau" if tau > 0 else None)
    left.legend(fontsize="small", loc="lower left")
    left.set(title="gradient of one weight", xlabel="step", ylim=(-2.2, 1.3))
    right.step(range(len(signs)), signs, color=POSITIVE)
    right.set(title="the weight", xlabel="step", ylabel="b", yticks=(-1, 1))
    return figure


def draw_masks() -> Figure:
    """Which weights of a filter each mask rule keeps, by latent weight and score."""
    method_of = {METHODS[name].mask: name for name in METHODS}
    rules = {rule: mask for rule, mask in MASKS.items() if not isinstance(mask, InitialMask | Threshold)}
    figure, panels = _panels(len(rules))
    for panel, (rule, mask) in zip(panels, rules.items(), strict=True):
        model = _binarized(method_of[mask], connections=200)
        latent, scores, kinds = _latent(model).detach(), _scores(200), _kinds(_binary(model)[0])
        for _, colour, those in kinds:
            panel.plot(latent[0][those], scores[0][those], ".", color=colour)
        counts = ", ".join(label for label, *_ in kinds)
        panel.set(title=f"{rule}: {method_of[mask]}\n{counts}", xlabel="latent weight W")
    panels[0].set(ylabel="score S")
    return figure


def draw_initial_masks() -> Figure:
    """What share of each layer of Conv4 stays at 90 % pruned under each mask that is fixed before training."""
    data = load_dataset("digits", image_size=32)
    model = binarize_weights(create_model("conv4", in_channels=1, width=0.25, seed=0), "dense", seed=0)
    rules = initial_mask_names()
    figure, panels = _panels(len(rules))
    for panel, rule in zip(panels, rules, strict=True):
        batches = ClassBatches(data, find_initial_mask(rule).images, 128, seed=0)
        shares = [100 * float(mask.float().mean()) for mask in initial_masks(model, rule, 0.9, batches).values()]
        panel.bar(range(1, len(shares) + 1), shares, color=POSITIVE)
        panel.axhline(10, color="black", linestyle="--", linewidth=1)
        panel.set(title=rule, xlabel="layer", yscale="log", ylim=(0.5, 110))
    panels[0].set(ylabel="kept, %")
    return figure


def draw_scopes() -> Figure:
    """What share of each filter stays under each scope, in two layers of different fan-in."""
    figure, panels = _panels(len(SCOPES))
    for panel, scope in zip(panels, SCOPES, strict=True):
        model = nn.Sequential(nn.Linear(64, 16), nn.ReLU(), nn.Linear(16, 16))
        binarize_weights(model, "mpt-sign", prune_rate=0.5, scope=scope, seed=0)
        start = 0
        for colour, binary in zip(COLOURS, binary_weights(model).values(), strict=False):
            share = (binary != 0).float().mean(1)
            panel.bar(range(start, start + len(share)), share, color=colour, label=f"{binary.shape[1]} connections")
            start += len(share)
        panel.axhline(0.5, color="black", linestyle="--", linewidth=1)
        panel.set(title=scope, xlabel="filter")
    panels[0].set(ylabel="share kept")
    panels[0].legend(fontsize="small", loc="lower left")
    return figure


def draw_scales() -> Figure:
    """Each scale against the fraction pruned, under an edge-popup mask."""
    g = torch.Generator().manual_seed(0)
    scores = torch.rand(64, 576, generator=g)
    rates = [step / 50 for step in range(49)]
    figure, (panel,) = _panels(1)
    for name, scale in SCALES.items():
        if isinstance(scale, Learned):  # which begins at one of the others
            continue
        alphas = []
        for rate in rates:
            weight = torch.randn(scores.shape, generator=torch.Generator().manual_seed(1))
            weight *= (2 / ((1 - rate) * scores.shape[1])) ** 0.5  # as binarize_weights draws it
            alphas.append(scale_of(scale, Layer(weight), score_mask(scores, rate).bool(), weight >= 0).mean())
        panel.plot(rates, alphas, label=name)
    panel.set(title="a layer of 576 connections", xlabel="fraction pruned", ylabel="alpha", yscale="log")
    panel.legend(fontsize="small")
    return figure


def draw_activations() -> Figure:
    """The sign, and the gradient of each estimator."""
    x = torch.linspace(-2, 2, 801)
    figure, (left, *panels) = _panels(1 + len(ACTIVATION_GRADIENTS))
    left.plot(x, BinaryActivation()(x).where(x != 0, torch.nan), color="black")
    left.set(title="forward", xlabel="x", ylabel="sign(x)", yticks=(-1, 1))
    for panel, name in zip(panels, ACTIVATION_GRADIENTS, strict=True):
        for progress in (0.0, 0.5, 1.0) if name == "ede" else (0.0,):
            panel.plot(x, _activation_gradient(name, x, progress), label=f"epoch / epochs = {progress:g}")
        panel.set(title=name, xlabel="x", ylabel="dL/dx for g = 1")
        if name == "ede":
            panel.legend(fontsize="small")
    return figure


PARTS: dict[str, Callable[[], Figure]] = {
    "masks": draw_masks,
    "scopes": draw_scopes,
    "initial_masks": draw_initial_masks,
    "scales": draw_scales,
    "activations": draw_activations,
}


def _binarized(method: str, connections: int = CONNECTIONS) -> nn.Sequential:
    """A layer whose latent weights lie about a mean above 0, so that sign has more +1s than -1s; half of it pruned."""
    model = nn.Sequential(nn.Linear(connections, FILTERS, bias=False))
    draw = torch.randn(FILTERS, connections, generator=torch.Generator().manual_seed(3))
    with torch.no_grad():
        model[0].weight.copy_((draw + 0.6) * (2 / connections) ** 0.5 * (4 if method in CLIPPED else 1))
    binarize_weights(model, method, prune_rate=0.5, init="keep")
    for _, part, _ in binary_layers(model):
        if part.scores is not None:
            with torch.no_grad():
                part.scores.copy_(_scores(connections))
    return model


def _scores(connections: int) -> Tensor:
    return torch.rand(FILTERS, connections, generator=torch.Generator().manual_seed(4))


def _latent(model: nn.Sequential) -> Tensor:
    return next((weight for *_, weight in binary_layers(model)), cast(Tensor, model[0].weight))


def _binary(model: nn.Sequential) -> Tensor:
    """B, or where nothing is binary the sign of the weights."""
    return next(iter(binary_weights(model).values()), model[0].weight.detach().sign())


def _activation_gradient(name: str, x: Tensor, progress: float) -> Tensor:
    x = x.clone().requires_grad_()
    activation = BinaryActivation(name)
    activation.progress = progress
    activation(x).sum().backward()
    assert x.grad is not None
    return x.grad


def _kinds(binary: Tensor) -> list[tuple[str, str, Tensor]]:
    """Label, colour and place of the +1s, the -1s and the pruned weights, of those that there are."""
    kinds = [("× +1", POSITIVE, binary > 0), ("× -1", NEGATIVE, binary < 0), ("pruned", PRUNED, binary == 0)]
    return [(f"{int(those.sum())} {label}", colour, those) for label, colour, those in kinds if those.any()]


def _panels(count: int) -> tuple[Figure, list[Axes]]:
    figure = Figure(figsize=(3.4 * count + 0.6, 2.7), layout="constrained")
    return figure, list(figure.subplots(1, count, squeeze=False)[0])


def _save(figure: Figure, path: Path) -> None:
    # Without date and random names the same picture is the same file, which Sphinx then does not copy anew.
    with matplotlib.rc_context({"svg.hashsalt": path.stem}):
        write_whole(path, lambda part: figure.savefig(part, format="svg", metadata={"Date": None}))
