#!/usr/bin/env bash
# torch 2.14.1: torch.func.functional_call gives a module that stands in the model under two names its tensors twice, and
# takes them back once. After the call the module holds the lent tensor for good: its Parameter is no longer in the model,
# an optimizer trains a weight that nobody uses, and the next pass gives other outputs. With tie_weights=False, and with
# one Parameter in two modules, all is as it was before.
# Who meets it: per-sample gradients, ensembles and meta-learning (torch.func) on networks that use one layer twice.
# Guessed before the first run: the model is as it was, whatever it shares.
set -euo pipefail
place=$(mktemp -d); trap 'rm -rf "$place"' EXIT
python3 -m venv "$place/env" && "$place/env/bin/pip" install -q torch==2.14.1 numpy==2.4.6
cat >"$place/t.py" <<'P'
import sys
import torch
from torch import nn
from torch.func import functional_call


def as_before(second, **options):
    """Whether the first layer's weight and the model's outputs are, after a call that lends zeros."""
    first = nn.Linear(2, 2)
    model = nn.Sequential(first, second(first))
    x, weight = torch.ones(1, 2), first.weight
    out = model(x)
    functional_call(model, {"0.weight": torch.zeros(2, 2)}, (x,), **options)
    return first.weight is weight, torch.equal(model(x), out), type(first.weight).__name__


def tied(first):
    layer = nn.Linear(2, 2)
    layer.weight = first.weight
    return layer


print("torch", torch.__version__)
got = {
    "one module, two names": as_before(lambda first: first),
    "the same, tie_weights=False": as_before(lambda first: first, tie_weights=False),
    "two modules, one Parameter": as_before(tied),
    "nothing shared": as_before(lambda first: nn.Linear(2, 2)),
}
for case, (same, equal, kind) in got.items():
    print(f"{case}: the Parameter is back {same}, the outputs are {equal}, the weight is a {kind}")
sys.exit([same and equal for same, equal, _ in got.values()] != [False, True, True, True])
P
"$place/env/bin/python" -W ignore "$place/t.py"
