"""The command line of tickets: python -m mpt_bihalf ticket make | show | verify | run | bench | export | ..."""

from __future__ import annotations

import argparse
import io
import json
import os
from collections.abc import Callable, Sequence
from itertools import combinations
from pathlib import Path
from signal import SIGINT
from typing import Any, cast

import torch

from ..commandline import Parser, path_argument
from ..data import load_dataset
from ..devices import HOST, pick_device
from ..endings import CommandFailed, one_line, show, tell
from ..files import write_whole
from ..signals import Stopped
from ..sweep.done import best_of, load_run, runs
from ..sweep.records import is_number
from ..sweep.survey import survey
from ..training.finished import evaluate_test
from ..training.run_data import decoders
from .bench import LARGEST_BATCH, bench_table
from .classify import classify, image_files
from .compare import density_table, overlap_table
from .compiled import MOST_THREADS, compiled
from .export import export_cpp, export_onnx, export_torch
from .file import FORMS, read_ticket, write_ticket
from .fold import fold
from .from_run import other_data, placeless, run_ticket
from .images import statistics
from .published import METHODS, import_checkpoint
from .retrain import LEARNING_RATE, retrained_table, retraining_run
from .sizes import size_table
from .ticket import Ticket
from .transfer import check_images, transfer_table

# Of top-1 in percent, from machine to machine, as sums round otherwise there.
ROUNDING = 1.0


