"""Checkpoints: all that an interrupted run needs to end as if it had not been interrupted."""

from __future__ import annotations

import io
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, field
from itertools import product
from math import isfinite
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.amp import GradScaler
from torch.optim import Adam, Optimizer

from ..archive import read_archive
from ..data.digest import DataDigest
from ..devices import loss_scaler
from ..distributed import ALONE, Team
from ..files import write_whole
from ..provenance import EXTRA_STATE
from ..sums import sum_of
from .config import Run
from .log import MEASURED, TRACED, LayerLog, Trace
from .recorded_data import OtherData, refuse_other_data
from .schedule import start_epoch

CHECKPOINT = "checkpoint.pt"
# A checkpoint is a zip archive, and its comment, which ends the file, the SHA-256 of all before it.
COMMENT = b"SHA-256 "
COMMENT_SIZE = len(COMMENT) + 64
# The last two bytes of an archive without a comment, the length of it, and the signature of the 22 bytes that they end.
NO_COMMENT, END_OF_ARCHIVE = b"\0\0", b"PK\5\6"

History = dict[str, list[dict[str, Any]]]


@dataclass
class State:
    """What a run has come to. `step`, `totals`, `log` and `trace` are of the epoch under way."""

    model: nn.Module
    optimizer: Optimizer | None
    scaler: GradScaler
    steps: int
    """of an epoch"""
    log: LayerLog
    trace: Trace
    totals: Tensor
    """[3] float32 on the device: loss sum, top-1 hits, top-5 hits of the steps done, of this process's images"""
    step: int = 0
    """how many are done"""
    history: History = field(default_factory=lambda: {"epochs": [], "layers": [], "trace": []})
    """the rows of `metrics.csv`, `layers.csv` and `trace.csv`, of the epochs done"""
    data: DataDigest | None = None
    """of the data that it is trained on; None where that is not known, in a checkpoint of a time before digests"""
    note: str = ""
    """what the result is to say beside the figures of the last epoch done; mostly nothing"""
    lost: str = ""
    """why there is nothing to train, as the round before has diverged; mostly nothing"""

    @classmethod
    def begin(cls, run: Run, model: nn.Module, optimizer: Optimizer | None, steps: int, epoch: int = 0) -> State:
        """Nothing done yet, or all that the model has come to by this epoch, the last one that it was trained in."""
        start_epoch(model, run, epoch)
        device = next(model.parameters()).device
        scaler = loss_scaler(device, run.precision == "fp16")
        trace = Trace(model, run.trace, steps)
        totals = torch.zeros(3, dtype=torch.float32, device=device)
        return cls(model, optimizer, scaler, steps, LayerLog(model), trace, totals)

    @property
    def epoch(self) -> int:
        """How many epochs are done."""
        return len(self.history["epochs"])

    def end_epoch(self, **rows: list[dict[str, Any]]) -> None:
        for name, those in rows.items():
            self.history[name].extend(those)
        self.step = 0
        self.totals.zero_()


def save_checkpoint(folder: Path, run: Run, state: State, totals: Tensor | None = None) -> None:
    """Write the state whole or not at all. Raises OSError, naming the file, where there is no room, say.

    totals: those of all processes, [processes, 3], where there are several.
    """
    log, trace = state.log, state.trace
    unfinished = state.optimizer is not None and state.epoch < run.epochs
    content: dict[str, Any] = {
        "run": {name: list(value) if isinstance(value, tuple) else value for name, value in asdict(run).items()},
        "model": state.model.state_dict(),
        "optimizer": state.optimizer.state_dict() if state.optimizer and unfinished else None,
        "scaler": state.scaler.state_dict() if unfinished else None,
        "history": state.history,
        "data": state.data.to_json() if state.data else None,
        "step": state.step,
        "under_way": None,
    }
    if state.note:
        content["note"] = state.note
    if state.step:
        totals = state.totals if totals is None else totals
        content["under_way"] = {"totals": totals, "signs": log.signs, "flips": trace.flips, "seen": trace.seen}
    packed = io.BytesIO()  # of what goes wrong with a file torch makes a RuntimeError that does not tell
    torch.save(content, packed)
    _seal(packed)
    write_whole(folder / CHECKPOINT, lambda file: file.write(packed.getbuffer()))


