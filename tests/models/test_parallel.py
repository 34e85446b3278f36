from __future__ import annotations

import torch
from torch import nn

from mpt_bihalf.models.parallel import Branches


def test_branches_get_the_same_and_stand_side_by_side() -> None:
    x = torch.randn(2, 3, 4, 5)
    assert torch.equal(Branches([nn.Identity(), nn.ReLU()])(x), torch.cat([x, x.clamp(min=0)], 1))
