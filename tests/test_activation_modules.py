"""Binary activations that are more than a sign: sign terms, shifts of channels, and gates."""

from __future__ import annotations

from itertools import product
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mpt_bihalf import (
    ACTIVATIONS,
    SIGN_TERMS,
    BinaryActivation,
    ChannelShift,
    Gated,
    RPReLU,
    SampleStandard,
    SignTerms,
    bake_weights,
    binarize_weights,
    binary_layers,
    compile_ticket,
    create_model,
    save_ticket,
)
from mpt_bihalf.activation_modules import Residual
from mpt_bihalf.activations import RbnnActivation
from mpt_bihalf.tickets.fold import fold
from mpt_bihalf.training import Run
from tests.reference import one_line_error

X1 = [0.1, -0.4, 1.0, -2.5]
X2 = [3.0, -1, 0.5, -0.2, 2.2, -1.7, 0.9, 0.05]


def errors(rule: str, rows: Tensor) -> tuple[list[Tensor], Tensor]:
    """The scales of a rule, and the squared error of the sum of its signs for each row."""
    scales = [*SIGN_TERMS[rule](rows)]
    rest = rows.flatten(1)
    for v in scales:
        rest = rest - v[:, None] * torch.where(rest >= 0, 1.0, -1.0)
    return scales, rest.square().sum(1)


@pytest.mark.parametrize(
    ("rule", "values", "scales", "error"),
    [
        ("ls1", X1, (1,), 3.42),
        ("residual-2", X1, (1, 0.75), 1.17),
        ("ls2", X1, (1.5, 1.0), 0.42),
        ("lsT", X1, (1.25, 1.25), 1.17),
        ("ls1", X2, (1.19375,), 7.432188),
        ("residual-2", X2, (1.19375, 0.829688), 1.925137),
        ("ls2", X2, (1.415, 0.885), 1.558),
        ("lsT", X2, (1.15, 1.15), 2.9625),
    ],
)
def test_sign_terms_by_example(rule: str, values: list[float], scales: tuple[float, ...], error: float) -> None:
    found, left = errors(rule, torch.tensor([values], dtype=torch.float64))
    assert [v.item() for v in found] == pytest.approx(scales, abs=1e-6) and left.item() == pytest.approx(
        error, abs=1e-6
    )


