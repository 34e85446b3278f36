"""Tickets of different kinds at equal counts: python experiments/ticket_comparison.py"""

from mpt_bihalf.endings import run_command, starting

with starting(__name__):
    from mpt_bihalf.experiments.ticket_comparison import TicketComparison

if __name__ == "__main__":
    run_command(TicketComparison.main)