def add_ticket(commands: Any) -> None:
    """Add `ticket` and its commands to those of the program."""
    ticket = commands.add_parser(
        "ticket",
        help="a finished run as a small file that stands alone",
        description="A finished run as a small file that stands alone: make it, check it, run it, compare it.",
        epilog="From Python: mpt_bihalf.load_ticket(FILE) gives the network, and needs nothing of the run.",
    )
    kinds = ticket.add_subparsers(dest="kind", required=True, metavar="command", parser_class=Parser)

    make = _add(
        kinds,
        "make",
        do_make,
        "make a ticket of a finished run",
        "Its checkpoint and its data must be there. A file that is there already is replaced.",
        "e.g. python -m mpt_bihalf ticket make runs/conv4-digits-mpt-bihalf-pruned0.9-seed0-HASH -o conv4.ticket, or "
        "make runs/prune_sweep --best --where method=mpt-bihalf -o best.ticket",
    )
    make.add_argument(
        "run",
        type=path_argument,
        metavar="RUN",
        help="the run's folder, which train and sweeps name; with --best a sweep's",
    )
    make.add_argument(
        "--best",
        action="store_true",
        help="RUN is a sweep's folder: take its most accurate run, by validation where images were held out",
    )
    make.add_argument(
        "--where",
        nargs="+",
        default=[],
        metavar="FIELD=VALUE",
        help="with --best, of the runs that all of these hold for, e.g. method=mpt-sign prune_rate=0.5..0.9",
    )
    make.add_argument("-o", "--out", type=path_argument, required=True, metavar="FILE", help="the ticket to write")
    make.add_argument("--form", choices=FORMS, default="bits", help="bits: masks and signs; seed: masks alone, where "
                      "signs follow from the run's seed (mpt methods), for a torch that draws the same")  # fmt: skip
    make.add_argument("--note", default="", help="words of your own to keep in the file")

    _add_import(kinds)

    show = _add(
        kinds,
        "show",
        do_show,
        "what a ticket is, and where its bytes are",
        "By layer: how much is kept, the bits a weight takes, its bytes beside the least that its mask and signs can "
        "take (their Shannon bound) and beside float32. Of the form seed the signs are left out, and it may lie below.",
    )
    _add_file(show)
    show.add_argument(
        "--json", action="store_true", default=None, help="its network and what is known of it, for programs"
    )

    verify = _add(
        kinds,
        "verify",
        do_verify,
        "check a ticket; with --data or --run also what it gives",
        "Exit status 0: the file is whole, and its network takes all of it; 1: it is not that of --run; 2: no ticket, "
        "or a damaged one.",
    )
    _add_file(verify)
    verify.add_argument("--data", metavar="DATA", help="score it on the test images of these data, as --data of train; "
                        "by the ticket's mean, std and class names, if it has them")  # fmt: skip
    verify.add_argument("--data-root", metavar="PATH", help="where data sets lie or are downloaded to")
    verify.add_argument(
        "--run", type=path_argument, metavar="RUN", help="compare with the network of this run, bit by bit"
    )

    run = _add(
        kinds,
        "run",
        do_run,
        "the classes of images and their probabilities",
        "It computes with the kept weights alone, on the CPU (from Python: mpt_bihalf.compile_ticket). Images are "
        "scaled and cropped to the network's size, and standardised by the ticket's mean and std. What of a network "
        "cannot be run so is named in one line.",
        "e.g. python -m mpt_bihalf ticket run conv4.ticket photos/ --top 3",
    )
    _add_file(run)
    run.add_argument("images", nargs="+", type=path_argument, metavar="IMAGE", help="image files, or folders of them")
    run.add_argument("--top", type=int, default=1, metavar="N", help="how many classes are told of each image")
    run.add_argument("--json", action="store_true", default=None, help="a line of JSON for each image: its file and "
                     "the probability of every class")  # fmt: skip

    bench = _add(
        kinds,
        "bench",
        do_bench,
        "how fast it runs on this machine, beside torch and ONNX Runtime",
        "Each takes its turn on random images, several times; the medians are shown. ONNX Runtime is there if "
        "onnxruntime and what ticket export needs are installed.",
        "e.g. python -m mpt_bihalf ticket bench conv4.ticket --batches 1 128 --threads 1 2",
    )
    _add_file(bench)
    bench.add_argument("--batches", nargs="+", type=int, default=[1, 128], metavar="N", help="images at a time")
    bench.add_argument("--threads", nargs="+", type=int, metavar="N", help="threads (1, and as many as torch takes)")

    export = _add(
        kinds,
        "export",
        do_export,
        "the network for other programs",
        "One of them or several. ONNX and torch.export take any number of images at a time, in [0, 1] as "
        "(x - mean) / std of each channel. Either file keeps the mean, the std and the classes that the ticket knows, "
        "as JSON: ONNX in its metadata, torch.export in its extra files. The C++ program needs a compiler alone.",
        "e.g. python -m mpt_bihalf ticket export conv4.ticket --onnx conv4.onnx --fold",
    )
    _add_file(export)
    export.add_argument("--onnx", type=path_argument, metavar="FILE", help="write an ONNX file")
    export.add_argument("--torch", type=path_argument, metavar="FILE", help="write a program of torch.export (.pt2)")
    export.add_argument("--cpp", type=path_argument, metavar="DIR", help="write a C++ program of one file, and its "
                        "weights as bits; its first lines say how to build and run it")  # fmt: skip
    export.add_argument("--fold", action="store_true", default=None, help="first fold batch norms and remove dead "
                        "filters and channels; tells by how much outputs differ, which is rounding")  # fmt: skip

    compare = _add(
        kinds,
        "compare",
        do_compare,
        "overlap of the masks and signs of tickets, against chance",
        "By chance: of masks of the same counts that know nothing of each other; z: by how many standard deviations "
        "more are kept by both. Of what both keep, how many have the same sign.",
    )
    compare.add_argument(
        "tickets", nargs="+", type=path_argument, metavar="TICKET", help="two or more files, of one network"
    )
    _add_model(compare)

    moved = _add(
        kinds,
        "transfer",
        do_transfer,
        "a ticket's mask on other weights or other data, scored",
        "Test top-1 of the network as it is and of a logistic regression on what its last layer sees, beside the same "
        "with the mask shuffled within each layer. With --as init: of real-valued networks that start from the "
        "ticket's mask and signs and are trained, beside shuffled signs, a shuffled mask and a dense network.",
        "e.g. python -m mpt_bihalf ticket transfer conv4.ticket --seed 1 --data fashion-mnist, or conv4.ticket --as "
        "init --trials 5",
    )
    _add_file(moved)
    moved.add_argument("--data", metavar="DATA", help="to score on (default: what it was trained on)")
    moved.add_argument("--data-root", metavar="PATH", help="where data sets lie or are downloaded to")
    moved.add_argument(
        "--image-size", type=int, metavar="PIXELS", help="to resize the images to (default: as its network has them)"
    )
    moved.add_argument("--seed", type=int, metavar="N", help="put the mask on the weights that this seed draws; with "
                       "--as init that of the magnitudes and the training (0)")  # fmt: skip
    moved.add_argument("--as", dest="use", choices=("mask", "init"), default="mask", help="mask: binary weights, "
                       "scored; init: real-valued ones of random magnitude, trained under the mask")  # fmt: skip
    moved.add_argument(
        "--epochs", type=int, metavar="N", help="with --as init (default: that of the ticket's run, or 10)"
    )
    moved.add_argument(
        "--lr", type=float, metavar="RATE", help=f"with --as init: where its cosine starts (default: {LEARNING_RATE})"
    )
    moved.add_argument(
        "--batch-size", type=int, metavar="N", help="with --as init (default: that of the ticket's run, or 128)"
    )
    moved.add_argument(
        "--trials", type=int, metavar="N", help="with --as init: mean ± standard deviation over so many seeds (1)"
    )


