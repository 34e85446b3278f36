"""Labelled images, in memory as bytes or wherever else, and the training and test set made of them."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cached_property
from typing import TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor

from .digest import FORMAT, DataDigest, Part
from .mixing import Mix

# Images resized at once: bounds the float copies to some tens of megabytes at the usual sizes.
RESIZE_CHUNK = 256


class DataError(ValueError):
    """A fault in what the user asked for or supplied: one line that names the value and the remedy."""

    def __init__(self, message: str) -> None:
        # Reasons quoted from other libraries may span several lines; on the command line this is one.
        super().__init__(" ".join(filter(None, (line.strip() for line in message.splitlines()))))


class Images(ABC):
    """Images of one shape and the class of each, wherever the images lie.

    labels: int64 [N], from 0 to the number of classes - 1; on the device that batches are for.
    """

    labels: Tensor
    random_crop: bool | None = None
    """Whether `drawn` crops at random; None where it gives whole images, which are padded and cropped after that."""

    def __len__(self) -> int:
        return len(self.labels)

    @property
    @abstractmethod
    def shape(self) -> tuple[int, ...]:
        """(C, H, W)"""

    @property
    @abstractmethod
    def digest(self) -> Part:
        """The digest of these images, by which other ones under the same name are noticed."""

    @abstractmethod
    def to(self: AnyImages, device: torch.device | str) -> AnyImages:
        """The same images, with batches of them on `device`."""

    def decoded_by(self: AnyImages, workers: int) -> AnyImages:
        """The same images, decoded by so many processes, or by this one for 0; these very ones where none has to."""
        return self

    def cropped(self: AnyImages, at_random: bool) -> AnyImages:
        """The same images with this `random_crop`; these very ones where that is None."""
        return self

    @abstractmethod
    def take(self: AnyImages, index: Tensor) -> AnyImages:
        """Those of the images that int64 [n], on the host, names, in its order."""

    @abstractmethod
    def drawn(self, order: Tensor, chance: str) -> Pixels:
        """Batches to train on: those that the rows of `order`, int64 [batches, B], on the host, name.

        chance: all that an augmentation done on the way may depend on, beside the image's index.
        """

    @abstractmethod
    def in_order(self, parts: list[slice]) -> Pixels:
        """Batches to evaluate on: these parts of the set, without chance."""


AnyImages = TypeVar("AnyImages", bound=Images)
# Images as bytes, uint8 [B, H, W, C], and their labels, int64 [B].
Pixels = Iterator[tuple[Tensor, Tensor]]


@dataclass(frozen=True)
class ImageSet(Images):
    """Images in memory and the class of each.

    images: uint8 [N, C, H, W], kept in `torch.channels_last` memory format.
    labels: int64 [N], from 0 to the number of classes - 1.

    origin: the digest of what they were made of, as before they were resized; None: they are their own.

    Raises DataError where dtypes or lengths do not fit.
    """

    images: Tensor
    labels: Tensor
    origin: Part | None = None

    def __post_init__(self) -> None:
        if self.images.dtype != torch.uint8 or self.images.dim() != 4:
            raise DataError(f"images must be uint8 [N, C, H, W], not {self.images.dtype} {list(self.images.shape)}")
        if self.labels.dtype != torch.int64 or self.labels.shape != self.images.shape[:1]:
            raise DataError(
                f"labels must be int64 [{len(self.images)}], one an image, not {self.labels.dtype} "
                f"{list(self.labels.shape)}"
            )
        # Batches are channels_last; with the store laid out alike, none of them has to be transposed.
        object.__setattr__(self, "images", self.images.contiguous(memory_format=torch.channels_last))

    @property
    def shape(self) -> tuple[int, ...]:
        return self.images.shape[1:]

    @cached_property
    def digest(self) -> Part:
        return self.origin or Part.of_tensors(self.images, self.labels)

    def to(self, device: torch.device | str) -> ImageSet:
        """The same images on `device`; this very set's tensors where they already lie there."""
        return ImageSet(self.images.to(device), self.labels.to(device), self.digest)

    def take(self, index: Tensor) -> ImageSet:
        index = index.to(self.images.device)
        return ImageSet(self.images[index], self.labels[index])

    def drawn(self, order: Tensor, chance: str) -> Pixels:
        pixels = self.images.permute(0, 2, 3, 1)
        for index in order.to(pixels.device):
            yield pixels[index], self.labels[index]

    def in_order(self, parts: list[slice]) -> Pixels:
        pixels = self.images.permute(0, 2, 3, 1)
        for part in parts:
            yield pixels[part], self.labels[part]

    def resized(self, image_size: int | None) -> ImageSet:
        """The images at [image_size, image_size] (see `resize`); this very set for None."""
        return self if image_size is None else ImageSet(resize(self.images, image_size), self.labels, self.digest)

    def statistics(self) -> tuple[tuple[float, ...], tuple[float, ...]]:
        """Mean and (population) standard deviation of each channel, of pixels scaled to [0, 1].

        Exact: computed from the counts of the 256 values. A constant channel is given the deviation 1, so that
        standardising it yields 0 and not 0/0.
        """
        values = torch.arange(256, dtype=torch.float64) / 255
        means, stds = [], []
        for channel in self.images.unbind(1):
            share = torch.bincount(channel.flatten(), minlength=256).cpu().double() / channel.numel()
            mean = (share * values).sum()
            means.append(mean.item())
            stds.append((share * (values - mean).square()).sum().sqrt().item() or 1.0)
        return tuple(means), tuple(stds)


