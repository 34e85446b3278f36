"""Batch norm over the batch that several processes share."""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from .devices import autocast, has_sync_batch_norm
from .images_last import BatchNorm2d


class SyncBatchNorm(_BatchNorm):
    """What `torch.nn.SyncBatchNorm` does, by sums over all processes in float32 or wider: that one refuses the CPU.

    Each process has an equal part of the batch. State and results are those of `nn.BatchNorm2d` on the whole batch.
    """

    def forward(self, x: Tensor) -> Tensor:
        return self._normalised(x) if self.training and dist.is_initialized() else super().forward(x)

    def _check_input_dim(self, input: Tensor) -> None:
        if input.dim() < 2:
            raise ValueError(f"batch norm takes [N, C, ...], not {tuple(input.shape)}")

    def _normalised(self, x: Tensor) -> Tensor:
        self._check_input_dim(x)
        processes, others = dist.get_world_size(), [d for d in range(x.dim()) if d != 1]
        shape = [1, -1, *[1] * (x.dim() - 2)]
        with autocast(x.device, None):
            wide = x.to(torch.promote_types(x.dtype, torch.float32))
            mean = _Mean.apply(wide.mean(others))
            centred = wide - mean.view(shape)
            variance = _Mean.apply(centred.square().mean(others))
            self._track(mean.detach(), variance.detach(), processes * x.numel() // x.shape[1])
            scale = (variance + self.eps).rsqrt()
            out = centred * (scale if self.weight is None else scale * self.weight).view(shape)
            return (out if self.bias is None else out + self.bias.view(shape)).to(x.dtype)

    @torch.no_grad()
    def _track(self, mean: Tensor, variance: Tensor, values: int) -> None:
        """Follow the statistics of a batch with so many values a channel."""
        if self.running_mean is None or self.running_var is None or self.num_batches_tracked is None:
            return
        self.num_batches_tracked.add_(1)
        share = 1 / self.num_batches_tracked.to(mean.dtype) if self.momentum is None else self.momentum
        unbiased = variance * (values / max(values - 1, 1))
        for running, new in ((self.running_mean, mean), (self.running_var, unbiased)):
            running.lerp_(new.to(running.dtype), share)


class _Mean(torch.autograd.Function):
    """Over the processes. The backward pass is one too: what each does to the loss counts, which is the mean of all."""

    @staticmethod
    def forward(ctx: Any, values: Tensor) -> Tensor:
        total = values.clone()
        dist.all_reduce(total)
        return total.div_(dist.get_world_size())

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Tensor:
        return _Mean.forward(ctx, grads[0])


def synchronise_batch_norm(model: nn.Module) -> None:
    """Let every batch norm of `model` look at the batches of all processes, in place; its state keeps its names."""
    for module in model.modules():
        if type(module) in (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, BatchNorm2d):
            device = next(iter(module.state_dict().values()), torch.empty(0)).device
            module.__class__ = nn.SyncBatchNorm if has_sync_batch_norm(device) else SyncBatchNorm
            module.process_group = None  # type: ignore[assignment]
