"""Checkpoints of the published codes, made here by plain torch in the form in which those save them."""

from __future__ import annotations

import math
import pickle
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mpt_bihalf import compile_ticket, load_ticket
from mpt_bihalf.given_masks import fixed_masks
from mpt_bihalf.tickets import import_checkpoint, read_ticket, write_ticket
from tests.reference import one_line_error

K = 0.3


class Conv4(nn.Module):
    """As MPT's and edge-popup's codes have it: linear layers are 1x1 convolutions."""

    def __init__(self) -> None:
        super().__init__()
        pool, relu = nn.MaxPool2d(2), nn.ReLU()

        def conv(d: int, f: int, size: int) -> nn.Conv2d:
            return nn.Conv2d(d, f, size, padding=size // 2, bias=False)

        self.convs = nn.Sequential(
            *(conv(3, 64, 3), relu, conv(64, 64, 3), relu, pool, conv(64, 128, 3), relu, conv(128, 128, 3), relu, pool)
        )
        self.linear = nn.Sequential(conv(8192, 256, 1), relu, conv(256, 256, 1), relu, conv(256, 10, 1))

    def forward(self, x: Tensor) -> Tensor:
        return self.linear(self.convs(x).view(len(x), 8192, 1, 1)).flatten(1)


class Block(nn.Module):
    def __init__(self, d: int, f: int, stride: int, affine: bool) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(d, f, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(f, affine=affine)
        self.conv2 = nn.Conv2d(f, f, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(f, affine=affine)
        self.shortcut = nn.Sequential()
        if stride != 1 or d != f:
            self.shortcut = nn.Sequential(nn.Conv2d(d, f, 1, stride, bias=False), nn.BatchNorm2d(f, affine=affine))

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.bn2(self.conv2(F.relu(self.bn1(self.conv1(x))))) + self.shortcut(x))


class ResNet18(nn.Module):
    """As MPT's code has it for CIFAR."""

    def __init__(self, affine: bool) -> None:
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(3, 64, 3, 1, 1, bias=False), nn.BatchNorm2d(64, affine=affine)
        sizes = [(64, 64, 1), (64, 128, 2), (128, 256, 2), (256, 512, 2)]
        for place, (d, f, stride) in enumerate(sizes, 1):
            setattr(self, f"layer{place}", nn.Sequential(Block(d, f, stride, affine), Block(f, f, 1, affine)))
        self.fc = nn.Conv2d(512, 10, 1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.bn1(self.conv1(x)))
        for place in range(1, 5):
            x = getattr(self, f"layer{place}")(x)
        return self.fc(F.avg_pool2d(x, 4)).flatten(1)


def scored(model: nn.Module) -> dict[str, Tensor]:
    """The model's state with scores beside each weight, none equal; its norms have seen something."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for module in model.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.running_mean.normal_(0, 0.1, generator=generator)
                module.running_var.uniform_(0.5, 2, generator=generator)
                if module.affine:
                    module.weight.uniform_(0.5, 1.5, generator=generator)
                    module.bias.normal_(0, 0.1, generator=generator)
            if isinstance(module, nn.Conv2d):
                module.weight.normal_(0, (2 / module.weight[0].numel()) ** 0.5, generator=generator)
    state = dict(model.state_dict())
    for name, module in model.named_modules():
        if isinstance(module, nn.Conv2d):
            order = torch.randperm(module.weight.numel(), generator=generator).double() + 0.5
            signs = torch.randint(2, order.shape, generator=generator) * 2 - 1
            state[f"{name}.scores"] = (order / order.numel() * signs).float().view(module.weight.shape)
    return state


def put(model: nn.Module, weights: dict[str, Tensor]) -> nn.Module:
    with torch.no_grad():
        for name, weight in weights.items():
            model.get_submodule(name).weight.copy_(weight)
    return model.eval()


def by_layer(state: dict[str, Tensor], k: float) -> dict[str, Tensor]:
    """The weights in use of SubnetConv."""
    used = {}
    for name in (key.removesuffix(".scores") for key in state if key.endswith(".scores")):
        weight, scores = state[f"{name}.weight"], state[f"{name}.scores"].abs()
        cut = scores.flatten().sort().values[int((1 - k) * scores.numel())]
        mask = scores >= cut
        assert int(mask.sum()) == scores.numel() - int((1 - k) * scores.numel())
        used[name] = weight.sign() * mask * ((weight.abs() * mask).sum() / int(k * scores.numel()))
    return used


def globally(state: dict[str, Tensor], k: float) -> dict[str, Tensor]:
    """The weights in use of GlobalSubnetConv."""
    names = [key.removesuffix(".scores") for key in state if key.endswith(".scores")]
    every = torch.cat([state[f"{name}.scores"].abs().flatten() for name in names]).sort().values
    threshold = every[int((1 - k) * len(every)) - 1]
    used = {}
    for name in names:
        weight, mask = state[f"{name}.weight"], state[f"{name}.scores"].abs() > threshold
        used[name] = weight.sign() * mask * ((weight.abs() * mask).sum() / mask.sum())
    return used


def saved(path: Path, state: dict[str, Tensor], parallel: bool = False, **said: Any) -> Path:
    if parallel:
        state = {f"module.{name}": value for name, value in state.items()}
    torch.save(
        {"epoch": 3, "arch": "x", "state_dict": state, "best_acc1": 1.5, "optimizer": {"state": {}}, **said}, path
    )
    return path


@pytest.mark.parametrize("layer", ["SubnetConv", "GlobalSubnetConv"])
@pytest.mark.parametrize("parallel", [False, True])
@pytest.mark.parametrize("network", ["conv4", "resnet18", "resnet18 without affine"])
def test_mpt_gives_a_ticket_with_the_outputs_of_its_code(
    layer: str, parallel: bool, network: str, tmp_path: Path
) -> None:
    model = Conv4() if network == "conv4" else ResNet18(affine="without" not in network)
    state = scored(model)
    file = saved(tmp_path / "best.pth", state, parallel, conv_type=layer, prune_rate=K)
    found = import_checkpoint(file, network.split(maxsplit=1)[0])
    assert found.model is None and found.ticket is not None
    write_ticket(found.ticket, tmp_path / "ticket")
    net = load_ticket(tmp_path / "ticket")
    expected = (by_layer if layer == "SubnetConv" else globally)(state, K)
    x = torch.randn(3, 3, 32, 32, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        torch.testing.assert_close(net(x), put(model, expected)(x), rtol=1e-5, atol=1e-6)
    names = dict(zip(expected, read_ticket(tmp_path / "ticket").layers, strict=True))
    if network == "conv4":
        for theirs, ours in names.items():
            assert torch.equal(net.get_submodule(ours).weight.flatten(), expected[theirs].flatten())
    total = sum(weight.numel() for weight in expected.values())
    kept = sum(int(weight.count_nonzero()) for weight in expected.values())
    assert f"{kept:,} of {total:,} weights kept" in found.lines[0]


def test_edge_popup_gives_a_network_of_real_weights_under_its_mask(tmp_path: Path) -> None:
    model = Conv4()
    state = scored(model)
    file = saved(tmp_path / "best.pth", state)
    with one_line_error("does not say which fraction of the weights is kept: give --kept, 0.5 say"):
        import_checkpoint(file, "conv4")
    found = import_checkpoint(file, "conv4", kept="0.3")
    assert found.ticket is None and found.model is not None
    expected = {n: (w != 0) * state[f"{n}.weight"] for n, w in by_layer(state, K).items()}
    x = torch.randn(3, 3, 32, 32, generator=torch.Generator().manual_seed(1))
    net = found.model.eval()
    with torch.no_grad():
        torch.testing.assert_close(net(x), put(model, expected)(x), rtol=1e-5, atol=1e-6)
    before = {name: mask.clone() for name, mask in fixed_masks(net).items()}
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    F.cross_entropy(net(x), torch.tensor([1, 2, 3])).backward()
    optimizer.step()
    for name, mask in before.items():
        assert torch.equal(net.get_submodule(name).weight != 0, mask)
    as_mpt = import_checkpoint(file, "conv4", kept=0.3, method="mpt-sign")
    assert as_mpt.ticket is not None


def test_what_our_rule_would_do_otherwise_is_told(tmp_path: Path) -> None:
    state = scored(Conv4())
    state["convs.0.weight"][0, 0, 0, 0] = 0
    state["convs.0.scores"][0, 0, 0, 0] = 2  # kept, and its sign is 0 there
    found = import_checkpoint(saved(tmp_path / "best.pth", state, conv_type="SubnetConv", prune_rate=K), "conv4")
    assert "layer '0': 1 weights are 0, of which that code takes 0 for the sign, and +1 is the sign here" in found.lines
    # 1,728 weights: theirs keeps 1728 - int(0.7 * 1728) = 519, ours 1728 - 1210 = 518; and one sign.
    told = "layer '0': by our rule 2 of 1,728 weights would differ (it keeps 518, that code 518)"
    assert told in found.lines
    assert not any("tie" in line for line in found.lines)
    state["convs.2.scores"].flatten()[:] = 1
    found = import_checkpoint(saved(tmp_path / "best.pth", state, conv_type="SubnetConv", prune_rate=K), "conv4")
    assert any(line.startswith("layer '2': 36,864 scores tie where the mask ends") for line in found.lines)


@pytest.mark.parametrize("mode", ["sign", "bihalf", "magnitude-bihalf", "irnet"])
def test_weights_without_scores_by_the_rules_of_their_codes(mode: str, tmp_path: Path) -> None:
    state = {name: value for name, value in scored(Conv4()).items() if not name.endswith("scores")}
    file = saved(tmp_path / "model.th", state, parallel=True)
    with one_line_error("has no scores: say by --method whose weights these are"):
        import_checkpoint(file, "conv4")
    kept = "0.6" if mode == "magnitude-bihalf" else None
    found = import_checkpoint(file, "conv4", kept, method=mode)
    assert found.ticket is not None and len(found.ticket.layers) == 7
    for (name, layer), weight in zip(found.ticket.layers.items(), state.values(), strict=True):
        rows = weight.flatten(1)
        size = rows.shape[1]
        ranks = rows.argsort(1).argsort(1)
        if mode == "sign":
            expected = rows.sign()
        elif mode == "bihalf":
            expected = torch.where(ranks < size // 2, -1.0, 1.0)
        elif mode == "magnitude-bihalf":
            expected = torch.where(ranks < int(0.3 * size), -1.0, 0.0) + (ranks >= int((1 + 0.4) / 2 * size)).float()
        else:
            expected = (rows - rows.mean(1, keepdim=True)).sign()
        assert torch.equal(layer.binary.flatten(1).float(), expected), name
        if mode == "irnet":
            standard = (rows - rows.mean(1, keepdim=True)) / rows.std(1, keepdim=True)
            alpha = 2 ** (standard.abs().mean(1).log() / math.log(2)).round()
            assert torch.equal(layer.alpha.flatten(), alpha)
        else:
            assert float(layer.alpha) == pytest.approx((2 / size) ** 0.5)


def test_a_file_of_before_torch_1_6_is_read(tmp_path: Path) -> None:
    state = scored(Conv4())
    torch.save({"state_dict": state}, tmp_path / "old.pth", _use_new_zipfile_serialization=False)
    found = import_checkpoint(tmp_path / "old.pth", "conv4", kept=0.5, method="mpt-sign")
    assert found.ticket is not None and len(found.ticket.layers) == 7


class Harmless:
    """Would write a file where it is unpickled by a reader that runs code."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> Any:
        return Path.touch, (self.mark,)


def test_files_that_are_none_are_refused_in_one_line_and_run_nothing(tmp_path: Path) -> None:
    state, mark = scored(Conv4()), tmp_path / "mark"
    bad: dict[str, Any] = {"empty": b"", "text": b"not a checkpoint", "cut": None, "code": None, "pickle": None}
    torch.save({"state_dict": state, "said": Harmless(mark)}, tmp_path / "code")
    torch.save({"state_dict": state, "said": Harmless(mark)}, tmp_path / "old", _use_new_zipfile_serialization=False)
    (tmp_path / "pickle").write_bytes(pickle.dumps(Harmless(mark)))
    (tmp_path / "cut").write_bytes((tmp_path / "code").read_bytes()[:-2000])
    for name in ("empty", "text"):
        (tmp_path / name).write_bytes(bad[name])
    for name in (*bad, "old"):
        told = "is empty" if name == "empty" else "is none of torch's files of tensors and plain values alone"
        with one_line_error(told):
            import_checkpoint(tmp_path / name, "conv4", kept=0.5)
    found = import_checkpoint(saved(tmp_path / "best.pth", state, conv_type="SubnetConv", prune_rate=K), "conv4")
    assert found.ticket is not None
    write_ticket(found.ticket, tmp_path / "a.ticket")
    with one_line_error("is none of torch's files: a ticket, which the other commands take as it is"):
        import_checkpoint(tmp_path / "a.ticket", "conv4")
    assert not mark.exists()
    for content in ([1, 2], {"a": 1}, {"state_dict": {}}, {"state_dict": {"w": 1}}):
        torch.save(content, tmp_path / "other")
        with one_line_error("holds no network's state dictionary"):
            import_checkpoint(tmp_path / "other", "conv4", kept=0.5)
    torch.save({"bias": torch.zeros(3)}, tmp_path / "other")
    with one_line_error("holds no weight of a convolution or linear layer"):
        import_checkpoint(tmp_path / "other", "conv4", kept=0.5)


def test_bad_input_is_said_in_one_line(tmp_path: Path) -> None:
    state = scored(Conv4())
    file = saved(tmp_path / "best.pth", state, conv_type="SubnetConv")
    for kept in ("0", "1.5", "nan", "x", -1):
        with one_line_error("kept must (lie in .0, 1.|be a finite number)"):
            import_checkpoint(file, "conv4", kept=kept)
    with one_line_error("is of another network than conv6: it has 7 modules of the kind layer, and the network 9"):
        import_checkpoint(file, "conv6", kept=0.5)
    with one_line_error("unknown model 'conv5'"):
        import_checkpoint(file, "conv5", kept=0.5)
    with one_line_error("has scores, so it is of mpt-sign or dense, not irnet"):
        import_checkpoint(file, "conv4", kept=0.5, method="irnet")
    with one_line_error("of layer '0' nothing is kept, and that code divides by 0"):
        import_checkpoint(file, "conv4", kept=1e-5)
    with one_line_error("is of layers 'SampleSubnetConv'; known: SubnetConv, GlobalSubnetConv"):
        import_checkpoint(saved(tmp_path / "sample", state, conv_type="SampleSubnetConv"), "conv4", kept=0.5)
    with one_line_error("that code prunes every weight where none is to be"):
        import_checkpoint(saved(tmp_path / "all", state, conv_type="GlobalSubnetConv"), "conv4", kept=1)
    with one_line_error("is of layers .'SubnetConv'.; known"):
        import_checkpoint(saved(tmp_path / "list", state, conv_type=["SubnetConv"]), "conv4", kept=0.5)
    with one_line_error("'convs.0.weight' is a tensor of another kind than weights are"):
        other = {**state, "convs.0.weight": state["convs.0.weight"].to(torch.complex64)}
        import_checkpoint(saved(tmp_path / "complex", other), "conv4", kept=0.5)
    with one_line_error("its 'convs.0' has 'more', which is none of the network's"):
        import_checkpoint(saved(tmp_path / "more", {**state, "convs.0.more": torch.ones(1)}), "conv4", kept=0.5)
    state["convs.0.weight"][0, 0, 0, 0] = float("nan")
    with one_line_error("'convs.0' has values that are not finite"):
        import_checkpoint(saved(tmp_path / "nan", state), "conv4", kept=0.5)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_weights_of_another_precision_are_read_as_float32(dtype: torch.dtype, tmp_path: Path) -> None:
    state = {name: value.to(dtype) for name, value in scored(Conv4()).items()}
    found = import_checkpoint(saved(tmp_path / "a", state, conv_type="SubnetConv", prune_rate=K), "conv4")
    same = import_checkpoint(
        saved(tmp_path / "b", {n: v.float() for n, v in state.items()}, conv_type="SubnetConv", prune_rate=K), "conv4"
    )
    assert found.ticket is not None and same.ticket is not None
    for name, layer in found.ticket.layers.items():
        assert torch.equal(layer.binary, same.ticket.layers[name].binary)
        torch.testing.assert_close(layer.alpha, same.ticket.layers[name].alpha)
        assert layer.alpha.dtype == torch.float32


def test_layers_without_scores_are_named(tmp_path: Path) -> None:
    state = scored(Conv4())
    del state["convs.0.scores"]
    found = import_checkpoint(saved(tmp_path / "a", state), "conv4", kept=0.5)
    assert found.lines[1:3] == [
        "without scores, and so real-valued: '0'",
        "taken for edge-popup's, with real-valued weights; an older file of MPT's: --method mpt-sign",
    ]


def test_by_command(tmp_path: Path) -> None:
    def run(*words: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "mpt_bihalf", "ticket", "import", *words]
        return subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)

    state = scored(Conv4())
    file = saved(tmp_path / "best.pth", state, conv_type="SubnetConv", prune_rate=K)
    done = run("best.pth", "--model", "conv4")
    assert (done.returncode, done.stderr) == (0, "") and done.stdout.endswith("ticket: best.ticket\n")
    assert compile_ticket(tmp_path / "best.ticket")(torch.zeros(1, 3, 32, 32).numpy()).shape == (1, 10)
    real = run("best.pth", "--model", "conv4", "--method", "dense", "-o", "real.pt")
    assert real.returncode == 0 and "real-valued weights under a fixed mask, to train on: real.pt" in real.stdout
    masks = torch.load(tmp_path / "real.pt", weights_only=True)
    assert sum(name.endswith("fixed_mask") for name in masks) == 7
    old = saved(tmp_path / "old.pth", state)
    none = run(old.name, "--model", "conv4")
    assert none.returncode == 2 and none.stderr.count("\n") == 1 and "give --kept" in none.stderr
    assert not (tmp_path / "old.ticket").exists() and file.exists()
    # Nothing is written over that nobody has named, and the file that is read never.
    content = file.read_bytes()
    for words in (
        ["best.pth"],
        ["best.pth", "-o", "best.pth"],
        ["best.pth", "-o", "link.pth"],
        ["model.pt", "--method", "dense"],
        ["model.ticket"],
    ):
        (tmp_path / "model.pt").write_bytes(content)
        (tmp_path / "model.ticket").write_bytes(content)
        if not (tmp_path / "link.pth").exists():
            (tmp_path / "link.pth").symlink_to(file)
        again = run(words[0], "--model", "conv4", *words[1:])
        assert again.returncode == 2 and again.stderr.count("\n") == 1, words
        assert "is there already" in again.stderr or "is named twice" in again.stderr
        assert file.read_bytes() == content == (tmp_path / "model.pt").read_bytes()
        assert (tmp_path / "model.ticket").read_bytes() == content
