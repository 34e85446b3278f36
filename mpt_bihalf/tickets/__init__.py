"""A trained network as a small file that stands alone."""

from .compiled import CompiledTicket, compile_ticket
from .export import export_cpp, export_onnx, export_torch
from .file import load_ticket, read_ticket, save_ticket, ticket_weights, write_ticket
from .fold import fold
from .from_run import run_ticket
from .published import Published, import_checkpoint
from .ticket import BinaryLayer, Ticket

__all__ = [
    "BinaryLayer",
    "CompiledTicket",
    "Published",
    "Ticket",
    "compile_ticket",
    "export_cpp",
    "export_onnx",
    "export_torch",
    "fold",
    "import_checkpoint",
    "load_ticket",
    "read_ticket",
    "run_ticket",
    "save_ticket",
    "ticket_weights",
    "write_ticket",
]
