"""AugMix and Gaussian noise: what is done to training images beside mirroring and cropping, whole batches at a time."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from math import pi

import torch
import torch.nn.functional as F
from torch import Tensor

# Of AugMix: how many chains are mixed, and of how many operations they are at most.
CHAINS, LONGEST = 3, 3
# The most severe level of an operation.
HARDEST = 10
MIXES = ("augmix", "gaussian")
Drawn = Callable[..., Tensor]


@dataclass(frozen=True, kw_only=True)
class Mix:
    """What training images are made of, once mirrored and cropped.

    kind: `augmix` (Hendrycks et al. 2020): 3 chains of 1 to 3 operations each on the image, mixed with weights of a
        Dirichlet distribution, and the mixture with the image by a share that is uniform in [0, 1]. The operations are
        autocontrast, equalize, posterize, rotate, solarize, shear and translate along both axes: those that occur in no
        corruption of CIFAR-10-C. `gaussian`: noise is added, and pixels clipped to their range.
    severity: of AugMix' operations, in [1, 10]. std: of the noise, for pixels in [0, 1]. clean: the share of images
        without any, in [0, 1].
    views: 1, or 3: the image itself and two that are mixed, for the Jensen-Shannon term of the loss.

    >>> Mix(kind="augmix")(torch.zeros(2, 8, 8, 3, dtype=torch.uint8), chance="seed 0 epoch 1").shape
    torch.Size([2, 8, 8, 3])

    All chance is drawn on the host, from `chance` alone.
    """

    kind: str
    severity: float = 3.0
    std: float = 0.1
    clean: float = 0.5
    views: int = 1

    def __call__(self, batch: Tensor, chance: str, rank: int = 0, processes: int = 1) -> Tensor:
        """Of uint8 [B, H, W, C]: float32 [views B, H, W, C], of pixels in [0, 255], view after view.

        chance: what is drawn depends on. rank, processes: which part of a batch that several processes share this is.
        """
        digest = hashlib.sha256(f"{chance} {self.kind}".encode()).digest()
        generator = torch.Generator().manual_seed(int.from_bytes(digest[:8], "little"))
        clean = batch.float()
        mixed = self._augmix if self.kind == "augmix" else self._noisy

        def drawn(draw: Callable[..., Tensor], *shape: int) -> Tensor:
            whole = draw(processes * len(batch), *shape, generator=generator, dtype=torch.float32)
            return whole[rank * len(batch) : (rank + 1) * len(batch)]

        views = [mixed(clean, drawn) for _ in range(max(1, self.views - 1))]
        return torch.cat([clean, *views]) if self.views > 1 else views[0]

    def _noisy(self, batch: Tensor, drawn: Drawn) -> Tensor:
        noise, noisy = drawn(torch.randn, *batch.shape[1:]), drawn(torch.rand, 1, 1, 1) >= self.clean
        noise = (noise * noisy * (255 * self.std)).to(batch.device)
        return (batch + noise).clamp(0, 255)

    def _augmix(self, batch: Tensor, drawn: Drawn) -> Tensor:
        uniform = partial(drawn, torch.rand)
        weights = -torch.log1p(-uniform(CHAINS))  # exponential, so that their shares are a Dirichlet's
        weights = (weights / weights.sum(1, keepdim=True)).to(batch.device)
        share = uniform(1, 1, 1).to(batch.device)
        depths = (uniform(CHAINS) * LONGEST).long() + 1
        which = (uniform(CHAINS, LONGEST) * len(OPERATIONS)).long()
        levels = 0.1 + uniform(CHAINS, LONGEST) * (self.severity - 0.1)
        signs = (uniform(CHAINS, LONGEST) < 0.5).float() * 2 - 1
        images = batch.permute(0, 3, 1, 2)
        mixture = torch.zeros_like(images)
        for chain in range(CHAINS):
            image = images
            for place in range(LONGEST):
                image = image.clone()
                for number, operation in enumerate(OPERATIONS):
                    chosen = (which[:, chain, place] == number) & (depths[:, chain] > place)
                    index = chosen.nonzero()[:, 0]  # on the host
                    if len(index):
                        level = levels[index, chain, place].to(batch.device)
                        sign = signs[index, chain, place].to(batch.device)
                        there = index.to(batch.device)
                        image[there] = operation(image[there], level, sign)
            mixture += weights[:, chain, None, None, None] * image
        return torch.lerp(images, mixture, share).permute(0, 2, 3, 1)


def jensen_shannon(logits: Tensor) -> Tensor:
    """The Jensen-Shannon divergence of the classes of three views, [3 B, classes], as the mean over images: 0-dim.

    The mean of KL(p || m) over the views' p, where m is their mean, at least 1e-7 (Hendrycks et al. 2020).
    """
    views = F.log_softmax(logits, 1).chunk(3)
    mean = torch.stack([view.exp() for view in views]).mean(0).clamp(1e-7, 1).log()
    return torch.stack([F.kl_div(mean, view, reduction="batchmean", log_target=True) for view in views]).mean()


# The operations: float32 [B, C, H, W] of whole pixels in [0, 255], levels and signs [B]; as much for what they return.


def _autocontrast(images: Tensor, level: Tensor, sign: Tensor) -> Tensor:
    low, high = (of(images, dim=(2, 3), keepdim=True) for of in (torch.amin, torch.amax))
    stretched = ((images - low) * 255 / (high - low).clamp(min=1)).floor()
    return torch.where(high > low, stretched, images)


def _equalize(images: Tensor, level: Tensor, sign: Tensor) -> Tensor:
    pixels = images.round().clamp(0, 255).long().flatten(2)
    none, ones = torch.zeros(*pixels.shape[:2], 256, dtype=torch.float32, device=images.device), torch.ones_like(pixels)
    counts = none.scatter_add_(2, pixels, ones.float())
    last = torch.where(counts > 0, torch.arange(256, device=images.device), -1).amax(2, keepdim=True)
    step = ((pixels.shape[2] - counts.gather(2, last)) / 255).floor()
    before = counts.cumsum(2) - counts
    table = ((before + (step / 2).floor()) / step.clamp(min=1)).floor().clamp(0, 255)
    return torch.where(step > 0, table.gather(2, pixels), pixels.float()).view(images.shape)


def _posterize(images: Tensor, level: Tensor, sign: Tensor) -> Tensor:
    size = 2.0 ** (4 + (level * 4 / HARDEST).floor())[:, None, None, None]  # 4 bits, or fewer, are left
    return (images / size).floor() * size


def _solarize(images: Tensor, level: Tensor, sign: Tensor) -> Tensor:
    threshold = 256 - (level * 256 / HARDEST).floor()
    return torch.where(images < threshold[:, None, None, None], images, 255 - images)


def _rotate(images: Tensor, level: Tensor, sign: Tensor) -> Tensor:
    angle = (level * 30 / HARDEST).floor() * sign * pi / 180
    cos, sin, none = angle.cos(), angle.sin(), torch.zeros_like(angle)
    return _moved(images, torch.stack([cos, -sin, none, sin, cos, none], 1))


def _along(axis: int, shear: bool) -> Callable[[Tensor, Tensor, Tensor], Tensor]:
    """Shear along an axis of square images, by up to 0.3, or translate by up to a third of their side."""

    def operation(images: Tensor, level: Tensor, sign: Tensor) -> Tensor:
        side = images.shape[3]
        amount = level * 0.3 / HARDEST * sign if shear else (level * (side / 3) / HARDEST).floor() * sign
        one, none = torch.ones_like(level), torch.zeros_like(level)
        # From the corner of the image, which lies at (-1, -1), where its middle is (0, 0) and its half side 1.
        row = [one, amount, amount] if shear else [one, none, 2 * amount / side]
        if axis == 1:
            row = [row[1], row[0], row[2]]
        rows = [row, [none, one, none]] if axis == 0 else [[one, none, none], row]
        return _moved(images, torch.stack([*rows[0], *rows[1]], 1))

    return operation


def _moved(images: Tensor, affine: Tensor) -> Tensor:
    """Each pixel from where its matrix [B, 6] says; bilinear, as whole pixels (Pillow rounds down), black outside."""
    grid = F.affine_grid(affine.view(-1, 2, 3), list(images.shape), align_corners=False)
    inside = ((grid >= -1) & (grid < 1)).all(3)[:, None]
    sampled = F.grid_sample(images, grid, padding_mode="border", align_corners=False)
    return (sampled + 1e-3).floor() * inside


OPERATIONS: tuple[Callable[[Tensor, Tensor, Tensor], Tensor], ...] = (
    _autocontrast,
    _equalize,
    _posterize,
    _rotate,
    _solarize,
    _along(0, shear=True),
    _along(1, shear=True),
    _along(0, shear=False),
    _along(1, shear=False),
)
