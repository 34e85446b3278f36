"""The configuration of one run: a typed dataclass that becomes the command line and names the run's folder."""

from __future__ import annotations

import hashlib
import json
import os
import re
import reprlib
from dataclasses import dataclass, field, fields, replace
from sys import float_info
from typing import Any, Literal

from ..activations import ACTIVATION_GRADIENTS
from ..counts import fraction_within
from ..data import check_name, own_augmentation, short_data
from ..devices import check_shared, pick_device
from ..distributed import launched
from ..files import expanded
from ..gradients import LATENT_GRADIENTS, SCORE_GRADIENTS, Ede
from ..initialise import INITS
from ..masks import SCOPES
from ..methods import METHODS, Method, find_method
from ..models import find_network
from ..scales import SCALES

# What a run's result does not depend on, so that it is left out of the hash.
WHERE = ("data_root", "workers", "data_digest")
# Fields that came later, with what they are in runs made before: at that value they are left out of the hash, so that
# these runs keep their names.
ADDED = {
    "width": 1.0,
    "activations": "real",
    "prune_epochs": 0,
    "ede_t0": Ede.t0,
    "processes": 1,
    "sync_bn": False,
    "workers": 0,
    "data_digest": "",
    "augment": "auto",
    "flip": "auto",
    "crop_padding": "auto",
}
# What augment says of flip and crop_padding where these say auto; None: the data set's own.
BOTH_PARTS = {"auto": None, "none": False, "standard": True}
RISES_FROM = 0.5  # where a rising pruning rate starts, in the MPT authors' later code
RESNET20_T0 = 1e-3  # where EDE's sharpness starts on 1/1 ResNet-20, in IR-Net's code


