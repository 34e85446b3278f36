"""Any classifier of torchvision, without its trained weights: `torchvision:NAME`."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from difflib import get_close_matches
from functools import partial
from typing import Any, cast

import torch
from torch import nn
from torch.func import functional_call
from torch.overrides import TorchFunctionMode

from ..devices import HOST
from .design import Design, Network

PREFIX = "torchvision:"


def torchvision_network(name: str) -> Network:
    """The entry of the classifier of this name; ValueError with those nearly so called where there is none."""
    from torchvision import models  # half a second that no other network needs

    known = models.list_models(module=models)
    if name not in known:
        near = ", ".join(PREFIX + match for match in get_close_matches(name, known, cutoff=0.4))
        raise ValueError(f"torchvision has no classifier {name!r}{f'; near: {near}' if near else ''}")
    return Network(partial(_build, name), image_size=224)


def _build(name: str, design: Design) -> nn.Module:
    from torchvision import models

    if design.binary:
        raise ValueError(f"binary activations need a network built for them: {PREFIX}{name} has real ones only")
    if design.width != 1:
        raise ValueError(f"{PREFIX}{name} is as wide as torchvision has it: width must be 1, not {design.width}")
    # A regnet reckons its widths with tensors, which must have values where no other has, on the meta device.
    reckoned = _ValuesOnHost() if name.startswith("regnet") else nullcontext()
    with _suiting(name, design, AssertionError, ValueError), reckoned:
        model = models.get_model(name, weights=None, num_classes=design.num_classes, **_options(name, design))
    place, first = next(named for named in model.named_modules() if isinstance(named[1], nn.Conv2d))
    if first.in_channels != design.in_channels:
        kept: dict[str, Any] = {key: getattr(first, key) for key in ("kernel_size", "stride", "padding")}
        other = nn.Conv2d(design.in_channels, first.out_channels, bias=first.bias is not None, **kept)
        model.set_submodule(place, other)
    # The shapes that an image of this size comes to, without computing anything.
    shapes = {name: tensor.to("meta") for name, tensor in (*model.named_parameters(), *model.named_buffers())}
    image = torch.empty(1, design.in_channels, *design.image_size, device="meta")
    with torch.no_grad(), _suiting(name, design, AssertionError, ValueError, RuntimeError):
        functional_call(model.eval(), shapes, image)
    return cast(nn.Module, model.train())


class _ValuesOnHost(TorchFunctionMode):
    """Within, ranges and lists become tensors on the host, whatever the default device is."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        where = {"device": HOST} if func in (torch.arange, torch.tensor) else {}
        return func(*args, **((kwargs or {}) | where))


@contextmanager
def _suiting(name: str, design: Design, *faults: type[Exception]) -> Iterator[None]:
    """These faults mean that the network does not take images of this size: ValueError, in one line."""
    try:
        yield
    except faults as fault:
        height, width = design.image_size
        reason = str(fault).partition("\n")[0]
        raise ValueError(f"{PREFIX}{name} does not take images of {height}x{width}: {reason}") from fault


def _options(name: str, design: Design) -> dict[str, Any]:
    """What this kind of network must be told, beside the number of classes."""
    height, width = design.image_size
    if name in ("googlenet", "inception_v3"):
        return {"aux_logits": False, "init_weights": False}  # drawn anew anyway, and torchvision's draws take seconds
    if name.startswith("vit"):
        if height != width:
            raise ValueError("it takes square ones")
        return {"image_size": height}
    return {"input_size": design.image_size} if name.startswith("maxvit") else {}
