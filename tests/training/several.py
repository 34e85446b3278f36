"""Trains runs under `torchrun`, or alone, and keeps what each process has after each step.

python several.py OUT RUN ...; each RUN is JSON with the fields of a run, whose folder is called by its method. `AT` in
the environment, as JSON, says what is to befall whom: {"rank": 1, "step": 30, "signal": 9}; signal 0 is an error.
`HOOKS` lists what befalls a process just before its n-th call of a function: it notes the place in the store, waits for
what `awaits` names there, sends itself a signal, and with `full` finds no room on the disk.
"""

from __future__ import annotations

import hashlib
import json
import os
import sys
from datetime import timedelta
from importlib import import_module
from itertools import count
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from mpt_bihalf import binary_weights, distributed
from mpt_bihalf.data import batches
from mpt_bihalf.distributed import Team, launched
from mpt_bihalf.endings import run_command
from mpt_bihalf.models import MODELS
from mpt_bihalf.models.design import Design, Network
from mpt_bihalf.training import Run, loop, train

OUT = Path(sys.argv[1])
RANK = launched().rank
AT = json.loads(os.environ.get("AT", "{}"))
KEPT = 20  # steps of a run that are kept
step_of, train_all = loop.train_step, loop.train_together
seen: list[dict[str, Any]] = []  # of the run under way
under_way = [""]


class Block(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(channels, channels, 3, padding=1, bias=False), nn.BatchNorm2d(channels)

    def forward(self, x: Tensor) -> Tensor:
        return nn.functional.silu(x + self.norm(self.conv(x)))


def normed(design: Design) -> nn.Module:
    """A small residual network with batch norm, of two and of four dimensions.

    Smooth: at kinks, of which digits on black have many, rounding alone changes gradients by a percent.
    """
    c = design.channels(16)
    stem = [nn.Conv2d(design.in_channels, c, 3, padding=1, bias=False), nn.BatchNorm2d(c), nn.SiLU(), nn.AvgPool2d(2)]
    units = [nn.AdaptiveAvgPool2d(4), nn.Flatten(), nn.Linear(16 * c, 32, bias=False), nn.BatchNorm1d(32), nn.SiLU()]
    return nn.Sequential(*stem, Block(c), nn.AvgPool2d(2), Block(c), *units, nn.Linear(32, design.num_classes))


class Double(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.double()


def double_resnet18(design: Design) -> nn.Module:
    """In it rounding is too small to decide any sign, which in a float32 network with ReLUs it does from step 2 on."""
    return nn.Sequential(Double(), MODELS["resnet18"].build(design)).double()


def noted(team: Team, run: Run, folder: Path, *others: Any) -> dict[str, Any]:
    seen.clear()
    under_way[:] = [folder.name]
    return train_all(team, run, folder, *others)


def watched(model: nn.Module, optimizer: Any, x: Tensor, y: Tensor, *others: Any) -> Tensor:
    totals = step_of(model, optimizer, x, y, *others)
    plain = getattr(model, "module", model)
    parameters = hashlib.sha256(b"".join(p.detach().numpy().tobytes() for p in plain.parameters())).hexdigest()
    signs = {layer: binary.to(torch.int8) for layer, binary in binary_weights(plain).items()}
    seen.append({"totals": totals, "images": len(y), "parameters": parameters, "binary": signs})
    if AT.get("step") == len(seen) and AT["rank"] in (RANK, "launcher"):
        if not AT["signal"]:
            raise ValueError("no memory left, say")
        os.kill(os.getppid() if AT["rank"] == "launcher" else os.getpid(), AT["signal"])
    if len(seen) == KEPT:
        torch.save(seen, OUT / f"steps-{under_way[0]}-{RANK}.pt")
    return totals


def hook(rank: int, place: str, call: int = 1, awaits: str = "", signal: int = 0, full: bool = False) -> None:
    module, _, name = place.rpartition(".")
    original, calls = getattr(import_module(module), name), count(1)

    def hooked(*arguments: Any, **named: Any) -> Any:
        if next(calls) == call:
            store = distributed._store()
            store.set(f"{name} {rank}", "")
            if awaits:
                store.wait([awaits], timedelta(seconds=120))
            os.kill(os.getpid(), signal)
            if full:
                raise OSError(28, "No space left on device")
        return original(*arguments, **named)

    if rank == RANK:
        setattr(import_module(module), name, hooked)


def main() -> None:
    for given in sys.argv[2:]:
        fields = json.loads(given)
        train(Run(**fields).resolved(), OUT / fields["method"], callbacks=[])
        print("trained", fields["method"])


loop.train_step, loop.train_together = watched, noted
batches.EVALUATION_BATCH = 11  # so that the processes have unlike numbers of batches
MODELS["normed"] = Network(normed, skip=("first", "last"))
MODELS["double_resnet18"] = Network(double_resnet18, skip=MODELS["resnet18"].skip)

for given in json.loads(os.environ.get("HOOKS", "[]")):
    hook(**given)
distributed.FAILS_TOO = float(os.environ.get("FAILS_TOO", distributed.FAILS_TOO))

if __name__ == "__main__":
    run_command(main)
