from __future__ import annotations

import pickle
from concurrent.futures import ThreadPoolExecutor
from copy import deepcopy

import pytest
import torch

from mpt_bihalf import binarize_weights, create_model
from mpt_bihalf.spare import SMALLEST, Spare

BIG = (2, SMALLEST)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_the_block_is_used_again_only_when_nobody_holds_it(dtype: torch.dtype) -> None:
    spare, model = Spare(), torch.empty(BIG, dtype=dtype)
    first = spare.like(model)
    assert first.shape == BIG and first.dtype == dtype and first.is_contiguous() and not first._is_view()
    place, part = first.data_ptr(), first[1]
    del first
    assert spare.like(model).data_ptr() != place, "a view of it is alive"
    del part
    again = spare.like(model)
    assert again.data_ptr() == place
    again.fill_(1)
    assert spare.like(model).fill_(2) is not again and again.eq(1).all()


def test_another_size_leaves_what_is_held_alone() -> None:
    spare = Spare()
    first = spare.like(torch.empty(BIG)).fill_(1)
    second = spare.like(torch.empty(3, *BIG)).fill_(2)
    assert first.eq(1).all() and second.shape == (3, *BIG)


def test_small_tensors_and_those_of_other_devices_are_ordinary() -> None:
    assert Spare().like(torch.empty(3, 4)).shape == (3, 4)
    with torch.device("meta"):
        assert Spare().like(torch.zeros(BIG, device="cpu")).device.type == "cpu"
    assert Spare().like(torch.empty(BIG, device="meta")).is_meta


def test_threads_never_get_the_same_block() -> None:
    spare, model = Spare(), torch.empty(BIG)

    def use(number: int) -> bool:
        mine = spare.like(model).fill_(number)
        return bool(mine.eq(number).all())

    with ThreadPoolExecutor(4) as pool:
        assert all(pool.map(use, range(200)))


def test_copies_have_memory_of_their_own() -> None:
    spare = Spare()
    held = spare.like(torch.empty(BIG))
    for copy in (deepcopy(spare), pickle.loads(pickle.dumps(spare))):
        assert copy.like(held).data_ptr() != held.data_ptr()


@pytest.mark.parametrize("method", ["bihalf", "irnet", "mpt-bihalf"])
def test_gradients_that_are_kept_are_not_written_over(method: str) -> None:
    """Two passes before a step, and each gradient and weight in use held on to, as with memory of their own."""
    model = binarize_weights(create_model("conv2", in_channels=1, image_size=16, seed=0), method, 0.5, seed=0)
    x = [torch.randn(2, 1, 16, 16, generator=torch.Generator().manual_seed(seed)) for seed in range(3)]
    trained = [p for p in model.parameters() if p.requires_grad]
    used = [m.weight for m in model.modules() if hasattr(m, "parametrizations")]
    before = [w.clone() for w in used]
    losses = [model(images).square().sum() for images in x]
    gradients = [torch.autograd.grad(loss, trained, retain_graph=True) for loss in losses]
    copies = [[g.clone() for g in each] for each in gradients]
    for loss in losses:
        loss.backward()
    for parameter, *each in zip(trained, *copies, strict=True):
        torch.testing.assert_close(parameter.grad, sum(each))
    assert all(torch.equal(a, b) for g, c in zip(gradients, copies, strict=True) for a, b in zip(g, c, strict=True))
    assert all(torch.equal(a, b) for a, b in zip(used, before, strict=True))
