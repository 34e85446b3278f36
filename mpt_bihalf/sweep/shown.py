"""What of a sweep's results to show: the options of the report, apart from what draws it."""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass(frozen=True, kw_only=True)
class Shown:
    """What of the results to show. Without options, what the runs differ in decides."""

    by: list[str] = field(default_factory=list)
    """fields of a run that make a setting, e.g. model prune_rate method; all runs of a setting are its trials
    (default: all fields but the seed)"""
    columns: str = ""
    """field that the tables have columns for and the figure has curves (default: method)"""
    x: str = ""
    """field that the tables have rows for and the figure has along its axis (default: prune_rate if it was varied, else
    the first number that was, else the first word)"""
    where: list[str] = field(default_factory=list)
    """runs to look at, e.g. model=conv4 method=mpt-sign,mpt-bihalf prune_rate=0.1..0.5"""
    figure: str = "test_top1"
    """figure of the results, e.g. test_top1, test_loss, train_top1, best_epoch_test_top1"""
    against: str = ""
    """method, or other value of the columns, that the others are compared with over equal seeds: mean difference, 95 %%
    interval, p by Holm"""
    layers: bool = False
    """kept share, share of +1 and entropy of each layer too, at the end of the runs, as tables and figures"""
    to: str = ""
    """folder for tables and figure (default: report in the sweep's folder)"""