def load_checkpoint(
    folder: Path,
    run: Run,
    model: nn.Module,
    optimizer: Optimizer | None,
    steps: int,
    team: Team = ALONE,
    data: DataDigest | None = None,
) -> State | None:
    """The state of the last checkpoint, in this model and optimizer; None if there is none.

    steps: of an epoch. data: what the run is trained on now; OtherData where that is not what the checkpoint says.

    Of several processes the first alone looks into the folder and hands on what it finds.

    Nothing but tensors and plain values is unpickled, and of the optimizer nothing but tensors is taken. Raises
    ValueError for a file that is no checkpoint of this run; model and optimizer may then hold a part of it. Raises
    OSError for one that cannot be read.
    """
    path = folder / CHECKPOINT
    found = team.spread(_read(path) if team.rank == 0 else None)
    if found is None:
        return None
    with _named(path):
        content = _content(found, run)
        recorded = _recorded(content)
        if data and recorded:
            refuse_other_data(folder, run, recorded, data)
        _load_model(model, content["model"])
        last = len(content["history"]["epochs"]) - (not content.get("step"))
        state = State.begin(run, model, optimizer, steps, last)
        state.data = recorded
        state.note = content.get("note", "")
        if type(state.note) is not str:
            raise ValueError("its note is none that the run leaves")
        state.history = _sound(content["history"], run, list(state.log.signs))
        if content.get("step"):
            _load_under_way(state, team, content["step"], **content["under_way"])
        done = state.epoch * steps + state.step
        if not 0 < done <= run.epochs * steps:
            raise ValueError("it has gone further than the run")
        if optimizer and state.epoch < run.epochs:
            _load_optimizer(optimizer, content["optimizer"]["state"], done, state.scaler.is_enabled())
            _load_scaler(state.scaler, content.get("scaler") or {})
    return state


def read_history(folder: Path, run: Run) -> tuple[History, DataDigest | None]:
    """The rows of all epochs that the run has come to by its last checkpoint, and the data that it was trained on.

    Nothing else of it is looked at. Raises FileNotFoundError where there is none, ValueError as `load_checkpoint`.
    """
    found = _read(folder / CHECKPOINT)
    if found is None:
        raise FileNotFoundError(f"{folder} has no {CHECKPOINT}")
    with _named(folder / CHECKPOINT):
        content = _content(found, run)
        history = content["history"]
        layers = [*dict.fromkeys(row["layer"] for row in history["layers"])]
        return _sound(history, run, layers), _recorded(content)


def has_ended(folder: Path, run: Run) -> bool:
    """Whether there is a checkpoint of the run's end, to make more of."""
    with suppress(OSError, ValueError):
        return len(read_history(folder, run)[0]["epochs"]) == run.epochs
    return False


def _content(found: bytes, run: Run) -> dict[str, Any]:
    """What a checkpoint of this run holds, of tensors and plain values alone."""
    _check_sum(found)
    content: dict[str, Any] = read_archive(io.BytesIO(found))
    if Run.from_dict(content["run"]).hash != run.hash:
        raise ValueError("it belongs to another run")
    return content


def _recorded(content: dict[str, Any]) -> DataDigest | None:
    return DataDigest.from_json(content["data"]) if content.get("data") else None


@contextmanager
def _named(path: Path) -> Iterator[None]:
    """Within, what goes wrong becomes one line that says that this file is no checkpoint to go on from."""
    try:
        yield
    except Exception as fault:  # a file that is truncated, corrupted or something else makes torch raise many kinds
        if isinstance(fault, OtherData | MemoryError | torch.OutOfMemoryError) or "allocate memory" in str(fault):
            raise  # nothing is wrong with the file
        reason = " ".join(f"{type(fault).__name__}: {fault}".split())[:300]
        raise ValueError(f"{path} is no checkpoint to go on from ({reason})") from fault


def _read(path: Path) -> bytes | None:
    """What lies there, None if nothing does, no bytes for what is no file."""
    if not path.exists():
        return None
    return path.read_bytes() if path.is_file() else b""


def _seal(packed: io.BytesIO) -> None:
    """Put the SHA-256 of all before it into the archive's comment, which ends the file."""
    size = packed.seek(-len(NO_COMMENT), io.SEEK_END)
    if packed.read() != NO_COMMENT:
        raise RuntimeError("torch writes its archives with a comment of its own now")
    packed.seek(size)
    packed.write(COMMENT_SIZE.to_bytes(2, "little"))
    packed.write(COMMENT + sum_of(packed.getbuffer()).encode())


def _check_sum(content: bytes) -> None:
    """ValueError for a file of which a byte has changed. Of a time before the sum its parts have one each."""
    whole, end = memoryview(content)[:-COMMENT_SIZE], content[-COMMENT_SIZE:]
    unsealed = content[-22:-18] == END_OF_ARCHIVE and content.endswith(NO_COMMENT)
    if not unsealed and end != COMMENT + sum_of(whole).encode():
        raise ValueError("it is damaged: its bytes are not those that were written")


def _check_tensor(name: str, value: Any, like: Tensor) -> None:
    kind = value.shape, value.dtype, value.layout, value.device.type
    if kind != (like.shape, like.dtype, torch.strided, "cpu"):
        raise ValueError(f"its {name} has another shape or kind than the run's")


def _load_model(model: nn.Module, stored: dict[str, Tensor]) -> None:
    for name, own in model.state_dict().items():
        if name.endswith(EXTRA_STATE):  # of the method, which `load_state_dict` compares; older ones have none
            continue
        _check_tensor(name, stored[name], own)
        if stored[name].isnan().any():
            raise ValueError(f"its {name} has a NaN")
    model.load_state_dict(stored)


