#!/usr/bin/env bash
# torchvision 0.29.1: transforms.v2.AugMix on a batch [B, C, H, W] draws the weights of the mixture for each image, but the
# operations, their order and strength once for the whole batch. So two images of a batch that are alike lie on one
# segment: what tells them apart is the weights alone. Called on each image by itself the operations differ.
# Who meets it: trainings that augment whole batches on the accelerator, for robustness say, and expect of AugMix that
# every image has chains of its own, as its authors' code gives it.
# Guessed before this was run: where weights are drawn for each image of a batch, operations are too.
set -euo pipefail
place=$(mktemp -d); trap 'rm -rf "$place"' EXIT
python3 -m venv "$place/env" && "$place/env/bin/pip" install -q torch==2.14.1 torchvision==0.29.1 numpy==2.4.6
cat >"$place/t.py" <<'P'
import sys

import torch
import torchvision
from torchvision.transforms import v2

torch.manual_seed(0)
image = torch.randint(256, (3, 16, 16), dtype=torch.uint8)
batch = image.expand(64, 3, 16, 16).contiguous()
mix = v2.AugMix(mixture_width=1, chain_depth=1, severity=10, all_ops=False)


def directions(images):
    """How many directions the images lie in from the one that they were made of: the rank of their differences."""
    apart = (images.float() - image.float()).flatten(1)
    apart = apart[apart.norm(dim=1) > 200]  # what is left is rounding of pixels
    apart = apart / apart.norm(dim=1, keepdim=True)
    return len(apart), int((torch.linalg.svdvals(apart) > 1).sum())


seen = []
for trial in range(8):
    torch.manual_seed(trial)
    whole = directions(mix(batch))
    torch.manual_seed(trial)
    alone = directions(torch.stack([mix(one) for one in batch]))
    seen.append((whole, alone))
    print(f"torchvision {torchvision.__version__}, trial {trial}: as a batch {whole[0]} images in {whole[1]} direction(s), one by one {alone[0]} in {alone[1]}")
sys.exit(not all(whole[1] <= 1 < alone[1] for whole, alone in seen))
P
"$place/env/bin/python" "$place/t.py"
