"""A batch through the network: a step of training, and the figures of a split of the data."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor, nn
from torch.amp import GradScaler
from torch.nn import functional as F
from torch.nn.utils import parametrize
from torch.optim import Optimizer

from ..data.mixing import jensen_shannon
from ..devices import autocast
from ..distributed import ALONE, Team
from ..step_rules import StepRules

# Of the Jensen-Shannon divergence in the loss, in AugMix' code and MPT's.
JSD_WEIGHT = 12
MIXED = {"bf16": torch.bfloat16, "fp16": torch.float16}
NO_SCALER = GradScaler(enabled=False)
FIGURES = [f"{split}_{figure}" for split in ("train", "test") for figure in ("loss", "top1", "top5")]


def train_step(
    model: nn.Module,
    optimizer: Optimizer | None,
    x: Tensor,
    y: Tensor,
    precision: str = "fp32",
    scaler: GradScaler = NO_SCALER,
    label_smoothing: float = 0.0,
    rules: StepRules | None = None,
    jsd: bool = False,
) -> Tensor:
    """One step on a batch x [B, C, H, W], y [B]; returns [loss sum, top-1 hits, top-5 hits], without waiting.

    Without an optimizer, where nothing is trained, the batch is only looked at. scaler: of the loss, for fp16.
    label_smoothing: of the labels in the loss that is trained and returned, in [0, 1), as torch's `cross_entropy` has
    it. rules: what else there is in a step; their penalty is in no figure. jsd: x is [3 B, C, H, W], three views of the
    images; the labels are for the first, and `JSD_WEIGHT` times the divergence of all is in the loss.
    """
    if optimizer:
        optimizer.zero_grad(set_to_none=True)
    logits = _logits(model, x, precision)
    views = logits
    if jsd:
        logits = views[: len(y)]
    loss = F.cross_entropy(logits, y, label_smoothing=label_smoothing)
    if jsd:
        loss = loss + JSD_WEIGHT * jensen_shannon(views)
    if optimizer:
        scaler.scale(loss + rules.penalty() if rules else loss).backward()
        scaler.unscale_(optimizer)
        scaler.step(optimizer)
        scaler.update()
        if rules:
            rules.after_step()
    return _totals(logits.detach(), y, loss.detach() * len(y))


@torch.no_grad()
def evaluate(
    model: nn.Module,
    batches: Iterable[tuple[Tensor, Tensor]],
    split: str,
    precision: str = "fp32",
    team: Team = ALONE,
) -> tuple[dict[str, float], bool]:
    """Loss, top-1 and top-5 in percent over all images, and whether all of several images have equal logits.

    Each binary weight is worked out once, and the device waited for once. batches: this process's; what is returned is
    of those of all.
    """
    model.eval()
    device, images, classes = next(model.parameters()).device, 0, 0
    totals = torch.zeros(3, dtype=torch.float32, device=device)
    # Of each class the highest logit, and the highest of the negated ones.
    bounds = torch.full((2, 1), -torch.inf, dtype=torch.float32, device=device)
    with parametrize.cached():
        for x, y in batches:
            logits = _logits(model, x, precision)
            totals += _totals(logits, y, F.cross_entropy(logits, y, reduction="sum"))
            bounds = torch.maximum(bounds, torch.stack([logits.amax(0), -logits.amin(0)]))
            images, classes = images + len(y), logits.shape[1]
    counts = team.gather(torch.tensor([images, classes])).view(-1, 2)  # a process without images knows no classes
    images, classes = int(counts[:, 0].sum()), int(counts[:, 1].max())
    highest, negated = team.gather(bounds.expand(2, classes).contiguous()).view(-1, 2, classes).amax(0)
    equal = (highest == -negated).all()  # a NaN is not equal to itself
    *sums, constant = torch.cat([team.sum(totals), equal.float()[None]]).tolist()
    return means(sums, images, split), bool(constant) and images > 1


def _logits(model: nn.Module, x: Tensor, precision: str) -> Tensor:
    with autocast(x.device, MIXED.get(precision)):
        return model(x).float()


def _totals(logits: Tensor, y: Tensor, loss: Tensor) -> Tensor:
    hits = logits.topk(min(5, logits.shape[1]), dim=1).indices == y.unsqueeze(1)
    return torch.stack([loss, hits[:, 0].sum(), hits.sum()])


def means(totals: Sequence[float], images: int, split: str) -> dict[str, float]:
    """The figures of a split: loss, top-1 and top-5 in percent, by their sums over so many images."""
    loss, top1, top5 = totals
    return {f"{split}_loss": loss / images, f"{split}_top1": 100 * top1 / images, f"{split}_top5": 100 * top5 / images}
