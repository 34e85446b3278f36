from __future__ import annotations

import pytest
import torch
from hypothesis import settings

settings.register_profile("tests", deadline=None)
settings.load_profile("tests")
torch.set_num_threads(1)  # the tensors of the tests are small: threads only wait for each other


@pytest.fixture(scope="session", params=["cpu", *["cuda"] * torch.cuda.is_available()])
def device(request: pytest.FixtureRequest) -> torch.device:
    return torch.device(request.param)