def _add_import(kinds: Any) -> None:
    published = _add(
        kinds,
        "import",
        do_import,
        "a checkpoint of a published code as a ticket, or as a network to train on",
        "Of MPT's code (biprop), edge-popup's (hidden-networks), IR-Net's and bi-half's (Equal Bits), with their own "
        "counts and scales; nothing but tensors and plain values is read. Tells in how many weights our own rules "
        "would differ. Where the weights are real-valued it writes the state of a plain network under its mask.",
        "e.g. python -m mpt_bihalf ticket import model_best.pth --model conv4 --kept 0.5 -o conv4.ticket",
    )
    add = published.add_argument
    add("file", type=path_argument, metavar="FILE", help="what the code saved")
    add("--model", required=True, metavar="NAME", help="the network that it is, as --model of train")
    add("--kept", metavar="FRACTION", help="of the weights, where the file does not say it: newer ones of MPT's code "
        "do (there it is called prune_rate)")  # fmt: skip
    add("--method", choices=METHODS, help="what the weights are: mpt-sign (MPT), dense (edge-popup), irnet, or of "
        "bi-half's code sign, bihalf (half), magnitude-bihalf (halfmask); by default mpt-sign where the file names "
        "MPT's layers, and dense where it has scores and names none")  # fmt: skip
    add("--activations", metavar="NAME", help="real, or binary as of train; by default as the file says")
    add("--image-size", type=int, metavar="PIXELS", help="that the network is for (default: 224 where it begins with "
        "a 7x7 convolution, and 32)")  # fmt: skip
    add("-o", "--out", type=path_argument, metavar="FILE", help="what to write (default: FILE's name, in this folder, "
        "ending in .ticket or .pt, where no such file is there yet)")  # fmt: skip


def do_make(options: Any) -> None:
    """Make a ticket of a run."""
    _check_place(options.out)
    if options.where and not options.best:
        raise ValueError("--where chooses among the runs of a sweep: say --best too")
    run = best_run(options.run, options.where) if options.best else options.run
    write_ticket(run_ticket(run, options.note), options.out, options.form)
    show(size_table(options.out).rows[-1][-1] + f" times smaller than float32: {options.out}")


def do_import(options: Any) -> None:
    """Make a ticket, or a state to train on, of a checkpoint of a published code."""
    out = options.out or Path(options.file.name).with_suffix(".ticket")
    if options.out is not None:
        _check_place(out, [options.file])
    activations = "approx" if options.activations == "binary" else options.activations
    asked = options.kept, options.method, activations, options.image_size
    found = import_checkpoint(options.file, options.model, *asked)
    if options.out is None:
        out = out if found.ticket is not None else out.with_suffix(".pt")
        if os.path.lexists(out):  # which nobody has said may go
            raise ValueError(f"{str(out)!r} is there already: say by -o what to write")
    for line in found.lines:
        show(one_line(line, 1000))
    if found.ticket is not None:
        write_ticket(found.ticket, out)
        show(f"ticket: {out}")
        return
    packed = io.BytesIO()
    torch.save(cast(torch.nn.Module, found.model).state_dict(), packed)
    write_whole(out, lambda file: file.write(packed.getbuffer()))
    show(f"real-valued weights under a fixed mask, to train on: {out}; in Python import_checkpoint(...).model is it")


