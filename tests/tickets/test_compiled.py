"""Compiled tickets give what their networks give, whatever these are made of, in any batch and on any threads."""

from __future__ import annotations

import ctypes
import pickle
import random
from collections.abc import Callable
from copy import deepcopy
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mpt_bihalf import (
    METHODS,
    bake_weights,
    binarize_weights,
    compile_ticket,
    create_model,
    kernels,
    load_ticket,
    save_ticket,
)
from mpt_bihalf.activations import BinaryActivation
from mpt_bihalf.tickets import CompiledTicket, Ticket
from mpt_bihalf.tickets.compiled import compiled
from mpt_bihalf.tickets.lowering import program_of
from tests.reference import one_line_error

pytestmark = pytest.mark.skipif(kernels.compiled() is None, reason="needs the compiled loops")
CLOSE = 1e-5


def with_statistics(model: nn.Module, shape: tuple[int, ...], seed: int = 0) -> nn.Module:
    """In evaluation mode, its batch norms with statistics, scales and shifts of both signs."""
    chance = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        model.train()(torch.randn(16, *shape, generator=chance))
        for module in model.modules():
            if isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d):
                module.weight.copy_(torch.rand(len(module.weight), generator=chance) * 2 - 0.5)
                module.bias.copy_(torch.randn(len(module.bias), generator=chance) / 4)
    return model.eval()


def images(count: int, shape: tuple[int, ...]) -> Tensor:
    return torch.randn(count, *shape, generator=torch.Generator().manual_seed(7))


def off(found: Tensor, model: nn.Module, x: Tensor) -> Tensor:
    """By how much logits are off, of each image, as a share of the spread of all."""
    with torch.no_grad():
        wanted = model(x)
    return (found - wanted).abs().amax(1) / wanted.std()


def assert_same_in_batches(run: CompiledTicket, x: Tensor) -> Tensor:
    """An image has the same bits in any batch and on any number of threads; the logits of all."""
    run.threads = 2
    whole = run(x)
    for threads, sizes in ((1, (1, 2, 7)), (3, (1, 5)), (2, (len(x) - 1, 1))):
        run.threads = threads
        start = 0
        for size in sizes:
            assert torch.equal(run(x[start : start + size]), whole[start : start + size])
            start += size
    return whole


def binarized(architecture: dict[str, Any], method: str = "mpt-bihalf", rate: float = 0.8, **options: Any) -> nn.Module:
    model = create_model(**architecture, seed=0)
    return with_statistics(binarize_weights(model, method, rate, seed=0, **options), (3, 32, 32))


@pytest.mark.parametrize("method", list(METHODS))
@pytest.mark.parametrize("activations", ["real", "clip"])
def test_every_method_gives_its_logits(tmp_path: Path, method: str, activations: str) -> None:
    architecture = {"name": "conv4", "width": 0.25, "activations": activations}
    model = binarized(architecture, method)
    save_ticket(model, tmp_path / "a", architecture)
    x, run = images(70, (3, 32, 32)), compile_ticket(tmp_path / "a")
    logits = assert_same_in_batches(run, x)
    plain = load_ticket(tmp_path / "a")
    with torch.no_grad():
        exact, wanted = deepcopy(plain).double()(x.double()), plain(x)
    # Torch's own rounding, which hangs on the processor, may be as large as CLOSE.
    error, of_torch = ((found - exact).abs().max() for found in (logits, wanted))
    assert off(logits, plain, x).max() < CLOSE or error < 4 * of_torch
    assert np.array_equal(run(x.numpy()), logits.numpy())
    assert type(run(x.numpy())) is np.ndarray


@pytest.mark.parametrize("name", ["conv2", "conv6", "vgg_small"])
def test_binary_activations_give_the_very_logits(name: str) -> None:
    architecture = {"name": name, "width": 0.5, "activations": "clip"}
    model = binarized(architecture, rate=0.5)
    x = images(66, (3, 32, 32))
    with torch.no_grad():
        assert torch.equal(assert_same_in_batches(compiled(Ticket.of(model, architecture)), x), model(x))


