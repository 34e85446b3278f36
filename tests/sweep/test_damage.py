"""Random damage to the files of a finished run, and kills at random moments of a sweep: by hand, with -m slow -s."""

from __future__ import annotations

import io
import json
import os
import random
import shutil
import signal
import struct
import subprocess
import sys
import textwrap
import time
import zipfile
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from PIL import Image

from mpt_bihalf.sums import SUMS, Damaged, read_sums
from mpt_bihalf.sweep.records import read_result, read_run, read_table, run_folder
from mpt_bihalf.sweep.repair import damaged_files, is_done
from mpt_bihalf.sweep.work import perform
from mpt_bihalf.training import Run
from mpt_bihalf.training.build import build_model
from mpt_bihalf.training.checkpoint import CHECKPOINT, load_checkpoint, read_history
from mpt_bihalf.training.finished import activation_shares, evaluate_shuffled, read_activations, read_shuffled
from mpt_bihalf.training.names import WHERE
from mpt_bihalf.training.record import ACTIVATIONS, CONFIG, LAYERS, METRICS, RESULT, SHUFFLED, SUMMED, TRACE
from mpt_bihalf.training.recorded_data import DATA, recorded_data
from mpt_bihalf.training.run_data import kept_data
from tests.processes import kill_all
from tests.sweep.conftest import ROOT

pytestmark = [pytest.mark.slow, pytest.mark.timeout(7200)]

# Kills

KILLS, MENDED = 100, 12
GRID = ("--methods", "sign", "mpt-bihalf", "--rates", "0.5", "--trials", "1", "--epochs", "3")
FIELDS = ("--grid", "trace=2", "batch_size=20", "width=0.1", "--device", "cpu", "--threads", "1", "--jobs", "2")
# Read by each Python process as it starts: at the write of a file it kills all of the sweep.
KILLER = """
    import fnmatch, os, signal
    import psutil

    os.environ.setdefault("KILL_ROOT", str(os.getpid()))
    pattern, moment, left = os.environ["KILL_AT"].split(":")
    left, fsync, replace = int(left), os.fsync, os.replace

    def pass_by(name, now, file=None):
        global left
        if now in moment.split("-") and fnmatch.fnmatch(name, pattern):
            left -= 1
            if left == 0:
                if file is not None and moment == "half":
                    os.ftruncate(file, os.fstat(file).st_size // 2)
                with open(os.environ["KILL_LOG"], "a") as log:
                    log.write(f"{name} {moment}")
                root = psutil.Process(int(os.environ["KILL_ROOT"]))
                for process in [root, *root.children(recursive=True)]:
                    if process.pid != os.getpid():
                        process.kill()
                os.kill(os.getpid(), signal.SIGKILL)

    def watched_fsync(file):
        fsync(file)
        temporary = os.path.basename(os.readlink(f"/proc/self/fd/{file}"))
        for now in ("half", "written"):
            pass_by(temporary[1:].rpartition(".")[0], now, file)

    def watched_replace(source, target, **others):
        replace(source, target, **others)
        pass_by(os.path.basename(target), "replaced")

    os.fsync, os.replace = watched_fsync, watched_replace
"""


class Kill(NamedTuple):
    """When a sweep is killed: after so many seconds, or at the nth time that one process writes a file of this name.

    moment: half (a half of the file is written), written (it has its name not yet) or replaced (it has).
    """

    seconds: float = 0
    pattern: str = ""
    moment: str = ""
    nth: int = 1


