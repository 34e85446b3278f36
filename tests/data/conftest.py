from __future__ import annotations

from pathlib import Path

import pytest
import torch

from mpt_bihalf.data import Dataset, ImageSet


@pytest.fixture(
    params=["cpu", pytest.param("cuda", marks=pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA"))]
)
def device(request: pytest.FixtureRequest) -> torch.device:
    return torch.device(request.param)


@pytest.fixture(autouse=True)
def cache_folder(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A cache folder of the test's own, so that no test reads or writes the user's."""
    folder = tmp_path_factory.mktemp("cache")
    monkeypatch.setenv("MPT_BIHALF_CACHE", str(folder))
    return folder


@pytest.fixture
def colour() -> Dataset:
    """103 + 20 images of noise, 3x12x12, in 4 classes; every augmentation on."""
    generator = torch.Generator().manual_seed(0)

    def noise(count: int) -> ImageSet:
        images = torch.randint(256, (count, 3, 12, 12), generator=generator, dtype=torch.uint8)
        return ImageSet(images, torch.randint(4, (count,), generator=generator))

    return Dataset(
        "noise",
        noise(103),
        noise(20),
        ("a", "b", "c", "d"),
        (0.1, 0.5, 0.7),
        (0.2, 0.3, 0.4),
        crop_padding=3,
        flip=True,
    )
