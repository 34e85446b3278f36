"""Batch norm over the batch that several processes share."""

from __future__ import annotations

from typing import TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.nn.functional import all_reduce

from .devices import autocast, has_sync_batch_norm

Model = TypeVar("Model", bound=nn.Module)


class SyncBatchNorm(nn.SyncBatchNorm):
    """torch's own where it works; elsewhere, on the CPU, the same by sums over all processes, in float32 or wider.

    Each process has an equal part of the batch. State and results are those of `nn.BatchNorm2d` on the whole batch.
    """

    def forward(self, x: Tensor) -> Tensor:
        apart = self.training and dist.is_initialized() and not has_sync_batch_norm(x.device)
        return self._normalised(x) if apart else super().forward(x)

    def _normalised(self, x: Tensor) -> Tensor:
        self._check_input_dim(x)
        processes, others = dist.get_world_size(), [d for d in range(x.dim()) if d != 1]
        shape = [1, -1, *[1] * (x.dim() - 2)]
        with autocast(x.device, None):
            wide = x.to(torch.promote_types(x.dtype, torch.float32))
            mean = all_reduce(wide.mean(others)) / processes
            centred = wide - mean.view(shape)
            variance = all_reduce(centred.square().mean(others)) / processes
            self._track(mean.detach(), variance.detach(), processes * x.numel() // x.shape[1])
            scale = (variance + self.eps).rsqrt()
            out = centred * (scale if self.weight is None else scale * self.weight).view(shape)
            return (out if self.bias is None else out + self.bias.view(shape)).to(x.dtype)

    @torch.no_grad()
    def _track(self, mean: Tensor, variance: Tensor, values: int) -> None:
        """Follow the statistics of a batch with so many values a channel."""
        if not self.track_running_stats or self.running_mean is None or self.running_var is None:
            return
        assert self.num_batches_tracked is not None
        self.num_batches_tracked.add_(1)
        share = 1 / self.num_batches_tracked if self.momentum is None else torch.tensor(self.momentum)
        unbiased = variance * (values / max(values - 1, 1))
        for running, new in ((self.running_mean, mean), (self.running_var, unbiased)):
            running.lerp_(new.to(running.dtype), share.to(running))


def synchronise_batch_norm(model: Model) -> Model:
    """Make every batch norm of `model` a `SyncBatchNorm`, in place; its state keeps its names. Returns the model."""
    for module in model.modules():
        if type(module) in (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d):
            module.__class__ = SyncBatchNorm
            module.process_group = None  # type: ignore[assignment]
    return model