class Killed:
    """A small sweep that is killed and goes on."""

    def __init__(self, place: Path, data: Path) -> None:
        self.out, self.cache, self._log = place / "out", place / "cache", place / "log"
        script = str(ROOT / "experiments" / "prune_sweep.py")
        options = (*GRID, *FIELDS, "--data", f"folder:{data}", "--out", str(self.out))
        self._command = [sys.executable, script, *options]
        killer = place / "killer"
        killer.mkdir(parents=True)
        (killer / "sitecustomize.py").write_text(textwrap.dedent(KILLER))
        self._environment = {**os.environ, "MPT_BIHALF_CACHE": str(self.cache), "KILL_LOG": str(self._log)}
        self._paths = {False: str(ROOT), True: os.pathsep.join((str(killer), str(ROOT)))}

    def run(self, kill: Kill | None = None) -> str:
        """Run the command; where it was when it was killed, or nothing where it came to its end before."""
        kill = kill or Kill()
        variables = {"PYTHONPATH": self._paths[bool(kill.pattern)]}
        if kill.pattern:
            variables["KILL_AT"] = f"{kill.pattern}:{kill.moment}:{kill.nth}"
        before = self.temporaries()
        process = subprocess.Popen(
            self._command,
            env=self._environment | variables,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        try:
            told, _ = process.communicate(timeout=kill.seconds or 300)
        except subprocess.TimeoutExpired:
            kill_all(process.pid)
            process.communicate()  # all of them hold the pipe, so they have ended
            return self._place(before)
        if process.returncode == -signal.SIGKILL:
            where = self._log.read_text()
            self._log.unlink()
            return where
        assert process.returncode == 0, told
        assert "damaged" not in told or kill.pattern == "mended"
        return ""

    def temporaries(self) -> set[Path]:
        """The unfinished files that lie about."""
        return {file for place in (self.out, self.cache) for file in place.rglob(".*.????????????")}

    def results(self) -> int:
        return len(list(self.out.glob(f"runs/*/{RESULT}")))

    def records(self) -> dict[str, bytes]:
        """All that must be as in a sweep left alone, by path."""
        names = (RESULT, METRICS, LAYERS, TRACE, CONFIG, DATA, SUMS)
        files = [self.out / "results.csv", *(file for name in names for file in self.out.glob(f"runs/*/{name}"))]
        return {str(file.relative_to(self.out)): file.read_bytes() for file in files}

    def _place(self, before: set[Path]) -> str:
        """What a killed sweep was at, by what lies there."""
        if new := self.temporaries() - before:
            return f"{min(new).name[1:].rpartition('.')[0]} by time"
        if list(self.out.glob("runs/*/claim.json")):
            return "training"
        return "report" if self.results() == 2 else "start-up"


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of 150 images of noise in three classes."""
    folder, noise = tmp_path_factory.mktemp("images"), np.random.default_rng(0)
    for part, count in (("train", 40), ("test", 10)):
        for name in "abc":
            (folder / part / name).mkdir(parents=True)
            for i in range(count):
                pixels = noise.integers(0, 256, (8, 8, 3), dtype=np.uint8)
                Image.fromarray(pixels).save(folder / part / name / f"{i}.png")
    return folder


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory, data: Path) -> tuple[Killed, float]:
    """The sweep, left alone, and how many seconds it took."""
    sweep = Killed(tmp_path_factory.mktemp("alone"), data)
    sweep.run()
    shutil.rmtree(sweep.out)  # the first start compiles and fills caches of other packages
    shutil.rmtree(sweep.cache)
    started = time.monotonic()
    sweep.run()
    return sweep, time.monotonic() - started


def assert_as_alone(sweep: Killed, alone: Killed) -> None:
    expected = alone.records()
    assert len(expected) == 15
    found = sweep.records()
    assert [name for name in expected if found.get(name) != expected[name]] == []
    assert found.keys() == expected.keys()
    assert [*sweep.out.glob("runs/*/put-aside-*"), *sweep.out.glob("runs/*/unusable-*")] == []


def assert_nothing_unfinished(sweep: Killed) -> None:
    """In the folders of the runs: who does a run owns its folder, and removes what one that was killed left there."""
    assert list(sweep.out.glob("runs/*/.*")) == []


def kills(seconds: float, choose: random.Random) -> Iterator[Kill]:
    """For ever: at random times, at random writes, and at the writes of single files, one after the other."""
    moments = ("half", "written", "replaced")
    single = ("SHA256SUMS", "data.json", "checkpoint.pt", "folder-*", "[lmt]*.csv", RESULT, "results.csv", "[pt]*.*")
    while True:
        for pattern in single:
            yield Kill(choose.uniform(0.1, seconds))
            yield Kill(pattern="*", moment=choose.choice(moments), nth=choose.randint(1, 20))
            yield Kill(pattern=pattern, moment=choose.choice(moments), nth=choose.randint(1, 2))


def test_a_sweep_killed_a_hundred_times(tmp_path: Path, alone: tuple[Killed, float], data: Path) -> None:
    untroubled, seconds = alone
    print(f"\nleft alone: {seconds:.1f} s")
    places: Counter[str] = Counter()
    rounds, left_behind, sweep = 0, 0, Killed(tmp_path / "0", data)
    plan = kills(seconds, random.Random(20))
    while places.total() < KILLS:
        kill = next(plan)
        if kill.pattern == "folder-*":
            shutil.rmtree(sweep.cache, ignore_errors=True)
        where = sweep.run(kill)
        if where:
            places[where] += 1
            print(f"kill {places.total()} in round {rounds}: {where}, {sweep.results()} runs finished", flush=True)
        else:
            assert_as_alone(sweep, untroubled)
            assert_nothing_unfinished(sweep)
            left_behind += len(sweep.temporaries())
            rounds += 1
            sweep = Killed(tmp_path / str(rounds), data)
    sweep.run()
    assert_as_alone(sweep, untroubled)
    assert_nothing_unfinished(sweep)
    left_behind += len(sweep.temporaries())
    for where, count in sorted(places.items()):
        print(f"{count:3d} {where}")
    print(
        f"{places.total()} kills in {rounds + 1} sweeps, all as left alone; {left_behind} unfinished files beside runs"
    )


def test_a_sweep_killed_while_it_mends(tmp_path: Path, alone: tuple[Killed, float], data: Path) -> None:
    untroubled, _ = alone
    choose, sweep = random.Random(21), Killed(tmp_path / "mended", data)
    sweep.run()
    for number in range(MENDED):
        table = choose.choice((METRICS, LAYERS, TRACE))
        file = choose.choice(sorted(sweep.out.glob(f"runs/*/{table}")))
        file.write_bytes(corrupted(file.read_bytes(), choose))
        where = sweep.run(
            Kill(pattern=choose.choice((SUMS, table)), moment=choose.choice(("half", "written", "replaced")))
        )
        assert where
        print(f"kill {number + 1} while {table} is made again: {where}", flush=True)
        sweep.run(Kill(pattern="mended", moment="none"))
        assert_as_alone(sweep, untroubled)
    print(f"{MENDED} kills, all as left alone; {len(sweep.temporaries())} unfinished files are left")


# Damage


def corrupted(content: bytes, choose: random.Random) -> bytes:
    """Other bytes than these: a bit flipped, a byte replaced, a run zeroed, truncated, or bytes inserted."""
    while True:
        at, changed = choose.randrange(len(content)), bytearray(content)
        match choose.randrange(5):
            case 0:
                changed[at] ^= 1 << choose.randrange(8)
            case 1:
                changed[at] = choose.randrange(256)
            case 2:
                end = min(len(content), at + choose.randint(1, 64))
                changed[at:end] = bytes(end - at)
            case 3:
                del changed[at:]
            case 4:
                changed[at:at] = choose.randbytes(choose.randint(1, 16))
        if changed != content:
            return bytes(changed)


CASES, LONGEST = 1000, 5.0
OF_RUN = Run(
    model="conv2",
    width=0.05,
    activations="binary",
    method="mpt-bihalf",
    epochs=2,
    trace=10,
    batch_size=256,
    device="cpu",
    threads=1,
).resolved()
# What is said of a damaged file: that it is, or nothing where what is read is all the same what was written.
NOTICED, SAME = "noticed", "read as written"


class Finished:
    """A finished run with all the files there can be, and what they hold."""

    def __init__(self, out: Path, run: Run = OF_RUN) -> None:
        self.out, self.run, self.folder = out, run, run_folder(out, run)
        assert not perform(run, out).error
        if run.activations != "real":
            evaluate_shuffled(run, self.folder, lambda: kept_data(run))
            activation_shares(run, self.folder, lambda: kept_data(run))
        self.files = {
            name: (self.folder / name).read_bytes()
            for name in (CHECKPOINT, DATA, CONFIG, SUMS, *SUMMED)
            if (self.folder / name).exists()
        }
        dataset = kept_data(run)
        self._model, self._steps = build_model(run, dataset), len(dataset.train) // run.batch_size
        self._data, self._sums = recorded_data(self.folder), read_sums(self.folder)

    def damage(self, name: str, content: bytes) -> str:
        """What the readers of this file say of another content. The file is as before in the end."""
        (self.folder / name).write_bytes(content)
        told = {CHECKPOINT: self.checkpoint, DATA: self._data_json, CONFIG: self._config, SUMS: self._sums_list}.get(
            name, lambda: self._summed(name)
        )()
        for other in {name, SUMS}:
            (self.folder / other).write_bytes(self.files[other])
        return told

    def checkpoint(self) -> str:
        """That of the two readers neither takes it, or what they say."""
        for read in (
            lambda: load_checkpoint(self.folder, self.run, self._model, None, self._steps),
            lambda: read_history(self.folder, self.run),
        ):
            with pytest.raises(ValueError, match="is no checkpoint to go on from"):
                read()
        return NOTICED

    def weights(self) -> dict[str, torch.Tensor]:
        """Those that the checkpoint's readers take from it. ValueError as from them."""
        load_checkpoint(self.folder, self.run, self._model, None, self._steps)
        return {name: tensor.clone() for name, tensor in self._model.state_dict().items()}

    def unsealed(self, expected: dict[str, torch.Tensor]) -> str:
        """What the readers make of a checkpoint that has no sum."""
        try:
            zipfile.ZipFile(self.folder / CHECKPOINT).testzip()
        except Exception:  # the zip module has many kinds
            return "the zip test does not pass"
        try:
            found = self.weights()
        except ValueError:
            return "pass it and fail to load"
        same = all(torch.equal(found[name], expected[name]) for name in expected)
        return "pass it and load as written" if same else "pass it and load as other weights"

    def _data_json(self) -> str:
        try:
            found = recorded_data(self.folder)
        except Damaged:
            return NOTICED
        assert found == self._data
        return SAME

    def _config(self) -> str:
        try:
            found = read_run(self.folder)
        except ValueError:
            return NOTICED
        assert {**vars(found), **dict.fromkeys(WHERE)} == {**vars(self.run), **dict.fromkeys(WHERE)}
        return SAME

    def _sums_list(self) -> str:
        try:
            if read_sums(self.folder) == self._sums:
                return SAME
        except Damaged:
            pass
        assert damaged_files(self.folder)
        return NOTICED

    def _summed(self, name: str) -> str:
        assert damaged_files(self.folder) == [name]
        if name == RESULT:
            assert read_result(self.folder, self.run) is None
            assert not is_done(self.run, self.out)
        elif name == SHUFFLED:
            assert read_shuffled(self.folder) is None
            assert is_done(self.run, self.out)
        elif name == ACTIVATIONS:
            assert read_activations(self.folder) is None
            assert is_done(self.run, self.out)
        else:
            if name != METRICS:
                with pytest.raises(Damaged):
                    read_table(self.folder, self.run, name)
            assert is_done(self.run, self.out)  # and made again
            assert (self.folder / name).read_bytes() == self.files[name]
            assert (self.folder / SUMS).read_bytes() == self.files[SUMS]
        return NOTICED


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Finished:
    return Finished(tmp_path_factory.mktemp("finished"))


@pytest.mark.parametrize("name", [CHECKPOINT, DATA, CONFIG, SUMS, *SUMMED])
def test_no_damage_is_accepted(name: str, finished: Finished) -> None:
    whole, choose = finished.files[name], random.Random(name)
    told: Counter[str] = Counter()
    longest = 0.0
    for case in range(CASES):
        content = (b"", whole + whole)[case] if case < 2 else corrupted(whole, choose)
        started = time.monotonic()
        told[finished.damage(name, content)] += 1
        longest = max(longest, time.monotonic() - started)
    counts = ", ".join(f"{count:,} {what}" for what, count in sorted(told.items()))
    print(f"\n{name}, {len(whole):,} bytes: {CASES:,} corruptions: {counts}; the longest took {longest:.3f} s")
    assert longest < LONGEST
    assert set(told) <= ({NOTICED, SAME} if name in (CONFIG, DATA, SUMS) else {NOTICED})


# Files made to cost more than they may: each batch in a process of its own, whose memory is looked at

BATCH, MORE_MEMORY = 300, 2**30


def hostile(kind: str, place: Path, cases: int) -> dict[str, Any]:
    """What comes of so many altered files: how often what, the longest time in s, the most memory in bytes."""
    told: Counter[str] = Counter()
    longest, memory = 0.0, 0
    for start in range(0, cases, BATCH):
        numbers = str(start), str(min(start + BATCH, cases))
        command = [sys.executable, "-m", "tests.sweep.hostile", kind, str(place), *numbers]
        done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, check=False)
        assert done.returncode == 0, done.stderr
        batch = json.loads(done.stdout.splitlines()[-1])
        told += Counter(batch["told"])
        longest, memory = max(longest, batch["longest"]), max(memory, batch["memory"] - batch["before"])
    counts = ", ".join(f"{count:,} {what}" for what, count in sorted(told.items()))
    most = f"{longest:.2f} s and {memory / 2**20:.0f} MiB more than an honest one"
    print(f"\n{told.total():,} of the kind {kind}: {counts}; at most {most}")
    return {"told": told, "longest": longest, "memory": memory}


