from __future__ import annotations

import json
import math
import os
import signal
import subprocess
import sys
import time
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
import torch
from torch import Tensor

from mpt_bihalf import METHODS
from mpt_bihalf.endings import run_command
from mpt_bihalf.selection import Selection
from tests.processes import wait_for

ROOT = Path(__file__).parents[1]
SCRIPT = ROOT / "benchmarks" / "on_device.py"
SMALL = ("--device", "cpu", "--small")
CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def on_device() -> Any:
    """The command as a module."""
    name = f"benchmark_{SCRIPT.stem}"
    spec = spec_from_file_location(name, SCRIPT)
    assert spec is not None and spec.loader is not None
    module = module_from_spec(spec)
    sys.modules[name] = module  # where a dataclass looks for its module
    with mock.patch.object(sys, "path", [*sys.path, str(SCRIPT.parent)]):
        spec.loader.exec_module(module)
    for beside in ("measuring", "selection"):  # others are called so too
        del sys.modules[beside]
    yield module
    del sys.modules[name]


def start(*arguments: object) -> subprocess.Popen[str]:
    pipes: dict[str, Any] = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    return subprocess.Popen([sys.executable, str(SCRIPT), *map(str, arguments)], env=environment, **pipes)


def read(out: Path) -> dict[str, Any]:
    def refuse(name: str) -> None:
        raise AssertionError(f"{name} is no JSON")

    content: dict[str, Any] = json.loads((out / "on_device.json").read_text(), parse_constant=refuse)
    return content


def test_the_small_sizes_pass_on_the_cpu_and_all_is_recorded(on_device: Any, tmp_path: Path) -> None:
    process = start(*SMALL, "--out", tmp_path)
    told, errors = process.communicate(timeout=300)
    assert process.returncode == 0, errors
    record = read(tmp_path)
    assert {"device", "torch", "triton", "python", "driver", "date", "options"} < record.keys()
    assert record["options"]["small"] is True and record["torch"] == torch.__version__
    expected = on_device.cells(on_device.Place(CPU, small=True))
    assert [(cell["name"], cell["kind"]) for cell in record["cells"]] == [(cell.name, cell.kind) for cell in expected]
    for cell in record["cells"]:
        assert cell.keys() == {"name", "kind", "seconds", "result"} | ({"passed"} if cell["kind"] == "check" else set())
        assert "error" not in cell["result"] and "skipped" not in cell["result"], cell
        here = not cell["name"].startswith(("Triton", "graphs"))
        assert cell.get("passed", True) is (True if here else None), cell
        assert cell["name"] in told and f"{cell['name']} |" in (tmp_path / "on_device.md").read_text()
    found = {cell["name"]: cell["result"] for cell in record["cells"]}
    assert found["steps of conv2"].keys() == {*METHODS, "dense again"}
    assert found["steps of conv2"]["dense"]["/ dense"] == 1
    assert found["hours of the paper's grids"]["Table 2"]["measured"] == 60


def test_what_a_killed_command_had_done_is_there(tmp_path: Path) -> None:
    process = start(*SMALL, "--out", tmp_path)
    try:
        wait_for((tmp_path / "on_device.json").exists)
    finally:
        process.kill()
        process.communicate()
    assert process.returncode == -signal.SIGKILL
    first = read(tmp_path)["cells"][0]
    assert first["kind"] == "check" and first["passed"]
    assert first["name"] in (tmp_path / "on_device.md").read_text()


def test_a_step_of_each_method_waits_for_no_device(
    on_device: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "argv", ["on_device.py", "--device", "meta", "--out", str(tmp_path)])
    on_device.main()
    cells = read(tmp_path)["cells"]
    assert all(cell["kind"] == "check" and cell["passed"] is True for cell in cells)
    assert {cell["name"].split(",")[0].removeprefix("a step of ") for cell in cells} == {*METHODS}


def test_a_step_that_waits_for_the_device_fails_on_the_one_without_values(
    on_device: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Selection, "largest", lambda self, values, count, *rest: values > float(values.max()))
    place = on_device.Place(torch.device("meta"))
    cell = next(cell for cell in on_device.cells(place) if "mpt-sign, layer" in cell.name)
    assert on_device.done(cell, place)["passed"] is False


