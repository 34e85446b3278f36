"""Tables and figures from records."""

from .figures import draw_sweep, save_figure
from .tables import summarise_trials, sweep_table

__all__ = ["draw_sweep", "save_figure", "summarise_trials", "sweep_table"]
