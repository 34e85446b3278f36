"""Tickets round trip to the last bit, near their bound, and whatever else a file holds is refused."""

from __future__ import annotations

import json
import os
import struct
from collections.abc import Callable
from copy import deepcopy
from pathlib import Path
from typing import Any, cast

import pytest
import safetensors.torch
import torch
import torchvision
from scipy.stats import bernoulli
from torch import Tensor, nn

from mpt_bihalf import METHODS, Method, bake_weights, binarize_weights, create_model, set_compute
from mpt_bihalf.activations import BinaryActivation
from mpt_bihalf.data import evaluation_batches
from mpt_bihalf.sweep import load_run
from mpt_bihalf.tickets import (
    BinaryLayer,
    Ticket,
    load_ticket,
    read_ticket,
    run_ticket,
    save_ticket,
    ticket_weights,
    write_ticket,
)
from mpt_bihalf.tickets import file as tickets_file
from mpt_bihalf.tickets.file import _digest
from tests.reference import one_line_error

SKIP = ("first", "last", "downsample")
RATES = [index / 10 for index in range(10)]


def binarized(name: str, method: str, rate: float, width: float = 1.0, activations: str = "real") -> nn.Module:
    model = create_model(name, seed=0, width=width, activations=activations)
    binarize_weights(model, method, rate, skip=() if name.startswith("conv") else SKIP, seed=0)
    if not name.startswith("conv"):
        model(torch.randn(8, 3, 32, 32))  # batch norm has statistics of its own
    return model.eval()