@dataclass(frozen=True, kw_only=True)
class Run:
    """One training run. Options that a method does not look at are set to their defaults, so equal runs are equal."""

    method: str = "mpt-bihalf"
    """dense, sign, irnet, bop, bihalf, mpt-sign, mpt-bihalf, mpt-balanced, magnitude-sign or magnitude-bihalf"""
    model: str = "conv2"
    """the network: conv2, conv4, conv6, conv8, resnet18, resnet34, wide_resnet34, wide_resnet50, resnet20, vgg_small,
    vgg16, inception_v3, shufflenet, or torchvision:NAME for any classifier of torchvision"""
    width: float = 1.0
    """what the network's hidden channels are multiplied by"""
    activations: str = "real"
    """real (W/A 1/32), binary (1/1, with the method's own gradient), or binary with this one: clip, approx or ede"""
    data: str = "digits"
    """digits, fashion-mnist, cifar10, cifar100, folder:PATH with train/ and test/ in it, a folder a class, or
    imagenet:PATH likewise, in the standard crops and never all in memory"""
    data_root: str = ""
    """where data sets lie or are downloaded to; empty: the user's cache folder"""
    image_size: int = 0
    """resize images to this many pixels a side on load; 0 keeps their size"""
    augment: Literal["auto", "none", "standard"] = "auto"
    """of training images: standard (flip and crop-padding on), none (both off), or auto, which is none for digits and
    standard for the other data sets"""
    flip: Literal["auto", "on", "off"] = "auto"
    """mirror training images left to right half the time: on, off (where classes differ by left and right), or auto, as
    augment says"""
    crop_padding: Literal["auto", "on", "off"] = "auto"
    """pad training images by black, by an eighth of their side where the data set has no padding of its own, and crop
    them at random: on, off, or auto, as augment says; imagenet: a random part, scaled, or else the middle crop"""
    prune_rate: float = 0.5
    """fraction of the weights pruned, in [0, 1) (the reference MPT code's flag of this name is the fraction kept)"""
    prune_epochs: int = 0
    """epochs in which the rate rises from 0.5 to prune_rate, if that is more, as in the MPT authors' later code (10
    there); 0: the same rate from the start"""
    p_pos: float = 0.5
    """prior of +1 in [0, 1] where the method sets the bit ratio; 0.5 is bi-half"""
    scope: str = "layer"
    """what edge-popup ranks scores within: layer, filter or global"""
    skip: tuple[str, ...] = ()
    """layers left real-valued: names, or the rules first, last, downsample; none skips none (default: none in conv2 to
    conv8, first last downsample in deeper networks)"""
    init: str = "kaiming_normal"
    """how latent weights begin: kaiming_normal, signed_constant or equal_bits (pairs w, -w: half of the signs +1)"""
    scale: str = ""
    """size of a binary weight: kaiming, l1 or power-of-two; empty: the method's own"""
    latent_gradient: str = ""
    """gradient of trained latent weights: scaled (alpha g), unscaled (g) or ede (IR-Net's); empty: the method's own"""
    ede_t0: float = 0.0
    """where the sharpness t of ede starts; 0: as in the authors' code, 0.1, and 0.001 for a resnet20 with binary
    activations"""
    score_gradient: str = ""
    """gradient of trained scores: latent (MPT's) or binary (exact straight-through); empty: the method's own"""
    train_affine: bool = False
    """under frozen weights, train biases and norm affines too (+BN)"""
    learn_mask: bool = True
    """under frozen weights, learn the scores; if not, the mask stays the random one that they begin with (a control)"""
    epochs: int = 10
    """passes over the training set"""
    batch_size: int = 128
    """images a step; the last incomplete batch of an epoch is dropped"""
    optimizer: Literal["sgd", "adam"] = "sgd"
    """sgd (with momentum) or adam"""
    lr: float = 0.1
    """initial learning rate (of bop's real-valued parameters; its binary ones have none)"""
    momentum: float = 0.9
    """of sgd"""
    weight_decay: float = 1e-4
    """on every trained tensor"""
    bop_gamma: float = 1e-4
    """of bop: how fast the mean gradient follows, in [0, 1]"""
    bop_tau: float = 1e-8
    """of bop: how large the mean gradient must be for a flip"""
    schedule: Literal["cosine", "step", "constant"] = "cosine"
    """learning rate: cosine to 0 per step, times 0.1 at the milestones, or constant"""
    milestones: tuple[int, ...] = ()
    """epochs at which the step schedule multiplies the learning rate by 0.1"""
    holdout: float = 0.0
    """share of the training images held out, in [0, 1); if any, they alone select the best epoch"""
    seed: int = 0
    """of the weights, the scores, the order of the images and their augmentation"""
    device: str = "auto"
    """auto (an accelerator if there is one), cpu, or any torch device"""
    trace: int = 0
    """record flips, entropies and magnitudes of each layer every so many steps, in trace.csv; 0: none"""
    precision: Literal["fp32", "bf16", "fp16"] = "fp32"
    """bf16 and fp16 (with its loss scaled) compute layers in mixed precision; masks, signs and scales are decided in
    fp32 either way"""
    threads: int = 0
    """CPU threads of each process; 0: one a core, the cores divided among the processes of this machine"""
    processes: int = 1
    """how many share each batch, a part of it to each: what torchrun starts (--nproc-per-node times --nnodes)"""
    sync_bn: bool = False
    """batch norm over the whole batch, where several processes share it, not over the part of each"""
    workers: int = 0
    """processes that decode images, where those do not fit into memory; 0: as many as threads, 16 at most"""
    data_digest: str = field(default="", compare=False)
    """SHA-256 that the data must have, as a run's data.json tells it; empty: whatever they are"""

    def __post_init__(self) -> None:
        """Raises ValueError, in one line, for a value that is unknown or out of range."""
        for name, known in (
            ("method", METHODS),
            ("scope", SCOPES),
            ("init", [init for init in INITS if init != "keep"]),
            ("scale", ["", *SCALES]),
            ("latent_gradient", ["", *LATENT_GRADIENTS]),
            ("score_gradient", ["", *SCORE_GRADIENTS]),
            ("optimizer", ["sgd", "adam"]),
            ("schedule", ["cosine", "step", "constant"]),
            ("precision", ["fp32", "bf16", "fp16"]),
            ("augment", BOTH_PARTS),
            ("flip", ["auto", "on", "off"]),
            ("crop_padding", ["auto", "on", "off"]),
            ("activations", ["real", "binary", *ACTIVATION_GRADIENTS]),
        ):
            if getattr(self, name) not in known:
                options = ", ".join(value for value in known if value)
                raise ValueError(f"unknown {name} {getattr(self, name)!r}; known: {options}")
        find_network(self.model)
        check_name(self.data)
        fraction_within(self.prune_rate, "prune_rate", below_one=True)
        fraction_within(self.p_pos, "p_pos")
        fraction_within(self.holdout, "holdout", below_one=True)
        for name, lowest, highest in (
            ("epochs", 1, 1_000_000),
            ("batch_size", 1, 1_000_000),
            ("image_size", 0, 1024),
            ("seed", 0, 2**63 - 1),
            ("threads", 0, 1024),
            ("trace", 0, 1_000_000),
            ("prune_epochs", 0, 1_000_000),
            ("processes", 1, 1_000_000),
            ("workers", 0, 1024),
        ):
            if not lowest <= getattr(self, name) <= highest:
                raise ValueError(f"{name} must lie in {lowest} to {highest}, not {getattr(self, name)}")
        for name in ("lr", "weight_decay", "bop_tau", "ede_t0"):
            if not 0 <= getattr(self, name) < float("inf"):
                raise ValueError(f"{name} must be a finite number of at least 0, not {getattr(self, name)}")
        if self.data_digest and not re.fullmatch("[0-9a-f]{64}", self.data_digest):
            raise ValueError(f"data_digest must be 64 hexadecimal digits, not {self.data_digest[:80]!r}")
        if not 0 < self.width <= 64:
            raise ValueError(f"width must lie in (0, 64], not {self.width}")
        if not 0 <= self.bop_gamma <= 1:
            raise ValueError(f"bop_gamma must lie in [0, 1], not {self.bop_gamma}")
        if self.method == "bop" and self.optimizer != "sgd":
            raise ValueError("bop flips its binary weights and trains the rest by sgd: leave --optimizer at sgd")
        if not 0 <= self.momentum < 1:
            raise ValueError(f"momentum must lie in [0, 1), not {self.momentum}")
        if self.schedule == "step" and not self.milestones:
            raise ValueError("the step schedule needs --milestones")
        if self.batch_size % self.processes:
            raise ValueError(f"batch_size {self.batch_size} cannot be divided evenly among {self.processes} processes")
        if any(milestone < 1 for milestone in self.milestones):
            raise ValueError(f"milestones must be epochs from 1 on, not {min(self.milestones)}")
        self._canonise()

    def _canonise(self) -> None:
        method = find_method(self.method)
        own = {
            "scale": _name_of(method, "scale", SCALES),
            "latent_gradient": _name_of(method, "latent_gradient", LATENT_GRADIENTS),
            "score_gradient": _name_of(method, "score_gradient", SCORE_GRADIENTS),
        }
        estimator = _name_of(method, "activation_gradient", ACTIVATION_GRADIENTS)
        canonical: dict[str, Any] = {
            **{part: getattr(self, part) or name for part, name in own.items()},
            "skip": self._skip(),
            "activations": estimator if self.activations == "binary" else self.activations,
            "milestones": tuple(self.milestones) if self.schedule == "step" else (),
            **self._augmentation(),
        }
        kind, _, path = self.data.partition(":")
        if path:
            canonical["data"] = f"{kind}:{_absolute(path)}"
        if self.data_root:  # whoever does the run may do it in another folder
            canonical["data_root"] = _absolute(self.data_root)
        if method.mask is None:
            canonical["prune_rate"] = 0.0
        if method.mask is None or self.prune_rate <= RISES_FROM:
            canonical["prune_epochs"] = 0
        if not method.scoped:
            canonical["scope"] = "layer"
        if not method.balanced:
            canonical["p_pos"] = 0.5
        if method.trains != "signs":
            canonical |= {"bop_gamma": Run.bop_gamma, "bop_tau": Run.bop_tau}
        if method.trains != "scores":
            canonical |= {"score_gradient": "latent", "train_affine": False, "learn_mask": True}
        else:
            canonical["latent_gradient"] = "scaled"
        if method.binarizer is None:
            canonical |= {"scale": own["scale"], "skip": (), "latent_gradient": "scaled"}
        if self.optimizer != "sgd":
            canonical["momentum"] = 0.0
        canonical["ede_t0"] = self._ede_t0(canonical["latent_gradient"], canonical["activations"])
        for name, value in canonical.items():
            object.__setattr__(self, name, value)

    def _augmentation(self) -> dict[str, str]:
        """augment, flip and crop_padding: equal for equal effects, and auto for what the data set does by itself."""
        own = own_augmentation(self.data)
        flip, crop = both = tuple(
            default if said is None else said for said, default in zip(self.augmentation, own, strict=True)
        )
        if both != own and flip == crop:
            return {"augment": "standard" if flip else "none", "flip": "auto", "crop_padding": "auto"}
        parts = zip(("flip", "crop_padding"), both, own, strict=True)
        named = {name: "auto" if part == default else "on" if part else "off" for name, part, default in parts}
        return {"augment": "auto", **named}

    def _skip(self) -> tuple[str, ...]:
        """No name twice; the network's own rules where nothing is said, which for some networks is to skip none."""
        own = find_network(self.model).skip
        names = tuple(dict.fromkeys(name for name in self.skip if name != "none"))
        if names or not own:
            return names
        return ("none",) if self.skip else own

    def _ede_t0(self, latent_gradient: str, activations: str) -> float:
        if "ede" not in (latent_gradient, activations):
            return Ede.t0
        own = RESNET20_T0 if self.model == "resnet20" and activations != "real" else Ede.t0
        return self.ede_t0 or own

    @property
    def augmentation(self) -> tuple[bool | None, bool | None]:
        """Whether training images are mirrored, and whether cropped at random; None: as the data set has it."""
        both = BOTH_PARTS[self.augment]
        flip, crop = (both if part == "auto" else part == "on" for part in (self.flip, self.crop_padding))
        return flip, crop

    def resolved(self, here: bool = True) -> Run:
        """The run with this machine's device and thread count in the place of `auto` and 0, as its hash needs them.

        And with the processes that torchrun has started, if it has. ValueError for a device that is not here, unless
        the run is to be done elsewhere, and for another number of processes.
        """
        launch = launched()
        device = str(pick_device(self.device)) if here or self.device == "auto" else self.device
        if self.processes not in (1, launch.processes):
            raise ValueError(
                f"processes is {self.processes}, but this command was started with {launch.processes}: "
                f"start it with torchrun --nproc-per-node {self.processes}"
            )
        if launch.processes > 1:
            check_shared(device, launch.local_processes)
        return replace(
            self,
            device=device,
            threads=self.threads or cores_for(1),
            processes=launch.processes,
            sync_bn=self.sync_bn and launch.processes > 1,
        )

    @property
    def hash(self) -> str:
        """Ten hexadecimal digits of all that determines the result."""
        facts = {
            name: value
            for name, value in vars(self).items()
            if name not in WHERE and not (name in ADDED and value == ADDED[name])
        }
        facts["device"] = self.device.split(":")[0]  # which one of several like it makes no difference
        return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()[:10]

    @property
    def name(self) -> str:
        """The run's folder: readable parts, then the hash."""
        rate = f"-pruned{self.prune_rate:g}" if METHODS[self.method].mask is not None else ""
        data = re.sub(r"[^A-Za-z0-9._-]+", "-", short_data(self.data))[:40]
        bits = "-w1a1" if self.activations != "real" else ""
        model = self.model.replace(":", "-")  # which no file on Windows may have in its name
        return f"{model}{bits}-{data}-{self.method}{rate}-seed{self.seed}-{self.hash}"

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> Run:
        """The run of a `config.json`; ValueError for a field that is missing, unknown or of another type."""
        values = ADDED | values
        if values.keys() != DEFAULTS.keys():
            wrong = sorted(DEFAULTS.keys() ^ values.keys())
            raise ValueError(f"not a run's configuration: fields {wrong} are missing or unknown")
        for name, value in values.items():
            if isinstance(value, list | tuple) and len(value) > MOST_ITEMS:
                raise ValueError(f"not a run's configuration: {name} has {len(value):,} items")
        arguments: dict[str, Any] = {
            n: tuple(value) if isinstance(value, list) else value for n, value in values.items()
        }
        for name, default in DEFAULTS.items():
            _check_type(name, arguments[name], default)
        return cls(**arguments)


