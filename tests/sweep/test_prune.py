from __future__ import annotations

from itertools import product

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mpt_bihalf.sweep import PruneSweep, parse_rates
from mpt_bihalf.training import Run

TENTHS = [0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9]


def runs(**options: object) -> list[Run]:
    return PruneSweep(**{"device": "cpu", "threads": 1, **options}).runs()  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("text", "rates"),
    [
        ("0.1..0.9", TENTHS),
        ("0.1..0.9:0.2", [0.1, 0.3, 0.5, 0.7, 0.9]),
        ("0.5", [0.5]),
        ("0.1,0.5,0.95", [0.1, 0.5, 0.95]),
        ("0..0.2,0.95", [0.0, 0.1, 0.2, 0.95]),
        ("0", [0.0]),
        ("0.95,0.5,0.1,0.5", [0.1, 0.5, 0.95]),
        ("0.5,0.50,0.4..0.6,5e-1", [0.4, 0.5, 0.6]),
        ("0.1..0.35", [0.1, 0.2, 0.3]),
        ("0.3..0.3", [0.3]),
        ("0..0.9:0.3", [0.0, 0.3, 0.6, 0.9]),
        (" 0.1 .. 0.3 : 0.1 , .5", [0.1, 0.2, 0.3, 0.5]),
        ("0.99..0.999:0.003", [0.99, 0.993, 0.996, 0.999]),
    ],
)
def test_rates_are_the_decimals_that_were_written(text: str, rates: list[float]) -> None:
    assert parse_rates(text) == rates
    assert [repr(rate) for rate in parse_rates(text)] == [repr(rate) for rate in rates]


@given(st.integers(0, 999), st.integers(0, 999), st.integers(1, 999))
def test_a_range_is_what_counting_in_thousandths_gives(a: int, b: int, step: int) -> None:
    first, last = sorted((a, b))
    text = f"{first / 1000}..{last / 1000}:{step / 1000}"
    assert parse_rates(text) == [n / 1000 for n in range(first, last + 1, step)]


BAD_RATES = ["0.1..", "..", "..0.9", "", " ", ",", "0.1,", "0.1,,0.5", "0.1..0.9:0", "0.1..0.9:-0.1", "0.1..0.9:"]
BAD_RATES += ["0.1..0.9:nan", "0.1..0.9:inf", "0.1..0.9:1e-9", "0.9..0.1", "0.1..0.2..0.3", "0.1:0.2", "0.1...0.9"]
BAD_RATES += ["nan", "inf", "-inf", "sNaN", "1", "1.0", "1e5", "-0.1", "-1e-400", "0.5%", "50%", "½", "half", "0,5;0.6"]
BAD_RATES += ["0.99999999999999999999", "1e-400", "1e-999999999", "0.5..0.6:1e-99999999", "0.1..1", "0x1", "0.5\n0.6"]


@pytest.mark.parametrize("text", BAD_RATES)
def test_bad_rates_are_refused_with_what_was_written(text: str) -> None:
    with pytest.raises(ValueError) as error:
        parse_rates(text)
    assert str(error.value).startswith(f"rates {text!r}: ")
    assert "\n" not in str(error.value)


@given(st.text(st.sampled_from("0123456789.,:-+eE nainf_"), max_size=12))
def test_any_text_gives_rates_in_order_or_a_value_error(text: str) -> None:
    try:
        rates = parse_rates(text)
    except ValueError:
        return
    assert rates == sorted(set(rates))
    assert all(0 <= rate < 1 for rate in rates)


def test_a_grid_has_every_combination_once_and_trials_innermost() -> None:
    found = runs(rates="0.2,0.4", methods=["mpt-sign", "mpt-bihalf"], models=["conv2", "conv4"], trials=2, seed=7)
    expected = product(["conv2", "conv4"], ["mpt-sign", "mpt-bihalf"], [0.2, 0.4], [7, 8])
    assert [(run.model, run.method, run.prune_rate, run.seed) for run in found] == list(expected)


@pytest.mark.parametrize("method", ["dense", "sign", "bihalf"])
def test_a_method_without_a_mask_runs_once_a_trial_whatever_the_rates(method: str) -> None:
    found = runs(rates="0.1..0.9", methods=[method, "mpt-sign"], trials=2)
    assert [(run.prune_rate, run.seed) for run in found if run.method == method] == [(0.0, 0), (0.0, 1)]
    assert len(found) == 2 + 9 * 2


def test_methods_and_models_are_given_with_spaces_or_commas() -> None:
    spaced = runs(rates="0.5", methods=["mpt-sign", "sign"], models=["conv2", "conv4"], skip=["first", "last"])
    assert runs(rates="0.5", methods=["mpt-sign,sign"], models=["conv2,conv4"], skip=["first,last"]) == spaced


def test_what_is_asked_for_twice_runs_once() -> None:
    assert len(runs(rates="0.5,0.5", methods=["mpt-sign", "mpt-sign"], models=["conv2", "conv2"], trials=1)) == 1
    # The sign method has no scope and bihalf no score gradient to vary.
    assert len(runs(methods=["sign"], trials=1, grid=["score-gradient=latent,binary", "scope=layer,global"])) == 1


