"""Thousands of odd values for the options of every command: each is one line, soon, and harms nothing."""

from __future__ import annotations

import io
import os
import random
import re
import resource
import runpy
import signal
import sys
import traceback
from collections import Counter
from collections.abc import Callable
from contextlib import redirect_stderr, redirect_stdout, suppress
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest

from mpt_bihalf import binarize_weights, create_model, save_ticket
from mpt_bihalf.sweep import run_all
from mpt_bihalf.training import Run

ROOT = Path(__file__).parents[1]
CALLS = int(os.environ.get("BAD_OPTIONS", "4000"))
SECONDS, MEMORY = 5.0, 2**30
SCRIPTS = [str(path) for path in sorted((ROOT / "experiments").glob("*.py"))]

WORDS = """
- -- -1 0 1 2 0.5 1.5 -0.5 nan inf -inf 1e400 1e-400 ½ ٣ 1_0 0x10 a,b , ,,, a=b = lr= lr=x lr=0.1,0.2 model=conv2 x=1
prune_rate=0.1..0.9 0.1..0.9 0..0.9:1e-9 0.9..0.1 .. 0.1.. 0.1..0.9:0 true false none None auto all None,first ../.. . /
~ first+last ~nobody-so-called/x é 日本 🎉 ' " ;x %s {0} \\ cpu cuda meta cuda:99 conv2 resnet18 torchvision:nothing
dense torchvision:vgg16 mpt-sign digits folder: folder:/ folder:. imagenet: imagenet:/dev folder:/dev/zero cifar10 ray
serial local auto:0
""".split()  # noqa: SIM905
LONG = ["9" * 20, "9" * 5000, "-" + "9" * 5000, "0." + "1" * 5000, "1e" + "9" * 50, "x" * 300, "x" * 100_000]
LONG += ["seed=" + "9" * 400, "0.5," * 20_000 + "0.5"]
ODD = [*WORDS, *LONG, "", " ", "\n", "a\nb", "\t", "\x1b[2J", "\x07", "\u202e", "$(touch x)", "; touch x"]