def test_a_normal_value_has_the_error_of_its_sign() -> None:
    x = torch.randn(1, 400_000, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    (v,), left = errors("ls1", x)
    assert v.item() == pytest.approx((2 / torch.pi) ** 0.5, abs=3e-3)
    assert left.item() / x.numel() == pytest.approx(1 - 2 / torch.pi, abs=3e-3)


@pytest.mark.parametrize("rule", ["ls2", "lsT"])
def test_the_split_is_the_best_of_a_grid(rule: str) -> None:
    generator = torch.Generator().manual_seed(0)
    grid = torch.linspace(0, 3, 121, dtype=torch.float64)
    for kind in range(12):
        x = torch.randn(1, 7, dtype=torch.float64, generator=generator)
        x = x.round(decimals=0) if kind % 3 == 0 else x.exp() if kind % 3 == 1 else x  # with ties, and skewed
        _, (least,) = errors(rule, x)
        magnitude = x.abs()
        if rule == "ls2":
            centres = [torch.stack([(a - b).abs(), a + b]) for a, b in product(grid[::4], grid[::4])]
        else:
            centres = [torch.stack([torch.zeros(()).double(), 2 * v]) for v in grid]
        for pair in centres:
            assert least <= (magnitude - pair[:, None]).square().amin(0).sum() + 1e-9


@pytest.mark.parametrize("rule", SIGN_TERMS)
def test_each_sample_has_its_own_scales_and_equal_values_one(rule: str) -> None:
    x = torch.randn(5, 2, 3, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    together, _ = errors(rule, x)
    for i in range(5):
        alone, _ = errors(rule, x[i : i + 1])
        assert all(torch.allclose(v[i : i + 1], one) for v, one in zip(together, alone, strict=True))
    _, left = errors(rule, torch.full((2, 6), -0.75, dtype=torch.float64))
    assert torch.allclose(left, torch.zeros(2).double())
    _, left = errors(rule, torch.full((2, 1), 0.3, dtype=torch.float64))
    assert torch.allclose(left, torch.zeros(2).double())
    assert all(v.dtype == torch.float32 for v in SIGN_TERMS[rule](torch.randn(2, 9).half()))
    assert all(v.is_meta for v in SIGN_TERMS[rule](torch.randn(2, 9, device="meta")))


def test_the_gradient_of_sign_terms() -> None:
    """v1 1a + v2 1b (1 - v1 1a), both times 1[abs(x) <= 2]; bounds are in."""
    x = torch.tensor([[0.3, -0.9, 1.0, -1.6, 2.0, -2.7, 0.05, 1.2]], dtype=torch.float64, requires_grad=True)
    layer = nn.Linear(8, 3, bias=False).double()
    for rule in ("ls1", "ls2", "lsT", "residual-2"):
        y = SignTerms(rule, layer)(x)
        g = torch.tensor([[1.0, -2, 3]], dtype=torch.float64)
        (of_x,) = torch.autograd.grad(y, x, g)
        at = x.detach().clamp(-2, 2)
        v = [one.item() for one in SIGN_TERMS[rule](at)]
        inside = (at.abs() <= 1).double()
        slope = v[0] * inside
        if len(v) == 2:
            rest = at - v[0] * torch.where(at >= 0, 1.0, -1.0)
            slope = slope + v[1] * (rest.abs() <= 1).double() * (1 - v[0] * inside)
        expected = (g @ layer.weight) * slope * (x.detach().abs() <= 2)
        assert torch.allclose(of_x, expected.detach(), atol=1e-12), rule
        signs = [torch.where(at >= 0, 1.0, -1.0).double()]
        if len(v) == 2:
            signs.append(torch.where(at - v[0] * signs[0] >= 0, 1.0, -1.0).double())
        assert torch.allclose(y, sum(a * layer(s) for a, s in zip(v, signs, strict=True)))  # type: ignore[arg-type]


@pytest.mark.parametrize("rule", ["ls1", "ls2", "lsT", "residual-3"])
def test_each_term_is_a_whole_number_before_its_scale(rule: str) -> None:
    model = create_model("resnet18", width=0.125, activations=rule, block="norm-first", seed=0)
    image = torch.randn(3, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    binarize_weights(model, "least-squares", skip=("first", "last", "downsample"), example=image)
    sums: list[Tensor] = []
    for module in model.modules():
        if isinstance(module, SignTerms):
            layer: Any = module.layer
            part = layer.parametrizations.weight[0]
            assert part.scale_on == "output"
            alpha = part.scaled_binary(layer.parametrizations.weight.original)[1].view(-1, 1, 1)
            layer.register_forward_hook(lambda layer, given, z, alpha=alpha: sums.append(z / alpha))
    model(image)
    assert len(sums) == 16 * len(SIGN_TERMS[rule](image))
    assert all(torch.allclose(z, z.round(), atol=1e-4) for z in sums)


def test_rsign_by_example() -> None:
    rsign = ACTIVATIONS["rsign"].sign(1).double()
    with torch.no_grad():
        rsign[0].bias.fill_(0.25)  # type: ignore[index, union-attr, operator]
    x = torch.tensor([[-1.5], [-0.2], [0.3], [0.9]], dtype=torch.float64, requires_grad=True)
    y = rsign(x)
    y.sum().backward()
    assert y.flatten().tolist() == [-1, 1, 1, 1] and x.grad is not None
    assert x.grad.flatten().tolist() == pytest.approx([0, 1.9, 0.9, 0])
    assert rsign[0].bias.grad.tolist() == pytest.approx([2.8])  # type: ignore[index, union-attr]


def test_rprelu_by_example() -> None:
    activation = RPReLU(1).double()
    with torch.no_grad():
        activation.before.fill_(0.1)
        activation.after.fill_(-0.05)
    y = activation(torch.tensor([[-1.5], [-0.2], [0.3], [0.9]], dtype=torch.float64))
    y.sum().backward()
    assert y.flatten().tolist() == pytest.approx([-0.45, -0.125, 0.15, 0.75])
    found = [p.grad.item() for p in (activation.before, activation.weight, activation.after)]  # type: ignore[union-attr]
    assert found == pytest.approx([-2.5, -1.9, 4])


@pytest.mark.parametrize("shape", [(2, 3), (2, 3, 5), (2, 3, 4, 5)])
def test_shifts_are_of_channels(shape: tuple[int, ...]) -> None:
    x = torch.randn(shape)
    shift, rprelu = ChannelShift(3), RPReLU(3)
    with torch.no_grad():
        for p in (*shift.parameters(), *rprelu.parameters()):
            p.copy_(torch.randn(3))
    ones = [1] * (len(shape) - 2)
    c, z, s = (p.view(-1, *ones) for p in (rprelu.before, rprelu.after, rprelu.weight))
    assert torch.equal(shift(x), x + shift.bias.view(-1, *ones))
    assert torch.allclose(rprelu(x), torch.where(x > c, x - c, s * (x - c)) + z, atol=1e-6)


def test_each_sample_is_standardised_and_differentiated_through() -> None:
    x = torch.randn(3, 2, 4, 4, dtype=torch.float64, requires_grad=True)
    y = SampleStandard()(x)
    rows = x.flatten(1)
    expected = (rows - rows.mean(1, keepdim=True)) / rows.std(1, keepdim=True)
    assert torch.allclose(y.flatten(1), expected)
    assert torch.autograd.gradcheck(SampleStandard(), x)
    at = torch.tensor([0.0, 0.5, 1.0, 2.0])
    early, late = RbnnActivation()(torch.ones(4), at, 0.0), RbnnActivation()(torch.ones(4), at, 1.0)
    assert early.tolist() == pytest.approx([2**0.5, 2**0.5 - 0.5, 2**0.5 - 1, 0])  # t is 1 at first
    assert late.tolist() == pytest.approx([10 * 2**0.5, 0, 0, 0])


def test_a_gate_sees_its_input_before_the_sign() -> None:
    conv = nn.Conv2d(16, 6, 3, padding=1, bias=False)
    gated = Gated(BinaryActivation("clip"), conv)
    assert gated.squeeze.shape == (2, 16) and gated.excite.shape == (6, 2)
    u = torch.randn(3, 16, 5, 5)
    gate = torch.sigmoid(F.relu(u.mean((2, 3)) @ gated.squeeze.T) @ gated.excite.T)
    s = torch.where(u >= 0, 1.0, -1.0)
    assert torch.allclose(gated(u), gate[:, :, None, None] * F.conv2d(s, conv.weight, padding=1), atol=1e-5)
    rows = Gated(BinaryActivation("clip"), nn.Linear(4, 3, bias=False))
    x = torch.randn(2, 4)
    gate = torch.sigmoid(F.relu(x @ rows.squeeze.T) @ rows.excite.T)
    assert rows.squeeze.shape == (1, 4)
    assert torch.allclose(rows(x), gate * rows.layer(torch.where(x >= 0, 1.0, -1.0)))


def test_counts_of_the_networks() -> None:
    def counts(name: str, **settings: Any) -> tuple[int, int]:
        with torch.device("meta"):
            model = create_model(name, 1000, image_size=224, **settings)
        running = sum(b.numel() for key, b in model.named_buffers() if "running" in key)
        return sum(p.numel() for p in model.parameters()), running

    assert sum(counts("resnet18", activations="clip", block="real-to-binary")) == 11_995_624
    assert counts("resnet18", activations="rsign", block="reactnet")[0] == 11_704_424
    assert counts("resnet34", activations="rsign", block="reactnet")[0] == 21_827_432


def test_what_cannot_be_is_refused_in_one_line() -> None:
    with one_line_error("a layer under several terms has no bias"):
        SignTerms("ls2", nn.Linear(3, 3))
    with one_line_error("a layer under a gate has no bias"):
        Gated(BinaryActivation("clip"), nn.Linear(3, 3))
    with one_line_error("unknown sign terms 'ls3'; known: ls1, ls2, lsT, residual-2"):
        SignTerms("ls3", nn.Linear(3, 3, bias=False))
    with one_line_error("at least 1 term, not 0"):
        Residual(0)
    binary: dict[str, Any] = {"activations": "ls2"}
    for fields, why in (
        ({**binary, "input_scale": True}, "sign terms ls2 and input_scale cannot be round the same layers"),
        ({**binary, "block": "real-to-binary"}, "sign terms ls2 and the gate of block real-to-binary cannot be"),
        ({"activations": "clip", "block": "real-to-binary", "input_scale": True}, "input_scale and the gate of block"),
        ({**binary, "model": "vgg_small"}, "vgg_small has no place for activations that are more than a sign; conv2"),
        ({"activations": "rsign", "model": "resnet20"}, "resnet20 has no place for activations that are more"),
        ({"activations": "binary", "method": "rbnn", "model": "vgg16"}, "vgg16 has no place for activations"),
        ({"activations": "clip", "block": "reactnet"}, "conv2 has no block 'reactnet'; resnet18, resnet34 have"),
        ({"activations": "lsX"}, "unknown activations 'lsX'; known: real, binary, clip"),
    ):
        with one_line_error(why):
            Run(**fields)
        told = {"model": "conv2"} | {name: value for name, value in fields.items() if name != "method"}
        if told["activations"] not in ("binary", "lsX"):
            with one_line_error(why):
                create_model(told.pop("model"), **told)


def test_activations_in_a_network_are_those_of_their_name() -> None:
    for name, kind in (("rsign", ChannelShift), ("rbnn", SampleStandard), ("ls2", SignTerms)):
        for block in ("", "norm-first"):
            model = create_model("conv2", width=0.125, activations=name, block=block)
            signs = sum(isinstance(module, BinaryActivation) for module in model.modules())
            assert sum(isinstance(module, kind) for module in model.modules()) == signs == (4 if not block else 3)


def test_frozen_methods_freeze_shifts_and_train_gates() -> None:
    model = create_model("resnet18", width=0.125, activations="rsign", block="reactnet", seed=0)
    binarize_weights(model, "mpt-sign", seed=0, skip=("conv1", "fc"))
    trained = {name.rpartition(".")[2] for name, p in model.named_parameters() if p.requires_grad}
    assert trained == {"scores", "weight", "bias"}  # of the layers that are skipped
    shifts = [m for m in model.modules() if isinstance(m, ChannelShift | RPReLU)]
    assert shifts and not any(p.requires_grad for m in shifts for p in m.parameters())


def test_a_sample_of_equal_values_or_of_one_is_0_without_a_gradient() -> None:
    for x in (torch.full((2, 1, 3, 3), 0.1), torch.full((2, 1), 7.0)):
        x[1] = torch.randn(x[1].shape, generator=torch.Generator().manual_seed(0)) if x[1].numel() > 1 else 0
        x.requires_grad_()
        y = SampleStandard()(x)
        assert not y[0].any() and y.isfinite().all()
        assert (ACTIVATIONS["rbnn"].sign(1)(x)[0] == 1).all()
        y.square().sum().backward()
        assert not x.grad[0].any() and x.grad.isfinite().all()


@pytest.mark.parametrize("rule", list(SIGN_TERMS))
def test_a_single_image_gives_what_a_batch_of_it_gives(rule: str) -> None:
    torch.manual_seed(0)
    for layer, x in (
        (nn.Conv2d(4, 4, 3, padding=1, bias=False), torch.randn(4, 5, 5)),
        (nn.Linear(6, 3, bias=False), torch.randn(6)),
    ):
        module = SignTerms(rule, layer)
        torch.testing.assert_close(module(x), module(x[None])[0])


@pytest.mark.parametrize("activations", [*SIGN_TERMS, "rsign", "rbnn"])
def test_scales_are_on_the_output_with_and_without_an_example(activations: str) -> None:
    def scale_on(example: Tensor | None) -> list[str]:
        model = create_model("conv2", 10, 1, 8, seed=0, activations=activations)
        binarize_weights(model, "bihalf", seed=0, example=example)
        return [part.scale_on for _, part, _ in binary_layers(model)]

    assert scale_on(None) == scale_on(torch.randn(1, 1, 8, 8)) == ["weight", *["output"] * 4]


def test_a_ticket_that_cannot_be_compiled_or_folded_says_which_module_it_is(tmp_path: Path) -> None:
    for activations, what in (("rsign", "ChannelShift"), ("ls2", "SignTerms")):
        model = create_model("conv2", 10, 1, 8, seed=0, activations=activations)
        binarize_weights(model, "bihalf", seed=0)
        save_ticket(model, tmp_path / "ticket")
        plain = bake_weights(model).eval()
        with one_line_error(f"a compiled ticket cannot do this: {what}, at '.+'"):
            compile_ticket(
                tmp_path / "ticket", into=create_model("conv2", 10, 1, 8, activations=activations), images=(1, 8, 8)
            )
        if activations == "ls2":
            with one_line_error("a network with SignTerms, here at '.+', cannot be folded: leave fold out"):
                fold(plain, torch.zeros(1, 1, 8, 8))
