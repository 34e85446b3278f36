from __future__ import annotations

import pytest

from mpt_bihalf.methods import METHODS
from mpt_bihalf.models import MODELS
from mpt_bihalf.report.published import OUR_NAMES, published

COLUMNS = ["source", "table", "dataset", "model", "method", "bits_w_a", "pruned_percent", "top1", "top1_std", "top5"]
COLUMNS += ["recipe"]


# The paper's Table 2, as printed there.
@pytest.mark.parametrize(
    ("method", "figures"),
    [
        ("sign", [(77.86, 0.69), (86.49, 0.24), (88.51, 0.35), (89.17, 0.26)]),
        ("irnet", [(78.32, 0.25), (87.20, 0.26), (89.61, 0.11), (90.06, 0.06)]),
        ("bihalf", [(79.25, 0.28), (87.68, 0.32), (89.92, 0.19), (90.40, 0.17)]),
    ],
)
def test_table_2_is_that_of_the_paper(method: str, figures: list[tuple[float, float]]) -> None:
    rows = published("Table 2")
    rows = rows[rows["method"] == method]
    assert rows["model"].tolist() == ["Conv2", "Conv4", "Conv6", "Conv8"]
    assert list(zip(rows["top1"], rows["top1_std"], strict=True)) == figures
    assert set(rows["dataset"]) == {"CIFAR-10"}
    assert set(rows["bits_w_a"]) == {"1/32"}


# The paper's Table 3: the rows of our methods.
@pytest.mark.parametrize(
    ("model", "method", "top1", "top5"),
    [
        ("ResNet-18", "sign", 59.98, 82.47),
        ("ResNet-18", "bihalf", 60.40, 82.86),
        ("ResNet-34", "bihalf", 64.17, 85.36),
    ],
)
def test_table_3_has_both_accuracies(model: str, method: str, top1: float, top5: float) -> None:
    rows = published("Table 3")
    (row,) = rows[(rows["model"] == model) & (rows["method"] == method)].to_dict("records")
    assert (row["dataset"], row["bits_w_a"], row["top1"], row["top5"]) == ("ImageNet", "1/1", top1, top5)


def test_the_networks_of_table_2_are_ours_in_lower_case() -> None:
    assert {model.lower() for model in published("Table 2")["model"]} <= set(MODELS)


def test_our_names_are_of_methods_in_table_3_and_of_ours() -> None:
    assert {*OUR_NAMES} == {*published("Table 3")["method"]} - {"full precision", "sign", "bihalf"}
    assert len(set(OUR_NAMES.values())) == len(OUR_NAMES)
    assert {"xnor", "bi-real", "least-squares", "abc", "irnet"} <= {*OUR_NAMES.values()} & {*METHODS}


def test_every_figure_says_how_it_was_trained_or_that_this_is_not_known() -> None:
    table = published("Table 3")
    assert {method: set(rows["recipe"]) for method, rows in table.groupby("method")} == {
        "sign": {"100 epochs, no teacher"},
        "bihalf": {"100 epochs, no teacher"},
        "Least-squares": {"240 epochs, distilled from a real-valued ResNet-18"},
        "RBNN": {"150 epochs, batch 512, another network: batch norm behind the last layer"},
        "Bi-Real": {"three pre-trainings, then 40 epochs"},
        "XNOR++": {"80 epochs, as remembered: no authors' code"},
        "XNOR": {"not known: the authors' code trains AlexNet"},
        "BNN+": {"not known: no authors' code"},
        "ABC-Net": {"not known: no authors' code"},
        "IR-Net": {"not known"},
        "full precision": {"not known"},
    }
    assert set(published("Table 2")["recipe"]) == {"100 epochs"}
    assert published()["recipe"].notna().all()


def test_without_a_table_every_figure_is_there() -> None:
    everything = published()
    assert list(everything) == COLUMNS
    assert len(published("Table 2")) + len(published("Table 3")) < len(everything)
    assert everything["top1"].between(0, 100).all()
    assert not everything.duplicated(["source", "table", "dataset", "model", "method", "bits_w_a"]).any()


def test_a_table_that_is_not_there_is_empty() -> None:
    assert published("Table 9").empty
    assert list(published("Table 9")) == COLUMNS


def test_each_call_gives_a_table_of_its_own() -> None:
    rows = published("Table 2")
    rows["top1"] = 0.0
    assert published("Table 2")["top1"].min() > 70
    assert published("Table 2").index.tolist() == list(range(12))
