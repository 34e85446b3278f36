"""What results/README.md says is what the records beside it say: tables cell by cell, sentences by their figures."""

import json
import re
from functools import cache
from math import pi, sqrt
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from scipy.stats import t as student
from scipy.stats import ttest_1samp, ttest_rel

from mpt_bihalf.sweep import find_runs, read_layers, read_records

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "results"
TEXT = " ".join((RESULTS / "README.md").read_text().split())
README = " ".join((ROOT / "README.md").read_text().split())
# What tells the rows and the columns of each table apart, and the digits of its cells.
TABLES: dict[str, tuple[list[str], list[str], int]] = {
    "pruning_rates": (["prune_rate"], ["method"], 2),
    "pruning_ablation": (["method", "prune_rate", "scope"], ["scale", "score_gradient"], 1),
    "learning_rates": (["method", "prune_rate"], ["lr"], 2),
    "latent_gradients": (["method", "latent_gradient"], [], 2),
    "scale_on": (["model", "method"], ["scale_on"], 2),
    "compute": (["method", "prune_rate", "lr"], ["compute"], 2),
    "transport_in_systems": (["model", "method", "scale"], [], 2),
    "ticket_comparison": (["method", "mask"], ["prune_rate"], 2),
}

Cells = dict[tuple[str, ...], str]


def told(section: str, labels: int, columns: bool) -> Cells:
    """The cells of a section's first table by their rows' labels and their column's."""
    text = (RESULTS / "README.md").read_text().split(f"\n## {section}:")[1]
    lines = [line for line in text.split("\n\n| ")[1].split("\n\n")[0].splitlines() if "---" not in line]
    head, *rows = [[cell.strip() for cell in line.replace("**", "").strip("| ").split(" | ")] for line in lines]
    cells = {}
    for row in rows:
        row_labels = tuple(label.split(",")[0].lower() for label in row[:labels])
        for column, cell in zip(head[labels:] if columns else ("",), row[labels:], strict=False):
            cells[row_labels + ((column,) if columns else ())] = cell
    return cells


def label(field: str, value: Any) -> str:
    return f"{100 * value:g} %" if field == "prune_rate" else f"{value:g}" if field == "lr" else str(value)


@cache
def records(folder: str) -> pd.DataFrame:
    frame = pd.DataFrame(read_records(RESULTS / folder, find_runs(RESULTS / folder))).assign(folder=folder)
    assert sorted(frame["run"]) == sorted(path.name for path in (RESULTS / folder / "runs").iterdir())
    assert (frame["status"] == "finished").all()
    return frame


def recorded(frame: pd.DataFrame, rows: list[str], columns: list[str], digits: int) -> Cells:
    cells = {}
    for key, trials in frame.groupby(rows + columns)["test_top1"]:
        labels = [label(field, value) for field, value in zip(rows + columns, key, strict=True)]
        column = (", ".join(labels[len(rows) :]),) if columns else ()
        spread = f" ± {trials.std():.{digits}f}" if len(trials) > 1 else ""
        cells[(*labels[: len(rows)], *column)] = f"{trials.mean():.{digits}f}{spread}"
    return cells


@pytest.mark.parametrize("folder", TABLES)
def test_each_table_is_that_of_its_records(folder: str) -> None:
    rows, columns, digits = TABLES[folder]
    own = {"learning_rates": learning_rates, "ticket_comparison": tickets}.get(folder, lambda: records(folder))()
    if folder == "ticket_comparison":  # in the table, the rates that all have; the controls are in the text
        own = own[own["prune_rate"].isin([0.5, 0.9, 0.98]) & ~own["mask"].str.startswith("imp ")]
    shown = {key: cell.removesuffix(" (AVX-512)") for key, cell in told(folder, len(rows), bool(columns)).items()}
    assert shown == recorded(own, rows, columns, digits)


def learning_rates() -> pd.DataFrame:
    """The rate 0.1 is not trained again: other folders have it, of the same seed, and but for one the same machine."""
    again = records("activation_variance").query("prune_rate == 0.9")
    again = again[(again["scale"] == "l1") == (again["method"] == "mpt-sign")]
    elsewhere = records("pruning_rates").query("method == 'mpt-balanced' and prune_rate == 0.9 and seed == 0")
    return pd.concat([records("learning_rates"), again, elsewhere])


