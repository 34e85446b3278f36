"""The configuration of one run: a typed dataclass that becomes the command line and names the run's folder."""

from __future__ import annotations

import hashlib
import json
import os
import reprlib
from dataclasses import dataclass, field, fields, replace
from sys import float_info
from typing import Any, Literal

import torch

from .. import sparse
from ..data.mixing import MIXES, Mix
from ..devices import check_captures, check_shared, pick_device
from ..distributed import launched
from ..gradients import Ede
from ..step_rules import PENALTY_LAMBDA
from .canonical import BOTH_PARTS, IMP_SHARE, PARTS, canonical, check, registered
from .names import WHERE, folder_name

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
    "compile": False,
    "scale_on": "weight",
    "compute": "dense",
    "graph": False,
    "block": "",
    "output_scale": "none",
    "input_scale": False,
    "penalty": "none",
    "penalty_lambda": PENALTY_LAMBDA,
    "centre": False,
    "clip_weights": False,
    "label_smoothing": 0.0,
    "rotation_gradient": "exact",
    "mask": "",
    "imp_share": IMP_SHARE,
    "imp_criterion": "magnitude",
    "rewind": "",
    "imp_control": "",
    "redraw": "",
    "redraw_every": 0,
    "redraw_share": 0.0,
    "nesterov": False,
    "warmup": 0,
    "augmix_severity": 3.0,
    "gaussian_std": 0.1,
    "gaussian_clean": 0.5,
    "jsd": False,
}


