"""What users register is there in every command and process, and records of it are read without it."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest
from torch import nn

from mpt_bihalf import METHODS, MODELS, SCALES, plugins
from mpt_bihalf.gradients import LATENT_GRADIENTS
from mpt_bihalf.models.design import Network
from mpt_bihalf.sweep.records import read_run
from mpt_bihalf.training import Run
from mpt_bihalf.training.parts import changed_parts, own_parts
from tests.processes import wait_for

ROOT = Path(__file__).parents[1]
PLUGIN = """
from dataclasses import replace

import torch
from torch import nn

import lies_beside
from mpt_bihalf import BINARIZERS, METHODS, MODELS, SCALES
from mpt_bihalf.data import DATASETS, Dataset, ImageSet
from mpt_bihalf.models.design import Network


def halved(layer, mask):
    return SCALES["kaiming"](layer, mask) / lies_beside.TWO


SCALES["halved"] = halved
METHODS["mine"] = replace(METHODS["mpt-bihalf"], name="mine", scale=halved)
METHODS["mine-too"] = replace(METHODS["bihalf"], name="mine-too")


def mlp(design):
    height, width = design.image_size
    first = nn.Linear(design.in_channels * height * width, 32, bias=False)
    return nn.Sequential(nn.Flatten(), first, design.after_layer(), nn.Linear(32, design.num_classes))


def load_blobs(data_root, image_size):
    g = torch.Generator().manual_seed(0)
    labels = torch.randint(2, (320,), generator=g)
    images = (labels.view(-1, 1, 1, 1) * 120 + torch.randint(100, (320, 1, 8, 8), generator=g)).to(torch.uint8)
    every = ImageSet(images, labels)
    train, test = every.take(torch.arange(256)), every.take(torch.arange(256, 320))
    return Dataset("blobs", train, test, ("dark", "light"), *train.statistics(), crop_padding=0, flip=False)


MODELS["mlp"] = Network(mlp, skip=("last",))
DATASETS["blobs"] = load_blobs
"""


@pytest.fixture(scope="module")
def plugin(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("users code")
    (folder / "lies_beside.py").write_text("TWO = 2\n")
    file = folder / "my parts.py"
    file.write_text(PLUGIN)
    return file


@pytest.fixture
def nothing_loaded(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """And nothing stays of what a test loads."""
    monkeypatch.setattr(plugins, "_loaded", {})
    modules, path = set(sys.modules), [*sys.path]
    yield
    sys.path[:] = path
    for name in set(sys.modules) - modules:
        if name.startswith(("mpt_bihalf_plugin_", "users_")):
            del sys.modules[name]


def do(*words: object, status: int = 0, **environment: str) -> tuple[str, str]:
    """What a command prints; of an experiment by its file, of the package by its words."""
    command = [sys.executable, *map(str, words)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=ROOT, env=os.environ | environment)
    assert done.returncode == status, done.stderr
    return done.stdout, done.stderr


def sweep(plugin: object, out: Path, *more: str) -> list[object]:
    words = ["experiments/prune_sweep.py", "--plugin", plugin, "--methods", "mine,mine-too,mpt-sign", "--models", "mlp"]
    return [*words, "--data", "blobs", "--rates", "0.5", "--trials", "2", "--out", out, *more]


@pytest.fixture(scope="module")
def done(plugin: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A sweep of two jobs with a method, a network and a data set of one's own, killed half-way and gone on with."""
    out = tmp_path_factory.mktemp("sweep")
    command = [sys.executable, *map(str, sweep(plugin, out, "--epochs", "2", "--jobs", "2"))]
    first = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    wait_for(lambda: [*out.glob("runs/*/result.json")])
    first.send_signal(signal.SIGKILL)
    first.wait()
    do(*command[1:])
    return out


def test_a_sweep_of_several_workers_has_them_all(done: Path) -> None:
    results = [json.loads(file.read_text()) for file in done.glob("runs/*/result.json")]
    assert [result["status"] for result in results] == ["finished"] * 6
    table = (done / "table.txt").read_text()
    assert re.search(r"mlp, blobs, 50 % pruned: .*(\n.*)+\n +mine +\d.*(\n.*)+\nmpt-sign", table)