def test_runs_of_another_machine_are_marked() -> None:
    def processors(frame: pd.DataFrame) -> set[str]:
        folders = [RESULTS / folder / "runs" / run for folder, run in zip(frame["folder"], frame["run"], strict=True)]
        return {json.loads((folder / "environment.json").read_text())["processor"] for folder in folders}

    frame = learning_rates()
    marked = [key for key, cell in told("learning_rates", 2, True).items() if cell.endswith(" (AVX-512)")]
    assert marked == [("mpt-balanced", "90 %", "0.1")]
    other = (frame["method"] == "mpt-balanced") & (frame["lr"] == 0.1)
    assert processors(frame[~other]) == {"AVX2"} and processors(frame[other]) == {"AVX512"}


def ahead(folder: str) -> tuple[float, dict[float, tuple[float, str]]]:
    """The 5 % bound of a difference of two cells; of each rate how far the best mean is ahead, and its cell."""
    rows, columns, digits = TABLES[folder]
    cells = records(folder).groupby(["prune_rate", *rows, *columns])["test_top1"].agg(["mean", "std", "count"])
    trials = cells["count"].iloc[0]
    deviation = sqrt((cells["std"] ** 2).mean())
    bound = student.ppf(0.975, len(cells) * (trials - 1)) * deviation * sqrt(2 / trials)
    best = {}
    for rate, of_rate in cells.groupby(level=0):
        first, second = of_rate.nlargest(2, "mean").itertuples()
        best[rate] = first.mean - second.mean, f"{first.mean:.{digits}f} ± {first.std:.{digits}f}"
    return bound, best


@pytest.mark.parametrize("folder", ["pruning_rates", "pruning_ablation", "latent_gradients"])
def test_bold_is_what_chance_does_not_explain(folder: str) -> None:
    bound, best = ahead(folder)
    section = (RESULTS / "README.md").read_text().split(f"\n## {folder}:")[1].split("\n## ")[0]
    clear = [cell for difference, cell in best.values() if difference > bound]
    assert re.findall(r"\*\*([\d.]+ ± [\d.]+)\*\*", section) == clear
    if folder != "latent_gradients":
        assert f"{bound:.2f} points" in " ".join(section.split())
    if folder == "pruning_ablation":
        assert max(difference for difference, _ in best.values()) < 1


def test_where_the_scale_is_makes_no_difference_that_shows() -> None:
    frame = records("scale_on").pivot(index=["model", "method", "seed"], columns="scale_on", values="test_top1")
    apart = frame["output"] - frame["weight"]
    by_arm = apart.groupby(["model", "method"])
    p = {arm: ttest_1samp(trials, 0).pvalue for arm, trials in by_arm}
    lowest = min(p, key=p.__getitem__)
    assert lowest == ("conv4", "mpt-sign") and 8 * p[lowest] > 0.05
    assert f"it is {-by_arm.mean()[lowest]:.2f} behind, p = {p[lowest]:.3f}, of eight such tests" in TEXT
    for model, told in (("conv4", "Conv4"), ("resnet18", "ResNet-18")):
        of_model = apart[model]
        mean, of_seeds = of_model.mean(), ttest_1samp(of_model.groupby("seed").mean(), 0).pvalue
        assert f"{mean:+.2f} points in {told} (p = {of_seeds:.2f} by seeds)" in TEXT
    assert f"ahead in {(apart > 0).sum()} of {len(apart)} pairs" in TEXT