def best_run(out: Path, where: Sequence[str]) -> Path:
    """The folder of the best run below `out` that these hold for, which is named."""
    from ..report.sweep_report import chosen_records, records_of  # with matplotlib, half a second

    names = set(chosen_records(records_of(survey(out)), where)["run"])
    some = [done for done in runs(out) if done.folder.name in names]
    if not some:
        raise ValueError(f"no finished run of {str(out)!r} is one that {' '.join(where) or 'nothing'} holds for")
    best = best_of(some)
    show(f"the best of {len(some):,}: {best.folder}, test top-1 {best.result['test_top1']:.2f} %")
    return best.folder


def do_show(options: Any) -> None:
    """Show what a ticket is."""
    ticket = read_ticket(options.ticket, model=options.model)
    if options.json:
        show(json.dumps({"architecture": ticket.architecture, "about": ticket.about}, indent=2))
        return
    for line in _about(ticket):
        show(one_line(line, 1000))
    table = size_table(options.ticket)
    show(f"\n{table.title}\n{table.text()}")


def do_verify(options: Any) -> None:
    """Check a ticket."""
    ticket = read_ticket(options.ticket, model=options.model)
    weights = sum(layer.binary.numel() for layer in ticket.layers.values())
    show(f"file: whole; {len(ticket.layers)} binary layers of {weights:,} weights, as many kept and +1 as it says")
    if ticket.architecture is not None:
        ticket.network()
        show(f"network: {ticket.architecture['name']} takes all of it")
    if options.run is not None:
        model = load_run(options.run).model
        theirs, ours = Ticket.of(model).state_dict(), ticket.state_dict()
        other = [name for name in theirs if name not in ours or not torch.equal(theirs[name], ours[name])]
        if other:
            raise CommandFailed(
                f"{str(options.ticket)!r} is not the network of {str(options.run)!r}: {other[0]} differs"
            )
        show(f"run: the same network as {options.run} has, to the last bit")
    if options.data is not None:
        dataset = load_dataset(options.data, options.data_root, ticket.images[-1]).to(HOST)
        check_images(ticket, dataset)
        classes = cast(dict[str, Any], ticket.architecture)["num_classes"]
        if dataset.num_classes != classes:
            raise ValueError(f"{options.data}: {dataset.num_classes} classes, and the network tells {classes} apart")
        if dataset.left_out:
            _warn(dataset.left_out)
        run, result, differing = ticket.told("run"), ticket.told("result"), other_data(ticket, dataset)
        if differing and placeless(options.data) == run.get("data"):
            raise ValueError(f"{options.data} holds other data than the ticket's run was trained on: {differing}")
        spec = ticket.image_spec
        dataset = spec.relabel(spec.standardise(dataset, _warn), _warn)
        figures = evaluate_test(ticket.network(), dataset, run.get("precision", "fp32"))
        told = f"; its run had {_figure(result, 'test_top1', 2)} % on {one_line(run.get('data'))}" if result else ""
        told += ", which are other data" if result and differing else ""
        show(f"{options.data}: test top-1 {figures['test_top1']:.2f} %{told}")
        had = result.get("test_top1")
        same = ticket.told("data").get("sha256") == dataset.digest.sha256
        if same and is_number(had) and abs(figures["test_top1"] - cast(float, had)) > ROUNDING:
            raise CommandFailed(f"{str(options.ticket)!r} does not do on these images what its run did")


