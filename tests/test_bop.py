from __future__ import annotations

from copy import deepcopy

import pytest
import torch
from torch import Tensor, nn

from mpt_bihalf import Bop, binarize_weights, binary_weights, create_model, parameter_groups
from tests.reference import kaiming_scale, one_line_error


def sides(values: Tensor) -> list[float]:
    return values.flatten().tolist()


def flipped_by_hand(b: list[float], m: list[float], u: list[float], gamma: float, tau: float) -> None:
    """One step of the rule as it is written, in place."""
    for i in range(len(b)):
        m[i] = (1 - gamma) * m[i] + gamma * u[i]
        if abs(m[i]) > tau and (m[i] > 0) == (b[i] > 0):
            b[i] = -b[i]


@pytest.mark.parametrize(("gamma", "tau"), [(1e-4, 1e-8), (0.3, 0.05), (1.0, 0.0), (0.0, 0.0)])
def test_signs_flip_by_the_rule_at_every_step(gamma: float, tau: float, device: torch.device) -> None:
    generator = torch.Generator().manual_seed(0)
    layer = binarize_weights(nn.Linear(12, 5, bias=False, dtype=torch.float64, device=device), "bop", seed=0)
    latent = layer.parametrizations.weight.original
    optimizer = Bop(parameter_groups(layer), gamma=gamma, tau=tau)
    b, m = sides(latent.detach()), [0.0] * 60
    alpha = kaiming_scale(torch.ones(5, 12, dtype=torch.bool))
    flips = 0
    for _ in range(25):
        c = torch.randn(5, 12, generator=generator, dtype=torch.float64).to(device)
        optimizer.zero_grad()
        (layer.weight * c).sum().backward()
        assert torch.allclose(latent.grad, alpha * c, rtol=1e-12)
        optimizer.step()
        before = list(b)
        flipped_by_hand(b, m, sides(alpha * c), gamma, tau)
        flips += sum(x != y for x, y in zip(before, b, strict=True))
        assert sides(latent.detach()) == b
        assert torch.allclose(layer.weight, alpha * latent, rtol=1e-12)
    assert (flips > 0) == (gamma > 0)


def test_signs_start_as_those_of_the_kaiming_draw() -> None:
    drawn = binarize_weights(create_model("conv2", image_size=8, in_channels=1, seed=0), "dense", seed=3)
    model = binarize_weights(create_model("conv2", image_size=8, in_channels=1, seed=0), "bop", seed=3)
    for bits, weight in zip(binary_weights(model).values(), drawn.parameters(), strict=True):
        assert torch.equal(bits, torch.where(weight >= 0, 1.0, -1.0))


def test_real_valued_parameters_are_trained_by_sgd() -> None:
    def trained(optimizer_of: object) -> list[Tensor]:
        torch.manual_seed(0)
        model = binarize_weights(
            nn.Sequential(nn.Linear(6, 5), nn.BatchNorm1d(5), nn.Linear(5, 3)), "bop", skip="last", seed=0
        )
        optimizer = optimizer_of(model)
        for step in range(4):
            optimizer.zero_grad()
            model(torch.randn(8, 6, generator=torch.Generator().manual_seed(step))).square().sum().backward()
            optimizer.step()
        return [p.detach() for name, p in model.named_parameters() if "original" not in name]

    settings = {"lr": 0.1, "momentum": 0.9, "weight_decay": 0.01}
    frozen_signs = {"gamma": 0.0}
    ours = trained(lambda model: Bop(parameter_groups(model), **settings, **frozen_signs))
    plain = trained(
        lambda model: torch.optim.SGD([p for n, p in model.named_parameters() if "original" not in n], **settings)
    )
    assert len(ours) == 5 and all(torch.equal(a, b) for a, b in zip(ours, plain, strict=True))


def test_its_state_can_be_saved_and_loaded() -> None:
    def steps(layer: nn.Module, optimizer: Bop, first: int, last: int) -> None:
        for step in range(first, last):
            optimizer.zero_grad()
            c = torch.randn(5, 12, generator=torch.Generator().manual_seed(step))
            (layer.weight * c).sum().backward()
            optimizer.step()

    def made() -> tuple[nn.Module, Bop]:
        layer = binarize_weights(nn.Linear(12, 5), "bop", seed=0)
        return layer, Bop(parameter_groups(layer), gamma=0.2, tau=0.01)

    through, optimizer = made()
    steps(through, optimizer, 0, 6)
    layer, optimizer = made()
    steps(layer, optimizer, 0, 3)
    state = layer.state_dict(), optimizer.state_dict()
    resumed, optimizer = made()
    resumed.load_state_dict(state[0])
    optimizer.load_state_dict(state[1])
    steps(resumed, optimizer, 3, 6)
    assert torch.equal(resumed.weight, through.weight) and not torch.equal(resumed.weight, made()[0].weight)


def test_a_step_that_a_loss_scaler_gives_up_changes_nothing() -> None:
    layer = binarize_weights(nn.Linear(12, 5), "bop", seed=0)
    optimizer = Bop(parameter_groups(layer), gamma=0.2, tau=0.0, fused=True, momentum=0.9)
    for step, overflow in enumerate([0.0, 1.0, 1.0, 0.0]):
        optimizer.zero_grad()
        c = torch.randn(5, 12, generator=torch.Generator().manual_seed(step // 3))
        ((layer.weight * c).sum() + layer.bias.sum()).backward()
        if overflow:
            for parameter in layer.parameters():
                parameter.grad.view(-1)[0] = float("inf")  # type: ignore[union-attr]
        before = deepcopy([*layer.state_dict().values(), *(m for s in optimizer.state.values() for m in s.values())])
        optimizer.found_inf = torch.tensor(overflow)  # as GradScaler does
        optimizer.step()
        after = [*layer.state_dict().values(), *(m for s in optimizer.state.values() for m in s.values())]
        same = [torch.equal(one, other) for one, other in zip(before, after, strict=False)]
        assert all(same) if overflow else not all(same)


def test_parameters_of_other_models_do_not_flip() -> None:
    groups = parameter_groups(binarize_weights(nn.Linear(4, 3), "sign", seed=0))
    assert [len(group["params"]) for group in groups] == [0, 2]


@pytest.mark.parametrize("settings", [{"gamma": -0.1}, {"gamma": 1.1}, {"tau": -1e-9}, {"tau": float("nan")}])
def test_settings_out_of_range_are_an_error(settings: dict[str, float]) -> None:
    with one_line_error(next(iter(settings))):
        Bop(parameter_groups(binarize_weights(nn.Linear(4, 3), "bop", seed=0)), **settings)