def test_what_transport_brings_inside_other_systems() -> None:
    frame = records("transport_in_systems")
    arms = {arm: runs.set_index("seed")["test_top1"] for arm, runs in frame.groupby(["model", "method", "scale"])}
    l1, rotated = "l1-filter", "learned-l1-filter"
    pairs = [("bihalf", l1, "sign", l1), ("bihalf", "least-squares", "sign", l1)]
    pairs += [("rbnn-bihalf", rotated, "rbnn", rotated)]
    apart, p = {}, {}
    for model in ("conv4", "resnet18"):
        for method, scale, reference, of in pairs:
            arm = model, method, scale
            apart[arm] = arms[arm] - arms[model, reference, of]
            p[arm] = ttest_1samp(apart[arm], 0).pvalue
    holm, least = {}, 0.0
    for rank, arm in enumerate(sorted(p, key=p.__getitem__)):
        holm[arm] = least = max(least, min(1, p[arm] * (len(p) - rank)))
    section = (RESULTS / "README.md").read_text().split("\n## transport_in_systems:")[1]
    lines = [line.strip("| ").split(" | ") for line in section.splitlines() if line.startswith("| ")][2:12]
    shown = {tuple(line[:3]): line[4] if len(line) > 4 else "" for line in lines}
    assert len(shown) == 10 and {arm for arm, told in shown.items() if told} == set(apart)
    for arm, difference in apart.items():
        low, high = student.interval(0.95, len(difference) - 1, difference.mean(), difference.sem())
        assert shown[arm] == (
            f"{difference.mean():+.2f} ({low:+.1f} to {high:+.1f}), ahead in {(difference > 0).sum()} of 5, "
            f"p = {holm[arm]:.2f}"
        )
    best = "conv4", "rbnn-bihalf", rotated
    assert [arm for arm in holm if holm[arm] < 0.05] == [best]
    others = [apart[arm].mean() for arm in apart if arm != best]
    say(f"in {(apart[best] > 0).sum()} of 5 seeds, by {apart[best].mean():.2f} points (p = {holm[best]:.2f})")
    say(f"lies between {min(others):+.2f} and {max(others):+.2f} points")
    layers = turning("transport_in_systems")
    sums = layers[layers["epoch"] == 2].groupby(["model", "method"])[["turned", "n_kept"]].sum()
    share = 100 * sums["turned"] / sums["n_kept"]
    still = share[share.index.get_level_values("method").isin(["sign", "bihalf"])]
    moving = share.drop(still.index)
    say(
        f"{still.min():.1f} to {still.max():.1f} % of them where",
        f"and {moving.min():.0f} to {moving.max():.0f} % under RBNN",
    )
    entropy = layers[layers["epoch"] == 10].groupby(["model", "method"])["filter_entropy"].mean()
    say(f"{entropy['conv4', 'sign']:.3f} under the sign on Conv4", f"{entropy['conv4', 'rbnn']:.3f} under RBNN)")
    say(f"({entropy['resnet18', 'rbnn']:.3f} there)")


def tickets() -> pd.DataFrame:
    """The records with `mask` as the table has it: that of the method, one at initialisation, or what is redrawn."""
    frame = records("ticket_comparison")
    mask = frame["mask"].where(frame["mask"] != "", frame["redraw"]).replace("", "own")
    control = frame["imp_control"].where(frame["imp_share"] < 1, "one-shot").where(frame["mask"] == "imp", "")
    return frame.assign(mask=(mask + " " + control).str.strip())


