"""What a ticket knows of its images: kept as it was given, refused where it cannot be, unknown where a file lies."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from mpt_bihalf import create_model
from mpt_bihalf.data import Dataset, ImageSet
from mpt_bihalf.tickets import Ticket, read_ticket, save_ticket
from mpt_bihalf.tickets.images import ImageSpec
from tests.reference import one_line_error

ARCHITECTURE = {"name": "conv2", "num_classes": 2, "width": 0.05}
GIVEN = {"mean": [0.5, 0.25, 0.1], "std": [0.1, 1, 2.0], "classes": ["cat", "dog"]}
WRONG: dict[str, tuple[str, dict[str, Any]]] = {
    "mean alone": ("come together", {"std": None}),
    "std alone": ("come together", {"mean": None}),
    "one number": ("mean must be a list", {"mean": 0.5}),
    "text": ("mean must be a list", {"mean": "0.5"}),
    "texts": ("mean must be a list", {"mean": ["0.5"] * 3}),
    "none at all": ("mean must be a list", {"mean": []}),
    "a mean image": ("mean must be a list", {"mean": torch.zeros(3, 32, 32).tolist()}),
    "truth values": ("std must be a list", {"std": [True] * 3}),
    "not a number": ("mean must be a list", {"mean": [0.5, float("nan"), 0.1]}),
    "infinite": ("std must be a list", {"std": [0.1, float("inf"), 0.1]}),
    "no deviation": ("above 0", {"std": [0.1, 0.0, 0.1]}),
    "negative": ("above 0", {"std": [0.1, 0.1, -0.1]}),
    "other channels": ("1 means and 1 stds, and images of 3", {"mean": [0.5], "std": [0.5]}),
    "more of one": ("3 means and 4 stds", {"std": [0.5] * 4}),
    "classes as one text": ("distinct names", {"classes": "ab"}),
    "numbers for names": ("distinct names", {"classes": [0, 1]}),
    "an empty name": ("distinct names", {"classes": ["cat", ""]}),
    "a name twice": ("distinct names", {"classes": ["cat", "cat"]}),
    "more classes": ("3 classes, and the network tells 2 apart", {"classes": ["a", "b", "c"]}),
}


def network() -> nn.Module:
    return create_model(**ARCHITECTURE, seed=0)  # type: ignore[arg-type]


@pytest.mark.parametrize("what", list(WRONG))
def test_what_cannot_be_is_refused_when_saved_and_unknown_when_read(tmp_path: Path, what: str) -> None:
    why, change = WRONG[what]
    with one_line_error(why):
        save_ticket(network(), tmp_path / "a", ARCHITECTURE, **(GIVEN | change))  # type: ignore[arg-type]
    assert not list(tmp_path.iterdir())
    ticket = Ticket.of(network(), ARCHITECTURE, {"images": GIVEN | change})
    assert ticket.image_spec == ImageSpec()
    assert replace(ticket, about={"images": GIVEN}).image_spec != ImageSpec()


@pytest.mark.parametrize("images", [None, "all", 3, [GIVEN], {}])
def test_what_is_told_in_another_way_is_unknown(images: object) -> None:
    assert Ticket({}, {}, about={"images": images}).image_spec == ImageSpec()


@pytest.mark.parametrize("kind", [list, tuple, np.array, torch.tensor])
def test_it_is_in_the_file_as_it_was_given(tmp_path: Path, kind: Any) -> None:
    mean, std = (kind(GIVEN[name]) for name in ("mean", "std"))
    save_ticket(network(), tmp_path / "a", mean=mean, std=std, classes=("cat", "dog"))
    told = read_ticket(tmp_path / "a").about["images"]
    assert json.loads(json.dumps(told)) == {**told, "classes": GIVEN["classes"]}
    assert told["mean"] == pytest.approx(GIVEN["mean"], abs=1e-7 if kind is torch.tensor else 0)  # which has float32


def test_a_part_may_be_unknown_and_without_an_architecture_any_number_goes(tmp_path: Path) -> None:
    save_ticket(network(), tmp_path / "a", ARCHITECTURE, classes=["cat", "dog"])
    assert read_ticket(tmp_path / "a").image_spec == ImageSpec(classes=("cat", "dog"))
    save_ticket(network(), tmp_path / "a", mean=[0.5], std=[0.25])
    assert read_ticket(tmp_path / "a").image_spec == ImageSpec((0.5,), (0.25,))
    save_ticket(network(), tmp_path / "a", ARCHITECTURE)
    assert read_ticket(tmp_path / "a").about == {}


def test_classes_are_matched_by_name_and_otherwise_by_place() -> None:
    images = ImageSet(torch.zeros(4, 1, 2, 2, dtype=torch.uint8), torch.tensor([0, 1, 2, 1]))
    data = Dataset("data", images, images, ("ant", "bee", "cow"), (0.5,), (0.5,), crop_padding=0, flip=False)
    warned: list[str] = []
    known = ImageSpec(classes=("cow", "ant", "bee")).relabel(data, warned.append)
    assert known.classes == ("cow", "ant", "bee") and not warned
    assert known.train.labels.tolist() == known.test.labels.tolist() == [1, 2, 0, 2]
    for classes in (("ant", "bee", "cat"), None):
        assert ImageSpec(classes=classes).relabel(data, warned.append) is data
    assert "place, 'cat' with 'cow'" in warned[0] and "by place with those of data" in warned[1]
