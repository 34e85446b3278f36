"""A seed gives the same values whatever torch's default dtype is."""

from __future__ import annotations

import ast
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TypeVar

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn

import mpt_bihalf
from mpt_bihalf import METHODS, binarize_weights, binary_weights, create_model, measures, shuffle_scores
from mpt_bihalf.data import load_dataset, training_batches
from mpt_bihalf.dtypes import float32_by_default
from mpt_bihalf.initialise import INITS
from mpt_bihalf.models import MODELS

Value = TypeVar("Value")
CHOICES = [(method, "layer", init) for method in METHODS for init in INITS]
CHOICES += [(method, scope, INITS[0]) for method in ("mpt-sign", "mpt-bihalf") for scope in ("filter", "global")]
NETWORKS = [*MODELS, "torchvision:mobilenet_v3_small"]


@pytest.fixture(params=[torch.float64, torch.float16, torch.bfloat16], ids=str)
def other(request: pytest.FixtureRequest) -> Iterator[torch.dtype]:
    """A default dtype that is not the usual one."""
    torch.set_default_dtype(request.param)
    yield request.param
    torch.set_default_dtype(torch.float32)


def usually(make: Callable[[], Value]) -> Value:
    """What is made under the usual default dtype."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float32)
    try:
        return make()
    finally:
        torch.set_default_dtype(before)


def layers() -> nn.Sequential:
    """float32 layers with weights that no generator draws."""
    shapes = [(6, 3, 3, 3), (5, 6, 2, 2), (7, 45)]
    made = nn.Sequential(
        nn.Conv2d(3, 6, 3, dtype=torch.float32),
        nn.Conv2d(6, 5, 2, dtype=torch.float32),
        nn.Linear(45, 7, dtype=torch.float32),
    )
    with torch.no_grad():
        for layer, shape in zip(made, shapes, strict=True):
            layer.weight.copy_(torch.from_numpy(np.sin(np.arange(np.prod(shape)))).view(shape))
            layer.bias.zero_()
    return made


def binarized(method: str, scope: str, init: str, seed: int | None = 3) -> dict[str, Tensor]:
    """Latent weights, scores and the rest of a state, and the binary weights, which tell masks and signs."""
    if seed is None:
        torch.manual_seed(3)
    model = binarize_weights(layers(), method, 0.6, 0.4, scope=scope, init=init, seed=seed)
    state = {name: value.clone() for name, value in model.state_dict().items()}
    if seed is not None:
        shuffle_scores(model, seed)
        state |= {f"shuffled {name}": value for name, value in model.state_dict().items()}
    return state | {f"binary {name}": value for name, value in binary_weights(model).items()}


def assert_equal(found: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        assert found[name].dtype == value.dtype and torch.equal(found[name], value), name


def test_each_draw_of_the_package_names_its_dtype() -> None:
    draws = [
        call
        for file in Path(mpt_bihalf.__file__).parent.rglob("*.py")
        for call in ast.walk(ast.parse(file.read_text()))
        if isinstance(call, ast.Call) and ast.unparse(call.func) in ("torch.rand", "torch.randn", "torch.normal")
    ]
    assert len(draws) >= 5
    assert [ast.unparse(call) for call in draws if "dtype" not in {given.arg for given in call.keywords}] == []


@pytest.mark.parametrize(("method", "scope", "init"), CHOICES)
def test_weights_scores_masks_and_signs_are_the_same(method: str, scope: str, init: str, other: torch.dtype) -> None:
    make = partial(binarized, method, scope, init)
    assert_equal(make(), usually(make))


def test_draws_from_the_global_generator_are_the_same(other: torch.dtype) -> None:
    make = partial(binarized, "mpt-bihalf", "layer", "equal_bits", None)
    assert_equal(make(), usually(make))


@pytest.mark.parametrize("name", NETWORKS)
def test_a_network_of_the_default_dtype_has_the_values_of_a_float32_draw(name: str, other: torch.dtype) -> None:
    width = {} if ":" in name else {"width": 0.0625}
    make = partial(create_model, name, 5, image_size=32, seed=1, **width)
    expected = {
        key: value.to(other) if value.is_floating_point() else value
        for key, value in usually(make).state_dict().items()
    }
    assert_equal(dict(make().state_dict()), expected)
    assert torch.get_default_dtype() == other


@pytest.mark.parametrize("method", METHODS)
def test_a_double_network_has_the_masks_and_signs_of_a_float32_one(method: str) -> None:
    def make() -> dict[str, Tensor]:
        model = create_model("conv2", 5, 1, 8, seed=1, width=0.25)
        binarize_weights(model, method, 0.6, seed=1)
        return {name: value.to(torch.int8) for name, value in binary_weights(model).items()}

    usual = make()
    torch.set_default_dtype(torch.float64)
    try:
        assert_equal(make(), usual)
    finally:
        torch.set_default_dtype(torch.float32)


def test_measures_are_the_same(other: torch.dtype) -> None:
    binary = torch.tensor([[1, -1, 0, 1, 1, -1, 1], [0, 1, 1, -1, 1, 0, 0]], dtype=torch.int8)
    look = [measures.positive_share, measures.filter_positive_share, measures.entropy, measures.filter_entropy]
    for measure in [*look, measures.kept_share]:
        found, usual = measure(binary), usually(partial(measure, binary))
        assert found.dtype == torch.float32 and torch.equal(found, usual)


@pytest.fixture
def photographs(tmp_path: Path) -> str:
    """Images in files, of which a random part is cut out."""
    chance = np.random.default_rng(0)
    for part in ("train", "val"):
        for label in ("a", "b"):
            folder = tmp_path / part / label
            folder.mkdir(parents=True)
            for number in range(3):
                Image.fromarray(chance.integers(0, 256, (40, 30, 3), dtype=np.uint8)).save(folder / f"{number}.png")
    return f"imagenet:{tmp_path}"


def batches(name: str, size: int, workers: int = 0) -> list[tuple[Tensor, Tensor]]:
    dataset = load_dataset(name, image_size=size).decoded_by(workers)
    dataset = replace(dataset, crop_padding=2, flip=True)
    return [batch for epoch in (0, 1) for batch in training_batches(dataset, 3, 1, epoch)][:10]


@pytest.mark.parametrize("workers", [0, 1])
def test_augmented_photographs_are_the_same(
    photographs: str, workers: int, other: torch.dtype, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MPT_BIHALF_CACHE", str(tmp_path / "cache"))
    assert_batches(partial(batches, photographs, 16, workers))


def test_augmented_images_are_the_same(other: torch.dtype) -> None:
    assert_batches(partial(batches, "digits", 12))


def assert_batches(make: Callable[[], list[tuple[Tensor, Tensor]]]) -> None:
    for (x, y), (usual_x, usual_y) in zip(make(), usually(make), strict=True):
        assert x.dtype == torch.float32 and torch.equal(x, usual_x) and torch.equal(y, usual_y)


def test_the_default_dtype_is_restored_after_an_error_too(other: torch.dtype) -> None:
    inside = []

    def fail() -> None:
        with float32_by_default():
            inside.append(torch.get_default_dtype())
            raise KeyError

    with pytest.raises(KeyError):
        fail()
    assert inside == [torch.float32]
    assert torch.get_default_dtype() == other
