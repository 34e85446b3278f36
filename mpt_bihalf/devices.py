"""The one place that knows the kinds of devices by name."""

from __future__ import annotations

import ctypes
import platform
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import cache
from pathlib import Path
from typing import Any, TypeVar

import torch
import torch.distributed
from torch import Tensor
from torch.amp import GradScaler

HOST = torch.device("cpu")

Result = TypeVar("Result")


def pick_device(name: str) -> torch.device:
    """The device called `name`; `auto` is the accelerator if there is one, else the CPU.

    Raises ValueError, with the names that would do, if there is no such device here.
    """
    accelerator = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else None
    if name == "auto":
        return accelerator or torch.device("cpu")
    try:
        device = torch.device(name)
        torch.zeros(1, device=device).tolist()  # must hold values, as the meta device does not
    except (RuntimeError, AssertionError, ImportError):
        here = "auto, cpu" + (f", {accelerator.type}" if accelerator else "")
        raise ValueError(f"device {name!r} is not available here; use one of: {here}") from None
    return torch.device("cpu") if device.type == "cpu" else device


def check_shared(name: str, processes: int) -> None:
    """ValueError where so many processes of this machine cannot have a device of this kind each."""
    device = torch.device(name)
    if device.type == "cpu":
        return
    if device.index is not None:
        raise ValueError(f"each process takes an accelerator of its own: say {device.type}, not {name}")
    if accelerators() < processes:
        raise ValueError(
            f"{processes} processes are more than the {accelerators()} accelerators here: give torchrun "
            f"--nproc-per-node {accelerators()}, or --device cpu"
        )


def device_name(device: torch.device) -> str:
    """What is sold under the device's name: the processor's model, or the accelerator's."""
    if device.type != "cpu":
        return str(torch.get_device_module(device).get_device_name(device))
    try:
        facts = dict(line.split(":", 1) for line in Path("/proc/cpuinfo").read_text().splitlines() if ":" in line)
    except OSError:  # not Linux
        facts = {}
    names = (value.strip() for name, value in facts.items() if name.strip() == "model name")
    return next(names, platform.processor() or platform.machine())


def accelerators() -> int:
    """How many accelerators of one kind this process may use."""
    return torch.accelerator.device_count() if torch.accelerator.is_available() else 0


def use_accelerator(index: int) -> None:
    """Make this one of the accelerators the one that its kind's name stands for in this process."""
    torch.accelerator.set_device_index(index)


def collective_backends(device: torch.device) -> str:
    """What `torch.distributed` works with on this device and, for what must not wait for a device, on the host."""
    backends = {kind: torch.distributed.get_default_backend_for_device(kind) for kind in ("cpu", device.type)}
    return ",".join(f"{kind}:{backend}" for kind, backend in backends.items())


def has_sync_batch_norm(device: torch.device) -> bool:
    """Whether torch's own synchronised batch norm works on this device."""
    return device.type in ("cuda", "xpu", "hpu", torch._C._get_privateuse1_backend_name())


def autocast(device: torch.device, dtype: torch.dtype | None) -> AbstractContextManager[Any]:
    """Layers compute in this dtype, None: in that of their tensors, whatever is set outside.

    Without effect on a device that has no mixed precision.
    """
    there = torch.amp.is_autocast_available(device.type)
    if not there or (dtype is None and not torch.is_autocast_enabled(device.type)):
        return nullcontext()
    return torch.autocast(device.type, dtype, enabled=dtype is not None)


def random_state_kept(device: torch.device) -> AbstractContextManager[Any]:
    """What is drawn inside, on the host or this device, leaves torch's global generators as they were."""
    if device.type in ("cpu", "meta"):
        return torch.random.fork_rng(devices=[])
    return torch.random.fork_rng(devices=[device], device_type=device.type)


def seed_chance(seed: int) -> None:
    """`torch.manual_seed`, which without an accelerator takes longer than many a small operation.

    For each kind that is not here it notes the stack of its caller, lest there be one later.
    """
    if _has_accelerator():
        torch.manual_seed(seed)
    else:
        torch.default_generator.manual_seed(seed)


@cache
def _has_accelerator() -> bool:
    return torch.accelerator.is_available()


def loss_scaler(device: torch.device, wanted: bool) -> GradScaler:
    """For gradients that float16 cannot hold unscaled; one that does nothing where not wanted or not to be had."""
    return GradScaler(device.type, enabled=wanted and torch.amp.is_autocast_available(device.type))


def check_captures(device: torch.device) -> None:
    """ValueError where this device does not repeat work that it was given once, as a graph."""
    if device.type != "cuda":
        raise ValueError(f"graph is for an accelerator that captures graphs (CUDA), not {device}: leave it out")


def capture(device: torch.device, work: Callable[[], Result]) -> tuple[Result, Callable[[], None]]:
    """Capture work on this device, without doing it: where its result will be, and what does it each time."""
    module = torch.get_device_module(device)
    graph = module.CUDAGraph()
    # What other threads ask of the device meanwhile, as pinned memory for the next batches, is not captured.
    told = {"stream": _side_stream(device), "capture_error_mode": "thread_local"}
    with launching_on(device), module.graph(graph, **told):
        result = work()
    return result, graph.replay


@contextmanager
def aside(device: torch.device) -> Iterator[None]:
    """Within, work goes to the stream that captures, as before a capture it has to; what comes later waits for it."""
    module, stream = torch.get_device_module(device), _side_stream(device)
    present = module.current_stream(device)
    stream.wait_stream(present)
    try:
        with module.stream(stream):
            yield
    finally:
        present.wait_stream(stream)


@cache
def _side_stream(device: torch.device) -> Any:
    """One for all: memory belongs to the stream that it was taken for."""
    return torch.get_device_module(device).Stream(device)


def has_triton(device: torch.device) -> bool:
    """Whether Triton's kernels run on this device."""
    return device.type == "cuda" and _triton_is_new_enough()


@cache
def _triton_is_new_enough() -> bool:
    """3.6, of torch 2.11, is the oldest that the kernels were compiled with."""
    try:
        from triton import __version__
    except ImportError:
        return False
    return tuple(map(int, __version__.split(".")[:2])) >= (3, 6)


def launching_on(device: torch.device) -> AbstractContextManager[Any]:
    """Kernels are launched on this device inside, whichever is the current one."""
    # On the host Triton interprets.
    return nullcontext() if device.type == "cpu" else torch.get_device_module(device).device(device)


def host_reads_free(tensor: Tensor) -> bool:
    """Whether the host may look at the values without waiting for a device."""
    return tensor.is_cpu


def fused_optimizers(device: torch.device) -> bool:
    """Whether torch has its fused optimizers on this device."""
    return device.type in ("cpu", "cuda", "xpu")


def keep_freed_memory() -> None:
    """Let the C library keep the large blocks that a step frees for the next step, where it can be told to (glibc).

    By default it hands them back to the system, and each step has its pages faulted in anew: 5 % of a Conv2 step.
    """
    mmap_threshold, trim_threshold, top_pad = -3, -1, -2  # as <malloc.h> numbers them
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError, TypeError):  # another C library
        return
    for option, value in ((mmap_threshold, 2**30), (trim_threshold, 2**31 - 1), (top_pad, 2**26)):
        mallopt(option, value)


def reproducible_kernels() -> None:
    """Choose the same convolution algorithms in every run, so that a resumed run repeats an uninterrupted one."""
    torch.backends.cudnn.benchmark = False
    torch.backends.cudnn.deterministic = True