def test_a_filter_that_keeps_thousands_of_signs_is_exact() -> None:
    def network() -> nn.Module:
        first = [
            BinaryActivation(),
            nn.Conv2d(160, 8, 3, padding=1),
            nn.BatchNorm2d(8),
            BinaryActivation(),
            nn.Flatten(),
        ]
        second = [nn.Linear(8 * 16, 5000, bias=False), nn.BatchNorm1d(5000), BinaryActivation()]
        return nn.Sequential(*first, *second, nn.Linear(5000, 3, bias=False))

    model = with_statistics(binarize_weights(network(), "sign", seed=0), (160, 4, 4))
    x = images(67, (160, 4, 4))
    x[:33] = 1.0  # sums as large as they may be
    run = compiled(Ticket.of(model), network(), (160, 4, 4))
    with torch.no_grad():
        assert torch.equal(assert_same_in_batches(run, x), model(x))


SMALL = ["resnet20", "shufflenet", "torchvision:squeezenet1_1", "torchvision:mobilenet_v3_small"]
LARGE = [
    *("resnet18", "inception_v3", "torchvision:alexnet", "torchvision:vgg11_bn", "torchvision:densenet121"),
    *("torchvision:mobilenet_v2", "torchvision:shufflenet_v2_x1_0", "torchvision:resnet50", "torchvision:mnasnet1_0"),
    *(
        "torchvision:efficientnet_b0",
        "torchvision:googlenet",
        "torchvision:regnet_y_400mf",
        "torchvision:resnext50_32x4d",
    ),
]


@pytest.mark.parametrize("name", [*SMALL, *(pytest.param(name, marks=pytest.mark.slow) for name in LARGE)])
def test_networks_with_branches(name: str) -> None:
    size = 96 if name.endswith(("alexnet", "v3_small")) else 32 if ":" not in name else 64
    architecture = {"name": name, "image_size": size, "num_classes": 10}
    model = create_model(**architecture, seed=0)  # type: ignore[arg-type]
    binarize_weights(model, "mpt-bihalf", 0.8, seed=0, skip=("first", "last", "downsample"))
    with_statistics(model, (3, size, size))
    x = images(19, (3, size, size))
    logits = assert_same_in_batches(compiled(Ticket.of(model, architecture)), x)
    plain = bake_weights(model)
    found, double = off(logits, plain, x).max(), deepcopy(plain).double()
    with torch.no_grad():
        exact = double(x.double())
        assert found < CLOSE or (logits - exact).abs().max() < 4 * (plain(x) - exact).abs().max()
        assert torch.equal(logits.argmax(1), plain(x).argmax(1))


def test_signs_in_branches_differ_only_where_sums_are_rounded() -> None:
    architecture = {"name": "resnet20", "activations": "clip"}
    model = binarized(architecture, skip=("first", "last", "downsample"))
    x = images(64, (3, 32, 32))
    logits = assert_same_in_batches(compiled(Ticket.of(model, architecture)), x)
    assert (off(logits, model, x) < CLOSE).float().mean() > 0.9


# ---- Networks at random


class Random(nn.Module):
    """A network of random parts: whatever a program has, in any order, on maps of odd sizes."""

    def __init__(self, seed: int, signs: bool) -> None:
        super().__init__()
        chance = random.Random(seed)
        self.shape = (chance.choice([1, 3, 5]), chance.randint(3, 21), chance.randint(3, 21))
        shape, parts = self.shape, []
        for _ in range(chance.randint(1, 7)):
            part = self.part(chance, shape, signs)
            shape = tuple(part(torch.zeros(2, *shape)).shape[1:])
            parts.append(part)
        self.parts = nn.ModuleList(parts)
        features = shape[0] * shape[1] * shape[2]
        layers: list[nn.Module] = [nn.Linear(features, 9, bias=chance.random() < 0.5), nn.Hardtanh(-2, 3)]
        if signs:
            layers = [nn.BatchNorm1d(features), BinaryActivation(), nn.Linear(features, 9), nn.PReLU()]
        self.head = nn.Sequential(*layers, nn.Linear(9, 4))

    @staticmethod
    def part(chance: random.Random, shape: tuple[int, ...], signs: bool) -> nn.Module:
        channels, height, width = shape
        least = min(height, width)
        kinds: list[Callable[[], nn.Module]] = [
            lambda: Convolved(chance, shape, signs),
            lambda: Convolved(chance, shape, signs),
            lambda: Joined(chance, channels, chance.choice(["add", "cat", "scale", "iadd"]), signs),
        ]
        if least >= 3:
            padding, ceil = chance.randint(0, 1), chance.random() < 0.5
            kinds += [
                lambda: nn.MaxPool2d(chance.randint(2, 3), chance.choice([1, 2, 3]), padding, ceil_mode=ceil),
                lambda: nn.AvgPool2d(3, 2, padding, ceil_mode=ceil, count_include_pad=chance.random() < 0.5),
                lambda: nn.AdaptiveAvgPool2d(chance.randint(2, 4)),
                lambda: nn.MaxPool2d(2),
            ]
        return chance.choice(kinds)()

    def forward(self, x: Tensor) -> Tensor:
        for part in self.parts:
            x = part(x)
        return cast(Tensor, self.head(torch.flatten(x, 1)))