def _load_under_way(
    state: State, team: Team, step: int, totals: Tensor, signs: dict[str, Tensor], flips: Tensor, seen: list[Tensor]
) -> None:
    device = state.totals.device
    if type(step) is not int or not 0 < step <= state.steps or len(seen) != state.trace.looks(step):
        raise ValueError("its epoch under way is not one of the run")
    everyones = state.totals.expand(team.processes, -1) if team.processes > 1 else state.totals
    _check_tensor("totals", totals, everyones)
    _check_tensor("flips", flips, state.trace.flips)
    for name, own in state.log.signs.items():
        _check_tensor(f"sign of {name}", signs[name], own)
    for values in seen:
        _check_tensor("trace", values, torch.empty(len(TRACED), dtype=torch.float32))
    state.step = step
    state.totals.copy_(totals.view(-1, 3)[team.rank])
    state.trace.flips.copy_(flips)
    state.trace.seen = [values.to(device) for values in seen]
    state.log.signs = {name: signs[name].to(device) for name in state.log.signs}


def _load_optimizer(optimizer: Optimizer, stored: dict[int, dict[str, Tensor]], done: int, skips: bool) -> None:
    """Take over the tensors of an optimizer that has made so many steps; its settings stay our own.

    skips: whether it may have made fewer, as a loss scaler makes it.
    """
    own = optimizer.state_dict()
    for group, indices in zip(optimizer.param_groups, own["param_groups"], strict=True):
        names = _moments(optimizer, group)
        for parameter, index in zip(group["params"], indices["params"], strict=True):
            moments = stored[index] if names else {}
            if set(moments) != names:
                raise ValueError("its optimizer is not that of the run")
            own["state"][index] = {}
            for name, value in moments.items():
                counted = torch.tensor(min(done, 2**24), dtype=torch.float32)  # float32 stops there
                like = counted if name == "step" else parameter
                _check_tensor(name, value, like)
                wrong = name == "step" and not (
                    value == like or (skips and 0 <= value < like and value == value.round())
                )
                if not value.isfinite().all() or wrong:
                    raise ValueError(f"its {name} is none that the run has come to")
                own["state"][index][name] = torch.empty_like(like, requires_grad=False).copy_(value)
    optimizer.load_state_dict(own)


def _load_scaler(scaler: GradScaler, stored: dict[str, float]) -> None:
    """Take over the scale and how long it has held; the settings stay our own."""
    own = scaler.state_dict()
    if set(stored) != set(own):
        raise ValueError("its loss scaler is not that of the run")
    for name in ("scale", "_growth_tracker") if own else ():
        if type(stored[name]) is not type(own[name]) or not 0 <= stored[name] < float("inf"):
            raise ValueError(f"its loss scaler's {name} is none that the run has come to")
        own[name] = stored[name]
    if own:
        scaler.load_state_dict(own)


def _moments(optimizer: Optimizer, group: dict[str, Any]) -> set[str]:
    """The names of the tensors that an optimizer keeps for each parameter of this group."""
    if isinstance(optimizer, Adam):
        return {"step", "exp_avg", "exp_avg_sq"}
    if group.get("flips"):
        return {"mean_gradient"}
    return {"momentum_buffer"} if group["momentum"] else set()


def _sound(history: Any, run: Run, layers: list[str]) -> History:
    """The rows of each kind as the run writes them: of its epochs and layers, in its columns, nothing but figures."""
    splits = ("train", "validation", "test") if run.holdout else ("train", "test")
    epochs = range(1, len(history["epochs"]) + 1)
    columns: dict[str, Iterable[str]] = {
        "epochs": [f"{split}_{figure}" for split in splits for figure in ("loss", "top1", "top5")],
        "layers": ("layer", "weights", *MEASURED),
        "trace": ("layer", "step", "weights", "connections", *TRACED),
    }
    for kind, names in columns.items():
        for row in history[kind]:
            numbers = [value for name, value in row.items() if name != "layer"]
            if set(row) != {"epoch", *names} or not all(type(value) in (int, float) for value in numbers):
                raise ValueError(f"its history of the {kind} has a row that is none of the run")
    if [row["epoch"] for row in history["epochs"]] != [*epochs] or not all(
        isfinite(value) for row in history["epochs"] for value in row.values()
    ):
        raise ValueError("its history is not that of the run")
    told = [(row["epoch"], row["layer"]) for row in history["layers"]]
    if len(told) != len(epochs) * len(layers) or told != [*product(epochs, layers)]:
        raise ValueError("its history of the layers is not that of the run")
    known = {*layers}
    if any(row["epoch"] not in epochs or row["layer"] not in known for row in history["trace"]):
        raise ValueError("its trace is not that of the run")
    return {kind: list(history[kind]) for kind in columns}