def test_which_ticket_wins() -> None:
    frame = tickets()
    arms = {
        arm: runs.set_index("seed")["test_top1"].sort_index()
        for arm, runs in frame.groupby(["method", "mask", "prune_rate"])
    }
    dense, bihalf = (arms[method, "own", 0.0] for method in ("dense", "bihalf"))
    say(f"`dense` has {dense.mean():.2f} ± {dense.std():.2f} and `bihalf` {bihalf.mean():.2f} ± {bihalf.std():.2f}")
    section = (RESULTS / "README.md").read_text().split("\n## ticket_comparison:")[1].split("\n![")[0]
    lines = [line.strip("| ").split(" | ") for line in section.splitlines() if line.startswith("| ")][2:]
    rates = (0.5, 0.9, 0.98)
    bold = {
        (line[0], line[1], rate)
        for line in lines
        for rate, cell in zip(rates, line[2:], strict=True)
        if cell.startswith("**")
    }
    pruned = {arm: runs.mean() for arm, runs in arms.items() if arm[2] in rates}
    kinds = [
        {arm: mean for arm, mean in pruned.items() if arm[2] == rate and (arm[0] == "dense") == real}
        for rate in rates
        for real in (False, True)
    ]
    assert bold == {max(some, key=some.__getitem__) for some in kinds}

    def lead(one: pd.Series, other: pd.Series) -> tuple[str, str]:
        """The mean difference, and in how many seeds and how surely it is one."""
        apart = one - other
        p = ttest_rel(one, other).pvalue
        return f"{apart.mean():.2f}", f"({(apart > 0).sum()} of 3 seeds, p = {p:.{2 if p > 0.01 else 4}f})"

    imp = {(method, rate): arms[method, "imp", rate] for method in ("dense", "bihalf") for rate in rates}
    by, sure = lead(imp["dense", 0.9], dense)
    say(f"{by} points above the same network unpruned {sure}")
    by, sure = lead(imp["bihalf", 0.9], bihalf)
    say(f"binary ones {by} above {sure}")
    by, sure = lead(imp["bihalf", 0.98], arms["magnitude-bihalf", "own", 0.98])
    say(f"{by} points above `magnitude-bihalf` at 98 % {sure}")
    by, sure = lead(imp["dense", 0.98], arms["dense", "synflow", 0.98])
    say(f"and {by} above SynFlow with real weights {sure}")
    real = [lead(imp["dense", rate], imp["bihalf", rate])[0] for rate in rates]
    say(f"by {real[0]}, {real[1]} and {real[2]} points")
    balanced = arms["mpt-balanced", "own", 0.5]
    by, sure = lead(balanced, dense)
    say(f"{by} points above the trained real-valued network {sure}")
    say(f"and {lead(balanced, bihalf)[0]} above the unpruned `bihalf`")
    snip, learned = arms["bihalf", "snip", 0.9], arms["mpt-balanced", "own", 0.9]
    by, sure = lead(snip, learned)
    say(f"SNIP under `bihalf` is {by} points before `mpt-balanced` {sure}")
    say(f"and {lead(imp['bihalf', 0.9], snip)[0]} behind `imp`")
    random = lead(arms["bihalf", "random", 0.9], arms["mpt-sign", "own", 0.9])
    say(f"under `bihalf` is {random[0]} points above `mpt-sign`")
    for method in ("dense", "bihalf"):
        controls = [arms[method, f"imp {name}", 0.9] for name in ("one-shot", "shuffled", "redrawn")]
        parts = [lead(imp[method, 0.9], control) for control in controls]
        say(", ".join(f"{by} {sure}" for by, sure in parts))
    redrawn = [arms[arm] - arms[arm[0], "own", arm[2]] for arm in arms if arm[1] in ("iterand", "recycle")]
    means = [apart.mean() for apart in redrawn]
    say(f"In {len(redrawn)} comparisons redrawn weights change {min(means):+.2f} to {max(means):+.2f} points")
    together = frame.query("method == 'bihalf' and prune_rate == 0.98")
    together = together[together["mask"].isin(["snip", "synflow", "grasp", "magnitude"])]
    lost = together["note"].fillna("").str.contains("the mask keeps nothing of layer '11'").sum()
    say(f"in {lost} of those {len(together)} runs under `bihalf` the large linear layer keeps nothing")
    assert frame.query("method == 'dense' and mask == 'grasp'")["test_top1"].max() <= 10


def test_the_table_of_rounding_is_that_of_its_file() -> None:
    section = (RESULTS / "README.md").read_text().split("\n## scale_on:")[1].split("\n## ")[0]
    lines = [line for line in section.splitlines() if line.startswith("| ") and "%" in line][-16:]
    told = [[cell.strip() for cell in line.strip("| ").split(" | ")] for line in lines]
    rows = json.loads((RESULTS / "scale_on" / "rounding.json").read_text())["rows"]
    assert len(told) == len(rows) == 16
    for cells, row in zip(told, rows, strict=True):
        model, method, scale_on, *figures = row.values()
        zeros, noise, *apart = figures
        shown = [
            f"{value:.0f} %" if value >= 1 else f"{value:.1g} %" if value else "0 %"
            for value in apart_in_percent(apart)
        ]
        assert cells == [model, method, scale_on, f"{zeros:.1f} %", f"{noise:.0f} %", *shown]