class Convolved(nn.Sequential):
    def __init__(self, chance: random.Random, shape: tuple[int, ...], signs: bool) -> None:
        channels, height, width = shape
        kernel = min(chance.choice([1, 2, 3, 3, 3, 5]), height, width)
        dilation = chance.choice([1, 2]) if 2 * kernel <= min(height, width) else 1
        groups = channels if chance.random() < 0.2 and channels < 30 else 1
        filters = groups * chance.randint(1, 20 if groups == 1 else 3)
        convolution = nn.Conv2d(
            *(channels, filters, kernel, chance.choice([1, 1, 2, 3]), chance.randint(0, kernel - 1), dilation, groups),
            bias=chance.random() < 0.5,
        )
        behind: list[nn.Module] = [chance.choice([nn.ReLU(), nn.PReLU(filters), nn.Hardtanh(), nn.SiLU()])]
        if chance.random() < 0.5:
            behind.insert(chance.randint(0, 1), nn.BatchNorm2d(filters))
        if chance.random() < 0.4:
            behind.append(nn.MaxPool2d(2, ceil_mode=True))
        before: list[nn.Module] = [BinaryActivation()] if signs and chance.random() < 0.7 else []
        super().__init__(*before, convolution, *behind)


class Joined(nn.Module):
    """A branch of the same size, and how it comes back."""

    def __init__(self, chance: random.Random, channels: int, how: str, signs: bool) -> None:
        super().__init__()
        self.how = how
        self.branch = nn.Conv2d(channels, channels, 3, padding=1, bias=chance.random() < 0.5)
        self.before = BinaryActivation() if signs else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        branch = self.branch(self.before(x))
        if self.how == "scale":
            return x * branch.mean((2, 3), keepdim=True).sigmoid()
        if self.how == "cat":
            first, second = torch.cat([branch, x], 1).chunk(2, 1)
            return torch.cat([second, first[:, ::2]], 1)
        if self.how == "iadd":
            branch += x
            return F.relu(branch, inplace=True)
        return x + branch


@pytest.mark.parametrize("signs", [False, True])
@pytest.mark.parametrize("start", [0, *(pytest.param(100 * n, marks=pytest.mark.slow) for n in range(1, 11))])
def test_networks_at_random(start: int, signs: bool) -> None:
    for seed in range(start, start + (25 if start == 0 else 100)):
        torch.manual_seed(seed)
        with torch.no_grad():
            model: nn.Module = Random(seed, signs)
        shape = cast(Random, model).shape
        plain = pickle.loads(pickle.dumps(model))
        rate = random.Random(seed).choice([0.0, 0.3, 0.6])
        skip = ("first",) if seed % 3 == 0 else ()
        binarize_weights(
            model, "mpt-bihalf" if seed % 2 else "magnitude-sign", rate, seed=0, skip=skip, allow_empty=True
        )
        with_statistics(model, shape, seed)
        x = images(37, shape)
        run = compiled(Ticket.of(model), plain, shape)
        found = off(assert_same_in_batches(run, x), model, x)
        bad = found > (1e-4 if not signs else CLOSE)
        assert bad.float().mean() < (0.2 if signs else 1e-9), (seed, found)


class Written(nn.Module):
    """Operations in place on what others read too."""

    def __init__(self, how: str) -> None:
        super().__init__()
        self.how, self.first, self.second = how, nn.Conv2d(3, 8, 3), nn.Conv2d(8, 8, 3, padding=1)
        self.nothing, self.relu, self.last = nn.Dropout(), nn.ReLU(inplace=True), nn.Linear(128, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x)
        if self.how == "identity":
            y = self.second(self.relu(self.nothing(x)))
        elif self.how == "itself":
            y = self.second(self.relu(x))
        elif self.how == "view":
            y = F.relu_(torch.flatten(x, 1)).view(-1, 8, 4, 4)
        else:
            y = F.relu_(x.chunk(2, 1)[0])
            y = torch.cat([y, y], 1)
        return cast(Tensor, self.last(torch.flatten(x + y, 1)))