def assert_round_trip(model: nn.Module, path: Path, architecture: dict[str, Any]) -> int:
    """How many bytes its float32 state has."""
    save_ticket(model, path, architecture)
    loaded, baked = load_ticket(path), bake_weights(model).state_dict()
    state = loaded.state_dict()
    assert list(state) == list(baked)
    for name, value in baked.items():
        assert torch.equal(state[name], value) and state[name].dtype == value.dtype, name
    x = torch.randn(4, 3, 32, 32, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        assert torch.equal(loaded(x), model(x))
    assert not loaded.training
    return sum(value.numel() * value.element_size() for value in baked.values())


def entropy(n: int, ones: int) -> float:
    return n * float(bernoulli(ones / n).entropy()) / 0.6931471805599453 if 0 < ones < n else 0.0


def assert_near_bound(path: Path) -> None:
    """The file less the real-valued rest: 1 % above the Shannon bound, 4 KiB and 128 bytes a tensor."""
    ticket, bits, rest = read_ticket(path), 0.0, 0
    for layer in ticket.layers.values():
        kept = int((layer.binary != 0).sum())
        bits += entropy(layer.binary.numel(), kept) + entropy(kept, int((layer.binary > 0).sum()))
    rest = sum(value.numel() * value.element_size() for value in ticket.rest.values())
    rest += sum(layer.alpha.numel() * layer.alpha.element_size() for layer in ticket.layers.values())
    tensors = len(ticket.rest) + len(ticket.layers)
    assert path.stat().st_size - rest <= 1.01 * bits / 8 + 4096 + 128 * tensors


@pytest.mark.parametrize("method", list(METHODS))
@pytest.mark.parametrize(("name", "width"), [("conv4", 0.25), ("resnet18", 0.125)])
def test_every_method_round_trips_to_the_last_bit(tmp_path: Path, name: str, width: float, method: str) -> None:
    model = binarized(name, method, 0.9, width)
    assert_round_trip(model, tmp_path / "a.ticket", {"name": name, "width": width})
    assert_near_bound(tmp_path / "a.ticket")


@pytest.mark.slow
@pytest.mark.parametrize("method", list(METHODS))
@pytest.mark.parametrize("name", ["conv2", "conv4", "conv6", "conv8", "resnet18"])
def test_every_method_round_trips_at_every_rate(tmp_path: Path, name: str, method: str) -> None:
    for rate in RATES if METHODS[method].mask is not None else [0.0]:
        model = binarized(name, method, rate)
        plain = assert_round_trip(model, tmp_path / "a.ticket", {"name": name})
        assert_near_bound(tmp_path / "a.ticket")
        size = (tmp_path / "a.ticket").stat().st_size
        print(f"{name} {method} {rate}: {size:,} bytes, {plain / size:.1f} times smaller")


@pytest.mark.parametrize("name", ["resnet20", "vgg_small", "shufflenet", "torchvision:mobilenet_v2"])
def test_networks_with_binary_activations_and_torchvisions_round_trip(tmp_path: Path, name: str) -> None:
    choices = {} if ":" in name else {"width": 0.25, "activations": "clip"}
    assert_round_trip(binarized(name, "mpt-bihalf", 0.7, **choices), tmp_path / "a", {"name": name, **choices})


def version(path: Path) -> str:
    with safetensors.safe_open(path, "pt") as file:
        return str(file.metadata()["version"])


def test_a_ticket_with_scales_on_outputs_is_of_version_2_and_any_other_of_version_1(tmp_path: Path) -> None:
    path, x = tmp_path / "a", torch.randn(4, 3, 32, 32)
    for activations, scale_on, expected in (("clip", "output", "2"), ("clip", "weight", "1"), ("real", "output", "1")):
        architecture = {"name": "conv2", "width": 0.25, "activations": activations}
        model = create_model(**architecture, seed=0)
        binarize_weights(model, "mpt-bihalf", 0.5, seed=0, scale_on=scale_on).eval()
        save_ticket(model, path, architecture)
        assert version(path) == expected
        for loaded in (load_ticket(path), load_ticket(path, into=create_model(**architecture, seed=1))):
            assert torch.equal(loaded(x), model(x))
        assert hasattr(loaded[-1], "output_scale") == (expected == "2")


def test_a_scale_on_the_output_and_a_bias_round_trip_into_a_network_of_ones_own(tmp_path: Path) -> None:
    def network(seed: int) -> nn.Module:
        torch.manual_seed(seed)
        layers = nn.Conv2d(3, 8, 3), BinaryActivation(), nn.MaxPool2d(2), nn.Conv2d(8, 4, 3), nn.PReLU(), nn.Flatten()
        return nn.Sequential(*layers, BinaryActivation(), nn.Linear(16, 5))

    path, x = tmp_path / "a", torch.randn(2, 3, 10, 10)
    for method in ("irnet", "mpt-sign"):
        model = binarize_weights(network(0), method, 0.5, seed=0).eval()
        save_ticket(model, path)
        loaded: Any = load_ticket(path, into=network(1))
        assert torch.equal(loaded(x), model(x))
        assert not loaded[7].weight.requires_grad and loaded[7].output_scale.bias.requires_grad
        assert torch.equal(ticket_weights(path)["7"].float(), loaded[7].weight)
    with one_line_error("'0' is no layer"):
        resigned(path, lambda header, _: header.__setitem__("scale_on_output", ["0"]), path.read_bytes())
        load_ticket(path, into=nn.Sequential(NotALayer(), *network(1)[1:]))


def test_a_baked_network_has_a_ticket_too(tmp_path: Path) -> None:
    architecture = {"name": "conv2", "width": 0.25, "activations": "clip"}
    model = binarize_weights(create_model(**architecture, seed=0), "bihalf", seed=0, scale=lambda layer, mask: HALF)
    baked, x = bake_weights(model).eval(), torch.randn(4, 3, 32, 32)
    before = baked(x)
    save_ticket(baked, tmp_path / "a", architecture)
    assert version(tmp_path / "a") == "1"  # all is real-valued in it
    assert torch.equal(load_ticket(tmp_path / "a")(x), before)
    assert torch.equal(baked(x), before)


HALF = torch.tensor(0.5)


class NotALayer(nn.Module):
    """With the parameters of one."""

    def __init__(self) -> None:
        super().__init__()
        self.weight, self.bias = nn.Parameter(torch.ones(8, 3, 3, 3)), nn.Parameter(torch.ones(8))


def test_a_header_of_another_version_than_it_says_is_refused(tmp_path: Path, ticket_bytes: bytes) -> None:
    path = tmp_path / "forged"
    for names in ([], ["3"], ["nothing"]):
        resigned(path, lambda header, _, names=names: header.__setitem__("scale_on_output", names), ticket_bytes)
        with one_line_error("of another version"):
            read_ticket(path)
    second = ticket_bytes.replace(b'"version":"1"', b'"version":"2"')
    resigned(path, lambda header, _: None, second)
    with one_line_error("of another version"):
        read_ticket(path)
    for names, message in ((["nothing"], "does not have"), ([["2"]], "none of a ticket"), (7, "none of a ticket")):
        resigned(path, lambda header, _, names=names: header.__setitem__("scale_on_output", names), second)
        with one_line_error(message):
            read_ticket(path)

    def each_weight(header: dict[str, Any], tensors: dict[str, Tensor]) -> None:
        header["scale_on_output"], tensors["alpha/2"] = ["2"], torch.ones(header["layers"]["2"][0])

    resigned(path, each_weight, second)
    with one_line_error("not one for each filter"):
        read_ticket(path)


def test_a_trained_conv4_at_90_percent_is_a_fiftieth_and_classifies_alike(
    tmp_path: Path, finished: Callable[..., Path]
) -> None:
    folder = finished("mpt-bihalf", model="conv4", width=1.0)
    _, model, dataset, *_ = load_run(folder)
    torch.save(bake_weights(model).state_dict(), tmp_path / "plain.pt")
    write_ticket(run_ticket(folder), tmp_path / "a.ticket")
    assert 50 * (tmp_path / "a.ticket").stat().st_size <= (tmp_path / "plain.pt").stat().st_size
    loaded = load_ticket(tmp_path / "a.ticket")
    with torch.no_grad():
        for x, _ in evaluation_batches(dataset.test, dataset, 100):
            as_trained = model(x)
            torch.testing.assert_close(loaded(x), as_trained, rtol=1e-4, atol=1e-4)  # sums in another order
            set_compute(model, "dense")
            assert torch.equal(loaded(x), model(x))


@pytest.mark.parametrize("name", ["conv2", "torchvision:squeezenet1_1"])
def test_a_ticket_is_the_same_under_another_default_dtype(tmp_path: Path, name: str) -> None:
    save_ticket(binarized(name, "mpt-bihalf", 0.9), tmp_path / "a.ticket", {"name": name})
    usual = load_ticket(tmp_path / "a.ticket").state_dict()
    torch.set_default_dtype(torch.float64)
    try:
        other = load_ticket(tmp_path / "a.ticket").state_dict()
    finally:
        torch.set_default_dtype(torch.float32)
    assert list(other) == list(usual)
    assert all(torch.equal(value, usual[key]) and value.dtype == usual[key].dtype for key, value in other.items())


def test_a_network_of_ones_own_is_loaded_into_it(tmp_path: Path) -> None:
    def own() -> nn.Module:
        return nn.Sequential(nn.Conv1d(3, 8, 3), nn.BatchNorm1d(8), nn.Flatten(), nn.Linear(48, 5)).double()

    model = binarize_weights(own(), "mpt-sign", 0.5, seed=0)
    save_ticket(model, tmp_path / "a.ticket")
    loaded = load_ticket(tmp_path / "a.ticket", into=own())
    x = torch.randn(2, 3, 8, dtype=torch.float64)
    assert torch.equal(loaded(x), model.eval()(x))
    with one_line_error("into=your_network"):
        load_ticket(tmp_path / "a.ticket")


def trainable(model: nn.Module) -> list[str]:
    return [name for name, parameter in model.named_parameters() if parameter.requires_grad]


@pytest.mark.parametrize("method", ["bihalf", "mpt-sign"])
def test_a_loaded_network_has_its_binary_weights_frozen_and_the_rest_trainable(tmp_path: Path, method: str) -> None:
    architecture = {"name": "resnet20", "width": 0.25}
    model = binarize_weights(create_model(**architecture, seed=0), method, skip=SKIP, seed=0)
    save_ticket(model, tmp_path / "a", architecture)
    binary = {f"{name}.weight" for name in ticket_weights(tmp_path / "a")}
    names = [name for name, _ in create_model(**architecture).named_parameters()]
    assert trainable(load_ticket(tmp_path / "a")) == [name for name in names if name not in binary]

    own = create_model(**architecture)
    for norm in (module for module in own.modules() if isinstance(module, nn.BatchNorm2d)):
        norm.requires_grad_(False)
    wanted = [name for name in trainable(own) if name not in binary]
    assert trainable(load_ticket(tmp_path / "a", into=own)) == wanted
    assert wanted


def test_fine_tuning_a_loaded_network_leaves_its_binary_weights(tmp_path: Path) -> None:
    model = binarize_weights(nn.Sequential(nn.Linear(6, 4), nn.ReLU(), nn.Linear(4, 3)), "bihalf", skip="last", seed=0)
    save_ticket(model, tmp_path / "a")
    loaded = load_ticket(tmp_path / "a", into=bake_weights(model))
    before = {name: value.clone() for name, value in loaded.state_dict().items()}
    optimizer = torch.optim.SGD(loaded.parameters(), lr=0.1, weight_decay=0.1)
    loaded(torch.randn(5, 6)).square().sum().backward()
    optimizer.step()
    after = loaded.state_dict()
    assert [name for name in before if torch.equal(before[name], after[name])] == ["0.weight"]


@pytest.mark.parametrize("layer", [nn.Linear(6, 4), torchvision.models.squeezenet1_0(num_classes=3)])
def test_any_module_has_a_ticket(tmp_path: Path, layer: nn.Module) -> None:
    save_ticket(binarize_weights(layer, "bihalf", seed=0), tmp_path / "a")
    plain = bake_weights(layer)
    loaded = load_ticket(tmp_path / "a", into=bake_weights(layer))
    assert all(torch.equal(loaded.state_dict()[name], value) for name, value in plain.state_dict().items())


def test_a_scale_of_ones_own_and_channels_last_round_trip(tmp_path: Path) -> None:
    def uneven(weight: Tensor, mask: Tensor | None) -> Tensor:
        return weight.abs().mean((0, 2, 3), keepdim=True)  # one for each input channel

    method = Method("uneven", "weights", METHODS["sign"].binarizer, scale=uneven)
    model = nn.Sequential(nn.Conv2d(3, 16, 3), nn.ReLU(), nn.Conv2d(16, 8, 3)).to(memory_format=torch.channels_last)
    binarize_weights(model, method, seed=0)
    save_ticket(model, tmp_path / "a")
    plain = bake_weights(model)
    loaded = load_ticket(tmp_path / "a", into=deepcopy(plain).to(memory_format=torch.contiguous_format))
    assert torch.equal(loaded[2].weight, plain[2].weight)
    assert loaded[2].weight.stride() == plain[2].weight.stride()  # by which a convolution's rounding may go
    x = torch.randn(2, 3, 16, 16)
    assert torch.equal(loaded(x), model(x))


class Twice(nn.Module):
    """One layer under two names, and one parameter in two layers."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.c, self.d = (nn.Linear(64, 64) for _ in range(3))
        self.b, self.d.weight = self.a, self.c.weight

    def forward(self, x: Tensor) -> Tensor:
        return cast(Tensor, self.d(self.c(self.b(self.a(x)))))


@pytest.mark.parametrize("method", ["bihalf", "mpt-bihalf"])
def test_what_a_network_uses_twice_is_stored_once(method: str, tmp_path: Path) -> None:
    model = binarize_weights(Twice(), method, seed=0).eval()
    save_ticket(model, tmp_path / "a")
    assert (tmp_path / "a").stat().st_size < 3 * 64 * 64 / 8 + 3 * 4 * 64 + 1500
    loaded, x = load_ticket(tmp_path / "a", into=Twice()), torch.randn(3, 64)
    assert loaded.b is loaded.a and loaded.d.weight is loaded.c.weight
    assert torch.equal(loaded(x), model(x))


def test_one_parameter_is_not_given_the_weights_of_two(tmp_path: Path) -> None:
    apart = Twice()
    apart.d.weight = nn.Parameter(torch.randn(64, 64))
    save_ticket(binarize_weights(apart, "mpt-sign", seed=0), tmp_path / "a")
    other = Twice()
    before = other.c.weight.detach().clone()
    with one_line_error("are one tensor"):
        load_ticket(tmp_path / "a", into=other)
    assert torch.equal(other.c.weight, before)


def test_a_skipped_layer_may_be_parametrized_and_a_state_that_is_no_tensor_is_refused(tmp_path: Path) -> None:
    def own() -> nn.Module:
        return nn.Sequential(nn.utils.parametrizations.weight_norm(nn.Linear(4, 4)), nn.Linear(4, 4))

    model, x = binarize_weights(own(), "sign", skip="first", seed=0), torch.randn(3, 4)
    save_ticket(model, tmp_path / "a")
    assert torch.equal(load_ticket(tmp_path / "a", into=own())(x), model.eval()(x))

    class Extra(nn.Linear):
        def get_extra_state(self) -> Any:
            return {"of": "its own"}

    with one_line_error("_extra_state"):
        save_ticket(Extra(2, 2), tmp_path / "b")


def test_a_model_that_a_ticket_is_not_for_stays_as_it_was(tmp_path: Path) -> None:
    save_ticket(binarize_weights(nn.Linear(6, 4), "sign", seed=0), tmp_path / "a")
    for other in (nn.Linear(6, 5), nn.Linear(6, 4, bias=False), nn.Linear(6, 4).double(), nn.Conv1d(6, 4, 1)):
        before = {name: value.clone() for name, value in other.state_dict().items()}
        with one_line_error("another network"):
            load_ticket(tmp_path / "a", into=other)
        assert all(torch.equal(value, before[name]) for name, value in other.state_dict().items())
    with one_line_error("binarized already"):
        load_ticket(tmp_path / "a", into=binarize_weights(nn.Linear(6, 4), "sign"))


def test_an_architecture_that_is_not_the_models_is_refused(tmp_path: Path) -> None:
    model = binarized("conv2", "sign", 0.0, 0.125)
    for other in ({}, {"width": 1.0}, {"width": 0.125, "name": "conv4"}, {"name": "nonsense"}, {"a": 1}):
        wrong = {"name": "conv2", **other}
        with one_line_error():
            save_ticket(model, tmp_path / "a", wrong)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("method", ["mpt-sign", "mpt-bihalf", "mpt-balanced"])
def test_masks_alone_are_enough_where_signs_follow_from_the_seed(
    tmp_path: Path, finished: Callable[..., Path], method: str
) -> None:
    ticket = run_ticket(finished(method))
    for form in ("bits", "seed"):
        write_ticket(ticket, tmp_path / form, form)
    both = [load_ticket(tmp_path / form).state_dict() for form in ("bits", "seed")]
    assert all(torch.equal(both[0][name], both[1][name]) for name in both[0])
    kept = sum(layer.kept for layer in ticket.layers.values())
    saved = (tmp_path / "bits").stat().st_size - (tmp_path / "seed").stat().st_size
    assert saved == pytest.approx(kept / 8, abs=200)


def test_signs_that_do_not_follow_from_the_seed_are_not_left_out(tmp_path: Path, finished: Callable[..., Path]) -> None:
    trained = run_ticket(finished("bihalf"))
    own = Ticket.of(binarized("conv2", "mpt-sign", 0.5, 0.125), {"name": "conv2", "width": 0.125})
    for ticket in (trained, own):
        with one_line_error("seed"):
            write_ticket(ticket, tmp_path / "a", "seed")
    assert not list(tmp_path.iterdir())


def test_other_draws_from_the_seed_are_noticed(
    tmp_path: Path, finished: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    write_ticket(run_ticket(finished("mpt-sign")), tmp_path / "a", "seed")
    draw = torch.randn
    monkeypatch.setattr(torch, "randn", lambda *size, **kinds: -draw(*size, **kinds))
    with one_line_error("--form bits"):
        load_ticket(tmp_path / "a")


def test_no_other_network_than_the_tickets_is_drawn_from_its_seed(
    tmp_path: Path, finished: Callable[..., Path]
) -> None:
    write_ticket(run_ticket(finished("mpt-sign")), tmp_path / "a", "seed")
    content = (tmp_path / "a").read_bytes()
    resigned(tmp_path / "a", lambda header, _: header["about"]["run"].__setitem__("width", 64.0), content)
    with one_line_error("not that of its run"):
        load_ticket(tmp_path / "a")


def test_nothing_of_its_makers_machine_is_in_a_ticket(tmp_path: Path, finished: Callable[..., Path]) -> None:
    folder = finished("mpt-sign", data_root=str(tmp_path / "secret"))
    write_ticket(run_ticket(folder), tmp_path / "a")
    assert b"secret" not in (tmp_path / "a").read_bytes() and str(folder).encode() not in (tmp_path / "a").read_bytes()


def test_a_ticket_loads_without_unpickling(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = binarized("conv2", "mpt-bihalf", 0.9, 0.125)
    save_ticket(model, tmp_path / "a", {"name": "conv2", "width": 0.125})
    for place in ("torch.load", "pickle.load", "pickle.loads", "pickle.Unpickler"):
        monkeypatch.setattr(place, None)
    x = torch.randn(3, 3, 32, 32)
    assert torch.equal(load_ticket(tmp_path / "a")(x), model(x))


@pytest.fixture
def ticket_bytes(tmp_path: Path) -> bytes:
    save_ticket(binarized("conv2", "mpt-sign", 0.8, 0.125), tmp_path / "a", {"name": "conv2", "width": 0.125}, "a note")
    return (tmp_path / "a").read_bytes()


def test_200_random_corruptions_are_refused(tmp_path: Path, ticket_bytes: bytes) -> None:
    g = torch.Generator().manual_seed(0)
    path, n = tmp_path / "broken", len(ticket_bytes)
    header = 8 + struct.unpack("<Q", ticket_bytes[:8])[0]

    def pick(high: int) -> int:
        return int(torch.randint(high, (), generator=g))

    for kind in range(200):
        content = bytearray(ticket_bytes)
        at = pick(header if kind % 2 else n)
        match kind % 5:
            case 0:
                content[at] ^= 1 << pick(8)
            case 1:
                content[at] = (content[at] + 1 + pick(255)) % 256
            case 2:
                del content[at:]
            case 3:
                content[at:at] = bytes(pick(256) for _ in range(1 + pick(16)))
            case 4:
                content[at : at + 1 + pick(64)] = b""
        path.write_bytes(content)
        if bytes(content) != ticket_bytes:
            with one_line_error("broken"):
                read_ticket(path)


def resigned(path: Path, change: Callable[[dict[str, Any], dict[str, Tensor]], None], content: bytes) -> None:
    """Write the ticket with a change, and a check sum that fits."""
    path.write_bytes(content)
    with safetensors.safe_open(path, "pt") as file:
        metadata = file.metadata()
    tensors, header = safetensors.torch.load(content), json.loads(metadata["header"])
    change(header, tensors)
    metadata["header"] = json.dumps(header)
    metadata["sha256"] = _digest(metadata, tensors)
    path.write_bytes(safetensors.torch.save(tensors, metadata))


CHANGES: dict[str, Callable[[dict[str, Any], dict[str, Tensor]], Any]] = {
    "fewer kept": lambda header, _: header["layers"]["0"].__setitem__(1, 3),
    "more kept than there are": lambda header, _: header["layers"]["0"].__setitem__(1, 10**9),
    "negative": lambda header, _: header["layers"]["0"].__setitem__(2, -1),
    "huge": lambda header, _: header["layers"]["0"].__setitem__(0, [10**6, 10**6, 10**6]),
    "a name of nothing": lambda header, _: header["shared"].__setitem__("1.weight", "nothing"),
    "names as text": lambda header, _: header.__setitem__("shared", "all"),
    "another shape": lambda header, _: header["layers"]["0"].__setitem__(0, [3, 8, 3, 3]),
    "no layers": lambda header, _: header.pop("layers"),
    "layers as text": lambda header, _: header.__setitem__("layers", "all"),
    "header without architecture": lambda header, _: header.pop("architecture"),
    "another network": lambda header, _: header["architecture"].__setitem__("name", "conv4"),
    "no such network": lambda header, _: header["architecture"].__setitem__("name", "os.system"),
    "further arguments": lambda header, _: header["architecture"].__setitem__("estimator", "eval"),
    "a form unknown": lambda header, _: header.__setitem__("form", "pickle"),
    "the form seed": lambda header, _: header.__setitem__("form", "seed"),
    "bits as floats": lambda _, tensors: tensors.__setitem__("bits/0", torch.ones(3)),
    "no bits": lambda _, tensors: tensors.pop("bits/0"),
    "a tensor too many": lambda _, tensors: tensors.__setitem__("extra", torch.ones(3)),
    "a scale of another shape": lambda _, tensors: tensors.__setitem__("alpha/0", torch.ones(7)),
    "a scale of integers": lambda _, tensors: tensors.__setitem__("alpha/0", torch.ones((), dtype=torch.int64)),
}


@pytest.mark.parametrize("what", list(CHANGES))
def test_a_file_that_was_altered_and_signed_again_is_refused(tmp_path: Path, ticket_bytes: bytes, what: str) -> None:
    path = tmp_path / "forged"
    resigned(path, lambda header, tensors: None, ticket_bytes)
    assert load_ticket(path) is not None
    resigned(path, CHANGES[what], ticket_bytes)
    with one_line_error("forged"):
        load_ticket(path)


def test_what_an_architecture_leaves_out_is_create_models_default(tmp_path: Path, ticket_bytes: bytes) -> None:
    path = tmp_path / "forged"
    resigned(path, lambda header, _: header["architecture"].pop("num_classes"), ticket_bytes)
    assert read_ticket(path).architecture == read_ticket(tmp_path / "a").architecture


def pruned(*shape: int) -> Callable[[dict[str, Any], dict[str, Tensor]], None]:
    """A network of nobody's, all of whose layers are pruned whole, which takes no bits."""

    def change(header: dict[str, Any], tensors: dict[str, Tensor]) -> None:
        header["architecture"] = None
        for name in header["layers"]:
            header["layers"][name], tensors[f"bits/{name}"] = [[*shape], 0, 0], torch.zeros(0, dtype=torch.uint8)
            tensors[f"alpha/{name}"] = torch.ones(())

    return change


def too_few_bits(header: dict[str, Any], tensors: dict[str, Tensor]) -> None:
    header["architecture"], tensors["alpha/0"] = None, torch.ones(())
    header["layers"]["0"] = [[2**10, 2**10], 2**19, 2**18]


def nested(levels: int) -> list[Any]:
    return [nested(levels - 1)] if levels else []


def told(*place: Any, value: Any) -> Callable[[dict[str, Any], dict[str, Tensor]], None]:
    def change(header: dict[str, Any], _: dict[str, Tensor]) -> None:
        for step in place[:-1]:
            header = header[step]
        header[place[-1]] = value

    return change


# The reader refuses these before it unpacks anything, and says why.
CLAIMS: dict[str, tuple[Callable[[dict[str, Any], dict[str, Tensor]], Any], str]] = {
    "more weights than any network": (pruned(2**15, 2**15, 2), "at most 33,554,432"),
    "more weights than the file": (pruned(2**13, 2**11), "83,886,080 weights, and in 0 bytes of bits are at most 33,5"),
    "many dimensions": (pruned(*[1] * 9), "impossible size"),
    "hundreds of digits": (pruned(10**18), "impossible size"),
    "thousands of digits": (pruned(10**3000), "64 bits"),
    "a size that is none": (pruned(True, 3), "impossible size"),
    "too few bits": (too_few_bits, "layer '0' has fewer bits than so many weights take"),
    "bits of another kind": (lambda _, t: t.__setitem__("bits/0", t["bits/0"].view(torch.int8)), "fewer bits"),
    "bits in rows": (lambda _, t: t.__setitem__("bits/0", t["bits/0"][None]), "fewer bits"),
    "a deep note": (told("about", "note", value=nested(40)), "nested too deeply"),
    "a deep class": (told("about", "images", value={"classes": nested(40)}), "nested too deeply"),
    "a seed of many digits": (told("about", "run", value={"seed": 10**3000}), "64 bits"),
    "large images": (told("architecture", "image_size", value=1028), "image_size must lie in 1 to 1,024"),
    "images of three sides": (told("architecture", "image_size", value=[8, 8, 8]), "image_size must lie in"),
    "nested sides": (told("architecture", "image_size", value=nested(9)), r"not \[+\.\.\."),
    "many classes": (told("architecture", "num_classes", value=2**21), "num_classes must lie in 1 to 1,048,576"),
    "many channels": (told("architecture", "in_channels", value=2**21), "in_channels must lie in 1 to 1,048,576"),
    "a wide network": (told("architecture", "width", value=1e300), "forged"),
}


@pytest.mark.parametrize("what", list(CLAIMS))
def test_what_a_file_claims_is_measured_before_anything_is_unpacked(
    tmp_path: Path, ticket_bytes: bytes, what: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    change, message = CLAIMS[what]
    resigned(tmp_path / "forged", change, ticket_bytes)
    monkeypatch.setattr(tickets_file, "Decoder", forbidden)
    with one_line_error(message):
        read_ticket(tmp_path / "forged")


def forbidden(*_: Any) -> None:
    raise SystemExit("it is unpacked")


def test_a_ticket_of_another_network_is_refused_before_it_is_unpacked(
    tmp_path: Path, ticket_bytes: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "a"
    assert read_ticket(path, model="conv2").architecture == read_ticket(path).architecture
    save_ticket(own := binarize_weights(nn.Linear(6, 4), "sign", seed=0), tmp_path / "own")
    monkeypatch.setattr(tickets_file, "Decoder", forbidden)
    with one_line_error("it is for 'conv2', not for 'conv4'"):
        read_ticket(path, model="conv4")
    with one_line_error("it is for a network of its maker's own, not for 'conv4'"):
        read_ticket(tmp_path / "own", model="conv4")
    with one_line_error("unknown model 'nonsense'"):
        read_ticket(path, model="nonsense")
    with one_line_error("another network"):
        load_ticket(path, into=create_model("conv2"))
    with one_line_error("binarized already"):
        load_ticket(tmp_path / "own", into=own)


def test_a_ticket_that_could_not_be_read_is_not_written(tmp_path: Path) -> None:
    with torch.device("meta"):
        binary = torch.empty(2**13, 2**13, dtype=torch.int8)
    ticket = Ticket({"0": BinaryLayer(binary, torch.ones(()))}, {})
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(BinaryLayer, "kept", 0)
        patch.setattr(BinaryLayer, "positive", 0)
        patch.setattr(tickets_file, "_pack", lambda *_, **__: torch.zeros(0, dtype=torch.uint8))
        with one_line_error("67,108,864 weights"):
            write_ticket(ticket, tmp_path / "a")
    with one_line_error("image_size must lie in 1 to 1,024"):
        save_ticket(create_model("resnet20", image_size=2048), tmp_path / "a", {"name": "resnet20", "image_size": 2048})
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("rate", [0.0, 0.5, 0.9, 0.99, 0.999])
def test_layers_of_any_size_and_rate_have_the_bits_that_their_weights_take(tmp_path: Path, rate: float) -> None:
    chance = torch.Generator().manual_seed(0)
    for share in (0.0, 0.03, 0.5, 1.0):
        layers = {}
        for n in (1, 2, 7, 30, 432, 5000, 100_000):
            kept = torch.rand(n, generator=chance) >= rate
            signs = torch.where(torch.rand(n, generator=chance) < share, 1, -1)
            layers[str(n)] = BinaryLayer((kept * signs).to(torch.int8), torch.ones(()))
        write_ticket(Ticket(layers, {}), tmp_path / "a")
        found = read_ticket(tmp_path / "a").layers
        assert all(torch.equal(found[name].binary, layer.binary) for name, layer in layers.items())


@pytest.mark.slow
@pytest.mark.parametrize("rate", [0.0, 0.5, 0.9, 0.999, 1 - 3e-8])
def test_a_layer_of_100_million_weights_comes_back(tmp_path: Path, rate: float) -> None:
    kept = torch.rand(10**8, generator=torch.Generator().manual_seed(0)) >= rate
    binary = kept.to(torch.int8)
    binary[::2] *= -1
    if rate > 0.999:  # too few bits for so many weights
        binary = binary[: 2**25]
    write_ticket(Ticket({"0": BinaryLayer(binary, torch.ones(()))}, {}), tmp_path / "a")
    print(f"{rate}: {(tmp_path / 'a').stat().st_size:,} bytes")
    assert torch.equal(read_ticket(tmp_path / "a").layers["0"].binary, binary)


def test_other_files_are_refused_in_one_line(tmp_path: Path, ticket_bytes: bytes) -> None:
    torch.save({"a": torch.ones(3)}, tmp_path / "pickled")
    safetensors.torch.save_file({"a": torch.ones(3)}, tmp_path / "foreign")
    (tmp_path / "empty").touch()
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "device").symlink_to("/dev/zero")
    for name in ("pickled", "foreign", "empty", "pipe", "device", "missing", "."):
        with one_line_error():
            read_ticket(tmp_path / name)
    (tmp_path / "long").write_bytes(struct.pack("<Q", 2**40) + ticket_bytes[8:])
    with one_line_error("its header is to be more than 4,194,304 bytes"):
        read_ticket(tmp_path / "long")
    resigned(tmp_path / "flat", lambda _, tensors: tensors.__setitem__("rest/a", torch.ones([1] * 9)), ticket_bytes)
    with one_line_error("more than 8 dimensions"):
        read_ticket(tmp_path / "flat")
    newer = ticket_bytes.replace(b'"version":"1"', b'"version":"9"')
    (tmp_path / "newer").write_bytes(newer)
    with one_line_error("version '9'.*update"):
        read_ticket(tmp_path / "newer")


def test_what_was_read_does_not_change_with_the_file(tmp_path: Path, ticket_bytes: bytes) -> None:
    ticket = read_ticket(tmp_path / "a")
    before = ticket.layers["0"].alpha.clone()
    (tmp_path / "a").write_bytes(b"\xff" * len(ticket_bytes))
    assert torch.equal(ticket.layers["0"].alpha, before)


def test_a_ticket_is_written_whole_or_not_at_all(small_disk: Path) -> None:
    path = small_disk / "a"
    path.write_text("as it was")
    (small_disk / "filler").write_bytes(bytes(62 * 2**20))
    with pytest.raises(OSError, match="No space"):
        save_ticket(nn.Linear(1000, 1000), path)
    assert path.read_text() == "as it was"


def test_a_nan_is_refused(tmp_path: Path) -> None:
    model = binarize_weights(nn.Linear(6, 4), "mpt-sign", seed=0)
    with torch.no_grad():
        model.parametrizations.weight[0].scores[0, 0] = torch.nan
    with one_line_error("NaN"):
        save_ticket(model, tmp_path / "a")
    assert not list(tmp_path.iterdir())
