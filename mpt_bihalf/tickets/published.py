"""Checkpoints of the published codes as tickets, or as networks to train on: their masks, counts and scales exactly.

MPT's code (biprop: SubnetConv, GlobalSubnetConv), edge-popup's (hidden-networks), IR-Net's and bi-half's (Equal Bits).
"""

from __future__ import annotations

import math
import warnings
import zipfile
from collections import defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ..archive import read_archive
from ..binarizable import layers_of, layers_to_binarize
from ..counts import as_fraction
from ..devices import HOST
from ..dtypes import float32_by_default
from ..files import open_file
from ..filters import filters
from ..given_masks import fix_masks
from ..masks import global_score_masks, score_mask
from ..models import create_model, find_network
from ..weights import binarize_weights, binary_weights
from .ticket import BinaryLayer, Ticket, weight_of

# What files say of the code that wrote them, and the method here that they are of.
LAYERS = {"SubnetConv": "layer", "GlobalSubnetConv": "global"}
METHODS = ("mpt-sign", "dense", "irnet", "sign", "bihalf", "magnitude-bihalf")


@dataclass(frozen=True)
class Published:
    """What a checkpoint of a published code is here.

    ticket: of it where its weights are binary, else None. model: where they are real-valued, the plain network under
    its fixed masks (`fix_masks`), to train on; else None. lines: what the user should know of it, one text a line.
    """

    ticket: Ticket | None
    model: nn.Module | None
    lines: list[str] = field(default_factory=list)


def import_checkpoint(
    path: Path | str,
    model: str,
    kept: str | float | None = None,
    method: str | None = None,
    activations: str | None = None,
    image_size: int | None = None,
    skip: tuple[str, ...] | None = None,
) -> Published:
    """Read what a published code has saved, with its own counts and scales.

    path: what its `torch.save` wrote: a dictionary with the network's `state_dict`, or that itself, of a module or of a
        `DataParallel`. Nothing but tensors and plain values is read.
    model: the network, by its name here.
    kept: the fraction of weights kept, in (0, 1]; needed where the weights have scores and the file does not say it, as
        newer ones of MPT's code do.
    method: `mpt-sign` (MPT's code), `dense` (edge-popup's, real-valued weights under a learned mask), `irnet` (IR-Net's
        code), `sign`, `bihalf` or `magnitude-bihalf` (bi-half's code, its modes sign, half and halfmask). By default
        `mpt-sign` where the file names MPT's layers, `dense` where it has scores and names none.
    activations: `real`, or what `create_model` takes; by default `approx` where the file says BinAct, and `real`.
    image_size: of the images that the network is for, in pixels; by default 224 where it begins with a 7x7
        convolution, and 32.
    skip: without scores, the layers that are real-valued; by default the network's own rules.

    Raises ValueError in one line for a file that is none, that is of another network, or does not say enough.
    """
    file = _File.read(Path(path))
    method = _method(file, method)
    arch = file.said.get("arch")
    own = "approx" if isinstance(arch, str) and "binact" in arch.lower() else "real"
    architecture: dict[str, Any] = {
        "name": model,
        "num_classes": len(file.layers[-1].tensors["weight"]),
        "in_channels": file.layers[0].tensors["weight"].shape[1],
        "image_size": image_size or (224 if file.layers[0].tensors["weight"].shape[2:] == (7, 7) else 32),
        "activations": activations or own,
    }
    with float32_by_default():
        network = create_model(**architecture, seed=0).eval()
    return _Import(file, network, architecture, method, _kept(file, method, kept), skip).result()


@dataclass(frozen=True)
class _Part:
    """What a state dictionary has of one module: its tensors by their own names."""

    name: str
    tensors: dict[str, Tensor]

    @property
    def kind(self) -> str:
        """`layer`, `norm`, or `other`, and whether it is on a shortcut: modules of one kind come in one order."""
        weight = self.tensors.get("weight")
        layer = weight is not None and weight.dim() > 1
        kind = "norm" if "running_mean" in self.tensors else "layer" if layer else "other"
        return kind + " on a shortcut" * bool({"shortcut", "downsample"} & {*self.name.split(".")})