@pytest.mark.parametrize("how", ["identity", "itself", "view", "chunk"])
def test_operations_in_place_are_seen_by_who_reads_later(how: str) -> None:
    torch.manual_seed(0)
    model = Written(how)
    plain, x = deepcopy(model), images(9, (3, 6, 6))
    ticket = Ticket.of(binarize_weights(model, "sign", seed=0).eval())
    if how in ("view", "chunk"):
        with one_line_error("an operation in place on values that are read by other ways too"):
            compiled(ticket, plain, (3, 6, 6))
        return
    assert off(compiled(ticket, plain, (3, 6, 6))(x), model, x).max() < CLOSE


CALLS: dict[str, Callable[[Tensor], Tensor]] = {
    "relu, in place by position": lambda x: F.relu(x, True),
    "relu6": lambda x: F.relu6(x, True),
    "hardtanh": F.hardtanh,
    "hardtanh by position": lambda x: F.hardtanh(x, -0.3, 0.2),
    "hardtanh in place": lambda x: F.hardtanh(x, -0.3, 0.2, True),
    "silu in place": lambda x: F.silu(x, True),
    "hardswish": lambda x: F.hardswish(x, True),
    "max pooling by position": lambda x: F.max_pool2d(x, 3, 2, 1, 1, True),
    "torch's max pooling": lambda x: torch.max_pool2d(x, 2),
    "average pooling by position": lambda x: F.avg_pool2d(x, 3, 2, 1, True, False),
    "adaptive": lambda x: F.adaptive_avg_pool2d(x, (3, 2)),
    "no dropout": lambda x: F.dropout(x, 0.5, False),
    "mean": lambda x: x.mean((2, 3), True) * x,
}


class Called(nn.Module):
    def __init__(self, how: str) -> None:
        super().__init__()
        self.how, self.first = how, nn.Conv2d(3, 8, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x)
        y = CALLS[self.how](x).mean((2, 3))
        return y + x.mean((2, 3))  # what is written in place is read again


@pytest.mark.parametrize("how", CALLS)
def test_functions_are_called_as_torch_takes_them(how: str) -> None:
    torch.manual_seed(0)
    model, x = Called(how), images(5, (3, 8, 8))
    plain = deepcopy(model)
    ticket = Ticket.of(binarize_weights(model, "sign", seed=0).eval())
    assert off(compiled(ticket, plain, (3, 8, 8))(x), model, x).max() < CLOSE


def test_dropout_that_goes_on_is_refused() -> None:
    CALLS["dropout"] = F.dropout
    model = Called("dropout")
    plain = deepcopy(model)
    with one_line_error("dropout in evaluation mode"):
        compiled(Ticket.of(binarize_weights(model, "sign", seed=0)), plain, (3, 8, 8))