def apart_in_percent(figures: list[float]) -> list[float]:
    """Of the gradients a share, of B percent, in float32 and in float64."""
    return [100 * value if index % 2 == 0 else value for index, value in enumerate(figures)]


def test_the_first_page_shows_rows_of_the_first_table() -> None:
    rows = re.findall(r"^\| \d+ % \|.+±.+$", (ROOT / "README.md").read_text(), re.MULTILINE)
    assert len(rows) == 3 and set(rows) <= set((RESULTS / "README.md").read_text().splitlines())


def test_the_table_of_variances_is_that_of_its_file() -> None:
    frame = pd.read_csv(RESULTS / "activation_variance" / "activation_variance.csv")
    runs = {(run.method, run.scale, run.prune_rate) for run in find_runs(RESULTS / "activation_variance")}
    measured = {}
    for _, row in frame.iterrows():
        key = (row["method"], row["scale"], label("prune_rate", row["prune_rate"]))
        measured.setdefault(key, {})[row["when"]] = [row["a layer"], row["15"]]
    shown = told("activation_variance", 3, columns=True)
    for key, at in measured.items():
        start, end = ("a layer, start", "last layer, start"), ("a layer, end", "last layer, end")
        for columns, values in ((start, at["start"]), (end, at["end"])):
            cells = [float(shown.pop((*key, column))) for column in columns]
            assert cells == pytest.approx(values, rel=0.06), key
    assert len(shown) == len(runs) == len(measured)  # what is left is the accuracy of each


def say(*parts: str) -> None:
    for part in parts:
        assert part in TEXT, part


def top1(folder: str, method: str, **setting: Any) -> pd.Series:
    """Test top-1 of the runs of a setting, by rate and seed."""
    frame = records(folder)
    for field, value in {"method": method, **setting}.items():
        frame = frame[frame[field] == value]
    return frame.set_index(["prune_rate", "seed"])["test_top1"]


def lead(one: pd.Series, other: pd.Series) -> dict[float, float]:
    """By how much the mean of the seeds is ahead, by rate."""
    return dict((one - other).dropna().groupby(level=0).mean())


FILTER = {"scope": "filter", "scale": "kaiming", "score_gradient": "latent"}


@pytest.mark.parametrize(
    ("method", "reference", "unit"),
    [
        ("mpt-balanced", "mpt-sign", " points in the mean"),
        ("magnitude-bihalf", "magnitude-sign", ""),
        ("mpt-sign", "mpt-bihalf", " points"),
    ],
)
def test_pairs_and_what_they_are_pairs_of(method: str, reference: str, unit: str) -> None:
    pairs = top1("pruning_rates", method) - top1("pruning_rates", reference)
    count, mean = (pairs > 0).sum(), f"{pairs.mean():.1f}"
    seeds, rates = (ttest_1samp(pairs.groupby(each).mean(), 0).pvalue for each in ("seed", "prune_rate"))
    p = f"(p = {seeds:.2f} by seeds, {rates:.{2 if rates > 0.01 else 3}f} by rates)"
    say(f"in {count} of 10 pairs, by {mean}{unit} {p}")
    assert f"in {count} of 10, by {mean}" in README


def test_trained_weights_beside_frozen_ones() -> None:
    pairs = top1("pruning_rates", "magnitude-bihalf") - top1("pruning_rates", "mpt-sign")
    say(f"ahead of `mpt-sign` in {(pairs > 0).sum()} of 10 pairs, by {pairs.mean():.1f} points")


def test_mpt_balanced_beside_the_others() -> None:
    balanced = top1("pruning_rates", "mpt-balanced")
    by = f"{lead(balanced, top1('pruning_rates', 'mpt-sign'))[0.9]:.1f}"
    say(f"by {by} at 90 % pruned", f"So the {by} points by which it leads")
    same = lead(balanced, top1("pruning_ablation", "mpt-sign", **FILTER))
    say(f"it is ahead by {same[0.5]:.1f} at 50 % and by {same[0.9]:.1f} at 90 %")
    behind = lead(balanced, top1("pruning_ablation", "mpt-bihalf", **FILTER))
    say(f"behind `mpt-balanced` by {behind[0.5]:.1f} and {behind[0.9]:.1f}")