def _name_of(method: Method, part: str, known: dict[str, Any]) -> str:
    """What a part of the method is called, by which a run is known; ValueError where it has no name."""
    for name, value in known.items():
        if value == getattr(method, part):
            return name
    raise ValueError(
        f"the {part} of method {method.name!r} has no name for runs to be known by: enter it in {part.upper()}S"
    )


DEFAULTS: dict[str, Any] = {known.name: known.default for known in fields(Run)}
# What the fields with several items have for items.
ITEMS = {"skip": str, "milestones": int}
# How many they have at most in a record.
MOST_ITEMS = 1_000


def _check_type(name: str, value: Any, default: Any) -> None:
    """ValueError unless the value may stand for the default: a whole number for a float too, no bool for a number."""
    kind = type(default)
    sound = type(value) is kind
    if kind is tuple:
        sound = sound and all(type(item) is ITEMS[name] for item in value)
    elif kind is float:
        sound = (sound or type(value) is int) and -float_info.max <= value <= float_info.max
    if not sound:
        raise ValueError(f"not a run's configuration: {name} is {reprlib.repr(value)[:60]}")


def _absolute(folder: str) -> str:
    return str(expanded(folder).absolute())


def cores_for(jobs: int) -> int:
    """The CPU cores that each of so many runs at a time may use, each of this launch's processes; at least 1."""
    return max(1, usable_cores() // (jobs * launched().local_processes))


def usable_cores() -> int:
    """The CPU cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
