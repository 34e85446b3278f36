"""The loops of a training step for float32 in the host's memory, near to one pass over the data each.

They are those of `kernels.cpp`, compiled where setup.py found a compiler; without it `numpy_loops` does the same, with
the same bits. Callers have the general form in torch, for other dtypes and devices; where an accelerator has Triton,
`triton_loops` has the same functions for it. `MPT_BIHALF_KERNELS=off` in the environment does without the compiled
ones, and without Triton's.
"""

from __future__ import annotations

import ctypes
import os
import warnings
import zlib
from functools import cache
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor

from . import numpy_loops
from .devices import has_triton, host_reads_free

# One is built for each, as an installation may be moved: torch says what this machine can run.
FLAVOURS = {"AVX512": ("avx512", "avx2", "any"), "AVX2": ("avx2", "any")}

SOURCES = [Path(__file__).with_name(name) for name in ("kernels.cpp", "sparse.cpp", "inference.cpp")]

HINT = 3  # numbers that say where to look in a row: a middle, a half width, how far that middle is from the last cut


@cache
def compiled() -> ctypes.CDLL | None:
    """The library of compiled loops; None where there is none or none is wanted."""
    if os.environ.get("MPT_BIHALF_KERNELS") == "off":
        return None
    for flavour in FLAVOURS.get(torch.backends.cpu.get_cpu_capability(), ("any",)):
        for file in Path(__file__).parent.glob(f"_kernels_{flavour}.*"):
            try:
                return _declared(ctypes.CDLL(str(file)))
            except (OSError, AttributeError):  # built for another machine, or from another source
                continue
    return None


def _declared(library: ctypes.CDLL) -> ctypes.CDLL:
    library.mpt_source.restype = ctypes.c_uint32
    if library.mpt_source() != zlib.crc32(b"".join(source.read_bytes() for source in SOURCES)):
        warnings.warn("the compiled loops are not those of this source and are not used: install again", stacklevel=2)
        raise OSError
    pointer, count = ctypes.c_void_p, ctypes.c_int64
    library.mpt_largest.argtypes = [pointer, ctypes.c_int, pointer, *[count] * 3, *[pointer] * 3]
    library.mpt_count.argtypes = [pointer, count, count, pointer]
    library.mpt_fingerprint.argtypes = [pointer, count]
    library.mpt_fingerprint.restype = ctypes.c_uint64
    library.mpt_masked_magnitude.argtypes = [pointer, pointer, ctypes.c_float, count]
    library.mpt_masked_magnitude.restype = count
    library.mpt_signed.argtypes = [pointer, pointer, pointer, count, count, pointer]
    library.mpt_signed_sums.argtypes = [*[pointer] * 3, count, count, pointer]
    library.mpt_clipped.argtypes = [*[pointer] * 2, ctypes.c_float, *[pointer] * 4, count, count, pointer]
    library.mpt_swish.argtypes = [*[pointer] * 4, ctypes.c_float, count, count, pointer]
    library.mpt_distances.argtypes = [*[pointer] * 3, ctypes.c_int32, count, count, pointer, pointer]
    library.mpt_distance_gradient.argtypes = [*[pointer] * 3, ctypes.c_int32, pointer, count, count, pointer]
    library.mpt_score_gradient.argtypes = [pointer, pointer, ctypes.c_float, pointer, pointer, count, pointer]
    library.mpt_standardise.argtypes = [pointer, pointer, count, count, *[pointer] * 4]
    library.mpt_through_standardised.argtypes = [*[pointer] * 4, ctypes.c_float, count, count, pointer]
    library.mpt_ticket_load.argtypes, library.mpt_ticket_load.restype = [ctypes.c_char_p, count], pointer
    library.mpt_ticket_free.argtypes = [pointer]
    library.mpt_ticket_run.argtypes = [pointer, pointer, pointer, count, ctypes.c_int]
    return library


def suit(*tensors: Tensor | None) -> bool:
    """Whether these are for the functions here: float32 or bool, contiguous, plain tensors in the host's memory."""
    for tensor in tensors:
        if tensor is not None and not (
            host_reads_free(tensor)
            and tensor.dtype in (torch.float32, torch.bool)
            and tensor.is_contiguous()
            and _has_memory(tensor)
        ):
            return False
    return not recorded()


