from __future__ import annotations

from mpt_bihalf.training.record import summarise


def test_the_best_epoch_stands_beside_the_last_and_the_holdout_alone_selects_it() -> None:
    plain = [{"epoch": i + 1, "test_top1": top1, "test_loss": -i} for i, top1 in enumerate([20.0, 60.0, 50.0])]
    assert summarise(plain) == {
        "epochs": 3, "test_top1": 50.0, "test_loss": -2, "best_epoch": 2, "best_epoch_test_top1": 60.0
    }  # fmt: skip
    held_out = [{**epoch, "validation_top1": top1} for epoch, top1 in zip(plain, [30.0, 10.0, 20.0], strict=True)]
    result = summarise(held_out)
    assert (result["best_epoch"], result["best_epoch_test_top1"], result["test_top1"]) == (1, 20.0, 50.0)