def test_the_control_is_that_of_the_notebook() -> None:
    cells = json.loads((ROOT / "notebooks/a_method_of_your_own.ipynb").read_text())["cells"]
    tables = ["".join(output["text"]) for cell in cells for output in cell.get("outputs", []) if "text" in output]
    table = next(text for text in tables if "mpt-fixed" in text and " 90 % " in text)
    methods, row = (next(line for line in table.splitlines() if word in line) for word in ("pruned", " 90 % "))
    means = dict(zip(methods.split()[1:], re.findall(r"([\d.]+) ±", row), strict=True))
    say(f"at 90 % it has {means['mpt-fixed']} % and `mpt-bihalf` {means['mpt-bihalf']}.")


def test_transport_after_the_mask_beside_the_baseline() -> None:
    bihalf = top1("pruning_ablation", "mpt-bihalf", **FILTER)
    same = lead(bihalf, top1("pruning_ablation", "mpt-sign", **FILTER))
    assert f"{same[0.5]:.1f}" == f"{same[0.9]:.1f}"
    say(f"It is {same[0.5]:.1f} ahead of `mpt-sign` under the same settings")
    defined = lead(bihalf, top1("pruning_rates", "mpt-sign"))
    ranked = lead(bihalf, top1("pruning_ablation", "mpt-sign", **(FILTER | {"scale": "l1"})))
    say(
        f"{defined[0.5]:+.1f} at 50 % and {defined[0.9]:+.1f} at 90 % against `mpt-sign` as it is defined, "
        f"{ranked[0.5]:+.1f} and {ranked[0.9]:+.1f} against"
    )
    with_kaiming = []
    for gradient in ("latent", "binary"):
        setting = FILTER | {"score_gradient": gradient}
        both = (top1("pruning_ablation", method, **setting) for method in ("mpt-bihalf", "mpt-sign"))
        with_kaiming += lead(*both).values()
    say(f"It is ahead, by {min(with_kaiming):.1f} to {max(with_kaiming):.1f}, of `mpt-sign` with Kaiming's scale")


@pytest.mark.parametrize("gradient", ["latent", "binary"])
def test_how_much_of_it_is_the_scale(gradient: str) -> None:
    setting = {"scope": "layer", "score_gradient": gradient}
    bihalf = top1("pruning_ablation", "mpt-bihalf", scale="kaiming", **setting)
    own, same = (
        lead(bihalf, top1("pruning_ablation", "mpt-sign", scale=scale, **setting)) for scale in ("l1", "kaiming")
    )
    at, rate = (" at 50 %", " at 90 %") if gradient == "latent" else ("", "")
    say(f"{own[0.5]:+.2f}{at} and {own[0.9]:+.2f}{rate} become {same[0.5]:+.2f} and {same[0.9]:+.2f}")


def test_what_scope_and_scale_bring_in_the_ablation() -> None:
    means = records("pruning_ablation").groupby(["method", "prune_rate", "scope", "scale", "score_gradient"])
    means = means["test_top1"].mean()
    by_scope = means["mpt-bihalf", 0.5]["filter"] - means["mpt-bihalf", 0.5]["layer"]
    say(f"gains {by_scope.min():.1f} to {by_scope.max():.1f} points at 50 % from ranking within filters")
    by_scale = means["mpt-sign", 0.9].xs("l1", level="scale") - means["mpt-sign", 0.9].xs("kaiming", level="scale")
    say(f"({by_scale.min():.1f} to {by_scale.max():.0f} points in the ablation)")
    ruined = means["mpt-bihalf", 0.9].xs("l1", level="scale").nsmallest(3)
    say("({:.1f}, {:.1f} and {:.1f} %; chance is 10 %)".format(*ruined))