def on_accelerator(*tensors: Tensor | None) -> Any:
    """`triton_loops` where these are for it: float or bool, contiguous, plain, on a device with Triton; else None."""
    for tensor in tensors:
        if tensor is not None and not (
            has_triton(tensor.device)
            and _triton_works(tensor.device)
            and tensor.dtype in (torch.float32, torch.bfloat16, torch.float16, torch.bool)
            and tensor.is_contiguous()
            and _has_memory(tensor)
        ):
            return None
    if recorded():
        return None
    from . import triton_loops  # not before it is wanted, as it imports Triton

    return triton_loops


@cache
def _triton_works(device: torch.device) -> bool:
    """Tried once: Triton wants a C compiler and a folder to write to, and not every device will do."""
    if os.environ.get("MPT_BIHALF_KERNELS") == "off":
        return False
    try:
        from . import triton_loops

        yes, alpha = torch.ones(2, 3, dtype=torch.bool, device=device), torch.ones((), device=device)
        return bool(triton_loops.signed(yes, None, alpha).eq(1).all())
    except Exception as fault:
        reason = next((line for line in str(fault).splitlines() if line.strip()), type(fault).__name__)
        warnings.warn(f"Triton does not work here ({reason[:200]}): selection sorts on {device}", stacklevel=2)
        return False


def plain(tensor: Tensor) -> bool:
    """Whether this is a tensor with memory of its own, whose use no graph records; not one of vmap's or a trace's."""
    return _has_memory(tensor) and not recorded()


def _has_memory(tensor: Tensor) -> bool:
    functorch = torch._C._functorch
    return (
        type(tensor) in (Tensor, torch.nn.Parameter)
        and not (tensor.requires_grad and torch.is_grad_enabled())
        and not functorch.is_functorch_wrapped_tensor(tensor)
        and not functorch.is_legacy_batchedtensor(tensor)
    )


def recorded() -> bool:
    """Whether operations are recorded as a graph, which would not see what is written without torch."""
    return torch.jit.is_tracing() or torch.compiler.is_compiling() or by_proxies()


def by_proxies() -> bool:
    """Whether `make_fx` records operations."""
    return torch._C._get_dispatch_mode(torch._C._TorchDispatchModeKey.PROXY) is not None


def largest(values: Tensor, counts: int | Tensor, hints: Tensor, absolute: bool, among: Tensor | None) -> Tensor:
    """See `Selection.largest`. hints: float32 [R, HINT], where to look, changed in place."""
    if compiled():
        one, each = (counts, None) if isinstance(counts, int) else (0, counts.contiguous())
        out = torch.empty(values.shape, dtype=torch.bool, device=values.device)
        _call("largest", values, absolute, among, *values.shape, one, each, hints, out)
        return out
    members = None if among is None else among.numpy()
    wanted = np.array([[counts]]) if isinstance(counts, int) else counts.numpy()[None]
    return torch.from_numpy(
        numpy_loops.largest(values.detach().numpy(), absolute, members, wanted, hints.numpy()[None])
    )


def largest_of_both(values: Tensor, counts: tuple[int, int], hints: Tensor, absolute: bool, among: Tensor) -> Tensor:
    """See `Selection.largest_of_both`; without the compiled loops, in one look at the values."""
    if compiled():
        groups = zip(counts, hints.chunk(2), (among, ~among), strict=True)
        first, second = (largest(values, n, of, absolute, group).logical_and_(group) for n, of, group in groups)
        return first.logical_or_(second)
    wanted, of_groups = np.array(counts)[:, None], hints.numpy().reshape(2, -1, HINT)
    return torch.from_numpy(numpy_loops.largest(values.detach().numpy(), absolute, among.numpy(), wanted, of_groups))


def count(mask: Tensor) -> Tensor:
    """How many are True in each row: int64 [R] of bool [R, D]."""
    if not compiled():
        return torch.from_numpy(numpy_loops.count_rows(mask.numpy()))
    totals = torch.empty(mask.shape[0], dtype=torch.int64, device=mask.device)
    _call("count", mask, *mask.shape, totals)
    return totals


def fingerprint(tensor: Tensor) -> int:
    """A number that tells what the host's memory holds: other values of this tensor have it with a chance near 2^-32.

    tensor: of any dtype and layout, plain and in the host's memory; looked at bit by bit.
    """
    memory = _in_memory(tensor).view(torch.uint8)
    if compiled():
        return _call("fingerprint", memory, memory.numel())
    return numpy_loops.fingerprint(memory.numpy())


