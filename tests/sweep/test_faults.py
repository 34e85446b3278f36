"""Real faults against the real command, on real files and, where kills and signals come, in real processes.

In each case nothing finished is lost or changed, the other runs go on, one line says what happened, and the same
command ends with the bits of a sweep that nothing happened to.
"""

from __future__ import annotations

import os
import pickle
import re
import runpy
import shutil
import signal
import subprocess
import sys
import time
import zipfile
from collections.abc import Callable, Iterable, Iterator
from contextlib import redirect_stderr, redirect_stdout
from io import StringIO
from pathlib import Path
from typing import Any
from unittest import mock

import psutil
import pytest
import torch

from mpt_bihalf.sweep.engines.local import PATIENCE
from tests.processes import is_over, kill_all, wait_for
from tests.sweep.conftest import ROOT, holder

# Four runs: sign and mpt-bihalf, seeds 0 and 1. Those of `LONG` take some 1.5 s each.
GRID = ("--methods", "sign", "mpt-bihalf", "--trials", "2", "--epochs", "3", "--grid")
SHORT, LONG = (*GRID, "batch_size=350", "width=0.25"), (*GRID, "batch_size=32")
COMMON = ("--rates", "0.5", "--device", "cpu", "--threads", "1")
SERIAL, TWO = ("--engine", "serial"), ("--jobs", "2")
SCRIPT = str(ROOT / "experiments" / "prune_sweep.py")


class Sweep:
    """The command of a pruning sweep and its output folder."""

    def __init__(self, out: Path, *options: str, wrapped_in: Iterable[str] = ()) -> None:
        self.options = [*COMMON, *(options or LONG), "--out", str(out)]
        self.command = [*wrapped_in, sys.executable, SCRIPT, *TWO, *self.options]
        self.out = out
        self.processes: list[subprocess.Popen[str]] = []

    def start(self) -> subprocess.Popen[str]:
        environment = {**os.environ, "PYTHONPATH": str(ROOT)}
        pipes: dict[str, Any] = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
        self.processes.append(subprocess.Popen(self.command, env=environment, **pipes))
        return self.processes[-1]

    def end(self) -> subprocess.CompletedProcess[str]:
        """Run the command to its end, whatever that is."""
        return ended(self.start())

    def end_here(self) -> subprocess.CompletedProcess[str]:
        """Run the command in this process, one run after the other."""
        return in_this_process(SCRIPT, *SERIAL, *self.options)

    def complete(self) -> str:
        """Run the command; it must end well. What it told."""
        return sound(self.end())

    def complete_here(self) -> str:
        """Run the command in this process; it must end well. What it told."""
        return sound(self.end_here())

    def folder(self, text: str) -> Path:
        """The folder of the one run with this in its name."""
        (folder,) = self.out.glob(f"runs/*{text}*")
        return folder

    def workers(self) -> list[psutil.Process]:
        """The worker processes of the last start."""
        try:
            children = psutil.Process(self.processes[-1].pid).children()
            return [child for child in children if child.is_running() and child.status() != psutil.STATUS_ZOMBIE]
        except psutil.NoSuchProcess:
            return []

    def under_way(self) -> dict[Path, psutil.Process]:
        """The runs that workers of the last start are at, by folder."""
        workers = {worker.pid: worker for worker in self.workers()}
        claims = {folder: (holder(folder) or {}).get("pid") for folder in self.out.glob("runs/*")}
        return {folder: workers[pid] for folder, pid in claims.items() if pid in workers}

    def temporaries(self) -> set[Path]:
        """The unfinished checkpoints that lie about."""
        return set(self.out.glob("runs/*/.checkpoint.pt.*"))

    def finished(self) -> dict[Path, tuple[bytes, int]]:
        """All files of the finished runs but claims: their content, and when they were written."""
        return {
            file: (file.read_bytes(), file.stat().st_mtime_ns)
            for result in self.out.glob("runs/*/result.json")
            for file in result.parent.iterdir()
            if file.is_file() and not file.name.startswith((".", "claim"))
        }