@dataclass(frozen=True)
class _File:
    """What a file says, and the modules of its network in their order."""

    path: Path
    said: Mapping[str, Any]
    parts: list[_Part]

    @property
    def layers(self) -> list[_Part]:
        """Those of convolution and linear layers."""
        return [part for part in self.parts if part.kind.startswith("layer")]

    @property
    def scored(self) -> bool:
        """Whether some layers have scores."""
        return any("scores" in part.tensors for part in self.parts)

    @classmethod
    def read(cls, path: Path) -> _File:
        content = _content(path)
        state = content.get("state_dict", content) if isinstance(content, Mapping) else None
        if not isinstance(state, Mapping) or not state or not all(isinstance(v, Tensor) for v in state.values()):
            raise ValueError(f"{path} holds no network's state dictionary")
        grouped: dict[str, dict[str, Tensor]] = defaultdict(dict)
        for name, value in state.items():
            if value.is_complex() or value.layout != torch.strided:
                raise ValueError(f"{path}: {str(name)[:80]!r} is a tensor of another kind than weights are")
            owner, _, kind = str(name).removeprefix("module.").rpartition(".")
            wide = not value.is_floating_point() or (value.dtype == torch.float64 and kind == "scores")
            grouped[owner][kind] = value if wide else value.float()
        said = {} if state is content else content
        file = cls(path, said, [_Part(name, tensors) for name, tensors in grouped.items()])
        if not file.layers:
            raise ValueError(f"{path} holds no weight of a convolution or linear layer")
        return file


def _content(path: Path) -> Any:
    with open_file(path) as file:
        begin = file.read(9)
        if not begin:
            raise ValueError(f"{path} is empty")
        if begin[8:] == b"{":  # as safetensors begins
            raise ValueError(f"{path} is none of torch's files: a ticket, which the other commands take as it is?")
        file.seek(0)
        try:
            return read_archive(file)
        except zipfile.BadZipFile:
            file.seek(0)
        except ValueError as fault:
            raise ValueError(f"{path} is none of torch's files of tensors and plain values alone: {fault}") from fault
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                return torch.load(file, map_location=HOST, weights_only=True)  # of before torch 1.6
        except Exception as fault:  # whatever its reader raises, with advice that is none for such a file
            raise ValueError(
                f"{path} is none of torch's files of tensors and plain values alone, or not whole"
            ) from fault


def _method(file: _File, asked: str | None) -> str:
    """The method that the file's weights are of. ValueError where neither it nor anybody says it."""
    if asked is not None and asked not in METHODS:
        raise ValueError(f"a published checkpoint is of one of the methods {', '.join(METHODS)}, not {asked!r}")
    if not file.scored:
        if asked in (None, "mpt-sign", "dense"):
            raise ValueError(
                f"{file.path} has no scores: say by --method whose weights these are: irnet, or, of bi-half's code, "
                "sign, bihalf or magnitude-bihalf"
            )
        return str(asked)
    named = file.said.get("conv_type")
    if named is not None and not (isinstance(named, str) and named in LAYERS):
        raise ValueError(f"{file.path} is of layers {named!r:.60}; known: {', '.join(LAYERS)}")
    if asked not in (None, "mpt-sign", "dense"):
        raise ValueError(f"{file.path} has scores, so it is of mpt-sign or dense, not {asked}")
    return asked or ("mpt-sign" if named or "prune_rate" in file.said else "dense")


def _kept(file: _File, method: str, asked: str | float | None) -> float:
    """The fraction kept, as the published code has it. ValueError where neither the file nor anybody says it."""
    if method not in ("mpt-sign", "dense", "magnitude-bihalf"):
        return 1.0
    told = file.said.get("prune_rate")  # which there is the fraction kept
    if asked is None and (not isinstance(told, int | float | str) or method == "magnitude-bihalf"):
        raise ValueError(f"{file.path} does not say which fraction of the weights is kept: give --kept, 0.5 say")
    k = float(as_fraction(told if asked is None else asked, "kept"))  # type: ignore[arg-type]
    if not 0 < k <= 1:
        raise ValueError(f"kept must lie in (0, 1], not {k:g}")
    return k