def test_a_report_without_the_plugin_has_its_rows_and_says_what_is_not_registered(done: Path, plugin: Path) -> None:
    with_it, _ = do("-m", "mpt_bihalf", "report", done, "--plugin", plugin)
    without, _ = do("-m", "mpt_bihalf", "report", done)
    for text in (with_it, without):
        assert re.search(r"^ *mine +\d", text, re.M)
        assert re.search(r"^ *mine-too +\d", text, re.M)
    for part in ("method 'mine'", "method 'mine-too'", "model 'mlp'", "data 'blobs'"):
        assert f"{part} is not registered here" in without
        assert part not in with_it


def test_status_without_the_plugin_knows_all_runs(done: Path) -> None:
    told, _ = do("-m", "mpt_bihalf", "status", done)
    assert "6 done (of 6)" in told
    assert "passed over" not in told
    assert "not registered" not in told  # nothing is left to go on with


def test_what_is_missing_is_known_without_the_plugin(plugin: Path, tmp_path: Path, done: Path) -> None:
    """And the command that goes on names it."""
    (tmp_path / "sweeps").mkdir()
    for file in (done / "sweeps").iterdir():
        (tmp_path / "sweeps" / file.name).write_bytes(file.read_bytes())
    told, _ = do("-m", "mpt_bihalf", "status", tmp_path)
    assert "0 done, 6 missing (of 6)" in told
    assert f"--plugin '{plugin}'" in told
    assert "method 'mine' is not registered here: to go on, say --plugin" in told


def test_a_single_run_and_its_ticket_take_it(plugin: Path, tmp_path: Path, done: Path) -> None:
    told, _ = do("-m", "mpt_bihalf", "train", f"--plugin={plugin}", "--method", "mine", "--model", "mlp", "--data",
                 "blobs", "--epochs", "1", "--out", tmp_path / "single")  # fmt: skip
    assert '"status": "finished"' in told
    (run,) = done.glob("runs/*-mine-pruned0.5-seed0-*")
    do("-m", "mpt_bihalf", "ticket", "make", run, "-o", tmp_path / "t.ticket", "--plugin", plugin)
    do("-m", "mpt_bihalf", "ticket", "verify", tmp_path / "t.ticket", "--plugin", plugin)
    _, errors = do("-m", "mpt_bihalf", "ticket", "make", run, "-o", tmp_path / "u.ticket", status=2)
    assert errors.count("\n") == 1
    assert "is not registered here" in errors
    assert "--plugin" in errors


@pytest.mark.parametrize(
    ("text", "told"),
    [
        (None, "there is no such file"),
        ("raise RuntimeError('two\\nlines')", "RuntimeError: two lines"),
        ("import nothing_of_this_name", "ModuleNotFoundError: No module named 'nothing_of_this_name'"),
        ("def (", "SyntaxError: "),
        ("import sys; sys.exit('enough')", "SystemExit: enough"),
    ],
)
def test_one_that_is_missing_or_fails_is_one_line_and_nothing_is_written(
    text: str | None, told: str, tmp_path: Path
) -> None:
    file = tmp_path / "broken.py"
    if text is not None:
        file.write_text(text)
    _, errors = do(*sweep(file, tmp_path / "out"), status=2)
    assert errors.startswith(f"error: plugin {file}: {told}")
    assert errors.count("\n") == 1
    assert not (tmp_path / "out").exists()