ENDS: list[list[nn.Module]] = [
    [nn.Conv2d(3, 5, 4)],
    [nn.Conv2d(3, 5, 4), nn.BatchNorm2d(5), nn.Flatten()],
    [nn.Conv2d(3, 5, 3), nn.MaxPool2d(2), nn.Flatten()],
    [nn.Conv2d(3, 5, 4), nn.Conv2d(5, 4, 1), nn.Flatten()],
    [nn.Conv2d(3, 5, 4), nn.Flatten(), BinaryActivation()],
    [nn.Conv2d(3, 5, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten()],
]


@pytest.mark.parametrize("layers", ENDS, ids=str)
def test_networks_may_end_in_a_convolution(layers: list[nn.Module]) -> None:
    model = nn.Sequential(*deepcopy(layers))
    plain = deepcopy(model)
    model = with_statistics(binarize_weights(model, "sign", seed=0), (3, 4, 4))
    x = images(40, (3, 4, 4))
    logits = assert_same_in_batches(compiled(Ticket.of(model), plain, (3, 4, 4)), x)
    with torch.no_grad():
        assert torch.allclose(logits, model(x).flatten(1), atol=1e-5)


# ---- What is refused, and how


@pytest.mark.parametrize(
    ("last", "what"),
    [
        (nn.Softmax(1), "Softmax, at '2'"),
        (nn.LayerNorm(5), "LayerNorm, at '2'"),
        (nn.Unflatten(1, (5, 1)), "Unflatten"),
        (nn.GELU("tanh"), "GELU by tanh"),
        (nn.BatchNorm1d(5, track_running_stats=False), "a batch norm without statistics"),
        (BinaryActivation(), None),
    ],
)
def test_what_cannot_be_run_is_named_in_one_line(last: nn.Module, what: str | None) -> None:
    model = nn.Sequential(nn.Flatten(), nn.Linear(48, 5), last)
    plain = pickle.loads(pickle.dumps(model))
    ticket = Ticket.of(binarize_weights(model, "sign", seed=0))
    if what is None:
        assert compiled(ticket, plain, (3, 4, 4))(images(2, (3, 4, 4))).unique().tolist() in ([-1, 1], [1], [-1])
        return
    with one_line_error(what):
        compiled(ticket, plain, (3, 4, 4))


def test_transformers_are_refused_by_name() -> None:
    with torch.device("meta"):
        model = create_model("torchvision:vit_b_16", image_size=32, num_classes=5)
    layer = {"name": "torchvision:vit_b_16", "image_size": 32, "num_classes": 5}
    state = {name: torch.zeros(value.shape) for name, value in model.state_dict().items()}
    with one_line_error("torch.fx cannot trace VisionTransformer|MultiheadAttention|LayerNorm|, at "):
        compiled(Ticket({}, state, architecture={**layer, "in_channels": 3, "width": 1.0, "activations": "real"}))


def small() -> CompiledTicket:
    architecture = {"name": "conv2", "width": 0.05}
    return compiled(Ticket.of(binarized(architecture), architecture))


def test_images_of_other_shapes_and_kinds_are_refused() -> None:
    run = small()
    for shape in ((2, 3, 32, 31), (3, 32, 32), (2, 1, 32, 32)):
        with one_line_error(r"images must be of shape \[N, 3, 32, 32\], not"):
            run(torch.zeros(shape))
    for bad in (torch.zeros(1, 3, 32, 32, dtype=torch.uint8), np.zeros((1, 3, 32, 32), dtype=int), [1.0]):
        with pytest.raises(TypeError, match="floating-point"):
            run(cast(Any, bad))
    assert run(torch.zeros(0, 3, 32, 32)).shape == (0, 10)
    with one_line_error("threads must lie in 1 to 256, not 0"):
        CompiledTicket(run.program, run.shape, run.classes, 0)


def test_other_dtypes_and_layouts_are_taken_as_float32() -> None:
    run, x = small(), images(5, (3, 32, 32))
    for other in (x.double(), x.to(memory_format=torch.channels_last), x.clone().requires_grad_(), x.flip(0).flip(0)):
        assert torch.equal(run(other), run(x))
    assert torch.equal(run(x.half()), run(x.half().float()))
    assert np.array_equal(run(np.asfortranarray(x.numpy())), run(x).numpy())


def test_a_network_of_ones_own_needs_the_size_of_images_and_stays_as_it_was(tmp_path: Path) -> None:
    def network() -> nn.Module:
        torch.manual_seed(1)
        return nn.Sequential(nn.Conv2d(2, 6, 3), nn.BatchNorm2d(6), nn.ReLU(), nn.Flatten(), nn.Linear(6 * 25, 3))

    model = with_statistics(binarize_weights(network(), "mpt-sign", 0.5, seed=0), (2, 7, 7))
    save_ticket(model, tmp_path / "a")
    into = network()
    before = {name: value.clone() for name, value in into.state_dict().items()}
    with one_line_error(r"say images=\(channels, height, width\)"):
        compile_ticket(tmp_path / "a", into=into)
    run = compile_ticket(tmp_path / "a", into=into, images=(2, 7, 7))
    assert all(torch.equal(value, before[name]) for name, value in into.state_dict().items())
    assert into.training
    x = images(3, (2, 7, 7))
    assert off(run(x), model, x).max() < CLOSE
    again = pickle.loads(pickle.dumps(run))
    assert torch.equal(again(x), run(x))


def test_images_that_the_network_is_not_for_are_refused() -> None:
    def network() -> nn.Module:
        return nn.Sequential(nn.Conv2d(3, 8, 3, padding=1, bias=False), nn.ReLU(), nn.Flatten(), nn.Linear(288, 5))

    ticket = Ticket.of(binarize_weights(network(), "sign", seed=0, skip=("last",)))
    for shape in ((3, 4, 4), (3, 5, 5), (3, 7, 7), (4, 6, 6)):
        with one_line_error("inputs of a (Linear|Conv2d) that takes another number"):
            compiled(ticket, network(), shape)
    for bad in ((3, 0, 6), (3, 6), (3, -1, 6), "abc", (3.0, 6, 6), (3, 2**17, 2**17), 6):
        with one_line_error("images must be three sizes from 1 to 65,536"):
            compiled(ticket, network(), cast(Any, bad))
    assert compiled(ticket, network(), cast(Any, [3, 6, 6]))(images(1, (3, 6, 6))).shape == (1, 5)
    with one_line_error("a value of 8 x 60000 x 60000 numbers|a value of 3 x 60000 x 60000 numbers"):
        compiled(ticket, network(), (3, 60000, 60000))
    with one_line_error("threads must lie in 1 to 256, not 1.5"):
        compiled(ticket, network(), (3, 6, 6), cast(Any, 1.5))


def test_steps_and_kernels_beyond_the_programs_limits(tmp_path: Path) -> None:
    class Many(nn.Module):
        def __init__(self, kernel: int) -> None:
            super().__init__()
            self.first, self.last = nn.Conv2d(1, 2, (1, kernel), bias=False), nn.Linear(2 * 70, 3)

        def forward(self, x: Tensor) -> Tensor:
            x = self.first(x)
            for _ in range(50):
                x = F.relu(x) + 0.01
            return cast(Tensor, self.last(torch.flatten(x, 1)))

    for kernel, width in ((1, 70), (65, 134)):
        model = Many(kernel)
        plain, x = deepcopy(model), images(3, (1, 1, width))
        ticket = Ticket.of(binarize_weights(model, "sign", seed=0).eval())
        if kernel > 64:
            with one_line_error(r"a kernel of \[1, 65\]"):
                compiled(ticket, plain, (1, 1, width))
            continue
        assert off(compiled(ticket, plain, (1, 1, width))(x), model, x).max() < CLOSE


def test_without_compiled_loops_it_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kernels, "compiled", lambda: None)
    with one_line_error("install again with a C\\+\\+ compiler"):
        small()


