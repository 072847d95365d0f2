"""Start a worker's process: a fresh Python, or a fork of one that has imported torch (see preload.py).

Either leads its own process group, prints to standard error, imports nothing from the working directory, and has the
environment, working directory and sys.path that its parent has now.
"""

import contextlib
import ctypes
import logging
import os
import signal
import sys
import tempfile
import threading
import warnings
from collections.abc import Callable, Iterator
from multiprocessing import forkserver, get_context, resource_tracker
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from types import ModuleType

from tqdm import tqdm

from bench.machine import cpu_cores
from utils import ROOT, SIGNALS

MAX_TEMP_PATH = 70  # characters; the fork server's socket adds 32, and the system takes 107
PR_SET_PDEATHSIG = 1  # prctl(2)
STANDARD_ERROR = 2


def environment() -> dict[str, str]:
    """Return this process's variables, with the number of cores for libraries that ignore a container's quota."""
    return dict.fromkeys(("OMP_NUM_THREADS", "RAYON_NUM_THREADS"), str(cpu_cores())) | os.environ


def can_fork() -> bool:
    """True if this system's libraries survive a fork, and the fork server can import this project and be reached."""
    importable = os.pathsep not in str(ROOT)  # PYTHONPATH can't quote it
    return sys.platform == "linux" and importable and len(tempfile.gettempdir()) <= MAX_TEMP_PATH


def start_process(serve: Callable, connection: Connection, forked: bool, seconds: float) -> BaseProcess:
    """Start a process that calls `serve(connection)`. Raises OSError, also if a fork takes longer than `seconds`."""
    main, limit = sys.modules["__main__"], threading.Timer(seconds, stop_fork_server)
    limit.daemon = True  # never delays the exit of the script
    with Connection(os.dup(STANDARD_ERROR)) as errors:  # plain descriptors can't be sent
        context = get_context("forkserver" if forked else "spawn")
        process = context.Process(target=run_process, args=(serve, connection, errors, environment()))
        try:
            limit.start()
            sys.modules["__main__"] = ModuleType("__main__")  # else it would run the script's imports again
            with python_starts():
                if forked:
                    forkserver.set_forkserver_preload(["bench.preload"])
                    forkserver.ensure_running()
                else:
                    process.start()
            if forked:  # not in the block above: Ctrl-C may interrupt it
                process.start()
        except EOFError:
            stop_fork_server()
            raise OSError("the process that forks workers died or did not answer") from None
        except OSError:
            stop_fork_server()  # it does not survive a lack of descriptors or processes
            raise
        finally:
            limit.cancel()
            sys.modules["__main__"] = main
    return process


@contextlib.contextmanager
def python_starts() -> Iterator[None]:
    """Let a Python that starts in the block import this project, nothing from its folder, and get no signals."""
    variables = dict(os.environ)
    os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
    os.environ["PYTHONSAFEPATH"] = "1"  # as -P
    resource_tracker.ensure_running()  # before the next line: it unblocks the signals at its end
    signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)  # inherited by that process, which Ctrl-C would end
    try:
        yield
    finally:
        os.environ.clear()
        os.environ.update(variables)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, SIGNALS)


def stop_fork_server() -> None:
    """Kill the fork server, and with it all forks."""
    server = forkserver._forkserver  # multiprocessing has no public way
    if server._forkserver_pid is not None:
        os.kill(server._forkserver_pid, signal.SIGKILL)
        server._stop()


@contextlib.contextmanager
def stopped_afterwards() -> Iterator[None]:
    """End the processes that forking workers needs after the block, unless they ran before."""
    server, tracker = forkserver._forkserver, resource_tracker._resource_tracker
    server_ran, tracker_ran = server._forkserver_pid, tracker._pid
    try:
        yield
    finally:
        if server_ran is None:
            stop_fork_server()
        if tracker_ran is None and tracker._pid is not None:
            tracker._stop()


def run_process(serve: Callable, connection: Connection, errors: Connection, variables: dict[str, str]) -> None:
    signal.pthread_sigmask(signal.SIG_UNBLOCK, SIGNALS)
    os.dup2(errors.fileno(), STANDARD_ERROR)
    errors.close()
    os.environ.clear()
    os.environ.update(variables)
    serve(connection)


def become_worker() -> None:
    """Make this process end with its parent, ignore the terminal's signals, and print to standard error."""
    os.setpgid(0, 0)
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)  # else it would finish its work for nobody
    os.dup2(STANDARD_ERROR, 1)  # standard output is for rows
    logging.disable(logging.CRITICAL)  # messages quote a model's files; errors are reported in one line of ours
    warnings.simplefilter("ignore")
    tqdm.set_lock(threading.RLock())  # its own is a semaphore, whose leak Python reports when the worker is killed


def wait_for_end(process: BaseProcess, seconds: float) -> str:
    """Wait for the end of a process that was killed or has died; return its signal or its exit code in words.

    Those of a fork come from the fork server, which is killed if it doesn't answer within `seconds`.
    """
    process.join(seconds)
    if process.exitcode is None:
        stop_fork_server()
        return "exit code unknown"
    return signal.Signals(-process.exitcode).name if process.exitcode < 0 else f"exit code {process.exitcode}"