@pytest.mark.parametrize(("kind", "cases"), [("corrupted ticket", 3000), ("signed ticket", 700), ("checkpoint", 600)])
def test_no_altered_file_takes_long_or_much_or_runs_code(kind: str, cases: int, tmp_path: Path) -> None:
    if kind == "checkpoint":
        Finished(tmp_path, OF_RUN)
    found = hostile(kind, tmp_path, cases)
    assert found["told"].total() == cases and set(found["told"]) <= {"refused", "read"}
    assert found["longest"] < LONGEST and found["memory"] < MORE_MEMORY


# Every bit of a checkpoint's headers

LOCAL, CENTRAL, END = b"PK\3\4", b"PK\1\2", b"PK\5\6"


def headers(content: bytes) -> list[int]:
    """The places of all bytes of an archive that are not those of a part's content, by PKWARE's APPNOTE."""
    inside = set()
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        for part in archive.infolist():
            name, extra = struct.unpack_from("<HH", content, part.header_offset + 26)
            assert content[part.header_offset :].startswith(LOCAL)
            start = part.header_offset + 30 + name + extra
            inside.update(range(start, start + part.compress_size))
    return [place for place in range(len(content)) if place not in inside]


def each_bit(content: bytes) -> Iterator[bytes]:
    """The content with one bit of its headers flipped, each in turn."""
    changed = bytearray(content)
    for place in headers(content):
        for bit in range(8):
            changed[place] ^= 1 << bit
            yield bytes(changed)
            changed[place] ^= 1 << bit


def test_no_bit_of_the_headers_of_a_checkpoint_may_flip(tmp_path: Path) -> None:
    run = Run(model="conv2", width=0.02, method="sign", epochs=1, batch_size=700, device="cpu", threads=1).resolved()
    finished = Finished(tmp_path, run)
    path = finished.folder / CHECKPOINT
    flips = 0
    for content in each_bit(finished.files[CHECKPOINT]):
        path.write_bytes(content)
        assert finished.checkpoint() == NOTICED
        flips += 1
    print(f"\nwith the sum: {flips:,} bits of headers flipped one by one, all noticed")
    # One of a time before the sum: the zip test is all there is, and it is known not to see everything.
    packed = io.BytesIO()
    torch.save(torch.load(io.BytesIO(finished.files[CHECKPOINT]), weights_only=True), packed)
    path.write_bytes(packed.getvalue())
    weights = finished.weights()
    told: Counter[str] = Counter()
    for content in each_bit(packed.getvalue()):
        path.write_bytes(content)
        told[finished.unsealed(weights)] += 1
    counts = ", ".join(f"{count:,} {what}" for what, count in sorted(told.items()))
    print(f"without it: {told.total():,} bits, of which {counts}")