def test_a_module_is_taken_by_its_name_wherever_it_was_found(
    tmp_path: Path, nothing_loaded: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    package = tmp_path / "users_package"
    package.mkdir()
    (package / "__init__.py").write_text("")
    (package / "parts.py").write_text("COUNT = []\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    plugins.load_plugin("users_package.parts")
    assert plugins.loaded_plugins() == [("users_package.parts", str(tmp_path))]
    code = f"from mpt_bihalf import plugins; plugins.load_plugins({plugins.loaded_plugins()!r})"
    do("-c", code, PYTHONPATH=str(ROOT))


def test_it_is_imported_once(tmp_path: Path, nothing_loaded: None, monkeypatch: pytest.MonkeyPatch) -> None:
    file, counted = tmp_path / "counts.py", tmp_path / "count"
    file.write_text(f"open({str(counted)!r}, 'a').write('x')")
    monkeypatch.chdir(tmp_path)
    for name in (str(file), "counts.py", "./counts.py"):
        plugins.load_plugin(name)
    assert counted.read_text() == "x"


def test_nothing_that_lies_beside_a_plugin_comes_before_other_modules(tmp_path: Path, nothing_loaded: None) -> None:
    (tmp_path / "random.py").write_text("raise RuntimeError('imported')")
    (tmp_path / "tidy.py").write_text("import random, random as again; assert random.random")
    do("-c", f"from mpt_bihalf.plugins import load_plugin; load_plugin({str(tmp_path / 'tidy.py')!r})")


def test_installed_packages_name_theirs(plugin: Path, tmp_path: Path) -> None:
    site = tmp_path / "site"
    (site / "users_parts-1.0.dist-info").mkdir(parents=True)
    (site / "users_parts-1.0.dist-info" / "METADATA").write_text(
        "Metadata-Version: 2.1\nName: users-parts\nVersion: 1\n"
    )
    (site / "users_parts-1.0.dist-info" / "entry_points.txt").write_text("[mpt_bihalf.plugins]\nparts = users_parts\n")
    (site / "users_parts.py").write_text("from mpt_bihalf import METHODS\nMETHODS['installed'] = METHODS['sign']\n")
    words = ["experiments/prune_sweep.py", "--methods", "installed", "--rates", "0.5", "--trials", "1", "--epochs", "1"]
    do(*words, "--out", tmp_path / "out", PYTHONPATH=f"{site}:{ROOT}")
    assert len([*tmp_path.glob("out/runs/*-installed-*/result.json")]) == 1
    (site / "users_parts.py").write_text("raise RuntimeError('broken')")
    _, errors = do(*words, status=2, PYTHONPATH=f"{site}:{ROOT}")
    assert errors == "error: plugin users_parts of users-parts: RuntimeError: broken\n"


def test_a_record_never_has_a_plugin_imported(done: Path, tmp_path: Path) -> None:
    """Nor does the plan that names it: a report reads both."""
    assert "my parts" in next((done / "sweeps").iterdir()).read_text()
    told, _ = do("-X", "importtime", "-m", "mpt_bihalf", "report", done)
    assert "lies_beside" not in told


def test_a_record_with_unknown_parts_is_checked_in_all_else(done: Path) -> None:
    folder = next(done.glob("runs/*-mine-pruned*"))
    run = read_run(folder)
    assert (run.method, run.model, run.data) == ("mine", "mlp", "blobs")
    assert run.unregistered == ["method 'mine'", "model 'mlp'", "data 'blobs'", "scale 'halved'"]
    assert run.hash == folder.name.rsplit("-", 1)[1]
    values = asdict(run)
    assert Run.from_record(values) == run
    for change in ({"epochs": -1}, {"lr": float("nan")}, {"method": "mi\x1bne"}, {"model": "m" * 300}, {"seed": "0"}):
        with pytest.raises(ValueError, match=r"not a run's configuration|must"):
            Run.from_record(values | change)
    with pytest.raises(ValueError, match="unknown"):
        Run.from_dict(values)


def test_a_worker_that_cannot_load_it_says_so(tmp_path: Path) -> None:
    """The file has gone meanwhile."""
    code = "from mpt_bihalf.sweep.engines.worker import work; work('out', None, '[[\"gone.py\", \"\"]]')"
    _, errors = do("-c", code, status=2)
    assert errors == "error: plugin gone.py: there is no such file\n"


def test_a_part_that_was_changed_under_its_old_name_is_noticed(plugin: Path, done: Path, tmp_path: Path) -> None:
    (folder,) = done.glob("runs/*-mine-pruned0.5-seed0-*")
    parts = json.loads((folder / "environment.json").read_text())["parts"]
    assert sorted(parts) == ["data 'blobs'", "method 'mine'", "model 'mlp'", "scale 'halved'"]
    (built_in,) = done.glob("runs/*-mpt-sign-pruned0.5-seed0-*")
    assert sorted(json.loads((built_in / "environment.json").read_text())["parts"]) == ["data 'blobs'", "model 'mlp'"]

    changed = tmp_path / "changed.py"
    (tmp_path / "lies_beside.py").write_text("TWO = 2\n")
    changed.write_text(PLUGIN.replace('SCALES["kaiming"](layer, mask) /', 'SCALES["l1"](layer, mask) /'))
    told, errors = do(*sweep(changed, done, "--epochs", "2"))
    assert "6 of 6 runs are done already" in told
    assert "method 'mine' has changed since 2 of 6 done runs were made, and they stay as they are" in errors
    assert "mine-too" not in errors
    assert "mlp" not in errors
    told, errors = do(*sweep(plugin, done, "--epochs", "2"))
    assert "has changed" not in errors
    # No further runs go into the same mean, and no network is made of its checkpoint.
    _, errors = do(*sweep(changed, done, "--epochs", "2", "--trials", "3"), status=2)
    assert "method 'mine' has changed since 2 of 6 done runs were made, and more are to do: give it another" in errors
    _, errors = do("-m", "mpt_bihalf", "ticket", "make", folder, "-o", tmp_path / "t", "--plugin", changed, status=2)
    assert "'mine' has changed since the run in" in errors
    told, _ = do("-m", "mpt_bihalf", "report", done, "--plugin", changed)
    assert "method 'mine' is not what it was when 2 of these runs were made" in told

    # One under way does not go on with another method than it began with.
    for other in done.glob("runs/*-mine-pruned0.5-seed*"):
        (other / "result.json").unlink()
        (other / "SHA256SUMS").unlink()
    _, errors = do(*sweep(changed, done, "--epochs", "2"), status=1)
    assert "'mine' has changed since the run in" in errors
    do(*sweep(plugin, done, "--epochs", "2"))


def test_a_composition_of_the_packages_parts_is_told_by_them(monkeypatch: pytest.MonkeyPatch) -> None:
    def digest(**parts: Any) -> str:
        monkeypatch.setitem(METHODS, "mixed", replace(METHODS["mpt-bihalf"], name="mixed", **parts))
        return own_parts(Run(method="mixed"))["method 'mixed'"]

    assert own_parts(Run()) == {}
    assert digest() == digest()
    assert digest() != digest(scale=SCALES["l1"])
    assert digest() != digest(latent_gradient=LATENT_GRADIENTS["unscaled"])
    assert digest(binarizer=lambda layer, mask: layer.weight > 0) != digest(
        binarizer=lambda layer, mask: layer.weight > 1
    )


def test_a_built_in_method_that_is_overridden_is_noticed(done: Path, tmp_path: Path) -> None:
    plugin = tmp_path / "overrides.py"
    plugin.write_text(
        "from dataclasses import replace\nfrom mpt_bihalf import METHODS\n"
        "METHODS['sign'] = replace(METHODS['sign'], binarizer=lambda layer, mask: layer.weight < 0)\n"
    )
    words = ["experiments/prune_sweep.py", "--methods", "sign", "--epochs", "1", "--out", tmp_path / "out"]
    do(*words, "--trials", "1")
    _, errors = do(*words, "--trials", "2", "--plugin", plugin, status=2)
    assert "method 'sign' has changed since 1 of 1 done runs were made" in errors


@pytest.mark.parametrize("name", ["my/method", "my method", "..", "a\\b", "x\ny"])
def test_a_name_that_cannot_be_a_folders_is_refused(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(METHODS, name, METHODS["sign"])
    with pytest.raises(ValueError, match="names folders: take letters, digits"):
        Run(method=name)


def test_a_record_of_before_parts_were_told_of_is_taken_as_it_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of a built-in method on a network of one's own, say: that it is what it was cannot be known."""
    monkeypatch.setitem(MODELS, "mine", Network(lambda design: nn.Linear(1, 1)))
    (tmp_path / "environment.json").write_text('{"torch": "2.9"}')
    run = Run(method="sign", model="mine")
    assert list(own_parts(run)) == ["model 'mine'"]
    assert changed_parts(run, tmp_path) == []
    assert changed_parts(run, tmp_path / "nothing") == []
    (tmp_path / "environment.json").write_text('{"parts": {"model \'mine\'": "another"}}')
    assert changed_parts(run, tmp_path) == ["model 'mine'"]
