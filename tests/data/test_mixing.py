"""AugMix and Gaussian noise, against Pillow's operations."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image, ImageOps
from torch import Tensor
from torch.nn import functional as F

from mpt_bihalf.data import load_dataset, mixing, training_batches
from mpt_bihalf.data.mixing import Mix, jensen_shannon

LEVELS = (0.1, 1.0, 2.9, 8.0)


def smooth(channels: int = 3, size: int = 32, seed: int = 0) -> Tensor:
    draw = torch.rand(1, channels, 8, 8, generator=torch.Generator().manual_seed(seed))
    return (F.interpolate(draw, size=(size, size), mode="bicubic").clamp(0, 1) * 255).round()


def pillow(image: Tensor, *, number: int, level: float, sign: int) -> Tensor:
    """The operation of this number as AugMix' authors have it, by Pillow."""
    size = image.shape[3]
    picture = Image.fromarray(image[0].permute(1, 2, 0).byte().numpy())
    shear, shift = level * 0.3 / 10 * sign, int(level * (size / 3) / 10) * sign
    affine = {
        5: (1, shear, 0, 0, 1, 0),
        6: (1, 0, 0, shear, 1, 0),
        7: (1, 0, shift, 0, 1, 0),
        8: (1, 0, 0, 0, 1, shift),
    }
    done = {
        0: lambda: ImageOps.autocontrast(picture),
        1: lambda: ImageOps.equalize(picture),
        2: lambda: ImageOps.posterize(picture, 4 - int(level * 4 / 10)),
        3: lambda: picture.rotate(int(level * 30 / 10) * sign, resample=Image.Resampling.BILINEAR),
        4: lambda: ImageOps.solarize(picture, 256 - int(level * 256 / 10)),
    }.get(
        number,
        lambda: picture.transform(
            (size, size), Image.Transform.AFFINE, affine[number], resample=Image.Resampling.BILINEAR
        ),
    )()
    return torch.from_numpy(np.array(done)).permute(2, 0, 1).float()[None]


@pytest.mark.parametrize("number", range(9))
@pytest.mark.parametrize("size", [32, 31])
def test_operations_are_those_of_pillow(number: int, size: int) -> None:
    for level in LEVELS:
        for sign in (1, -1):
            image = smooth(size=size)
            found = mixing.OPERATIONS[number](image, torch.tensor([level]), torch.tensor([float(sign)]))
            apart = (found - pillow(image, number=number, level=level, sign=sign)).abs()
            assert apart.max() <= (1 if number in (3, 5, 6) else 0)
            assert apart.mean() < 0.05


def test_operations_are_of_each_image_of_a_batch_by_itself() -> None:
    images = torch.cat([smooth(seed=seed) for seed in range(4)])
    levels, signs = torch.tensor([0.3, 2.0, 7.0, 9.0]), torch.tensor([1.0, -1.0, -1.0, 1.0])
    for operation in mixing.OPERATIONS:
        whole = operation(images, levels, signs)
        alone = [operation(images[i : i + 1], levels[i : i + 1], signs[i : i + 1]) for i in range(4)]
        assert torch.equal(whole, torch.cat(alone))


def test_flat_images_and_half_empty_ones_stay_what_they_are() -> None:
    flat = torch.full((2, 3, 8, 8), 100.0)
    for number in (0, 1):
        assert torch.equal(mixing.OPERATIONS[number](flat, torch.ones(2), torch.ones(2)), flat)


def test_augmix_is_a_mixture_of_the_image_and_of_chains(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mixing, "OPERATIONS", (lambda images, level, sign: 255 - images,))  # a chain is odd or even
    batch = torch.randint(256, (500, 4, 4, 1), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    batch[:, 0, 0] = 0
    share = Mix(kind="augmix")(batch, "0 0 0")[:, 0, 0, 0] / 255  # of what is inverted
    assert ((share >= 0) & (share <= 1)).all()
    # The mean share of the mixture is 1/2, of depths 1 and 3 among three 2/3.
    assert share.mean().item() == pytest.approx(1 / 3, abs=4 * 0.25 / 500**0.5)
    assert len(share.unique()) > 400


def test_noise_has_its_deviation_and_leaves_its_share_clean() -> None:
    batch = torch.full((2000, 8, 8, 1), 128, dtype=torch.uint8)
    noisy = Mix(kind="gaussian", std=0.05, clean=0.3)(batch, "0 0 0") - 128
    clean = (noisy.flatten(1) == 0).all(1)
    assert abs(int(clean.sum()) - 600) <= 4 * (2000 * 0.3 * 0.7) ** 0.5
    assert noisy[~clean].std().item() == pytest.approx(0.05 * 255, rel=0.02)
    ends = Mix(kind="gaussian", std=1.0, clean=0.0)(batch, "0 0 0")
    assert (ends.min(), ends.max()) == (0, 255)
    assert torch.equal(Mix(kind="gaussian", clean=1.0)(batch, "0 0 0"), batch.float())


@pytest.mark.parametrize("kind", mixing.MIXES)
@pytest.mark.parametrize("views", [1, 3])
def test_processes_take_parts_of_one_batch(kind: str, views: int) -> None:
    mix = Mix(kind=kind, views=views, clean=0.0)
    batch = torch.cat([smooth(1, 8, seed) for seed in range(6)]).permute(0, 2, 3, 1).byte()
    whole = mix(batch, "0 1 2").view(views, 6, 8, 8, 1)
    for rank in range(2):
        part = mix(batch[3 * rank : 3 * rank + 3], "0 1 2", rank, 2).view(views, 3, 8, 8, 1)
        assert torch.equal(part, whole[:, 3 * rank : 3 * rank + 3])
    assert not torch.equal(mix(batch, "0 1 3"), whole.flatten(0, 1))
    if views == 3:
        assert torch.equal(whole[0], batch.float())
        assert not torch.equal(whole[1], whole[2])


@pytest.mark.parametrize("kind", mixing.MIXES)
def test_batches_are_mixed_after_they_are_mirrored_and_cropped(kind: str) -> None:
    dataset = load_dataset("digits").augmented(True, True)
    mixed = replace(dataset, mix=Mix(kind=kind, views=3, clean=0.0))
    plain, found = (list(training_batches(of, 100, seed=1, epoch=2)) for of in (dataset, mixed))
    for (x, y), (views, labels) in zip(plain, found, strict=True):
        assert torch.equal(y, labels)
        torch.testing.assert_close(views.chunk(3)[0], x, rtol=0, atol=1e-6)
        assert views.is_contiguous(memory_format=torch.channels_last) or views.shape[1] == 1
    later = list(training_batches(mixed, 100, seed=1, epoch=2, first=5))
    assert all(torch.equal(a, b) for (a, _), (b, _) in zip(later, found[5:], strict=True))


def test_the_divergence_is_jensens_and_shannons() -> None:
    logits = torch.randn(3 * 5, 7, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    p = [F.softmax(view, 1).numpy() for view in logits.chunk(3)]
    mean = sum(p) / 3
    expected = np.mean([(each * np.log(each / mean)).sum(1).mean() for each in p])
    assert jensen_shannon(logits).item() == pytest.approx(expected)
    assert jensen_shannon(logits[:5].repeat(3, 1)).item() == pytest.approx(0, abs=1e-12)
    sharp = torch.tensor([[200.0, 0.0], [0.0, 200.0], [200.0, 0.0]], requires_grad=True)
    jensen_shannon(sharp).backward()
    assert sharp.grad is not None and sharp.grad.isfinite().all()