@dataclass(frozen=True)
class Dataset:
    """A training and a test set, and how batches are made of them.

    mean, std: per channel, for pixels scaled to [0, 1].
    crop_padding: pixels of black on each side before the random crop back to the image's size; 0 for no such crop.
    flip: whether half of the training images are mirrored left to right.
    left_out: what of the files there is not among the images, in a line for the user; empty where nothing is.
    mix: what training images are made of after that, if anything.

    Raises DataError where the images are not square, or those of training and test differ in shape.
    """

    name: str
    train: Images
    test: Images
    classes: tuple[str, ...]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    crop_padding: int
    flip: bool
    left_out: str = ""
    mix: Mix | None = None

    def __post_init__(self) -> None:
        shape, test_shape = list(self.train.shape), list(self.test.shape)
        if shape != test_shape:
            raise DataError(f"{self.name}: training images are {shape} and test images {test_shape}; set image_size")
        if shape[1] != shape[2]:
            raise DataError(f"{self.name}: images of {shape[1]}x{shape[2]} are not square; set image_size")
        if not shape[0] == len(self.mean) == len(self.std):
            raise DataError(f"{self.name}: {shape[0]} channels, but {len(self.mean)} means and {len(self.std)} stds")

    @property
    def digest(self) -> DataDigest:
        """What data these are, whatever the path. Held-out images are none of it, so ask before `hold_out`."""
        return DataDigest(FORMAT, self.classes, self.train.digest, self.test.digest)

    @property
    def num_classes(self) -> int:
        return len(self.classes)

    @property
    def in_channels(self) -> int:
        return self.train.shape[0]

    @property
    def image_size(self) -> int:
        """Height and width in pixels."""
        return self.train.shape[1]

    @property
    def device(self) -> torch.device:
        """Where batches come."""
        return self.train.labels.device

    def to(self, device: torch.device | str) -> Dataset:
        return replace(self, train=self.train.to(device), test=self.test.to(device))

    def decoded_by(self, workers: int) -> Dataset:
        """The same data, decoded by so many processes, or by this one for 0, where they are not in memory."""
        return replace(self, train=self.train.decoded_by(workers), test=self.test.decoded_by(workers))

    @property
    def random_crop(self) -> bool:
        """Whether training images are cropped at random, by the images themselves or after padding."""
        return bool(self.train.random_crop or self.crop_padding)

    def augmented(self, flip: bool | None = None, crop: bool | None = None) -> Dataset:
        """The same data with training images mirrored half the time or never, and cropped at random or not.

        None leaves either as it is. The random crop is that of the images where they have one (`Images.random_crop`);
        else it comes after padding by `crop_padding`, or by an eighth of the image's side, rounded down, where that is
        0. Test images stay as they are.
        """
        train, padding = self.train, self.crop_padding
        if crop is not None:
            train = train.cropped(at_random=crop)
            if not crop:
                padding = 0
            elif train.random_crop is None:
                padding = padding or self.image_size // 8
        return replace(self, train=train, crop_padding=padding, flip=self.flip if flip is None else flip)

    def hold_out(self, share: float) -> tuple[Dataset, Images]:
        """Take round(share * N) of the N training images away for validation: (what is left, the images taken).

        Every class gives its share, to within one image; the same images are taken each time. The mean and std stay
        those of the whole training set. Raises DataError unless 0 < share < 1 and neither part is empty.
        """
        left, taken = stratified_split(self.train, self.held_out_count(share))
        return replace(self, train=left), taken

    def held_out_count(self, share: float) -> int:
        """How many images `hold_out` takes; raises DataError as that does."""
        if not 0 < share < 1:
            raise DataError(f"cannot hold out a share of {share}: it must lie between 0 and 1, both excluded")
        count = round(share * len(self.train))
        if count in (0, len(self.train)):
            raise DataError(f"holding out {share} of {len(self.train)} training images leaves one part empty")
        return count


def stratified_split(images: AnyImages, count: int) -> tuple[AnyImages, AnyImages]:
    """Split into (the rest, `count` images), each in its old order and each class shared out to within one image.

    Drawn without chance, and so the same under every version of every library: with the images sorted by class, the
    ones taken are evenly spaced.
    """
    by_class = torch.argsort(images.labels.cpu(), stable=True)
    # Rank i is taken where the running quota i * count / N passes an integer, so `count` times in all.
    quota = torch.arange(len(images) + 1) * count // len(images)
    taken = quota.diff() > 0

    return images.take(by_class[~taken].sort().values), images.take(by_class[taken].sort().values)


def resize(images: Tensor, image_size: int) -> Tensor:
    """Scale images to squares, bilinearly and antialiased, rounded to the nearest byte.

    images: uint8 [N, C, H, W] -> uint8 [N, C, image_size, image_size]. The shorter side is scaled to image_size and
    the longer one cropped about its centre, so nothing is distorted. Images that fit are returned as they are.
    """
    height, width = images.shape[2:]
    if height == width == image_size:
        return images
    scale = image_size / min(height, width)
    scaled = (max(round(height * scale), image_size), max(round(width * scale), image_size))
    top, left = (scaled[0] - image_size) // 2, (scaled[1] - image_size) // 2
    resized = images.new_empty((*images.shape[:2], image_size, image_size))
    for chunk, out in zip(images.split(RESIZE_CHUNK), resized.split(RESIZE_CHUNK), strict=True):
        large = F.interpolate(chunk.float(), size=scaled, mode="bilinear", antialias=True)
        out.copy_(large[:, :, top : top + image_size, left : left + image_size].round_().clamp_(0, 255))
    return resized
