"""A plain network for other programs: ONNX, and torch's own exported programs."""

from __future__ import annotations

import io
import logging
import struct
import warnings
import zlib
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stdout
from pathlib import Path

import torch
from torch import Tensor, nn

from ..files import write_text, write_whole
from ..kernels import SOURCES
from .compiled import CompiledTicket
from .images import ImageSpec

OPSET = 18
HEAD = """// A network that tells images apart. Build it by GCC or Clang, and run it on images of the network's size:
//     g++ -O3 -march=native -fopenmp ticket.cpp -o ticket
//     ./ticket weights.bin image.raw
// image.raw: bytes [row, column, channel], or float32 numbers [channel, row, column] as the network takes them.
"""


def export_onnx(model: nn.Module, example: Tensor, path: Path, metadata: dict[str, str] | None = None) -> None:
    """Write the network in evaluation mode as an ONNX file, whole or not at all, its weights within.

    example: images [N, C, H, W]; N is left open in the file, where input and output are called `images` and `logits`.
    metadata: texts by name, kept in the file's `metadata_props`.

    Raises ValueError where the packages for it are not installed, and for a network that torch cannot export.
    """
    try:
        import onnx
        import onnxscript  # noqa: F401
    except ImportError:
        raise ValueError("ONNX needs further packages: pip install 'mpt_bihalf[export]'") from None
    with _exporting("ONNX"):
        program = torch.onnx.export(
            model.eval(),
            (example,),
            input_names=["images"],
            output_names=["logits"],
            dynamic_shapes=({0: torch.export.Dim("batch")},),
            opset_version=OPSET,
            dynamo=True,
            optimize=True,
            verbose=False,
        )
        assert program is not None
        content = program.model_proto
        for key, value in (metadata or {}).items():
            content.metadata_props.add(key=key, value=value)
        onnx.checker.check_model(content)
    write_whole(path, lambda file: file.write(content.SerializeToString()))


def export_torch(model: nn.Module, example: Tensor, path: Path, metadata: dict[str, str] | None = None) -> None:
    """Write the network in evaluation mode as a program of `torch.export`, which `torch.export.load` reads.

    Arguments and errors as of `export_onnx`, but that the metadata are extra files of the archive.
    """
    packed = io.BytesIO()
    with _exporting("torch.export"):
        program = torch.export.export(model.eval(), (example,), dynamic_shapes=({0: torch.export.Dim("batch")},))
        torch.export.save(program, packed, extra_files=metadata)
    write_whole(path, lambda file: file.write(packed.getbuffer()))


def export_cpp(run: CompiledTicket, spec: ImageSpec, folder: Path) -> tuple[Path, Path]:
    """Write a ticket as a C++ program of one file, `ticket.cpp`, and its `weights.bin`; the two files.

    It needs a C++17 compiler (GCC or Clang) and nothing else: `g++ -O3 -march=native -fopenmp ticket.cpp -o ticket`.
    Raises ValueError where the folder's name is that of a file.
    """
    if folder.exists() and not folder.is_dir():
        raise ValueError(f"{str(folder)!r} is no folder")
    code, weights = folder / "ticket.cpp", folder / "weights.bin"
    for file in (code, weights):
        if file.is_dir():
            raise ValueError(f"{str(file)!r} is a folder: the program would be there")
    folder.mkdir(exist_ok=True)
    channels = run.shape[0]
    mean, std = spec.mean or (0.0,) * channels, spec.std or (1.0,) * channels
    names = [name.encode() for name in spec.classes or map(str, range(run.classes))]
    told = struct.pack("<4I", *run.shape, run.classes) + struct.pack(f"<{2 * channels}f", *mean, *std)
    told += b"".join(struct.pack("<I", len(name)) + name for name in names)
    body = told + bytes(-len(told) % 8) + run.program
    source = SOURCES[-1].read_text(encoding="utf-8")
    write_text(code, f"{HEAD}#define TICKET_PROGRAM\n{source}")
    write_whole(weights, lambda file: file.write(b"MPTCPP01" + struct.pack("<Q", zlib.crc32(body)) + body))
    return code, weights


@contextmanager
def _exporting(form: str) -> Iterator[None]:
    """Without a word from the libraries; what they raise, in one line."""
    log = logging.getLogger("onnxscript")
    level = log.level
    log.setLevel(logging.ERROR)
    try:
        with torch.no_grad(), warnings.catch_warnings(), redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    except Exception as fault:  # each library has its own kinds
        reason = f"{type(fault).__name__}: {fault}".splitlines()[0]
        raise ValueError(f"this network cannot be exported to {form}: {reason}") from fault
    finally:
        log.setLevel(level)