def test_grid_makes_the_product_of_its_fields() -> None:
    found = runs(rates="0.5", methods=["mpt-sign"], trials=1, grid=["lr=0.1,0.05", "scale=kaiming,l1", "p-pos=0.5"])
    assert [(run.lr, run.scale) for run in found] == [(0.1, "kaiming"), (0.1, "l1"), (0.05, "kaiming"), (0.05, "l1")]


@pytest.mark.parametrize(
    ("entry", "field", "values"),
    [
        ("batch_size=32,16", "batch_size", [32, 16]),
        ("batch-size=32", "batch_size", [32]),
        ("train_affine=true,False", "train_affine", [True, False]),
        ("skip=first+last,none", "skip", [("first", "last"), ()]),
        ("weight_decay=1e-4, 0", "weight_decay", [1e-4, 0.0]),
        ("init=signed_constant", "init", ["signed_constant"]),
        ("epochs=3", "epochs", [3]),
        ("scope=global", "scope", ["global"]),
        ("holdout=0.1", "holdout", [0.1]),
        ("precision=bf16", "precision", ["bf16"]),
        ("augment=auto,standard", "augment", ["auto", "standard"]),
    ],
)
def test_grid_values_have_the_type_of_their_field(entry: str, field: str, values: list[object]) -> None:
    found = runs(rates="0.5", methods=["mpt-sign"], trials=1, epochs=9, grid=[entry])
    assert [getattr(run, field) for run in found] == values


def test_grid_gives_the_milestones_of_a_step_schedule() -> None:
    found = runs(rates="0.5", methods=["sign"], trials=1, grid=["schedule=step", "milestones=1+2,3"])
    assert [run.milestones for run in found] == [(1, 2), (3,)]


@pytest.mark.parametrize(
    ("entries", "told"),
    [
        ([""], "write field=value"),
        (["lr"], "write field=value"),
        (["lr="], "write field=value"),
        (["=0.1"], "no field ''"),
        (["colour=red"], "no field 'colour'"),
        (["lr=fast"], "'fast' is not a number"),
        (["lr=0.1,,0.2"], "'' is not a number"),
        (["lr=0.1", "lr=0.2"], "given twice"),
        (["batch-size=1", "batch_size=2"], "given twice"),
        (["batch_size=1.5"], "'1.5' is not a whole number"),
        (["train_affine=maybe"], "not true or false"),
        (["milestones=a+b"], "not whole numbers"),
        (["prune_rate=0.5"], "--rates"),
        (["model=conv2"], "--models"),
        (["method=sign"], "--methods"),
        (["seed=1"], "--seed"),
        (["lr=nan"], "lr must be a finite number"),
        (["lr=1e999"], "lr must be a finite number"),
        (["lr=-1"], "lr must be a finite number"),
        (["momentum=1"], "momentum"),
        (["weight_decay=inf"], "weight_decay"),
        (["holdout=1"], "holdout"),
        (["holdout=nan"], "holdout"),
        (["p_pos=2"], "p_pos"),
        (["init=keep"], "unknown init 'keep'"),
        (["precision=fp8"], "unknown precision 'fp8'"),
        (["augment=all"], "unknown augment 'all'; known: auto, none, standard"),
        (["schedule=step"], "--milestones"),
        (["device=gpu"], "'gpu'"),
        (["data=nothing"], "'nothing'"),
        (["epochs=0"], "epochs"),
    ],
)
def test_a_bad_grid_is_refused_by_what_is_wrong_with_it(entries: list[str], told: str) -> None:
    with pytest.raises(ValueError) as error:
        runs(grid=entries)
    assert told in str(error.value)


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"trials": 0}, "trials must lie in 1 to 10,000, not 0"),
        ({"trials": -1}, "trials must lie in 1 to 10,000, not -1"),
        ({"seed": -1}, "seed must lie in 0 to"),
        ({"seed": 2**63 - 1, "trials": 2}, "seed must lie in 0 to"),
        ({"epochs": 0}, "epochs must lie in 1 to 1000000, not 0"),
        ({"image_size": -1}, "image_size must lie in 0 to 1024, not -1"),
        ({"threads": -1}, "threads must lie in 0 to 1024, not -1"),
        ({"methods": [""]}, "unknown method ''"),
        ({"models": [""]}, "unknown model ''"),
        ({"methods": ["mpt"]}, "unknown method 'mpt'"),
        ({"models": ["conv3"]}, "unknown model 'conv3'"),
        ({"data": "mnist"}, "unknown data set 'mnist'"),
        ({"scope": "network"}, "unknown scope 'network'"),
        ({"flip": ""}, "unknown flip ''; known: auto, on, off"),
        ({"device": "gpu"}, "device 'gpu' is not available"),
    ],
)
def test_a_bad_option_is_refused_by_name(options: dict[str, object], told: str) -> None:
    with pytest.raises(ValueError) as error:
        runs(**options)
    assert told in str(error.value)


def test_the_runs_are_resolved_so_that_their_names_are_final() -> None:
    for run in PruneSweep(rates="0.5").runs():
        assert run == run.resolved()
        assert (run.device, run.threads) != ("auto", 0)