def in_this_process(script: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    """A command of ours at its end, by its script or by the package's name."""
    out, err, status = StringIO(), StringIO(), 0
    run: Callable[..., Any] = runpy.run_path if script.endswith(".py") else runpy.run_module
    with mock.patch.object(sys, "argv", [script, *arguments]), redirect_stdout(out), redirect_stderr(err):
        try:
            run(script, run_name="__main__")
        except SystemExit as end:
            status = int(end.code or 0)
    return subprocess.CompletedProcess([script, *arguments], status, out.getvalue(), err.getvalue())


def sound(done: subprocess.CompletedProcess[str]) -> str:
    """What a command that must have ended well told."""
    assert done.returncode == 0, done.stderr
    return done.stdout + done.stderr


def ended(process: subprocess.Popen[str], seconds: float = 300) -> subprocess.CompletedProcess[str]:
    """The process at its end, which must come; its workers hold the same pipes, so they have ended too."""
    stdout, stderr = process.communicate(timeout=seconds)
    return subprocess.CompletedProcess(process.args, process.returncode, stdout, stderr)


@pytest.fixture
def sweep(tmp_path: Path) -> Iterator[Callable[..., Sweep]]:
    """Make a sweep; in the end its processes are killed."""
    made = []

    def make(out: Path | None = None, *options: str, wrapped_in: Iterable[str] = ()) -> Sweep:
        made.append(Sweep(out or tmp_path / "out", *options, wrapped_in=wrapped_in))
        return made[-1]

    yield make
    for process in (process for one in made for process in one.processes):
        kill_all(process.pid)
        process.communicate()


@pytest.fixture(scope="module")
def untroubled(tmp_path_factory: pytest.TempPathFactory) -> Sweep:
    """The sweep of `LONG`, left alone."""
    alone = Sweep(tmp_path_factory.mktemp("untroubled"))
    alone.complete()
    return alone


@pytest.fixture(scope="module")
def short(tmp_path_factory: pytest.TempPathFactory) -> Sweep:
    """The sweep of `SHORT`, left alone."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MPT_BIHALF_CACHE", str(tmp_path_factory.mktemp("cache") / "none-yet"))
        alone = Sweep(tmp_path_factory.mktemp("short"), *SHORT)
        alone.complete_here()
    return alone


@pytest.fixture
def copied(short: Sweep, sweep: Callable[..., Sweep]) -> Sweep:
    """A sweep of `SHORT` whose runs are all finished already."""
    copy = sweep(None, *SHORT)
    shutil.copytree(short.out, copy.out)
    return copy


def assert_same(troubled: Sweep, untroubled: Sweep) -> None:
    """The same results.csv to the byte, the same weights and figures of every run, and nothing left lying about."""
    assert (troubled.out / "results.csv").read_bytes() == (untroubled.out / "results.csv").read_bytes()
    names = {folder.name for folder in untroubled.out.glob("runs/*")}
    assert {folder.name for folder in troubled.out.glob("runs/*")} == names
    for name in names:
        ours, theirs = troubled.out / "runs" / name, untroubled.out / "runs" / name
        for file in ("result.json", "metrics.csv", "layers.csv", "config.json"):
            assert (ours / file).read_bytes() == (theirs / file).read_bytes(), (name, file)
        if "finished" in (ours / "result.json").read_text():
            weights, others = checkpoint(ours)["model"], checkpoint(theirs)["model"]
            assert set(weights) == set(others)
            assert all(torch.equal(weights[layer], others[layer]) for layer in weights), name
        assert [file.name for file in ours.glob(".*")] == []
        assert not (ours / "failure.json").exists()


def assert_kept(sweep: Sweep, before: dict[Path, tuple[bytes, int]]) -> None:
    """What was finished then is as it was then."""
    now = sweep.finished()
    assert {file: now.get(file) for file in before} == before


def checkpoint(folder: Path) -> dict[str, Any]:
    content = torch.load(folder / "checkpoint.pt", weights_only=True)
    assert isinstance(content, dict)
    return content


def done_in(folder: Path) -> tuple[int, int]:
    """Epochs done as the checkpoint has it, and steps of the one under way; none without a checkpoint."""
    if not (folder / "checkpoint.pt").exists():
        return 0, 0
    content = checkpoint(folder)
    return len(content["history"]["epochs"]), content["step"]


def the_error(text: str) -> str:
    """The one line on standard error that says why the command ended."""
    (line,) = [line for line in text.splitlines() if line.startswith(("error: ", "interrupted: "))]
    assert "Traceback" not in text
    return line


# SIGKILL


class Kills:
    """Kills of the whole tree of processes, at moments of a sweep's work.

    `clock` counts the seconds that workers of the sweep have been at runs, all sessions together.
    """

    def __init__(self, sweep: Sweep) -> None:
        self._sweep = sweep
        self.clock = 0.0
        self.moments: list[float] = []
        self.inside = 0
        self._kept: dict[Path, tuple[bytes, int]] = {}

    def kill(self, moment: float, in_write: bool) -> None:
        """Start the sweep, kill it when the clock has come to `moment`, or at the next write of a checkpoint."""
        process = self._sweep.start()
        lying_about = self._sweep.temporaries()
        wait_for(self._sweep.under_way)
        begun = time.monotonic() - self.clock
        tree = self._tree(process)
        while (now := time.monotonic() - begun) < moment or (in_write and not self._sweep.temporaries() - lying_about):
            assert process.poll() is None, f"ended after {now:.1f} s of work: {process.communicate()}"
            if now < moment - 0.1:
                tree = self._tree(process)
            time.sleep(0.001)
        for each in tree:
            each.suspend()  # at once: a write takes a moment, and to list the processes takes longer
        for each in {*tree, *self._tree(process)}:
            each.kill()
        psutil.wait_procs(tree, 60)
        process.communicate(timeout=60)
        self.clock = now
        cut_short = self._sweep.temporaries() - lying_about
        self.moments.append(now)
        self.inside += bool(cut_short)
        finished = len(list(self._sweep.out.glob("runs/*/result.json")))
        print(
            f"kill {len(self.moments)} at {now:.2f} s of work, {finished} runs finished",
            f"inside the write of {', '.join(sorted(str(file.parent.name) for file in cut_short))}" * bool(cut_short),
            flush=True,
        )
        assert_kept(self._sweep, self._kept)
        self._kept = self._sweep.finished()

    @staticmethod
    def _tree(process: subprocess.Popen[str]) -> list[psutil.Process]:
        try:
            root = psutil.Process(process.pid)
            return [*root.children(recursive=True), root]
        except psutil.NoSuchProcess:
            return []


@pytest.mark.slow
def test_killed_again_and_again(sweep: Callable[..., Sweep], untroubled: Sweep) -> None:
    killed = sweep()
    kills = Kills(killed)
    for moment, in_write in ((0.3, False), (0.7, True), (1.2, True)):
        kills.kill(moment, in_write)
    while not kills.inside and len(kills.moments) < 8:
        kills.kill(kills.clock, True)
    assert kills.inside >= 1
    before = killed.finished()
    killed.complete()
    assert_kept(killed, before)
    assert_same(killed, untroubled)


@pytest.mark.slow
@pytest.mark.timeout(3000)
def test_killed_at_many_moments_of_a_long_sweep(tmp_path: Path, sweep: Callable[..., Sweep]) -> None:
    methods = ("sign", "bihalf", "bop", "mpt-sign", "mpt-bihalf", "mpt-balanced")
    options = ("--methods", *methods, "--trials", "2", "--epochs", "30", "--grid", "batch_size=32")
    alone, killed = sweep(tmp_path / "alone", *options), sweep(tmp_path / "killed", *options)
    started = time.monotonic()
    alone.complete()
    print(f"\nuntroubled: {time.monotonic() - started:.1f} s")
    kills = Kills(killed)
    count, apart = 34, 2.0
    for number in range(1, count + 1):
        kills.kill(number * apart, in_write=number % 3 == 0)
    gaps = [later - earlier for earlier, later in zip([0.0, *kills.moments], kills.moments, strict=False)]
    print(
        f"{count} kills over {kills.clock:.1f} s of work, {kills.inside} inside a write; gaps {max(gaps):.1f} s at most"
    )
    assert count >= 30 and kills.clock >= 60
    assert max(gaps) < 5 * apart  # a write comes when it comes
    assert kills.inside >= 5
    before = killed.finished()
    killed.complete()
    assert_kept(killed, before)
    assert_same(killed, alone)
    print("results.csv, weights and figures of all runs equal")


@pytest.mark.slow
def test_a_worker_killed_alone_then_the_sweep_killed_alone(sweep: Callable[..., Sweep], untroubled: Sweep) -> None:
    killed = sweep()
    first = killed.start()
    one = wait_for(lambda: next(iter(killed.under_way().items()), None))
    folder, worker = one
    wait_for((folder / "metrics.csv").exists)
    worker.kill()
    wait_for(lambda: killed.under_way().get(folder, worker) != worker)
    assert first.poll() is None
    wait_for(lambda: len((folder / "metrics.csv").read_text().splitlines()) > 2)
    runs, workers, before = killed.under_way(), killed.workers(), killed.finished()
    epochs = {run: done_in(run)[0] for run in runs}
    first.kill()
    second = killed.start()
    _, alive = psutil.wait_procs(workers, 60)
    assert alive == []
    for run, count in epochs.items():
        assert done_in(run) >= (count, 0)
    done = ended(second)
    assert done.returncode == 0, done.stderr
    assert_kept(killed, before)
    assert_same(killed, untroubled)


# SIGINT and SIGTERM


def is_asked_to_end(process: psutil.Process) -> bool:
    """Whether a suspended process is to hear of a SIGTERM when it goes on."""
    (pending,) = re.findall(r"ShdPnd:\s+(\w+)", Path(f"/proc/{process.pid}/status").read_text())
    return bool(int(pending, 16) >> (signal.SIGTERM - 1) & 1)


@pytest.mark.slow
def test_interrupted_terminated_and_interrupted_twice(sweep: Callable[..., Sweep], untroubled: Sweep) -> None:
    stopped = sweep()
    kept: dict[Path, tuple[int, int]] = {}

    def goes_on() -> bool:
        runs = stopped.under_way()
        return len(runs) == 2 and any(done_in(run)[0] > kept.get(run, (0, 0))[0] for run in runs)

    def asked(process: subprocess.Popen[str], signum: int) -> list[psutil.Process]:
        """The workers, suspended, once each is asked to end because the sweep was."""
        workers = stopped.workers()
        for worker in workers:
            worker.suspend()
        process.send_signal(signum)
        wait_for(lambda: all(map(is_asked_to_end, workers)))
        return workers

    for signum, status in ((signal.SIGINT, 130), (signal.SIGTERM, 143)):
        process = stopped.start()
        wait_for(goes_on)
        workers = asked(process, signum)
        before, at = stopped.finished(), {run: done_in(run)[0] for run in stopped.under_way()}
        for worker in workers:
            worker.resume()
        done = ended(process)
        assert done.returncode == status
        assert done.stderr.strip() == "interrupted: the same command goes on from here"
        wait_for(lambda: all(is_over(worker) for worker in workers))
        for run, epochs in at.items():
            kept[run] = done_in(run)
            assert (epochs, 0) <= kept[run] <= (epochs + 1, 0)  # it has stopped in the epoch that it was at
        assert_kept(stopped, before)
    process = stopped.start()
    wait_for(lambda: len(stopped.under_way()) == 2)
    workers = asked(process, signal.SIGINT)  # as ones that hang
    assert process.poll() is None
    process.send_signal(signal.SIGINT)
    done = ended(process, PATIENCE / 2)
    assert (done.returncode, done.stderr.count("\n")) == (130, 1)
    wait_for(lambda: all(is_over(worker) for worker in workers))
    told = stopped.complete()
    for run, (epochs, _) in kept.items():
        if run.name in told:
            sessions = (run / "times.json").read_text()
            assert int(re.findall(r'"from_epoch": (\d+)', sessions)[0]) >= epochs
    assert_same(stopped, untroubled)


# Full disk


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Callable[[str], Path]]:
    """A disk of its own in memory, of the size asked for last."""
    folder = tmp_path / "disk"
    folder.mkdir()

    def mount(size: str) -> Path:
        options = f"size={size},mode=755" + ",remount" * folder.is_mount()
        mounted = subprocess.run(
            ["mount", "-t", "tmpfs", "-o", options, "none", folder], capture_output=True, check=False
        )
        if mounted.returncode:
            pytest.skip("may not mount a disk here")
        return folder

    if not shutil.which("mount"):
        pytest.skip("no mount here")
    yield mount
    if folder.is_mount():
        subprocess.run(["umount", "--lazy", folder], check=True)


def test_a_full_disk(disk: Callable[[str], Path], sweep: Callable[..., Sweep], short: Sweep) -> None:
    # A run's folder has 150 or 240 kB, and its checkpoint of 110 or 200 once more while it is replaced: there is room
    # for two runs, not for four.
    full = sweep(disk("700k") / "out", *SHORT)
    full.out.mkdir()
    (full.out / "results.csv").write_text("of an earlier sweep\n")
    done = full.end_here()
    assert done.returncode == 1
    assert "No space left on device" in the_error(done.stderr)
    assert (full.out / "results.csv").read_text() == "of an earlier sweep\n"
    before = full.finished()
    assert {file.parent.name for file in before} < {folder.name for folder in short.out.glob("runs/*")}
    assert before
    failed = [folder for folder in full.out.glob("runs/*") if not (folder / "result.json").exists()]
    assert failed
    for folder in failed:
        assert f"{folder.name}: failed: " in done.stdout
    disk("64m")
    full.complete_here()
    assert_kept(full, before)
    assert_same(full, short)


# Damaged files


def flip_a_byte(file: Path) -> None:
    """Change one byte in the midst of the largest tensor of a checkpoint."""
    content = bytearray(file.read_bytes())
    with zipfile.ZipFile(file) as archive:
        part = max(archive.infolist(), key=lambda part: part.file_size)
        data = archive.read(part)
    content[bytes(content).index(data) + len(data) // 2] ^= 1
    file.write_bytes(content)


def test_checkpoints_truncated_damaged_and_foreign(copied: Sweep, short: Sweep) -> None:
    folders = [copied.folder(text) for text in ("-sign-seed0", "-sign-seed1", "bihalf-pruned0.5-seed0")]
    other = copied.folder("bihalf-pruned0.5-seed1")
    truncated, damaged, foreign = (folder / "checkpoint.pt" for folder in folders)
    os.truncate(truncated, truncated.stat().st_size // 2)
    flip_a_byte(damaged)
    shutil.copy(other / "checkpoint.pt", foreign)
    for folder in folders:
        (folder / "result.json").unlink()
    unusable = {folder: (folder / "checkpoint.pt").read_bytes() for folder in folders}
    before = copied.finished()
    told = copied.complete_here()
    for folder, content in unusable.items():
        (line,) = [line for line in told.splitlines() if str(folder / "checkpoint.pt") in line]
        assert "is no checkpoint to go on from" in line
        (aside,) = folder.glob("unusable-*/checkpoint.pt")
        assert aside.read_bytes() == content
    assert_kept(copied, before)
    assert_same(copied, short)


# Rights


@pytest.fixture
def unprivileged() -> list[str]:
    """What to put before a command so that it may read only what the files' modes allow."""
    if os.geteuid():
        return []
    wrapper = ["setpriv", "--bounding-set=-dac_override,-dac_read_search"]
    if not shutil.which("setpriv") or subprocess.run([*wrapper, "true"], check=False).returncode:
        pytest.skip("cannot give up rights here")
    return wrapper


@pytest.mark.slow
def test_a_folder_that_may_not_be_read(
    copied: Sweep, short: Sweep, unprivileged: list[str], sweep: Callable[..., Sweep]
) -> None:
    locked, half, missing = (copied.folder(text) for text in ("-sign-seed0", "-sign-seed1", "bihalf-pruned0.5-seed0"))
    before = copied.finished()
    (half / "result.json").unlink()
    shutil.rmtree(missing)
    before = {file: state for file, state in before.items() if file.parent not in (half, missing)}
    (copied.out / "results.csv").unlink()
    (locked).chmod(0)
    half.chmod(0o555)
    try:
        done = sweep(copied.out, *SHORT, wrapped_in=unprivileged).end()
        asked = [*unprivileged, sys.executable, "-m", "mpt_bihalf", "status", str(copied.out)]
        status = subprocess.run(asked, capture_output=True, text=True, check=True)
    finally:
        locked.chmod(0o755)
        half.chmod(0o755)
    assert done.returncode == 1
    error = the_error(done.stderr)
    assert "2 of 4 runs failed" in error and "Permission denied" in error
    for folder in (locked, half):
        assert re.search(f"{folder.name}: failed: .*Permission denied", done.stdout)
    assert (missing / "result.json").exists()
    assert re.search(f"unreadable.*{locked.name}", status.stdout, re.DOTALL)
    copied.complete()
    assert_kept(copied, before)
    assert_same(copied, short)


# NaN and want of memory


def test_a_loss_that_becomes_nan(sweep: Callable[..., Sweep], short: Sweep) -> None:
    options = ("--methods", "sign", "--trials", "1", *SHORT[SHORT.index("--epochs") :], "lr=0.1,1e38")
    told = (diverging := sweep(None, *options)).complete_here()
    assert re.search(r"\] lr=1e\+38: diverged: .* in epoch 1\n", told)
    (sound,) = short.out.glob("runs/*-sign-seed0-*")
    results = [(folder / "result.json").read_text() for folder in diverging.out.glob("runs/*")]
    assert (sound / "result.json").read_text() in results
    assert sum("diverged" in result for result in results) == 1
    results_csv = (diverging.out / "results.csv").read_text()
    assert "2 of 2 runs are done already" in diverging.complete_here()
    assert (diverging.out / "results.csv").read_text() == results_csv


@pytest.mark.slow
def test_want_of_memory(tmp_path: Path, sweep: Callable[..., Sweep]) -> None:
    options = (*("--methods", "sign", "--trials", "1", "--epochs", "1", "--image-size", "16", "--jobs", "1"),)
    options = (*options, "--grid", "batch_size=64,1400,128")
    ample = sweep(tmp_path / "ample", *options)
    process = ample.start()
    peaks: dict[str, int] = {}  # of address space, in order
    while process.poll() is None:
        for folder, worker in ample.under_way().items():
            found = re.search(r"VmPeak:\s+(\d+) kB", Path(f"/proc/{worker.pid}/status").read_text())
            if found:
                peaks[folder.name] = 1024 * int(found[1])
        time.sleep(0.005)
    assert ended(process).returncode == 0
    small, large, _ = peaks.values()
    assert large > 1.05 * small
    short = sweep(tmp_path / "short", *options, wrapped_in=["prlimit", f"--as={(small + large) // 2}"])
    done = short.end()
    assert done.returncode == 1
    error = the_error(done.stderr)
    assert re.search("1 of 3 runs failed, the first, .*, by: out of memory: ", error)
    before = short.finished()
    assert len({file.parent for file in before}) == 2
    again = sweep(tmp_path / "short", *options)
    again.complete()
    assert_kept(again, before)
    assert_same(again, ample)


# Two at once


@pytest.mark.slow
def test_two_sweeps_started_together_with_overlapping_grids(tmp_path: Path, sweep: Callable[..., Sweep]) -> None:
    rest = ("--epochs", "2", "--grid", "batch_size=64", "--trials", "2", "--methods")
    grids = [(*rest, "sign", "mpt-sign"), (*rest, "mpt-bihalf", "mpt-sign")]
    sweeps = [sweep(tmp_path / "out", *grid) for grid in grids]
    processes = [one.start() for one in sweeps]
    done = [ended(process) for process in processes]
    assert [one.returncode for one in done] == [0, 0]
    folders = list((tmp_path / "out" / "runs").iterdir())
    assert len(folders) == 6
    for folder in folders:
        assert len(list(folder.glob("events.*"))) == 1
        assert sum(f"{folder.name}: test top-1" in one.stdout for one in done) == (
            2 if "mpt-sign" in folder.name else 1
        )
    alone = sweep(tmp_path / "alone", *rest, "sign", "mpt-sign", "mpt-bihalf")
    alone.complete()
    for again in sweeps:
        again.complete()
        rows = (again.out / "results.csv").read_text().splitlines()
        assert len(rows) == 5
        assert set(rows) < set((alone.out / "results.csv").read_text().splitlines())
    shutil.copy(alone.out / "results.csv", tmp_path / "out" / "results.csv")
    assert_same(sweeps[0], alone)


# Hostile files


class Bomb:
    """Runs a command when it is unpickled."""

    def __init__(self, trace: Path) -> None:
        self._trace = trace

    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, (f"touch {self._trace}",)


def snapshot(folder: Path) -> dict[Path, tuple[bytes, int]]:
    return {
        file: (file.read_bytes() if file.is_file() else b"", file.lstat().st_mtime_ns) for file in folder.rglob("*")
    }


def test_a_hostile_folder(copied: Sweep, short: Sweep, tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    (outside / "folder").mkdir(parents=True)
    (outside / "file").write_text("precious")
    linked, a, b, c = (
        copied.folder(text)
        for text in ("-sign-seed0", "-sign-seed1", "bihalf-pruned0.5-seed0", "bihalf-pruned0.5-seed1")
    )
    deep = "[" * 100_000
    # The folder of one run, and files of the others, lead outside.
    shutil.rmtree(linked)
    linked.symlink_to(outside / "folder")
    for link in (a / "claim.lock", a / "metrics.csv", b / "config.json", copied.out / "results.csv"):
        link.unlink()
        link.symlink_to(outside / "file")
    (b / "trace").symlink_to(outside / "folder")
    (copied.out / "prune_sweep.png").unlink()
    (copied.out / "prune_sweep.png").symlink_to(outside / "made")
    # Checkpoints that run code where they are unpickled.
    (a / "checkpoint.pt").write_bytes(pickle.dumps(Bomb(outside / "ran")))
    torch.save({"run": Bomb(outside / "ran")}, b / "checkpoint.pt")
    (c / "checkpoint.pt").unlink()
    os.mkfifo(c / "checkpoint.pt")
    # Records that nobody should believe.
    whole = (a / "result.json").read_text()
    (a / "result.json").write_text(re.sub(r'"test_top1": [\d.]+', '"test_top1": 1e999', whole))
    (b / "result.json").write_text(deep)
    (c / "result.json").write_text(whole.replace('"epochs": 3', '"epochs": ' + "9" * 5000))
    shutil.copy(a / "config.json", c / "config.json")
    (a / "claim.json").write_text('{"host": "\\u001b[2J", "pid": -1, "since": 1e999}')
    (b / "claim.json").write_text(deep)
    (c / "claim.json").write_bytes(os.urandom(100))
    escapes = "\x1b]0;owned\x07\x1b[2J"
    for folder in (a, b, c):
        (folder / "failure.json").write_text('{"error": "\\u001b]0;owned\\u0007\\u001b[2J", "when": "now"}')
    (plan,) = (copied.out / "sweeps").iterdir()
    plan.unlink()
    os.mkfifo(plan)
    (plan.parent / "deep.json").write_text(deep)
    (plan.parent / "odd.json").write_text('{"command": ["' + escapes + '"], "common": 1, "varied": [], "runs": {}}')
    before = snapshot(outside)

    done = copied.end_here()
    assert snapshot(outside) == before
    assert done.returncode == 1
    assert "2 of 4 runs failed" in the_error(done.stderr)
    for folder, why in ((linked, "link"), (a, "symbolic links")):
        assert re.search(f"{folder.name}: failed: .*{why}", done.stdout)
    assert "\x1b" not in done.stdout + done.stderr
    assert done.stderr.count("result.json is damaged") == 3
    assert len(done.stderr.splitlines()) == 3 + 3  # two checkpoints put aside, and the error
    assert "\x1b" not in sound(in_this_process("mpt_bihalf", "status", str(copied.out)))
    assert snapshot(outside) == before

    linked.unlink()
    (a / "claim.lock").unlink()
    copied.complete_here()
    assert snapshot(outside) == before
    assert_same(copied, short)
