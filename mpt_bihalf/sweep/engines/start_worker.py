"""The program that becomes a worker: run by its path, as what the package needs is not to be found before it begins.

`start_worker.py PATIENCE OUT ACCELERATOR PLUGINS PATH...`: seconds from the sweep's end to that of a worker that hangs;
the sweep's folder; the accelerator's number, or nothing; `loaded_plugins` of the sweep, as JSON; the folders to look
for modules in.
"""

from __future__ import annotations

import gc
import os
import sys


def main() -> None:
    patience, out, accelerator, plugins, *sys.path[:] = sys.argv[1:]
    import signal

    if signal.getsignal(signal.SIGINT) == signal.default_int_handler:
        signal.signal(signal.SIGINT, signal.SIG_DFL)  # as SIGTERM: it ends what is not training without a word
    _begin_guard(float(patience))
    gc.disable()  # as in `endings.starting`
    _import_package()
    from mpt_bihalf.sweep.engines.worker import work

    gc.freeze()
    gc.enable()
    work(out, int(accelerator) if accelerator else None, plugins)


def _begin_guard(patience: float) -> None:
    """Have a process of a few MB kill this one where it outlives the sweep by so many seconds.

    What holds the interpreter, hangs in compiled code or is stopped hears neither a thread nor a signal of its own. The
    sweep's end is that of the pipe of standard input, this process's end that of a pipe of its own.
    """
    if sys.platform == "win32":
        return
    import select
    import signal

    worker = os.getpid()
    end, open_while_alive = os.pipe()
    if os.fork():
        os.close(end)
        return
    try:
        for signum in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            signal.signal(signum, signal.SIG_IGN)
        os.close(open_while_alive)
        nowhere = os.open(os.devnull, os.O_WRONLY)
        for output in (1, 2):  # whose readers wait until nobody can write to them
            os.dup2(nowhere, output)
        ends = select.poll()
        ends.register(end, 0)
        ends.register(0, 0)
        if end not in dict(ends.poll()):
            ends.unregister(0)
            if not ends.poll(1000 * patience) and os.getppid() == worker:
                os.kill(worker, signal.SIGKILL)
    finally:
        os._exit(0)


def _import_package() -> None:
    """Import the package that this file is of, whichever other may lie in the folders."""
    from importlib.util import module_from_spec, spec_from_file_location

    folder = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
    spec = spec_from_file_location("mpt_bihalf", os.path.join(folder, "__init__.py"))
    assert spec
    assert spec.loader
    package = sys.modules["mpt_bihalf"] = module_from_spec(spec)
    spec.loader.exec_module(package)


if __name__ == "__main__":
    main()