@dataclass(frozen=True)
class _Import:
    """A checkpoint on its way into a network of ours. k: the fraction kept."""

    file: _File
    network: nn.Module
    architecture: dict[str, Any]
    method: str
    k: float
    skip: tuple[str, ...] | None

    def result(self) -> Published:
        """See `import_checkpoint`."""
        state = self._fitted()
        used = self._used(state)
        rest = {name: value for name, value in self.network.state_dict().items()}
        for name, tensors in state.items():
            for kind, value in tensors.items():
                if f"{name}.{kind}" in rest:
                    rest[f"{name}.{kind}"] = value.to(rest[f"{name}.{kind}"].dtype)
        lines = [f"{self.file.path}: {self.method}, {len(used)} layers of {len(self.file.layers)}, {self._count(used)}"]
        real = [name for name in layers_of(self.network) if name not in used] if self.file.scored else []
        if real:
            lines.append(f"without scores, and so real-valued: {', '.join(map(repr, real))}")
        if self.method == "dense" and "conv_type" not in self.file.said:
            lines.append("taken for edge-popup's, with real-valued weights; an older file of MPT's: --method mpt-sign")
        if not self.file.scored:
            lines.append(
                "such a file holds weights, not what stands between the layers: compare outputs with those of its code"
            )
        lines += [*self._ties(state), *self._zeros(state, used), *self._ours(state, used)]
        if self.method == "dense":
            self.network.load_state_dict(rest)
            fix_masks(self.network, {name: binary != 0 for name, (binary, _) in used.items()})
            return Published(None, self.network, lines)
        layers = {name: BinaryLayer(binary.to(torch.int8), alpha) for name, (binary, alpha) in used.items()}
        about = {"note": f"imported: {self.method} of a published code"}
        left = {name: value.clone() for name, value in rest.items() if name not in {weight_of(name) for name in layers}}
        ticket = Ticket(layers, left, architecture=self.architecture, about=about)
        ticket.outline()
        return Published(ticket, None, lines)

    def _fitted(self) -> dict[str, dict[str, Tensor]]:
        """The file's tensors by the names that our modules have, in the shapes of these."""
        ours = [
            _Part(name, {**dict(module.named_parameters(recurse=False)), **dict(module.named_buffers(recurse=False))})
            for name, module in self.network.named_modules()
        ]
        fitted: dict[str, dict[str, Tensor]] = {}
        for kind in dict.fromkeys(part.kind for part in [*ours, *self.file.parts] if part.tensors):
            here = [part for part in ours if part.tensors and part.kind == kind]
            there = [part for part in self.file.parts if part.kind == kind]
            if len(here) != len(there):
                raise self._other(f"it has {len(there)} modules of the kind {kind}, and the network {len(here)}")
            for mine, theirs in zip(here, there, strict=True):
                fitted[mine.name] = dict(self._into(mine, theirs))
        return fitted

    def _into(self, mine: _Part, theirs: _Part) -> Iterator[tuple[str, Tensor]]:
        for kind, own in mine.tensors.items():
            value = theirs.tensors.get(kind)
            if value is None and (kind == "bias" or mine.kind.startswith("norm")) and not kind.startswith("running"):
                value = torch.full_like(own, kind == "weight")  # of a layer without bias, or a norm without affine
            if value is None:
                raise self._other(f"its {theirs.name!r} has no {kind}")
            yield kind, self._shaped(value, own, theirs.name)
        if "scores" in theirs.tensors:
            yield "scores", self._shaped(theirs.tensors["scores"], mine.tensors["weight"], theirs.name)
        for kind in sorted(theirs.tensors.keys() - {*mine.tensors, "scores"}):
            raise self._other(f"its {theirs.name!r} has {kind[:80]!r}, which is none of the network's")

    def _shaped(self, value: Tensor, own: Tensor, name: str) -> Tensor:
        as_linear = own.dim() == 2 and value.dim() == 4 and value.shape[2:] == (1, 1)
        value = value.flatten(1) if as_linear else value
        if value.shape != own.shape:
            raise self._other(f"its {name!r} is {[*value.shape]}, and the network has {[*own.shape]}")
        if value.is_floating_point() and not value.isfinite().all():
            raise ValueError(f"{self.file.path}: {name!r} has values that are not finite")
        return value.detach()

    def _other(self, why: str) -> ValueError:
        return ValueError(f"{self.file.path} is of another network than {self.architecture['name']}: {why}")

    def _used(self, state: Mapping[str, Mapping[str, Tensor]]) -> dict[str, tuple[Tensor, Tensor]]:
        """B, in the weight's dtype, and alpha of each layer that is masked or binary, as the published code has it."""
        if self.file.scored:
            layers = {name: tensors for name, tensors in state.items() if "scores" in tensors}
            masks = self._masks({name: tensors["scores"] for name, tensors in layers.items()})
            return {name: self._masked(name, tensors["weight"], masks[name]) for name, tensors in layers.items()}
        skip = find_network(self.architecture["name"]).skip if self.skip is None else self.skip
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "skip: took", UserWarning)
            names = layers_to_binarize(self.network, skip)
        rule = {"irnet": _irnet, "sign": _sign, "bihalf": _half, "magnitude-bihalf": self._halfmask}[self.method]
        return {name: rule(state[name]["weight"]) for name in names}

    @property
    def _global(self) -> bool:
        return LAYERS.get(str(self.file.said.get("conv_type")), "layer") == "global"

    def _masks(self, scores: Mapping[str, Tensor]) -> dict[str, Tensor]:
        if not self._global:
            return {name: _best(s.abs(), int((1 - self.k) * s.numel())) for name, s in scores.items()}
        every = torch.cat([s.abs().flatten() for s in scores.values()]).sort().values
        below = int((1 - self.k) * every.numel())
        if not below:
            raise ValueError(f"{self.file.path}: that code prunes every weight where none is to be: no ticket is left")
        return {name: s.abs() > every[below - 1] for name, s in scores.items()}

    def _masked(self, name: str, weight: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        if self.method == "dense":
            return mask.to(weight.dtype), weight.new_ones(())
        count = int(mask.sum()) if self._global else int(self.k * weight.numel())
        if not count:
            raise ValueError(f"{self.file.path}: of layer {name!r} nothing is kept, and that code divides by 0")
        return weight.sign() * mask, torch.sum(weight.abs() * mask) / count

    def _halfmask(self, weight: Tensor) -> tuple[Tensor, Tensor]:
        rows, pruned = filters(weight), float(1 - as_fraction(self.k))
        size = rows.shape[1]
        binary = _ranked(rows, int((1 - pruned) / 2 * size), int((1 + pruned) / 2 * size))
        return binary.view_as(weight), _kaiming(weight)

    def _ties(self, state: Mapping[str, Mapping[str, Tensor]]) -> Iterator[str]:
        for name, tensors in state.items() if self.file.scored and not self._global else ():
            if "scores" in tensors:
                ordered = tensors["scores"].abs().flatten().sort().values
                cut = int((1 - self.k) * ordered.numel())
                if 0 < cut < ordered.numel() and ordered[cut - 1] == ordered[cut]:
                    yield (
                        f"layer {name!r}: {int((ordered == ordered[cut]).sum()):,} scores tie where the mask ends, and "
                        "that code keeps the ones that its sort happens to put last"
                    )

    @staticmethod
    def _count(used: Mapping[str, tuple[Tensor, Tensor]]) -> str:
        kept = sum(int(binary.count_nonzero()) for binary, _ in used.values())
        of = sum(binary.numel() for binary, _ in used.values())
        share = kept / max(of, 1)
        return f"{kept:,} of {of:,} weights kept ({100 * share:.4g} %: here prune_rate {1 - share:.4g})"

    def _zeros(self, state: Mapping[str, Mapping[str, Tensor]], used: Mapping[str, tuple[Tensor, Tensor]]) -> list[str]:
        if self.method == "dense":
            return []
        zeros = {name: int((state[name]["weight"] == 0).sum()) for name in used} if self.method != "irnet" else {}
        found = {name: count for name, count in zeros.items() if count and self.method in ("mpt-sign", "sign")}
        return [
            f"layer {name!r}: {count} weights are 0, of which that code takes 0 for the sign, and +1 is the sign here"
            for name, count in found.items()
        ]

    def _ours(self, state: Mapping[str, Mapping[str, Tensor]], used: Mapping[str, tuple[Tensor, Tensor]]) -> list[str]:
        """In how many weights the binary ones by our own rule would differ, by layer."""
        rate = 1 - as_fraction(self.k)
        if self.file.scored:
            scores = [state[name]["scores"] for name in used]
            masks = global_score_masks(scores, rate) if self._global else [score_mask(s, rate) for s in scores]
            signs = [torch.where(state[name]["weight"] >= 0, 1.0, -1.0) for name in used]
            ours = [m if self.method == "dense" else m * b for m, b in zip(masks, signs, strict=True)]
            by_us = dict(zip(used, ours, strict=True))
        else:
            with float32_by_default():
                model = create_model(**self.architecture, seed=0)
            others = [name for name in layers_of(model) if name not in used]
            with torch.no_grad():
                for name in used:
                    model.get_submodule(name).weight.copy_(state[name]["weight"])  # type: ignore[operator]
            by_us = binary_weights(binarize_weights(model, self.method, rate, skip=others, init="keep"))
        counts = {name: int((by_us[name] != binary).sum()) for name, (binary, _) in used.items()}
        kept = {name: int(by_us[name].count_nonzero()) for name in used}
        lines = [
            f"layer {name!r}: by our rule {count:,} of {used[name][0].numel():,} weights would differ (it keeps "
            f"{kept[name]:,}, that code {int(used[name][0].count_nonzero()):,})"
            for name, count in counts.items()
            if count
        ]
        return lines or ["by our rule every weight would be the same"]


def _best(values: Tensor, pruned: int) -> Tensor:
    """All but the `pruned` lowest; of equal ones that of the higher index stays."""
    mask = torch.ones(values.numel(), dtype=torch.bool)
    mask[values.flatten().sort(dim=0, stable=True).indices[:pruned]] = False
    return mask.view(values.shape)


def _ranked(rows: Tensor, lowest: int, highest: int) -> Tensor:
    """-1 for the `lowest` first ranks of each row, +1 from the rank `highest` on, 0 between."""
    of_rank = torch.zeros(rows.shape[1], dtype=rows.dtype)
    of_rank[:lowest], of_rank[highest:] = -1, 1
    return torch.empty_like(rows).scatter_(1, rows.sort(dim=1, stable=True).indices, of_rank.expand_as(rows))


def _kaiming(weight: Tensor) -> Tensor:
    return weight.new_tensor(math.sqrt(2.0) / math.sqrt(weight[0].numel()))


def _sign(weight: Tensor) -> tuple[Tensor, Tensor]:
    return weight.sign(), _kaiming(weight)


def _half(weight: Tensor) -> tuple[Tensor, Tensor]:
    rows = filters(weight)
    negative = int(0.5 * rows.shape[1])
    return _ranked(rows, negative, negative).view_as(weight), _kaiming(weight)


def _irnet(weight: Tensor) -> tuple[Tensor, Tensor]:
    """The sign of W less its filter's mean, and 2^round(log2 mean abs) of it over its deviation."""
    rows = filters(weight)
    around = rows - rows.mean(1, keepdim=True)
    around = around / around.std(1, keepdim=True)
    power = (torch.log(around.abs().mean(1)) / math.log(2)).round()
    return around.sign().view_as(weight), (2.0**power).view(-1, *[1] * (weight.dim() - 1))
