from __future__ import annotations

import pytest
import torch
from torch import nn

from mpt_bihalf import create_model


def test_network_has_the_published_number_of_parameters() -> None:
    """OpenMMLab's ShuffleNetV1 1.0x (group=3) on ImageNet has 1.87 million."""
    with torch.device("meta"):
        model = create_model("shufflenet", 1000)
    assert sum(p.numel() for p in model.parameters()) / 1e6 == pytest.approx(1.87, abs=0.005)


def test_network_has_the_papers_stages() -> None:
    """Zhang et al. 2018, table 1, g = 3."""
    model = create_model("shufflenet", seed=0)
    shapes: list[torch.Size] = []
    for name in ("bn1", "stage2", "stage3", "stage4"):
        model.get_submodule(name).register_forward_hook(lambda _, inputs, out: shapes.append(out.shape[1:]))
    assert model(torch.randn(2, 3, 32, 32)).shape == (2, 10)
    assert shapes == [(24, 32, 32), (240, 16, 16), (480, 8, 8), (960, 4, 4)]
    assert [len(model.get_submodule(f"stage{stage}")) for stage in (2, 3, 4)] == [4, 8, 4]


@pytest.mark.parametrize("unit", ["stage2.0", "stage2.1", "stage3.0", "stage4.3"])
def test_units_have_two_grouped_convolutions_round_a_depthwise_one(unit: str) -> None:
    with torch.device("meta"):
        module = create_model("shufflenet").get_submodule(unit)
    first, middle, last = (layer for layer in module.modules() if isinstance(layer, nn.Conv2d))
    outputs = {"2": 240, "3": 480, "4": 960}[unit[5]]
    strided = unit.endswith(".0")
    assert first.groups == (1 if unit == "stage2.0" else 3) and last.groups == 3
    assert first.out_channels == middle.in_channels == middle.out_channels == middle.groups == outputs // 4
    assert middle.stride == ((2, 2) if strided else (1, 1))
    assert last.out_channels == (outputs - first.in_channels if strided else outputs)


def test_a_strided_unit_puts_the_pooled_input_first() -> None:
    unit = create_model("shufflenet", seed=0).eval().get_submodule("stage2.0")
    x = torch.randn(2, 24, 8, 8).abs()
    torch.testing.assert_close(unit(x)[:, :24], nn.functional.avg_pool2d(x, 3, 2, 1))


def test_shuffling_leads_every_group_into_every_other() -> None:
    unit = create_model("shufflenet", seed=0).eval().get_submodule("stage3.1")
    x = torch.randn(1, 480, 4, 4, requires_grad=True)
    branch = unit.branches(x)
    branch[:, :160].abs().sum().backward()
    assert all(x.grad[:, start : start + 160].any() for start in (0, 160, 320))


@pytest.mark.parametrize(("width", "stages"), [(0.5, [120, 240, 480]), (2, [480, 960, 1920]), (0.01, [12, 24, 48])])
def test_any_width_divides_into_the_groups(width: float, stages: list[int]) -> None:
    """0.5 and 2 are the paper's."""
    model = create_model("shufflenet", 3, 1, 8, seed=0, width=width, activations="approx")
    norms = [model.get_submodule(f"stage{stage}.1.branches")[-1] for stage in (2, 3, 4)]
    assert [norm.num_features for norm in norms] == stages
    assert model(torch.randn(2, 1, 8, 8)).shape == (2, 3)
