"""README and docs: the Python runs as it stands there, commands and names are of things that exist, the pages build.

Each Python block runs by itself, in an empty folder, as a reader would paste it into a file.
"""

import ast
import re
import runpy
import shlex
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, redirect_stdout
from importlib import import_module
from importlib.util import find_spec, module_from_spec, spec_from_file_location
from io import StringIO
from math import log2
from pathlib import Path
from typing import Any
from unittest import mock
from urllib.parse import unquote

import nbformat
import pytest
from torch.distributed.run import parse_args as parse_torchrun

import mpt_bihalf
from mpt_bihalf import (
    ACTIVATION_GRADIENTS,
    BINARIZERS,
    LATENT_GRADIENTS,
    MASKS,
    METHODS,
    MODELS,
    SCALES,
    SCORE_GRADIENTS,
    commandline,
)
from mpt_bihalf.__main__ import main
from mpt_bihalf.commandline import Parser
from mpt_bihalf.data import DATASETS
from mpt_bihalf.experiments import TrainingExperiment
from mpt_bihalf.sweep.engines import ENGINES

ROOT = Path(__file__).parents[1]
WRITTEN = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", ROOT / "results/README.md", *sorted(ROOT.glob("docs/*.md"))]
PAGES = {str(path.relative_to(ROOT)): path.read_text() for path in WRITTEN}
FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
REGISTRIES: tuple[dict[str, Any], ...] = (
    ACTIVATION_GRADIENTS,
    BINARIZERS,
    DATASETS,
    ENGINES,
    LATENT_GRADIENTS,
    MASKS,
    METHODS,
    MODELS,
    SCALES,
    SCORE_GRADIENTS,
)
# Programs of others, whose options are theirs.
FOREIGN = {"pip", "tensorboard", "ray", "srun", "sleep", "trap", "wait"}
FOREIGN_OPTIONS = {"--nproc-per-node", "--nnodes"}


def fenced(language: str) -> Iterator[tuple[str, int, str]]:
    """The page, the line before, and the text of each block of this language."""
    for page, text in PAGES.items():
        for block in FENCE.finditer(text):
            if block[1] == language:
                yield page, text.count("\n", 0, block.start(2)), block[2]


PYTHON = list(fenced("python"))
# Blocks with these in them want the extra `loops`, and are run by hand: pytest -m slow tests/test_docs.py
LOOPS = re.compile(r"^(?:import|from) (?:accelerate|lightning|schedulefree|timm)\b", re.MULTILINE)
BLOCKS = [
    pytest.param(*block, id=f"{block[0]}:{block[1] + 1}", marks=[pytest.mark.slow] * bool(LOOPS.search(block[2])))
    for block in PYTHON
]


@pytest.mark.parametrize(("page", "line", "code"), BLOCKS)
def test_python_runs(
    page: str,
    line: int,
    code: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    alone = {"RANK": "0", "WORLD_SIZE": "1", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "0"}  # as torchrun sets them
    for name, value in alone.items() if "init_process_group" in code else ():
        monkeypatch.setenv(name, value)
    with ExitStack() as kept:
        for registry in REGISTRIES:
            kept.enter_context(mock.patch.dict(registry))
        if "run_command" not in code:
            exec(compile("\n" * line + code, ROOT / page, "exec"), {"__name__": "__main__"})
            for top1 in (
                re.findall(r"test top-1 ([\d.]+) %", capsys.readouterr().out) if page == "docs/loops.md" else ()
            ):
                assert float(top1) > 80, top1
            return
        Path("command.py").write_text(code)
        monkeypatch.setattr(sys, "argv", ["command.py", "--engine", "serial", "--epochs", "1", "--trials", "1"])
        runpy.run_path("command.py", run_name="__main__")


def test_there_is_python_on_the_pages_that_promise_it() -> None:
    assert {"README.md", "docs/index.md", "docs/methods.md", "docs/extending.md"} <= {page for page, *_ in PYTHON}


def notebooks() -> Iterator[str]:
    for path in sorted(ROOT.glob("notebooks/*.ipynb")):
        for cell in nbformat.read(path, as_version=4).cells:
            if cell.cell_type == "code":
                yield re.sub(r"^%.*$", "", cell.source, flags=re.MULTILINE)


def test_what_pages_and_notebooks_import_is_public() -> None:
    for code in [*(code for _, _, code in PYTHON), *notebooks()]:
        for node in ast.walk(ast.parse(code)):
            if isinstance(node, ast.ImportFrom) and (node.module or "").partition(".")[0] == "mpt_bihalf":
                module = import_module(str(node.module))
                public = dir(module) if module is mpt_bihalf else module.__all__
                assert {each.name for each in node.names} <= {*public}, ast.unparse(node)


def prose(page: str) -> str:
    return FENCE.sub("", PAGES[page])


def commands() -> Iterator[tuple[str, str]]:
    """The page and the text of each command line: the lines of shell blocks, and commands within the text."""
    for page, _, block in fenced("bash"):
        for line in block.replace("\\\n", " ").splitlines():
            for words in split(shlex.split(line, comments=True)):
                yield page, shlex.join(words)
    for page in PAGES:
        for code in re.findall(r"`([^`]+)`", prose(page)):
            if re.match(r"(\w+=\w+ )?(python|\w+\.py) (?!\.\.\.)", code):
                for words in split(shlex.split(code.removesuffix(" --help"))):
                    yield page, shlex.join(words)


def split(words: list[str]) -> Iterator[list[str]]:
    """Several commands of one line; without variables that are set before them."""
    start = 0
    for end in [i for i, word in enumerate(words) if word in ("&&", "&")] + [len(words)]:
        command = words[start:end]
        while command and re.match(r"\w+=", command[0]):
            del command[0]
        if command:
            yield command
        start = end + 1


class Parsed(Exception):
    """What a program's parser made of the command line."""


SCRIPTS = {path.name: path for path in [*ROOT.glob("experiments/*.py"), *ROOT.glob("benchmarks/*.py")]}


def benchmark(file: Path) -> Any:
    """Its module, by a name that is nobody else's: others look whether there is a module called `sparse`."""
    name = f"benchmark_{file.stem}"
    if name not in sys.modules:
        spec = spec_from_file_location(name, file)
        assert spec is not None and spec.loader is not None
        sys.modules[name] = module_from_spec(spec)
        spec.loader.exec_module(sys.modules[name])
    return sys.modules[name]


def main_of(program: str) -> Callable[[], object]:
    """What a script of ours does, by its file's name, or the package's commands."""
    if program == "mpt_bihalf":
        return main
    if SCRIPTS[program].parent.name == "experiments":
        return lambda: runpy.run_path(str(SCRIPTS[program]), run_name="__main__")
    with mock.patch.object(sys, "path", [*sys.path, str(ROOT / "benchmarks")]):
        return benchmark(SCRIPTS[program]).main


@pytest.fixture
def parsed(monkeypatch: pytest.MonkeyPatch) -> Callable[[str, list[str]], Any]:
    """parsed(program, arguments) -> the options, as the program's own parser gives them, before anything is done."""
    parse_args = Parser.parse_args

    def stop(self: Parser, *arguments: Any, **settings: Any) -> None:
        raise Parsed(parse_args(self, *arguments, **settings))

    def parse(program: str, arguments: list[str]) -> Any:
        monkeypatch.setattr(Parser, "parse_args", stop)
        # There need be no accelerator where the tests run.
        monkeypatch.setattr(sys, "argv", [program, *("cpu" if word == "cuda" else word for word in arguments)])
        with pytest.raises(Parsed) as told:
            main_of(program)()
        return told.value.args[0]

    return parse


EVERY = sorted(set(commands()))


@pytest.mark.parametrize(("page", "command"), EVERY, ids=[f"{page}: {command}" for page, command in EVERY])
def test_commands_are_taken_by_the_programs_that_they_name(
    page: str, command: str, parsed: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    # A plugin on a page is one that registers a method called mine.
    registered = METHODS | {"mine": METHODS["mpt-bihalf"]}
    monkeypatch.setattr(commandline, "load_plugin", lambda plugin: METHODS.update(registered))
    first, *words = shlex.split(command)
    if Path(first).name in FOREIGN:
        return
    if first == "torchrun":
        options = parse_torchrun(words)
        words = ["-m"] * options.module + [options.training_script, *options.training_script_args]
    elif Path(first).name in SCRIPTS:  # in the text a script may go by its name
        words = [first, *words]
    else:
        assert Path(first).name in ("python", "python3")
    if words[0] == "-m" and words[1] != "mpt_bihalf":
        assert find_spec(words[1])
    elif words[0] == "-m":
        parsed("mpt_bihalf", words[2:])
    else:
        assert "/" not in words[0] or (ROOT / words[0]).is_file()
        options = parsed(Path(words[0]).name, words[1:]).options
        if isinstance(options, TrainingExperiment):
            assert options.runs()
    METHODS.pop("mine", None)


def test_there_are_commands_on_the_pages_that_promise_them() -> None:
    counts = [page for page, _ in commands()]
    for page, least in {"README.md": 8, "docs/figures.md": 24, "docs/sweeps.md": 10, "docs/performance.md": 5}.items():
        assert counts.count(page) >= least, page


TICKET_COMMANDS = ("make", "import", "show", "verify", "export", "compare", "transfer")


@pytest.fixture(scope="module")
def known_options() -> set[str]:
    known = set(FOREIGN_OPTIONS)
    programs = [[name] for name, path in SCRIPTS.items() if re.search(r"\ndef main|\.main\)", path.read_text())]
    programs += [["mpt_bihalf", command] for command in ("train", "status", "report")]
    programs += [["mpt_bihalf", "ticket", kind] for kind in TICKET_COMMANDS]
    for program, *command in programs:
        told = StringIO()
        with (
            mock.patch.object(sys, "argv", [program, *command, "--help"]),
            redirect_stdout(told),
            pytest.raises(SystemExit),
        ):
            main_of(program)()
        known.update(re.findall(r"(?<![\w-])--[a-z][a-z-]*", told.getvalue()))
    return known


@pytest.mark.parametrize("page", PAGES)
def test_options_in_the_text_are_those_of_a_program(page: str, known_options: set[str]) -> None:
    named = {
        option for code in re.findall(r"`([^`]+)`", prose(page)) for option in re.findall(r"(?<!\S)--[a-z][\w-]*", code)
    }
    assert named <= known_options


@pytest.mark.parametrize("page", PAGES)
def test_files_and_tests_that_are_named_exist(page: str) -> None:
    here = (ROOT / page).parent
    for link in re.findall(r"\]\((?!https?:|#)([^)#]+)[^)]*\)", PAGES[page]):
        assert (here / link).exists() or link.startswith("drawn/"), link  # those the build draws, and then misses
    paths = r"`((?:mpt_bihalf|tests|docs|notebooks|experiments|benchmarks|results)/[\w./]+)(?:::(\w+))?`"
    for path, test in re.findall(paths, PAGES[page]):
        assert (ROOT / path).exists(), path
        assert not test or f"def {test}(" in (ROOT / path).read_text(), test


def test_how_small_tickets_are_and_how_near_their_bound() -> None:
    # The weights of each network, and the bits of a weight where one in ten is kept, half of them +1.
    weights = {"Conv2": 4_300_992, "Conv4": 2_425_024, "Conv6": 2_261_184, "Conv8": 5_275_840}
    bits = 0.1 - 0.1 * log2(0.1) - 0.9 * log2(0.9)
    at_90 = re.findall(r"^\| ([\w-]+) \|.* ([\d,]+) \(([\d.]+)\) \|$", PAGES["docs/tickets.md"], re.MULTILINE)
    above, factors = [], {name: round(float(factor)) for name, _, factor in at_90}
    for name, size, _ in at_90[:4]:
        above.append(100 * (8 * int(size.replace(",", "")) / (bits * weights[name]) - 1))
    assert f"{min(above):.1f} to {max(above):.1f} %" in PAGES["docs/tickets.md"]
    conv, resnet = {factors[name] for name in weights}, factors["ResNet-18"]
    assert len(conv) == 1 and f"1/{conv.pop()} of the bytes of a Conv network's" in PAGES["README.md"]
    assert f"1/{resnet} of a ResNet-18's" in PAGES["README.md"]


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The pages as Sphinx builds them, any warning being an error."""
    folder = tmp_path_factory.mktemp("site")
    # Not forked: pages compute gradients, which a fork cannot once a test of this process had threads for them.
    sphinx = [sys.executable, "-m", "sphinx", "-W", "--keep-going", "-q", str(ROOT / "docs"), str(folder)]
    told = subprocess.run(sphinx, check=False, capture_output=True, text=True)
    assert told.returncode == 0, told.stderr
    return folder


def test_the_first_page_leads_to_every_other(site: Path) -> None:
    index = (site / "index.html").read_text()
    for page in [page for page in PAGES if page.startswith("docs/") and page != "docs/index.md"]:
        assert f'href="{Path(page).stem}.html"' in index, page


def test_the_reference_has_every_public_name(site: Path) -> None:
    reference = (site / "api.html").read_text()
    packages = ("data", "training", "sweep", "report", "tickets", "experiments")
    for module in (mpt_bihalf, *(import_module(f"mpt_bihalf.{name}") for name in packages)):
        for name in module.__all__:
            assert re.search(rf'id="(module-)?{module.__name__}\.{name}"', reference), name


def test_every_method_and_part_is_described(site: Path) -> None:
    page = (site / "methods.html").read_text()
    for name in METHODS:
        assert f"<h3>{name}<" in page
    for name in (*MASKS, *SCALES, *ACTIVATION_GRADIENTS):
        assert f'<span class="pre">{name}</span>' in page
    assert page.count("<math xmlns") > 2 * len(METHODS)
    assert not re.search(r'<script[^>]* src="https?:', page)  # a formula is drawn without the network
    pictures = re.findall(r'src="(_images/[\w%+-]+\.svg)"', page)
    assert len(pictures) == len(METHODS) + 5
    assert all((site / unquote(picture)).stat().st_size > 1000 for picture in pictures)


def test_what_a_docstring_says_of_its_parameters_is_a_list(site: Path) -> None:
    reference = (site / "api.html").read_text()
    entry = reference[
        reference.index('id="mpt_bihalf.score_mask"') : reference.index('id="mpt_bihalf.global_score_masks"')
    ]
    assert re.findall(r"<li><p><strong>(\w+)</strong>", entry) == ["scores", "prune_rate", "scope"]
    assert "<p>Returns 1 (kept) and 0 (pruned)" in entry
