"""Runs on a Ray cluster, or on Ray on this machine: each run a task."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable, Generator
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from typing import Any

from ...plugins import load_plugins, loaded_plugins
from ...training import Run
from ...training.callbacks import Sender, received
from ..order import Order
from ..work import Outcome, failed, perform
from .engine import Engine, EngineOptions, Event
from .local import PACKAGE_PARENT, is_here

# A run whose worker or node died is taken up again so often, by any node; it goes on from its last checkpoint.
RETRIES = 5
# Seconds that tasks have to end their step and write their checkpoints when the sweep is interrupted.
PATIENCE = 60


class RayEngine(Engine):
    """A task a run, of as many CPUs as the run has threads and of a share of an accelerator.

    All nodes must see the output folder, and any `folder:` of images, at the same path, and have this package.
    """

    def __init__(self, out: Path, runs: list[Run], options: EngineOptions) -> None:
        try:
            import ray
        except ImportError:
            raise ValueError("--engine ray needs Ray: pip install 'mpt_bihalf[ray]'") from None
        self._ray: Any = ray
        self._out, self._options = out, options
        pinned = [run.device for run in runs if ":" in run.device]
        if pinned:
            raise ValueError(f"Ray chooses the accelerator of a run: say {pinned[0].split(':')[0]}, not {pinned[0]}")
        if not self._ray.is_initialized():
            before = signal.getsignal(signal.SIGTERM)
            try:
                self._ray.init(
                    address=options.address or "local",
                    include_dashboard=None if options.address else False,
                    log_to_driver=False,
                    logging_level="error",
                )
            except (ConnectionError, RuntimeError) as fault:
                raise ValueError(f"no Ray cluster at {options.address or 'this machine'}: {fault}") from None
            if threading.current_thread() is threading.main_thread():
                signal.signal(signal.SIGTERM, before)  # Ray's own would abort the process
        self._check_room(runs)

    def do(self, runs: list[Run]) -> Generator[Event]:
        from ray.util.queue import Queue

        task = self._ray.remote(_task())
        order, missing = Order(runs, self._out), len(runs)
        under_way: dict[Any, Run] = {}
        messages = Queue(actor_options={"num_cpus": 0})
        by_hash = {run.hash: run for run in runs}
        try:
            while missing:
                while not self._options.jobs or len(under_way) < self._options.jobs:
                    run = order.poll()
                    if run is None:
                        break
                    wanted = {"name": run.name, "max_retries": RETRIES, **self._resources(run)}
                    given = asdict(run), str(self._out), loaded_plugins(), messages
                    under_way[task.options(**wanted).remote(*given)] = run
                done, _ = self._ray.wait(list(under_way), num_returns=1, timeout=Sender.EVERY)
                with suppress(self._ray.exceptions.RayError):  # then nothing is told but what comes out
                    for key, message in messages.get_nowait_batch(messages.size()):
                        yield (by_hash[key], *received(message))
                if not done:
                    continue
                run = under_way.pop(done[0])
                try:
                    outcome = Outcome(run, *self._ray.get(done[0]))
                except self._ray.exceptions.RayError as fault:  # its worker or node died once too often
                    outcome = failed(run, self._out, f"Ray gave it up: {type(fault).__name__}: {fault}")
                for ended in order.end(outcome):
                    missing -= 1
                    yield ended
        finally:
            for reference in under_way:
                self._ray.cancel(reference)  # as an interrupt: training stops after its step
            with suppress(self._ray.exceptions.RayError):
                self._ray.wait(list(under_way), num_returns=len(under_way), timeout=PATIENCE) if under_way else None
            with suppress(Exception):  # where the cluster is gone, and Ray's errors have many kinds
                messages.shutdown(force=True)

    def _resources(self, run: Run) -> dict[str, float]:
        on_cpu = run.device == "cpu"
        return {"num_cpus": run.threads, "num_gpus": 0 if on_cpu else 1 / self._options.runs_per_device}

    def _check_room(self, runs: list[Run]) -> None:
        """ValueError for a run that no node there is now can take: it would wait for ever."""
        nodes = [node["Resources"] for node in self._ray.nodes() if node["Alive"]]
        for run in runs:
            wanted = self._resources(run)
            if not any(
                node.get("CPU", 0) >= wanted["num_cpus"] and node.get("GPU", 0) >= wanted["num_gpus"] for node in nodes
            ):
                raise ValueError(
                    f"no node of the Ray cluster has the {run.threads} CPUs"
                    f"{' and the accelerator' * (wanted['num_gpus'] > 0)} of a run: see --threads and --device"
                )


def _task() -> Callable[..., tuple[dict[str, Any] | None, str]]:
    """What a node does, as a function that Ray hands over by its code, so that it comes before the package's imports.

    Ray has its workers look for modules in the driver's current folder first. They do as those of this machine do.
    """
    here, package_lies_here = os.getcwd(), is_here(PACKAGE_PARENT)

    def task(
        values: dict[str, Any], out: str, plugins: list[tuple[str, str]], messages: Any
    ) -> tuple[dict[str, Any] | None, str]:
        import sys

        sys.path[:] = [path for path in sys.path if path != here] + [here] * package_lies_here
        from mpt_bihalf.sweep.engines.on_ray import perform_run

        return perform_run(values, out, plugins, messages)

    return task


def perform_run(
    values: dict[str, Any], out: str, plugins: list[tuple[str, str]], messages: Any
) -> tuple[dict[str, Any] | None, str]:
    """What `_task` does, as (result, error). messages: a queue of Ray's for what is told on the way."""
    load_plugins(plugins)
    run = Run.from_dict(values)

    def send(message: list[Any]) -> None:
        import ray

        with suppress(Exception):  # whoever reads it may be gone, and Ray's errors have many kinds
            sent = messages.actor.put_nowait.remote((run.hash, message))
            if message[2:]:  # an epoch, which is to arrive before the outcome
                ray.wait([sent], timeout=PATIENCE)

    outcome = perform(run, Path(out), [Sender(send)])
    return outcome.result, outcome.error