def do_run(options: Any) -> None:
    """Classify images."""
    ticket = read_ticket(options.ticket, model=options.model)
    names = ticket.image_spec.classes
    if options.top < 1:
        raise ValueError(f"--top must be at least 1, not {options.top}")
    for file, probabilities in classify(ticket, image_files(options.images), _warn):
        told = names or [str(index) for index in range(len(probabilities))]
        if options.json:
            shares = dict(zip(told, probabilities.tolist(), strict=True))
            show(json.dumps({"file": str(file), "probabilities": shares}, ensure_ascii=True))
            continue
        best = probabilities.argsort(descending=True, stable=True)[: options.top].tolist()
        shown = ", ".join(f"{one_line(told[index])} {100 * probabilities[index]:.1f} %" for index in best)
        show(f"{one_line(file, 1000)}: {shown}")


def do_bench(options: Any) -> None:
    """Time a ticket."""
    threads = options.threads or sorted({1, torch.get_num_threads()})
    for name, numbers, most in (("batches", options.batches, LARGEST_BATCH), ("threads", threads, MOST_THREADS)):
        for number in numbers:
            if not 1 <= number <= most:
                raise ValueError(f"--{name} must lie in 1 to {most:,}, not {number}")
    table = bench_table(read_ticket(options.ticket, model=options.model), options.batches, threads)
    show(f"{table.title}\n{table.text()}")


@torch.no_grad()
def do_export(options: Any) -> None:
    """Export a ticket's network."""
    if options.onnx is None and options.torch is None and options.cpp is None:
        raise ValueError("say what to write: --onnx FILE, --torch FILE or --cpp DIR")
    taken = [options.ticket]
    for path in filter(None, (options.onnx, options.torch)):
        _check_place(path, taken)
        taken.append(path)
    ticket = read_ticket(options.ticket, model=options.model)
    if options.cpp is not None:
        for path in export_cpp(compiled(ticket), ticket.image_spec, options.cpp):
            show(f"wrote {path}: {path.stat().st_size:,} bytes")
    if options.onnx is None and options.torch is None:
        return
    model = ticket.network()
    example = torch.randn(8, *ticket.images, generator=torch.Generator().manual_seed(0), dtype=torch.float32)
    if options.fold:
        folded, removed = fold(model, example)
        show(
            f"folded: {removed.norms} batch norms, {removed.dead} dead filters and {removed.unused} unused ones; "
            f"{removed.parameters_after:,} of {removed.parameters_before:,} parameters left"
        )
        before = model(example)
        off = float((folded(example) - before).abs().max() / before.abs().max())
        show(f"        outputs for {len(example)} random images differ by {off:.0e} of the largest")
        model = folded
    metadata = {name: json.dumps(value) for name, value in ticket.image_spec.known().items()}
    for path, write in ((options.onnx, export_onnx), (options.torch, export_torch)):
        if path is not None:
            write(model, example, path, metadata)
            show(f"wrote {path}: {path.stat().st_size:,} bytes")


def do_compare(options: Any) -> None:
    """Compare tickets."""
    if len(options.tickets) < 2:
        raise ValueError("compare takes two tickets or more")
    read = [read_ticket(path, model=options.model) for path in options.tickets]
    names = [chr(ord("A") + index) if index < 26 else f"#{index + 1}" for index in range(len(read))]
    tickets = dict(zip(names, read, strict=True))
    for name, path in zip(tickets, options.tickets, strict=True):
        show(f"{name}: {path}")
    tables = [overlap_table(f"{a} and {b}", tickets[a], tickets[b]) for a, b in combinations(names, 2)]
    tables.append(density_table(tickets))
    for table in tables:
        show(f"\n{table.title}\n{table.text()}")