def masked_magnitude(weight: Tensor, mask: Tensor, units: float) -> int:
    """The sum over the mask of floor(abs(weight) * units), each below 2^30; units: a power of two."""
    if compiled():
        return _call("masked_magnitude", weight, mask, units, weight.numel())
    return numpy_loops.masked_magnitude(weight, mask, units)


def signed(positive: Tensor, mask: Tensor | None, alpha: Tensor) -> Tensor:
    """+alpha or -alpha by `positive`, 0 outside `mask`: alpha's dtype, the shape of `positive`.

    alpha: broadcasts over `positive`. Unlike the other functions here this one is for any device
    and dtype.
    """
    rows = alpha.numel()
    of_filters = rows > 1 and alpha.shape == (positive.shape[0], *[1] * (positive.dim() - 1))
    if compiled() and (rows == 1 or of_filters) and suit(positive, mask, alpha):
        out = torch.empty(positive.shape, dtype=alpha.dtype, device=alpha.device)
        _call("signed", positive, mask, alpha, rows, positive.numel() // rows, out)
        return out
    if (rows == 1 or of_filters) and (loops := on_accelerator(positive, mask, alpha)):
        return cast(Tensor, loops.signed(positive, mask, alpha))
    signs = positive.to(torch.int8).mul_(2).sub_(1)
    return (signs if mask is None else signs.mul_(mask)).to(alpha.dtype).mul_(alpha)


def signed_sums(values: Tensor, positive: Tensor | None, mask: Tensor | None) -> Tensor:
    """Of each filter [F] the sum of +value or -value by `positive`, without that of abs(value), over the mask if given.

    values, positive, mask: [F, ...], of any device and dtype; the sum is in float32 or wider.
    """
    if not values.numel():
        return values.new_zeros(len(values), dtype=torch.promote_types(values.dtype, torch.float32))
    x, above, kept = (None if t is None else t.reshape(len(values), -1) for t in (values, positive, mask))
    assert x is not None
    if x.dtype == torch.float32 and suit(x, above, kept):
        out = x.new_empty(len(x))
        if compiled():
            _call("signed_sums", x, above, kept, *x.shape, out)
        else:
            signs, mask_of = (None if t is None else t.numpy() for t in (above, kept))
            numpy_loops.signed_sums(x.detach().numpy(), signs, mask_of, out.numpy())
        return out
    x = x.to(torch.promote_types(x.dtype, torch.float32))
    x = x.abs() if above is None else torch.where(above, x, -x)
    return (x if kept is None else torch.where(kept, x, 0)).sum(1)


def clipped(
    g: Tensor, weight: Tensor, bound: float, alpha: Tensor, positive: Tensor, mask: Tensor | None, share: Tensor | None
) -> Tensor:
    """alpha g where abs(W) is below the bound, else 0; and `signed(positive, mask, share)`, where there is a share.

    alpha: one number, or one a filter; share: one a filter, and alpha with it.
    """
    out = torch.empty_like(g)
    if compiled():
        _call("clipped", g, weight, bound, alpha, positive, mask, share, alpha.numel(), g.numel() // alpha.numel(), out)
    else:
        torch.mul(g, alpha, out=out).masked_fill_(weight.detach().abs() >= bound, 0)
        if share is not None:
            out += signed(positive, mask, share)
    return out


def swish(g: Tensor, weight: Tensor, s: Tensor, alpha: Tensor, b: float, out: Tensor) -> None:
    """alpha g 2 b s (1 - s) (2 - y (2 s - 1)) of y = -b abs(W), of which s is the sigmoid: into `out`, rows [F, D].

    alpha: [F, 1].
    """
    if compiled():
        _call("swish", g, weight, s, alpha, b, *weight.shape, out)
        return
    y = (weight.abs() * -b).clamp_(min=-80)
    falls = y.mul_(2 * s - 1).neg_().add_(2)
    torch.mul(s, 1 - s, out=out).mul_(falls).mul_(2 * b).mul_(g).mul_(alpha)


def distances(weight: Tensor, alpha: Tensor, mask: Tensor | None, squared: bool) -> tuple[Tensor, Tensor]:
    """Of each row of [F, D] the sum of abs(alpha - abs(W)), or of its square, over the mask; and that of its slope."""
    sums, slopes = weight.new_empty(2, len(weight))
    if compiled():
        _call("distances", weight, alpha, mask, int(squared), *weight.shape, sums, slopes)
    else:
        kept = None if mask is None else mask.numpy()
        of = weight.detach().numpy(), alpha.detach().numpy(), kept, squared
        numpy_loops.distances(*of, sums.numpy(), slopes.numpy())
    return sums, slopes


def distance_gradient(
    weight: Tensor, alpha: Tensor, mask: Tensor | None, squared: bool, factor: Tensor, out: Tensor
) -> None:
    """What W [F, D] gets of the sum that `distances` gives, times `factor`, 0-dim; into `out`."""
    if compiled():
        _call("distance_gradient", weight, alpha, mask, int(squared), factor, *weight.shape, out)
        return
    d = alpha - weight.abs()
    torch.mul(d.mul_(2) if squared else d.sgn_(), weight.sgn(), out=out).mul_(-factor)
    if mask is not None:
        out.masked_fill_(~mask, 0)


def score_gradient(g: Tensor, magnitude: Tensor, positive: Tensor, scores: Tensor) -> Tensor:
    """g * magnitude * b * sign(S), where magnitude is abs(W), or alpha if it has one element."""
    out = torch.empty_like(g)
    if compiled():
        weight, alpha = (magnitude, 0.0) if magnitude.numel() == g.numel() > 1 else (None, abs(float(magnitude)))
        _call("score_gradient", g, weight, alpha, positive, scores, g.numel(), out)
    else:
        numpy_loops.score_gradient(g, magnitude, positive, scores, out)
    return out


def standardise(weight: Tensor, mask: Tensor | None) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """See `standardise.Standard`, of rows [F, D]."""
    positive = torch.empty(weight.shape, dtype=torch.bool, device=weight.device)
    mean, deviation, magnitude = of_rows = [torch.empty_like(weight[:, :1]) for _ in range(3)]
    if compiled():
        _call("standardise", weight, mask, *weight.shape, positive, mean, deviation, magnitude)
    else:
        out = [tensor.numpy() for tensor in (positive, *of_rows)]
        numpy_loops.standardise(weight.detach().numpy(), None if mask is None else mask.numpy(), *out)
    return positive, mean, deviation, magnitude


def through_standardised(g: Tensor, y: Tensor, gate: Tensor, factor: Tensor, share: float, out: Tensor) -> None:
    """The gradient of W from that of the sigmoid of y, in rows: into `out`; `gate`, the sigmoid, is written over.

    See `kernels.cpp`. All float32 [F, D], but factor [F, 1].
    """
    if compiled():
        _call("through_standardised", g, y, gate, factor, share, *g.shape, out)
    else:
        numpy_loops.through_standardised(g, y, gate, factor, share, out)


def _call(name: str, *arguments: Tensor | float | None) -> int:
    function, takes_address = _loop(name)
    given = [
        argument if argument is None or not (address or isinstance(argument, Tensor)) else _address(argument, address)
        for argument, address in zip(arguments, takes_address, strict=True)
    ]
    result: int = function(*given)
    return result


def _address(argument: Tensor | float, wanted: bool) -> int:
    """Of memory that a loop can read."""
    if not wanted:
        raise TypeError(f"a compiled loop takes a number here, not {argument!r}")
    if not (isinstance(argument, Tensor) and host_reads_free(argument) and argument.is_contiguous()):
        raise TypeError("a compiled loop takes a contiguous tensor in the host's memory here")
    return argument.data_ptr()  # an error of torch for one that has no memory


@cache
def _loop(name: str) -> tuple[Any, list[bool]]:
    """The loop of this name, and which of its arguments are addresses."""
    function = getattr(compiled(), f"mpt_{name}")
    return function, [kind is ctypes.c_void_p for kind in function.argtypes]


def _in_memory(tensor: Tensor) -> Tensor:
    """The values in a row, in the order in which they lie there; copied where there are gaps between them."""
    flat = tensor.detach()
    if not flat.is_contiguous():
        order = sorted(range(flat.dim()), key=lambda axis: (flat.stride(axis), flat.shape[axis] == 1), reverse=True)
        flat = flat.permute(order).contiguous()
    return flat.reshape(-1)
