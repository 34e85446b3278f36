#!/usr/bin/env bash
# torch 2.14.1: `masked_fill` gives a contiguous (NCHW) result of a channels-last tensor, whatever the format of the mask,
# on the CPU and on the meta device. `where`, products, `addcmul`, `clamp` and `masked_fill_` keep channels-last.
# Who meets it: autograd functions that set gradients to 0 where activations lie outside a bound. Every layer behind goes
# on in the other format, and a training step in channels-last becomes slower with nothing said.
# Guessed before this was run: `masked_fill` keeps the format of its input as `where` does.
set -euo pipefail
place=$(mktemp -d); trap 'rm -rf "$place"' EXIT
python3 -m venv "$place/env" && "$place/env/bin/pip" install -q torch==2.14.1 numpy==2.4.6
cat >"$place/t.py" <<'P'
import sys

import torch

kept = {}
for device in ("cpu", "meta"):
    x = torch.zeros(8, 16, 10, 10, device=device).to(memory_format=torch.channels_last)
    for name, mask in {"the same shape and format": x > 1, "a mask of channels": torch.zeros(1, 16, 1, 1, device=device) > 1}.items():
        results = {
            "masked_fill": x.masked_fill(mask, 0.0),
            "masked_fill_": x.clone().masked_fill_(mask, 0.0),
            "where": torch.where(mask, torch.zeros((), device=device), x),
            "mul": x * ~mask,
            "addcmul": torch.addcmul(x, ~mask, x),
            "clamp": torch.clamp(x, max=(~mask).float()),
        }
        for operation, result in results.items():
            kept[device, name, operation] = result.is_contiguous(memory_format=torch.channels_last)
        print(f"torch {torch.__version__}, {device}, {name}: channels-last is lost by", *[n for n in results if not kept[device, name, n]])
sys.exit(any(is_kept == (operation == "masked_fill") for (*_, operation), is_kept in kept.items()))
P
"$place/env/bin/python" "$place/t.py"