@dataclass(frozen=True, kw_only=True)
class Run:
    """One training run. Options that a method does not look at are set to their defaults, so equal runs are equal."""

    method: str = "mpt-bihalf"
    """dense, sign, irnet, bop, bihalf, xnor, bi-real, least-squares, abc, bnn+, xnor++, rbnn, rbnn-bihalf,
    real-to-binary, mpt-sign, mpt-bihalf, mpt-balanced, magnitude-sign or magnitude-bihalf"""
    model: str = "conv2"
    """the network: conv2, conv4, conv6, conv8, resnet18, resnet34, wide_resnet34, wide_resnet50, resnet20, vgg_small,
    vgg16, inception_v3, shufflenet, or torchvision:NAME for any classifier of torchvision"""
    width: float = 1.0
    """what the network's hidden channels are multiplied by"""
    activations: str = "real"
    """real (W/A 1/32), binary (1/1, with the method's own gradient), or binary with this one: clip, clip-closed,
    approx, ede, swish or abc (+1 from 0.5 on); or rbnn (of each image standardised), rsign (with a trained shift a
    channel), and sums of signs with scales of each image: ls1, ls2, lsT, residual-2 to residual-4"""
    block: str = ""
    """what stands around layers with binary input: norm-first (batch norm, sign, layer, PReLU: then scales count; conv2
    to conv8, resnet18, resnet34), real-to-binary (likewise, with a gate), bi-real (sign, layer, batch norm; resnet18,
    resnet34) or reactnet (likewise, RPReLU behind the addition); empty: the network's own"""
    output_scale: str = ""
    """of binary activations, a trained scale behind each layer that they feed: gamma-1 (one a filter), gamma-2 (one a
    filter and place), gamma-3 (a filter's times a place's) or gamma-4 (a filter's, a row's and a column's), or none;
    empty: the method's own, which xnor++ alone has (gamma-4)"""
    input_scale: bool = False
    """of binary activations, multiply what the layers that they feed give by the mean magnitude of their inputs before
    the sign, in each window (XNOR-Net's K); conv2 to conv8, resnet18, resnet34"""
    data: str = "digits"
    """digits, fashion-mnist, cifar10, cifar100, folder:PATH with train/ and test/ in it, a folder a class, or
    imagenet:PATH likewise, in the standard crops and never all in memory"""
    data_root: str = ""
    """where data sets lie or are downloaded to; empty: the user's cache folder"""
    image_size: int = 0
    """resize images to this many pixels a side on load; 0 keeps their size"""
    augment: Literal["auto", "none", "standard", "augmix", "gaussian"] = "auto"
    """of training images: standard (flip and crop-padding on), none (both off), or auto, which is none for digits and
    standard for the other data sets; after auto also augmix (chains of operations mixed) or gaussian (noise added)"""
    augmix_severity: float = 3.0
    """of augmix, how strong operations are, in [1, 10]"""
    gaussian_std: float = 0.1
    """of gaussian, the noise's standard deviation, for pixels in [0, 1]; at least 0"""
    gaussian_clean: float = 0.5
    """of gaussian, the share of images without noise, in [0, 1]"""
    jsd: bool = False
    """of augmix and gaussian, train on each image and add 12 times the Jensen-Shannon divergence of its classes from
    those of two that are augmented: a step costs three"""
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
    mask: str = ""
    """a mask that is fixed before training, of the drawn network: snip, grasp, synflow, magnitude or random (frozen
    weights then have nothing to learn but train_affine); or of trained weights: imp, iterative pruning in rounds, each
    a run that begins when the one before it is done; empty: the method's own"""
    imp_share: float = IMP_SHARE
    """of imp, the share of the kept weights that a round prunes, in [0.01, 1]; the last prunes what prune_rate still
    asks for; 1: all in one round"""
    imp_criterion: Literal["magnitude", "cutoff"] = "magnitude"
    """of imp, what the pruned weights have least of: magnitude, or cutoff, the distance from where the sign turns"""
    rewind: str = ""
    """of imp, the step of the unpruned training whose network each round begins with: 500it, or after epochs, 2ep;
    empty: its beginning"""
    imp_control: str = ""
    """of imp, a control of equal counts: shuffled (the last mask at random within its layers), redrawn (the last round
    of other weights) or one-shot (as imp_share 1); empty: none"""
    scope: str = ""
    """what masks rank scores within: layer, filter or global; empty: layer for edge-popup, global for --mask"""
    skip: tuple[str, ...] = ()
    """layers left real-valued: names, or the rules first, last, downsample; none skips none (default: none in conv2 to
    conv8, first last downsample in deeper networks)"""
    init: str = "kaiming_normal"
    """how latent weights begin: kaiming_normal, signed_constant, equal_bits (pairs w, -w: half of the signs +1) or
    all_positive (uniform in [0, 0.001), as published codes have it)"""
    scale: str = ""
    """size of a binary weight: kaiming, l1, power-of-two, l1-filter, least-squares, one, or one a filter that is
    trained, without weight decay, and begins at kaiming (learned), the filter's mean magnitude (learned-l1-filter) or
    its median (learned-median); empty: the method's own"""
    scale_on: str = ""
    """of binary activations, where the scale of the layers that they feed is: output, so that sums are whole numbers
    without rounding noise, or weight; empty: output, and with real activations weight"""
    latent_gradient: str = ""
    """gradient of trained latent weights: scaled (alpha g), unscaled (g), ede (IR-Net's), clipped (alpha g within ±1),
    clipped-closed (±1 included), clipped-unscaled (g there), xnor, swish or rbnn; empty: the method's own"""
    rotation_gradient: Literal["exact", "code"] = "exact"
    """of rbnn: exact, or that of its published code, in which the rotated weight is a constant"""
    ede_t0: float = 0.0
    """where the sharpness t of ede starts; 0: as in the authors' code, 0.1, and 0.001 for a resnet20 with binary
    activations"""
    score_gradient: str = ""
    """gradient of trained scores: latent (MPT's) or binary (exact straight-through); empty: the method's own"""
    train_affine: bool = False
    """under frozen weights, train biases and norm affines too (+BN)"""
    learn_mask: bool = True
    """under frozen weights, learn the scores; if not, the mask stays the random one that they begin with (a control)"""
    redraw: str = ""
    """under frozen weights with learned scores, what becomes of pruned weights: iterand (drawn anew at random),
    recycle (the lowest-scored take the values of the highest; not mpt-balanced); empty: nothing"""
    redraw_every: int = 0
    """how often, in steps for iterand, in epochs for recycle; 0: 300 and 10, as in their codes"""
    redraw_share: float = 0.0
    """of iterand, the probability of each pruned weight, of recycle the share of a layer, in [0, 1]; 0: 0.1 and 0.2"""
    penalty: str = ""
    """what the loss has beside, times penalty_lambda: r1, the sum of abs(alpha - abs(W)) over kept weights, r2, the sum
    of its square, or none; empty: the method's own, which bnn+ alone has (r1)"""
    penalty_lambda: float = PENALTY_LAMBDA
    """what the penalty is multiplied by, at least 0"""
    centre: bool = False
    """after each step, subtract from latent weights their mean over input channels (XNOR-Net's code)"""
    clip_weights: bool = False
    """after each step, clip latent weights to [-1, 1]; real-to-binary does so in any case"""
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
    nesterov: bool = False
    """of sgd with momentum, Nesterov's"""
    weight_decay: float = 1e-4
    """on every trained tensor"""
    bop_gamma: float = 1e-4
    """of bop: how fast the mean gradient follows, in [0, 1]"""
    bop_tau: float = 1e-8
    """of bop: how large the mean gradient must be for a flip"""
    schedule: Literal["cosine", "linear", "step", "constant"] = "cosine"
    """learning rate: cosine or linear, each to 0 per step, times 0.1 at the milestones, or constant"""
    warmup: int = 0
    """epochs in which the learning rate first rises from 0, by the same at each step; cosine and linear begin behind"""
    milestones: tuple[int, ...] = ()
    """epochs at which the step schedule multiplies the learning rate by 0.1"""
    label_smoothing: float = 0.0
    """share of each training label that is spread evenly over all classes, in [0, 1); the test loss has none"""
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
    compile: bool = False
    """compile the training step (torch.compile), which rounds otherwise; masks and signs are decided as ever"""
    graph: bool = False
    """capture the training step as a graph, without gaps between its kernels, on an accelerator that can (CUDA)"""
    compute: str = "auto"
    """how layers compute: sparse, by what their weights keep, faster the more are pruned, on a CPU with AVX2; dense, as
    torch does; or auto, which is sparse where this machine can, at pruning rates at which this is faster with the
    network. Sums round otherwise, in an order that depends on neither threads nor processor"""
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
        check(self)
        for name, value in canonical(self).items():
            object.__setattr__(self, name, value)

    @property
    def augmentation(self) -> tuple[bool | None, bool | None]:
        """Whether training images are mirrored, and whether cropped at random; None: as the data set has it."""
        both = BOTH_PARTS.get(self.augment)
        flip, crop = (both if part == "auto" else part == "on" for part in (self.flip, self.crop_padding))
        return flip, crop

    @property
    def mix(self) -> Mix | None:
        """What training images are made of after they are mirrored and cropped, if anything."""
        if self.augment not in MIXES:
            return None
        strength = {"severity": self.augmix_severity, "std": self.gaussian_std, "clean": self.gaussian_clean}
        return Mix(kind=self.augment, views=3 if self.jsd else 1, **strength)

    def resolved(self, here: bool = True) -> Run:
        """The run with this machine's device, compute and thread count for `auto` and 0, as its hash needs them.

        And with the processes that torchrun has started, if it has. ValueError for a device that is not here, or a
        compute or graph that it has not got, unless the run is to be done elsewhere, and for other processes.
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
        if self.compute == "sparse" and here and not sparse.available(device):
            raise ValueError(sparse.why_not(device))
        if self.graph and here:
            check_captures(torch.device(device))
        return replace(
            self,
            device=device,
            compute=self.compute if self.compute != "auto" else "sparse" if sparse.available(device) else "dense",
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
        """The run's folder, in at most 200 bytes: what it trains on what, all else that is no default, the hash.

        Records of before have other names, and are found by the hash at their end.
        """
        return folder_name(self)

    @property
    def unregistered(self) -> list[str]:
        """The parts that nothing here is registered as, each with its kind: such a run can be told of, not done."""
        return [f"{name} {getattr(self, name)!r}" for name in PARTS if not registered(name, getattr(self, name))]

    @classmethod
    def from_record(cls, values: dict[str, Any]) -> Run:
        """The run of a record: as `from_dict`, but parts that are not registered here stay as they are written."""
        arguments = cls._arguments(values)
        unknown = {name for name in PARTS if not registered(name, arguments[name])}
        run = cls(**arguments | {name: DEFAULTS[name] for name in unknown})  # all else is checked
        if unknown:
            for name in unknown:
                if not (arguments[name].isprintable() and len(arguments[name]) <= LONGEST_NAME):
                    raise ValueError(f"not a run's configuration: {name} is {reprlib.repr(arguments[name])[:60]}")
            for name, value in arguments.items():
                object.__setattr__(run, name, value)
        return run

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> Run:
        """The run of a `config.json`; ValueError for a field that is missing, unknown or of another type."""
        return cls(**cls._arguments(values))

    @classmethod
    def _arguments(cls, values: dict[str, Any]) -> dict[str, Any]:
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
        return arguments


DEFAULTS: dict[str, Any] = {known.name: known.default for known in fields(Run)}
# In characters, of what a record says of a part that is not registered here.
LONGEST_NAME = 200
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


def cores_for(jobs: int) -> int:
    """The CPU cores that each of so many runs at a time may use, each of this launch's processes; at least 1."""
    return max(1, usable_cores() // (jobs * launched().local_processes))


def usable_cores() -> int:
    """The CPU cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
