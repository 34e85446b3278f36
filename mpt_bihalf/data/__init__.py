"""Where images come from: data sets by name, in memory as bytes or in files, and the batches drawn from them.

>>> dataset = load_dataset("digits")
>>> dataset.num_classes, dataset.in_channels, dataset.image_size, len(dataset.train), len(dataset.test)
(10, 1, 8, 1437, 360)
>>> images, labels = next(training_batches(dataset, batch_size=128, seed=0, epoch=0))
>>> tuple(images.shape), images.dtype
((128, 1, 8, 8), torch.float32)
"""

from .batches import evaluation_batches, training_batches
from .dataset import DataError, Dataset, Images, ImageSet
from .registry import DATASETS, FOLDERS, check_name, is_here, load_dataset, own_augmentation, short_data

__all__ = [
    "DATASETS",
    "FOLDERS",
    "DataError",
    "Dataset",
    "ImageSet",
    "Images",
    "check_name",
    "evaluation_batches",
    "is_here",
    "load_dataset",
    "own_augmentation",
    "short_data",
    "training_batches",
]
