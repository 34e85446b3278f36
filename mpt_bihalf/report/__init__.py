"""Tables and figures from records."""

from typing import TYPE_CHECKING

from .tables import View, summarise_trials, sweep_table, sweep_tables

if TYPE_CHECKING:
    from .figures import draw_sweep, save_figure

__all__ = ["View", "draw_sweep", "save_figure", "summarise_trials", "sweep_table", "sweep_tables"]


def __getattr__(name: str) -> object:
    if name in ("draw_sweep", "save_figure"):
        from . import figures  # with matplotlib, a quarter of a second that few commands need

        return getattr(figures, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
