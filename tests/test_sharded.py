"""Models whose parameters lie in parts on several processes."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from torch import Tensor, nn
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict, set_model_state_dict
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FullyShardedDataParallel, fully_shard
from torch.distributed.tensor import distribute_module

from mpt_bihalf import (
    bake_weights,
    binarize_weights,
    binary_layers,
    binary_weights,
    find_nan,
    fix_masks,
    forget,
    load_ticket,
    parameter_groups,
    save_ticket,
    set_progress,
    set_prune_rate,
    shuffle_scores,
    start_scores,
    ticket_weights,
)
from mpt_bihalf.tickets import Ticket
from tests.processes import PROCESSES

PAGE = Path(__file__).parents[1] / "docs" / "torch.md"
X = torch.randn(4, 1, 8, 8, generator=torch.Generator().manual_seed(0))
FULL = StateDictOptions(full_state_dict=True, cpu_offload=True)
REFUSED = (
    "lies in parts on several processes: do this before the model is sharded, or with a plain model under the same"
)


def plain() -> nn.Sequential:
    """Filters of the first and the last layer cannot be divided evenly between two processes."""
    torch.manual_seed(0)
    head = nn.Sequential(nn.Linear(216, 8), nn.ReLU(), nn.Linear(8, 3))
    return nn.Sequential(nn.Conv2d(1, 5, 3, padding=1), nn.BatchNorm2d(5), nn.Conv2d(5, 6, 3), nn.Flatten(), head)


def network(method: str = "mpt-bihalf", scope: str = "layer") -> nn.Sequential:
    return binarize_weights(plain(), method, prune_rate=0.5, scope=scope, seed=1)


def sharded(model: nn.Sequential, *, as_one: bool = False) -> nn.Sequential:
    mesh = init_device_mesh("cpu", (dist.get_world_size(),))
    for layer in () if as_one else (model[2], model[4]):
        fully_shard(layer, mesh=mesh)
    return fully_shard(model, mesh=mesh)


def trained(model: nn.Module) -> nn.Module:
    """After two steps on the same images in each process, whose mean gradient is that of one."""
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], 0.5, momentum=0.9)
    for _ in range(2):
        optimizer.zero_grad()
        model(X).square().mean().backward()
        optimizer.step()
    return model


@contextmanager
def joined(place: Path, rank: int = 0, processes: int = 1) -> Iterator[None]:
    store = dist.FileStore(str(place / "store"), processes)
    dist.init_process_group("gloo", store=store, rank=rank, world_size=processes)
    try:
        yield
    finally:
        dist.destroy_process_group()


@pytest.fixture
def group(tmp_path: Path) -> Iterator[None]:
    """A process group of this process alone."""
    with joined(tmp_path):
        yield


def same_state(one: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(value, other[name]) for name, value in one.items())


CASES = [("mpt-bihalf", "layer"), ("mpt-sign", "global"), ("bop", "layer")]


def save_trained(rank: int, place: Path) -> None:
    """Of each case the full state of a sharded model and of a whole one, both trained, and the former's outputs."""
    for i, case in enumerate(CASES):
        model = trained(sharded(network(*case), as_one=case[1] == "global"))
        set_prune_rate(model, 0.5)
        state = get_model_state_dict(model, options=FULL)
        parts = get_model_state_dict(model)
        dcp.save(parts, checkpoint_id=place / f"checkpoint-{i}")
        again = sharded(network(*case), as_one=case[1] == "global")
        read = get_model_state_dict(again)
        dcp.load(read, checkpoint_id=place / f"checkpoint-{i}")
        set_model_state_dict(again, read)
        copy = get_model_state_dict(again, options=FULL)
        with torch.no_grad():
            out = model.eval()(X)
        if rank == 0:
            assert same_state(state, copy), case
            torch.save((state, trained(network(*case)).state_dict(), out), place / f"{i}.pt")


def flatten() -> None:
    twin = binary_weights(trained(network()))
    model = trained(FullyShardedDataParallel(network(), device_id=torch.device("cpu"), use_orig_params=True))
    for function in NEEDS_WHOLE.values():
        with pytest.raises(ValueError, match=REFUSED):
            function(model)
    with pytest.raises(ValueError, match="then wrap it: FullyShardedDataParallel would not know the scores"):
        binarize_weights(FullyShardedDataParallel(plain(), device_id=torch.device("cpu")))
    with FullyShardedDataParallel.summon_full_params(model):
        inside = binary_weights(model)
    assert [*inside] == [f"_fsdp_wrapped_module.{name}" for name in twin]
    assert all(map(torch.equal, inside.values(), twin.values()))