def test_every_kind_of_processor_gives_the_same_bits() -> None:
    architecture = {"name": "conv2", "width": 0.25}
    ticket = Ticket.of(binarized(architecture), architecture)
    program, x, found = program_of(ticket, None, (3, 32, 32))[0], images(33, (3, 32, 32)), []
    capability = torch.backends.cpu.get_cpu_capability()
    for flavour in kernels.FLAVOURS.get(capability, ("any",)):
        for file in Path(kernels.__file__).parent.glob(f"_kernels_{flavour}.*"):
            library = kernels._declared(ctypes.CDLL(str(file)))
            engine, y = library.mpt_ticket_load(program, len(program)), torch.empty(33, 10)
            for start, count in ((0, 33), (2, 1)):  # by images as lanes, and by patches
                assert library.mpt_ticket_run(engine, x[start].data_ptr(), y[start].data_ptr(), count, 2) == 0
                found.append(y[2].clone())
            library.mpt_ticket_free(engine)
    assert len(found) >= 2
    assert all(torch.equal(found[0], each) for each in found)


def test_a_damaged_program_is_none() -> None:
    run, library = small(), kernels.compiled()
    assert library is not None
    words = np.frombuffer(run.program, dtype=np.int32)
    for size in range(0, len(run.program), 1 + len(run.program) // 300):
        cut = run.program[:size]
        assert not library.mpt_ticket_load(cut, len(cut))
    chance = np.random.default_rng(0)
    for _ in range(500):  # of what says which values, operations and arrays there are
        changed = words.copy()
        changed[chance.integers(0, 8 + 4 * 10 + 32 * 6)] = chance.choice([-1, 0, 1, 7, 2**16, 2**30, -(2**31)])
        engine = library.mpt_ticket_load(changed.tobytes(), len(run.program))
        if engine:
            library.mpt_ticket_free(engine)
    for word, value in ((3, 0), (4, 1), (5, 0)):  # nothing is done; another value is the image, or the output
        changed = words.copy()
        changed[word] = value
        engine = library.mpt_ticket_load(changed.tobytes(), len(run.program))
        assert not engine
