"""The one place that knows the kinds of devices by name."""

from __future__ import annotations

import ctypes
import platform
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path

import torch
from torch import Tensor


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


def host_reads_free(tensor: Tensor) -> bool:
    """Whether the host may look at the values without waiting for a device."""
    return tensor.device.type == "cpu"


def fused_optimizers(device: torch.device) -> bool:
    """Whether torch has its fused optimizers on this device."""
    return device.type in ("cpu", "cuda", "xpu")


def without_autocast(device: torch.device) -> AbstractContextManager[object]:
    """Within, no operation on this device computes in fewer digits than its operands have."""
    known = torch.amp.autocast_mode.is_autocast_available(device.type)
    return torch.autocast(device.type, enabled=False) if known else nullcontext()


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