def run_page(rank: int, place: Path, port: int) -> None:
    """The lines of the page, in the folder."""
    (code,) = (
        block for block in re.findall(r"^```python\n(.*?)^```$", PAGE.read_text(), re.M | re.S) if "fsdp" in block
    )
    environment = {"RANK": str(rank), "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(place)
        for name, value in {**environment, "TORCHELASTIC_USE_AGENT_STORE": "True"}.items():
            patch.setenv(name, value)
        defined: dict[str, Any] = {"__name__": "__main__"}
        exec(compile(code, PAGE, "exec"), defined)
        if rank == 0:
            torch.save([binary_weights(model) for model in (defined["plain"], defined["network"]())], "page.pt")


def do(rank: int, place: Path, port: int) -> None:
    torch.set_num_threads(1)
    with joined(place, rank, 2):
        save_trained(rank, place)
        flatten()
    run_page(rank, place, port)


@pytest.fixture(scope="module")
def two(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where two processes have left what they came to."""
    place = tmp_path_factory.mktemp("two")
    store = dist.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)  # as torchrun has one
    torch.multiprocessing.start_processes(do, (place, store.port), nprocs=2, start_method=PROCESSES.get_start_method())
    return place


def test_two_processes_that_share_a_model_train_it_as_one_that_has_it_whole(two: Path) -> None:
    for i, case in enumerate(CASES):
        state, of_twin, out = torch.load(two / f"{i}.pt")
        whole, twin = network(*case), network(*case)
        whole.load_state_dict(state)
        twin.load_state_dict(of_twin)
        assert same_state(binary_weights(whole), binary_weights(twin)), case
        one, other = Ticket.of(whole), Ticket.of(twin)
        assert one.layers.keys() == other.layers.keys() and len(one.layers) == 4
        assert same_state(one.state_dict(), other.state_dict()), case
        assert torch.equal(whole.eval()(X), out), case
        with pytest.raises(RuntimeError, match="the state dictionary was made under method"):
            binarize_weights(plain(), "irnet", seed=1).load_state_dict(state)


def test_the_lines_of_the_page_make_a_ticket_in_two_processes(two: Path) -> None:
    after, before = torch.load(two / "page.pt")
    assert not same_state(before, after)
    assert same_state(ticket_weights(two / "sharded.ticket"), {name: b.to(torch.int8) for name, b in after.items()})


NEEDS_WHOLE: dict[str, Callable[[nn.Module], Any]] = {
    "find_nan": find_nan,
    "binary_weights": binary_weights,
    "bake_weights": bake_weights,
    "save_ticket": lambda model: save_ticket(model, "a.ticket"),
    "shuffle_scores": lambda model: shuffle_scores(model, 0),
    "start_scores": lambda model: start_scores(model, binary_weights(network())),
    "fix_masks": lambda model: fix_masks(model, binary_weights(network())),
    "binarize_weights": binarize_weights,
}


@pytest.mark.parametrize("shard", [sharded, lambda model: distribute_module(model, init_device_mesh("cpu", (1,)))])
def test_what_needs_whole_weights_says_how_to_get_them(
    group: None, shard: Callable[[nn.Module], nn.Module], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    model = shard(network())
    for name, function in NEEDS_WHOLE.items():
        with pytest.raises(ValueError, match=REFUSED) as told:
            function(model)
        assert "\n" not in str(told.value), name
    with pytest.raises(ValueError, match=REFUSED):
        binarize_weights(shard(plain()))
    save_ticket(network(), "whole.ticket")
    with pytest.raises(ValueError, match=REFUSED):
        load_ticket("whole.ticket", into=shard(plain()))
    with pytest.raises(ValueError, match="^weight of this layer " + REFUSED):
        _ = model[2].weight
    set_progress(model, 0.5)
    set_prune_rate(model, 0.4)
    forget(model)
    assert len(parameter_groups(model)) == 2
    assert [name for name, _, _ in binary_layers(model)] == ["0", "2", "4.0", "4.2"]


def test_a_model_is_refused_also_when_its_parameters_happen_to_be_whole(group: None) -> None:
    model = sharded(network(), as_one=True)
    with torch.no_grad():
        model(X)  # after which they stay so until the next pass, and what is written to them is lost
    assert type(model[0].parametrizations.weight.original) is nn.Parameter
    for function in (binary_weights, NEEDS_WHOLE["shuffle_scores"]):
        with pytest.raises(ValueError, match=REFUSED):
            function(model)


def test_scores_that_are_ranked_over_all_layers_ask_for_a_model_sharded_as_one(group: None) -> None:
    model = sharded(network("mpt-sign", "global"))
    with pytest.raises(ValueError, match=r"scope 'global' .*shard the model as one \(fully_shard\(model\)\)"):
        model(X)