@pytest.fixture(scope="module")
def places(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Paths of all kinds, by what they are."""
    root = tmp_path_factory.mktemp("places")
    run = Run(model="conv2", width=0.05, epochs=1, device="cpu", threads=1).resolved()
    run_all([run], root / "sweep")
    save_ticket(binarize_weights(create_model("conv2", width=0.05, seed=0), "bihalf", seed=0), root / "ticket")
    os.mkfifo(root / "pipe")
    (root / "text").write_text("text\n")
    (root / "empty").mkdir()
    (root / "link").symlink_to("nowhere")
    (root / "loop").symlink_to("loop")
    found = {path.name: str(path) for path in root.iterdir()}
    devices = {name: f"/dev/{name}" for name in ("null", "zero", "full", "urandom")}
    return found | devices | {"run": str(root / "sweep" / "runs" / run.name)}


def commands(places: dict[str, str]) -> dict[str, list[str]]:
    """The words of each command, with what it cannot do without."""
    package = {
        "train": [],
        "status": [places["sweep"]],
        "report": [places["sweep"]],
        "ticket make": [places["run"]],
        "ticket show": [places["ticket"]],
        "ticket verify": [places["ticket"]],
        "ticket export": [places["ticket"]],
        "ticket compare": [places["ticket"], places["ticket"]],
        "ticket transfer": [places["ticket"]],
    }
    found = {f"-m mpt_bihalf {name}": ["", *name.split(), *needed] for name, needed in package.items()}
    return found | {script: [script] for script in SCRIPTS}


def call(name: str, words: list[str]) -> None:
    """The command in this process."""
    sys.argv = words
    if name.startswith("-m"):
        runpy.run_module("mpt_bihalf", run_name="__main__", alter_sys=True)
    else:
        runpy.run_path(words[0], run_name="__main__")


def ended(name: str, words: list[str], folder: Path) -> tuple[str, str, float, int]:
    """How the command ends in a process of its own: status, standard error, seconds of CPU, bytes above what was."""
    reader, writer = os.pipe()
    pid = os.fork()
    if not pid:
        status = "0"
        os.close(reader)
        os.chdir(folder)
        signal.alarm(120)
        before = resource.getrusage(resource.RUSAGE_SELF)
        errors, output = io.StringIO(), io.StringIO()
        with redirect_stdout(output), redirect_stderr(errors):
            try:
                call(name, words)
            except SystemExit as end:
                status = str(end.code or 0)
            except BaseException:
                status = "traceback"
                errors.write(traceback.format_exc())
        after = resource.getrusage(resource.RUSAGE_SELF)
        seconds = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
        more = 1024 * (after.ru_maxrss - before.ru_maxrss)
        with suppress(BaseException), os.fdopen(writer, "w", errors="replace") as file:
            file.write(f"{status}\0{seconds}\0{more}\0{errors.getvalue()[-3000:]}")
        os._exit(0)
    os.close(writer)
    with os.fdopen(reader) as file:
        told = file.read()
    os.waitpid(pid, 0)
    status, took, more, err = told.split("\0", 3) if told else ("killed", "0", "0", "")
    return status, err, float(took), int(more)


def forbid_work(monkeypatch: pytest.MonkeyPatch) -> None:
    """What would train in earnest ends as if it had."""

    def stop(*_: Any, **__: Any) -> None:
        raise SystemExit(0)

    for place in ("training.loop:train_together", "sweep.run_all:make_engine", "tickets.command:retrained_table"):
        module, name = place.split(":")
        monkeypatch.setattr(import_module(f"mpt_bihalf.{module}"), name, stop)
    import_module("mpt_bihalf.report.sweep_report")  # once, before processes are made of this one
    for socket in ("socket.socket.connect", "urllib.request.urlopen"):
        monkeypatch.setattr(socket, stop)


def options_of(call_help: Callable[[], None]) -> list[str]:
    out = io.StringIO()
    with redirect_stdout(out), suppress(SystemExit):
        call_help()
    return sorted({*re.findall(r"(?<![\w-])--[a-z][a-z0-9-]+", out.getvalue())} - {"--help"})


@pytest.mark.slow
@pytest.mark.timeout(7200)
def test_odd_values_of_options_end_in_one_line(
    places: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    chance = random.Random(int(os.environ.get("SEED", "0")))
    forbid_work(monkeypatch)
    monkeypatch.setattr(sys, "argv", sys.argv)
    known = commands(places)
    options = {name: options_of(lambda n=name, w=words: call(n, [*w, "--help"])) for name, words in known.items()}  # type: ignore[misc]
    assert sum(map(len, options.values())) > 300
    values = [value for value in [*ODD, *places.values()] if "\0" not in value]
    counts: Counter[str] = Counter()
    worst: list[str] = []
    slowest, largest = 0.0, 0
    for number in range(CALLS):
        name = chance.choice([*known])
        words = list(known[name])
        for option in chance.sample(options[name], min(len(options[name]), chance.choice((1, 1, 2)))):
            value = chance.choice(values)
            words += [f"{option}={value}"] if chance.random() < 0.7 else [option, value]
        if chance.random() < 0.1 and len(words) > 2:
            words[-1 if chance.random() < 0.5 else 2] = chance.choice(values)
        folder = tmp_path / str(number)
        folder.mkdir()
        words = [word[:100_010] for word in words]
        status, err, seconds, memory = ended(name, words, folder)
        counts[status] += 1
        if status != "0":  # those begin to work
            slowest, largest = max(slowest, seconds), max(largest, memory)
        lines = [line for line in err.splitlines() if line.startswith("error:")]
        sound = (status == "0" and not lines) or (status in ("1", "2") and len(lines) == 1 and len(err) < 6000)
        if status == "2":
            sound &= err.count("\n") <= 2 + err.count("left out")
        heavy = status != "0" and (seconds > SECONDS or memory > MEMORY)
        if not sound or heavy or "\x1b" in err or (folder / "x").exists():
            worst.append(f"{status} {seconds:.1f} s {memory:,} {name} {[word[:80] for word in words]}: {err[-800:]}")
            print(worst[-1], flush=True)
    print(f"{CALLS:,} calls: {dict(counts)}; slowest {slowest:.2f} s, most memory {largest / 2**20:.0f} MiB")
    assert not worst