def test_how_many_signs_turn_and_how_much_masks_change() -> None:
    layers = turning("pruning_rates")
    turned = layers.groupby("method")["turned"].sum()
    trained = turned["magnitude-sign"] + turned["magnitude-bihalf"]
    say(f"{turned['mpt-bihalf']:,.0f} did in the 10 runs of `mpt-bihalf`, and {trained:,.0f} in the 20 of the")
    assert turned["mpt-sign"] == turned["mpt-balanced"] == 0
    sums = layers.groupby(["method", "epoch", "prune_rate"])[["turned", "n_kept", "moved", "weights"]].sum()
    share = 100 * sums["turned"] / sums["n_kept"]
    second, ninth = share["mpt-bihalf", 2], share["mpt-bihalf", 9]
    say(f"{second[0.1]:.1f} % (10 % pruned) to {second[0.9]:.1f} % (90 % pruned)")
    say(f"in its ninth {ninth.min():.1f} to {ninth.max():.1f} %")
    moved = (100 * sums["moved"] / sums["weights"]).xs(2, level="epoch")
    alike = moved[["mpt-bihalf", "mpt-balanced"]]
    say(f"{alike.min():.0f} to {alike.max():.0f} % of all weights in the second epoch")
    assert moved["mpt-sign"].round().nunique() == 1
    say(f"that of `mpt-sign` {moved['mpt-sign'].mean():.0f} % (")
    ablation = turning("pruning_ablation").query("method == 'mpt-bihalf' and epoch == 2")
    ablation = ablation[(ablation[list(FILTER)] == list(FILTER.values())).all(axis=1)]
    sums = ablation.groupby("prune_rate")[["turned", "n_kept"]].sum()
    share = 100 * sums["turned"] / sums["n_kept"]
    say(f"{share[0.5]:.1f} % at 50 % and {share[0.9]:.1f} % at 90 % pruned")


@cache
def turning(folder: str) -> pd.DataFrame:
    """The layers of each epoch, with how many weights turned, were kept, and entered or left the mask."""
    fields = ("scope", "scale", "score_gradient", "lr")
    runs = find_runs(RESULTS / folder)
    layers = pd.concat(
        read_layers(RESULTS / folder, [run]).assign(**{name: getattr(run, name) for name in fields}) for run in runs
    )
    return layers.assign(
        turned=layers["flips_to_positive"] + layers["flips_to_negative"],
        n_kept=layers["kept"] * layers["weights"],
        moved=layers["mask_change"] * layers["weights"],
    )


def test_how_equal_the_bits_are() -> None:
    last = turning("pruning_rates").query("epoch == 10 and prune_rate == 0.9")
    entropy = last.groupby("method")["filter_entropy"].mean()
    say(
        f"{entropy['mpt-balanced']:.3f} under `mpt-balanced` and {entropy['mpt-bihalf']:.3f} under `mpt-bihalf`",
        f"Under `mpt-sign` it is {entropy['mpt-sign']:.3f}.",
    )


def test_variances_between_the_layers() -> None:
    frame = pd.read_csv(RESULTS / "activation_variance" / "activation_variance.csv")
    layers = frame.columns[-7:]
    assert frame["a layer"].to_numpy() == pytest.approx((frame["15"] / frame["0"]) ** (1 / 6))
    inside = frame.loc[frame["a layer"].sub(0.71).abs().idxmin(), layers]
    assert inside.argmax() == 4
    say(f"rises from {inside.iloc[0]:.2f} in the first layer to {inside.max():.0f} in the fifth, and falls to")
    say(f"falls to {inside.iloc[-1]:.2f}", f"$1 - 1/\\pi = {1 - 1 / pi:.2f}$")
    equal = frame[(frame["method"] == "mpt-bihalf") & (frame["when"] == "start")].set_index(["prune_rate", "scale"])
    step = equal["a layer"].xs("kaiming", level="scale")
    assert {f"{value:.1f}" for value in step} == {"0.8"}
    assert f"{step.max():.2f} was measured" in (ROOT / "docs/methods.md").read_text()
    say(f"{step.max():.2f} of the variance", f"{equal['a layer'].xs('l1', level='scale').mean():.1f} under `l1`")
    start, end = (
        frame[frame["when"] == when].set_index(["method", "prune_rate", "scale"]).sort_index()
        for when in ("start", "end")
    )
    unequal = start["a layer"]["mpt-sign", 0.9]
    say(f"has {unequal['kaiming']:.2f} a layer under Kaiming's and {unequal['l1']:.2f} under `l1`")
    at_50 = end["a layer"].xs(0.5, level="prune_rate")
    say(f"{at_50.min():.1f} to {at_50.max():.1f} a layer at the end")
    between = equal["15"].xs("kaiming", level="scale") / equal["15"].xs("l1", level="scale")
    say(f"a factor of {between.min():.0f} to {between.max():.0f} in the seventh layer")