def do_transfer(options: Any) -> None:
    """Score a ticket's mask elsewhere, or train from it."""
    for option in ("epochs", "lr", "batch_size", "trials"):
        if options.use != "init" and getattr(options, option) is not None:
            raise ValueError(f"--{option.replace('_', '-')} is of a training: it goes with --as init")
    if options.trials is not None and options.trials < 1:
        raise ValueError(f"--trials must be at least 1, not {options.trials}")
    ticket = read_ticket(options.ticket, model=options.model)
    data = options.data or ticket.told("run").get("data")
    if not isinstance(data, str):
        raise ValueError("the ticket does not say what it was trained on: say --data")
    size = options.image_size or ticket.images[-1]
    run = None
    if options.use == "init":
        given = {name: getattr(options, name) for name in ("epochs", "lr", "batch_size", "seed")}
        run = retraining_run(ticket, data, **given).resolved()
    device = HOST if run is None else pick_device(run.device)
    dataset = load_dataset(data, options.data_root, size).to(device)
    differing = other_data(ticket, dataset)
    if differing and options.data is None:
        raise ValueError(f"{data} holds other data than the ticket's run was trained on: {differing}; say --data")
    if dataset.num_classes == cast(dict[str, Any], ticket.architecture)["num_classes"]:
        dataset = ticket.image_spec.relabel(dataset, _warn)
    if run is None:
        table = transfer_table(ticket, dataset, options.seed)
    else:
        try:
            table = retrained_table(ticket, dataset.decoded_by(decoders(run)), run, options.trials or 1)
        except KeyboardInterrupt as stop:
            raise Stopped(getattr(stop, "signum", SIGINT), "nothing of it is kept") from None
    if differing:
        show(f"other data than the ticket's run was trained on: {one_line(differing, 1000)}")
    show(f"images standardised by their own {statistics(dataset.mean, dataset.std)}")
    show(f"{table.title}\n{table.text()}")


def _warn(text: str) -> None:
    tell(f"warning: {text}", 1000)


def _check_place(path: Path, taken: Sequence[Path] = ()) -> None:
    """ValueError, before any work is done, where no file of this name can be written, or one of `taken` would go."""
    if not path.parent.is_dir():
        raise ValueError(f"{str(path)!r} cannot be written: there is no folder {str(path.parent)!r}")
    if path.is_dir():
        raise ValueError(f"{str(path)!r} is a folder: give the name of a file")
    if path.exists() and not path.is_file():
        raise ValueError(f"{str(path)!r} is no file that could be replaced")
    if os.path.realpath(path) in map(os.path.realpath, taken):
        raise ValueError(f"{str(path)!r} is named twice: give the file to write a name of its own")


def _about(ticket: Ticket) -> list[str]:
    lines = []
    if ticket.architecture is not None:
        chosen = {name: value for name, value in ticket.architecture.items() if name != "name"}
        lines.append(f"network: {ticket.architecture['name']}, {', '.join(f'{n} {v}' for n, v in chosen.items())}")
    on_output = [name for name, layer in ticket.layers.items() if layer.scale_on == "output"]
    if on_output:
        lines.append(f"scales: on the outputs of {', '.join(on_output)}")
    run, result = ticket.told("run"), ticket.told("result")
    if run:
        rate = run.get("prune_rate")
        pruned = f"{100 * cast(float, rate):g}%" if is_number(rate) else "?"
        lines.append(
            f"trained: {run.get('method')} on {run.get('data')}, {pruned} pruned, "
            f"{run.get('epochs')} epoch{'s' * (run.get('epochs') != 1)}, seed {run.get('seed')}"
        )
    if result:
        lines.append(f"result: test top-1 {_figure(result, 'test_top1', 2)} %, loss {_figure(result, 'test_loss', 4)}")
    spec = ticket.image_spec
    if spec.mean and spec.std:
        lines.append(f"images: standardised by {statistics(spec.mean, spec.std)}")
    if spec.classes:
        lines.append(f"classes: {', '.join(spec.classes)}")
    if ticket.about.get("note"):
        lines.append(f"note: {ticket.about['note']}")
    return lines


def _figure(result: dict[str, Any], name: str, digits: int) -> str:
    value = result.get(name)
    return f"{value:.{digits}f}" if is_number(value) else "?"


def _add(
    kinds: Any, name: str, do: Callable[[Any], None], help: str, more: str, example: str | None = None
) -> argparse.ArgumentParser:
    description = f"{help[0].upper()}{help[1:]}. {more}"
    parser: argparse.ArgumentParser = kinds.add_parser(name, help=help, description=description, epilog=example)
    parser.set_defaults(do=do)
    return parser


def _add_file(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("ticket", type=path_argument, metavar="TICKET", help="the file")
    _add_model(parser)


def _add_model(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--model", metavar="NAME", help="the network that it must be of, as --model of train; a ticket "
                        "of another, or of none by name, is refused before it is unpacked")  # fmt: skip
