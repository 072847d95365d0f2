"""How a worker's process starts: as a fresh Python, or as a fork of one that has imported torch and transformers.

Importing them takes seconds, and a script has several workers, one after another. The process that forks computes
nothing and starts no CUDA, so its forks are as good as fresh ones. It starts when a fork is first asked for, and ends
with the process that asked.
"""

import atexit
import contextlib
import ctypes
import gc
import importlib
import logging
import os
import signal
import subprocess
import sys
import warnings
from collections.abc import Callable
from multiprocessing import Pipe
from multiprocessing.connection import Connection
from multiprocessing.reduction import recv_handle, send_handle
from types import SimpleNamespace

from bench.machine import cpu_cores

PR_SET_PDEATHSIG = 1  # prctl(2)
CAN_FORK = sys.platform == "linux"  # elsewhere what libraries have started does not outlive a fork
IMPORTED = "torch", "transformers.models.auto.modeling_auto", "transformers.models.auto.tokenization_auto"
STANDARD_ERROR = 2
current = SimpleNamespace(server=None)  # of this process


def start_python(serve: Callable[[int], None], connection: Connection) -> subprocess.Popen:
    """Starts a Python that calls a module's function with a connection's descriptor. Raises OSError.

    It is in a process group of its own. What it prints goes to standard error: standard output is for rows.
    """
    module, name, descriptor = serve.__module__, serve.__name__, connection.fileno()
    # -P: the working directory is no place to import from
    command = [sys.executable, "-P", "-c", f"from {module} import {name}; {name}({descriptor})"]
    streams = {"stdin": subprocess.DEVNULL, "stdout": STANDARD_ERROR}
    return subprocess.Popen(command, env=environment(), pass_fds=[descriptor], process_group=0, **streams)


def environment() -> dict[str, str]:
    """Returns the variables of a process that is started now, with what it may import and how many cores there are."""
    limits = "OMP_NUM_THREADS", "RAYON_NUM_THREADS"  # of most libraries: they don't see a container's quota
    return (
        dict.fromkeys(limits, str(cpu_cores())) | os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    )


def fork_python(serve: Callable[[int], None], connection: Connection) -> "ForkedProcess":
    """Starts a process as start_python does, but by forking one that has imported IMPORTED. Raises OSError."""
    if current.server and current.server.process.poll() is not None:
        current.server.stop()
        current.server = None
    current.server = current.server or ForkServer()
    return current.server.fork(serve, connection)


class ForkServer:
    """The process that forks, as its parent sees it."""

    def __init__(self):
        self.connection, theirs = Pipe()
        with theirs:
            self.process = start_python(serve_forks, theirs)
        atexit.register(self.stop)

    def fork(self, serve: Callable[[int], None], connection: Connection) -> "ForkedProcess":
        try:
            self.connection.send((serve, environment(), [*filter(None, sys.path)], os.getcwd()))
            for descriptor in (connection.fileno(), STANDARD_ERROR):
                send_handle(self.connection, descriptor, self.process.pid)
            return ForkedProcess(self, self.answer())
        except (KeyboardInterrupt, SystemExit):  # the answer that comes later would be taken for another one
            self.stop()
            raise

    def stop(self) -> None:
        """Ends the process, and so all that it has forked."""
        atexit.unregister(self.stop)
        self.process.kill()
        self.process.wait()
        self.connection.close()

    def answer(self) -> int:
        try:
            answer = self.connection.recv()
        except (EOFError, ConnectionError):
            raise OSError("the process that forks has died") from None
        if isinstance(answer, OSError):
            raise answer
        return answer


class ForkedProcess:
    """A forked process, with what subprocess.Popen says of one."""

    def __init__(self, server: ForkServer, pid: int):
        self.server, self.pid, self.code = server, pid, None

    def wait(self) -> int:
        """Waits for its end; returns its exit code, or a signal's number with a minus, as Popen does."""
        if self.code is None:
            try:
                self.server.connection.send(self.pid)
                self.code = self.server.answer()
            except OSError:  # what it forked died with it
                self.code = -signal.SIGKILL
        return self.code


def serve_forks(descriptor: int) -> None:
    """Imports IMPORTED, then forks, or waits for the end of a fork, as the parent asks, until it closes the pipe."""
    requests = Connection(descriptor)
    be_a_worker()
    os.environ["PYTORCH_NVML_BASED_CUDA_CHECK"] = "1"  # who asks for a GPU does not start CUDA, which outlives no fork
    for module in IMPORTED:
        with contextlib.suppress(Exception):  # who needs it imports it again, and says why it can't
            importlib.import_module(module)
    gc.freeze()  # collecting garbage would copy the pages that forks share
    with contextlib.suppress(EOFError, ConnectionError):  # the parent is gone
        while True:
            request = requests.recv()
            if isinstance(request, int):
                requests.send(os.waitstatus_to_exitcode(os.waitpid(request, 0)[1]))
                continue
            pipe, errors = recv_handle(requests), recv_handle(requests)
            try:
                pid = os.fork()
            except OSError as error:
                requests.send(error)
            else:
                if not pid:
                    requests.close()
                    run_fork(pipe, errors, request)
                    return
                os.setpgid(pid, pid)  # here, so that it is done before the parent may want to kill the group
                requests.send(pid)
            os.close(pipe)
            os.close(errors)


def run_fork(pipe: int, errors: int, request: tuple[Callable, dict, list, str]) -> None:
    """Makes a fork what start_python would have started, and runs it."""
    serve, variables, path, folder = request
    for stream in (1, STANDARD_ERROR):
        os.dup2(errors, stream)
    os.close(errors)
    os.chdir(folder)
    os.environ.clear()
    os.environ.update(variables)
    sys.path[:] = path
    serve(pipe)


def be_a_worker() -> None:
    """Has this process killed when the one that started it ends, and keeps what no worker needs from being imported."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)  # else it would finish its work for nobody
    logging.disable(logging.WARNING)
    warnings.simplefilter("ignore")
    sys.modules["sklearn"] = None  # transformers would import it, for generating texts: 2 seconds and 130 MB