def test_learning_rates_and_what_they_turn() -> None:
    cells = recorded(learning_rates(), ["method"], ["lr"], 2)
    sign, bihalf, balanced = (
        [cells[method, rate] for rate in ("0.03", "0.1", "0.3")]
        for method in ("mpt-sign", "mpt-bihalf", "mpt-balanced")
    )
    say(f"{sign[1]} to {sign[0]} % and `mpt-bihalf` from {bihalf[1]} to {bihalf[0]} %")
    say(f"({sign[2]} and {bihalf[2]} %", "({}, {} and {} %)".format(*balanced))
    best = max(map(float, balanced)) - max(map(float, sign))
    say(f"at each method's best of the three it leads by {best:.1f}")
    layers = pd.concat([turning(folder) for folder in ("learning_rates", "activation_variance")])
    layers = layers.query("epoch == 2 and prune_rate == 0.9 and lr < 0.3")
    layers = layers[(layers["scale"] == "l1") == (layers["method"] == "mpt-sign")]
    sums = layers.groupby(["method", "lr"])[["turned", "n_kept", "moved", "weights"]].sum()
    moved, turned = 100 * sums["moved"] / sums["weights"], 100 * sums["turned"] / sums["n_kept"]
    for method, of in (("mpt-sign", " of the weights"), ("mpt-bihalf", "")):
        say(f"{moved[method, 0.03]:.1f} %{of} against {moved[method, 0.1]:.1f} %")
    say(f"({turned['mpt-bihalf', 0.03]:.1f} and {turned['mpt-bihalf', 0.1]:.1f} %)")
    lower = f"takes `mpt-sign` to {float(sign[0]):.0f} % and `mpt-balanced` to {float(balanced[0]):.0f} % (one seed)"
    assert lower in README


def test_latent_gradients_over_three_seeds() -> None:
    frame = records("latent_gradients").set_index(["method", "latent_gradient"]).sort_values("seed")["test_top1"]
    for gradient in ("scaled", "unscaled"):
        bihalf, sign = frame["bihalf", gradient].to_numpy(), frame["sign", gradient].to_numpy()
        p = ttest_rel(bihalf, sign).pvalue
        say(f"| {(bihalf - sign).mean():+.2f}, p " + (f"= {p:.3f} |" if p >= 0.001 else "< 0.001 |"))
    say(f"spread from {frame['irnet', 'ede'].min():.2f} to {frame['irnet', 'ede'].max():.2f} %")


def test_a_training_has_as_many_steps_as_said() -> None:
    run = records("pruning_rates").iloc[0]
    say(f"has {run['epochs'] * (5000 // run['batch_size'])} steps on 5,000 images and the paper's")
    say(f"{100 * (50_000 // 128):,} on 50,000")


def test_sparse_compute_changes_no_accuracy_by_more_than_it_says() -> None:
    frame = records("compute").pivot(
        index=["method", "prune_rate", "lr", "seed"], columns="compute", values="test_top1"
    )
    change = frame["sparse"] - frame["dense"]
    half = student.ppf(0.975, len(change) - 1) * change.std() / sqrt(len(change))
    section = (RESULTS / "README.md").read_text().split("\n## compute:")[1].split("\n## ")[0]
    told = (
        f"{len(change)} pairs is {change.mean():+.2f} points, with a 95 % interval from {change.mean() - half:+.2f} to"
    )
    assert f"{told} {change.mean() + half:+.2f}" in " ".join(section.split())
    assert abs(change.mean()) + half < 0.7