def test_a_device_that_selects_otherwise_ends_the_command_with_status_1(
    on_device: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    right, calls = Selection.largest, 0

    def largest(self: Selection, values: Tensor, *rest: Any, **options: Any) -> Tensor:
        nonlocal calls
        calls += 1
        mask = right(self, values, *rest, **options)
        if calls % 2 == 0:  # that of the device comes after that of the CPU
            mask[0, 0] ^= True
        return mask

    monkeypatch.setattr(Selection, "largest", largest)
    every = on_device.cells
    names = "as on the CPU: selection", "finite in bf16"
    monkeypatch.setattr(on_device, "cells", lambda place: [cell for cell in every(place) if cell.name in names])
    monkeypatch.setattr(sys, "argv", ["on_device.py", *SMALL, "--out", str(tmp_path)])
    with pytest.raises(SystemExit) as end:
        run_command(on_device.main)
    assert end.value.code == 1
    assert "checks that failed: 1, the first: as on the CPU: selection" in capsys.readouterr().err
    assert [cell["passed"] for cell in read(tmp_path)["cells"]] == [False, True]
    assert "FAILED" in (tmp_path / "on_device.md").read_text()


@pytest.mark.parametrize(
    ("part", "fault"),
    [
        ("masks", lambda mask: ~mask),
        ("signs", lambda positive: ~positive),
        ("alpha", lambda alpha: alpha * 1.00001),
        ("gradient", lambda gradient: gradient.mul(1.00001)),
        ("gradient", lambda gradient: gradient.mul(math.nan)),
    ],
)
def test_what_a_device_decides_otherwise_fails(
    part: str, fault: Any, on_device: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    decided, calls = on_device.decided, 0

    def faulty(*arguments: Any) -> dict[str, Tensor]:
        nonlocal calls
        calls += 1
        found: dict[str, Tensor] = decided(*arguments)
        return found | ({part: fault(found[part])} if calls % 2 == 0 else {})

    monkeypatch.setattr(on_device, "decided", faulty)
    result = on_device.as_on_the_cpu(on_device.Place(CPU), "mpt-bihalf", "layer")
    assert result["passed"] is False and part not in result["same bits in"].split(", ")


def test_the_loops_of_the_cpu_do_what_plain_torch_does(on_device: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    comparisons = on_device.short_rows_compared, on_device.long_rows_compared, on_device.others_compared
    for compare in comparisons:
        assert on_device.verdict(compare(CPU))["passed"], compare
    monkeypatch.setattr(Selection, "largest", lambda self, values, *rest: values > 0)
    monkeypatch.setattr(on_device.kernels, "signed", lambda positive, mask, alpha: positive * alpha)
    for compare in comparisons:
        assert on_device.verdict(compare(CPU))["wrong"], compare


def test_a_resumed_run_that_differs_fails(on_device: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    train, calls = on_device.train, 0

    def faulty(run: Any, folder: Path, *rest: Any) -> None:
        nonlocal calls
        calls += 1
        try:
            train(run, folder, *rest)
        finally:
            if calls == 4:
                (folder / "layers.csv").write_text("other")

    monkeypatch.setattr(on_device, "train", faulty)
    result = on_device.resumed_as_left_alone(on_device.Place(CPU, small=True), "mpt-bihalf")
    assert result["passed"] is False and result["wrong"] == "layers.csv"


def test_a_loss_that_is_not_finite_fails(on_device: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(on_device, "step_of", lambda run: lambda: torch.tensor([math.nan, 0, 0]))
    cell = on_device.Cell("finite", "check", lambda place: on_device.finite_in(place, "bf16"))
    record = on_device.done(cell, on_device.Place(CPU))
    assert record["passed"] is False and record["result"]["loss of mpt-sign"] == "nan"


def test_a_cell_that_raises_is_recorded_and_the_rest_goes_on(on_device: Any, tmp_path: Path) -> None:
    def fall(place: Any) -> dict[str, Any]:
        raise RuntimeError("no kernel\nfor this")

    some = [
        on_device.Cell("falls", "check", fall),
        on_device.Cell("falls too", "measure", fall),
        on_device.Cell("stands", "measure", lambda place: {"ms": 1.0, "row": {"/ dense": 2.0}}),
        on_device.Cell("comes late", "check", fall, needs=1e9),
    ]
    place = on_device.Place(CPU, until=time.monotonic() + 60)
    assert on_device.run_cells(on_device.OnDevice(), place, some, tmp_path) == ["falls"]
    falls, too, stands, late = read(tmp_path)["cells"]
    assert (
        falls["passed"] is False and falls["result"] == {"error": "RuntimeError: no kernel for this"} == too["result"]
    )
    assert stands["result"] == {"ms": 1.0, "row": {"/ dense": 2.0}}
    assert late["passed"] is None and late["result"] == {"skipped": "no time left"}


def test_of_several_runs_at_once_one_that_ends_is_told(
    on_device: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "ends.py").write_text("raise SystemExit('no room for this')")
    monkeypatch.setattr(on_device, "__file__", str(tmp_path / "ends.py"))
    with pytest.raises(RuntimeError, match="a run among 2 ended: no room for this"):
        on_device.at_once(on_device.Place(CPU, small=True, until=time.monotonic() + 60))


def test_hours_are_of_measured_steps_alone(on_device: Any) -> None:
    place = on_device.Place(CPU)
    place.steps |= {("conv2", method): 0.01 for method in ("sign", "irnet", "bihalf")}
    table = on_device.hours(place)["Table 2"]
    assert (table["runs"], table["measured"], table["not measured"]) == (60, 15, "conv4, conv6, conv8")
    assert table["hours of these"] == pytest.approx(15 * 100 * (50_000 // 128) * 0.01 / 3600)


@pytest.mark.parametrize("options", [["--minutes", "0"], ["--device", "nowhere"], ["--out", "\0"]])
def test_a_bad_option_is_told_in_one_line(
    options: list[str], on_device: Any, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["on_device.py", *options])
    with pytest.raises(SystemExit) as end:
        run_command(on_device.main)
    assert end.value.code == 2 and capsys.readouterr().err.count("\n") == 1


def test_no_kind_of_device_is_named() -> None:
    assert "cuda" not in SCRIPT.read_text()
