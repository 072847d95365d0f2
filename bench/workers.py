"""Processes that may die, hang or be interrupted: the only process protocol in the project.

A worker makes one object and then answers requests: call this method of it with these arguments. Requests are pickled
and must be small; what is large, workers read from files. A worker is in a process group of its own, so that Ctrl-C
reaches the parent alone. The end of its pipe means that it died; silence for too long means that it hangs, so work
that takes long calls `beat` as it goes.
"""

import contextlib
import ctypes
import functools
import logging
import operator
import os
import signal
import subprocess
import sys
import time
import warnings
from collections.abc import Callable
from multiprocessing import Pipe
from multiprocessing.connection import Connection, wait
from types import SimpleNamespace

from utils import RunError, UserError, first_line

POLL_SECONDS = 1.0  # between two heartbeats, and between two looks at the clock
PR_SET_PDEATHSIG = 1  # prctl(2)
OUT_OF_MEMORY = "OutOfMemory", "out of memory", "can't allocate memory", "Failed to allocate memory", "ALLOC_FAILED"
parent = SimpleNamespace(connection=None, last_beat=0.0)  # in a worker


class WorkerFailed(RunError):
    """A worker died, hung or raised; the message says which, and in what step."""


class Workers:
    """Starts a process for each tuple of arguments, calls methods in all of them, and kills them at the end.

    A context manager. Each process makes its object with `make(*arguments)`. `timeout`: seconds of silence after which
    a worker counts as hung, 0 for never.
    """

    def __init__(self, make: Callable, arguments: list[tuple], timeout: float = 0):
        self.timeout, self.connections, self.processes = timeout, [], []
        try:
            for _ in arguments:
                self.start()
            for connection, own in zip(self.connections, arguments, strict=True):
                self.send(connection, (make, own))
            self.answers("load")
        except OSError as error:  # there are no more processes or files
            self.kill()
            raise WorkerFailed(f"worker {len(self.processes) + 1} can't be started: {first_line(error)}") from error
        except BaseException:
            self.kill()
            raise

    def start(self) -> None:
        mine, theirs = Pipe()
        self.connections.append(mine)
        with theirs:
            # -P: the working directory is no place to import from
            command = [sys.executable, "-P", "-c", f"from bench.workers import serve; serve({theirs.fileno()})"]
            environment = os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
            streams = {"stdin": subprocess.DEVNULL, "stdout": 2}  # standard output is for rows
            self.processes.append(
                subprocess.Popen(command, env=environment, pass_fds=[theirs.fileno()], process_group=0, **streams)
            )

    def send(self, connection: Connection, request: tuple) -> None:
        with contextlib.suppress(OSError):  # it died: answers() says how
            connection.send(request)

    def ask(self, step: Callable, *arguments, on_beat: Callable[[list], object] | None = None) -> list:
        """Calls `step(object, *arguments)` in every worker and returns the values in the workers' order.

        `on_beat` gets the value of each worker's latest heartbeat. Raises WorkerFailed at once if a worker died or
        hangs, and after all have answered if one raised an error; a UserError is raised as it is.
        """
        for connection in self.connections:
            self.send(connection, (step, arguments))
        return self.answers(step.__name__, on_beat)

    def answers(self, step: str, on_beat: Callable | None = None) -> list:
        waiting, heard = dict(enumerate(self.connections)), [time.monotonic()] * len(self.connections)
        values, beats, errors = [None] * len(waiting), [None] * len(waiting), []
        while waiting:
            ready = wait(waiting.values(), POLL_SECONDS)
            now = time.monotonic()
            for i, connection in list(waiting.items()):
                if connection in ready:
                    kind, value = self.receive(i, step)
                    heard[i] = now
                    if kind == "beat":
                        beats[i] = value
                        if on_beat:
                            on_beat(beats)
                        continue
                    values[i] = value
                    errors += [value] if kind == "error" else []
                    del waiting[i]
                elif 0 < self.timeout < now - heard[i]:
                    raise WorkerFailed(f"timeout: no sign of life for {self.timeout:g} s (step {step})")
        if errors:
            raise errors[0]
        return values

    def receive(self, i: int, step: str) -> tuple:
        try:
            return self.connections[i].recv()
        except (EOFError, OSError):
            code = self.processes[i].wait()
            how = signal.Signals(-code).name if code < 0 else f"exit code {code}"
            raise WorkerFailed(f"worker {i + 1} of {len(self.processes)} died ({how}) in step {step}") from None

    def kill(self) -> None:
        for process in self.processes:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)  # with the compilers that it may have started
        for process in self.processes:
            process.wait()
        for connection in self.connections:
            connection.close()

    def __enter__(self) -> "Workers":
        return self

    def __exit__(self, *_) -> None:
        self.kill()


def in_fresh_process(function: Callable, *arguments):
    """Calls `function` in a process of its own, so that its imports, memory and GPU context stay out of this one.

    What it prints goes to standard error. Its UserError is raised here, any other error as a RunError.
    """
    try:
        with Workers(functools.partial, [(function, *arguments)]) as workers:
            return workers.ask(operator.call)[0]
    except WorkerFailed as error:
        raise RunError(f"{function.__name__}: {error}") from error


def beat(value=None) -> None:
    """Sends a heartbeat to the parent, at most once a second, with a value that tells how far the work is.

    Does nothing in a process that is no worker.
    """
    now = time.monotonic()
    if parent.connection and now - parent.last_beat >= POLL_SECONDS:
        parent.last_beat = now
        parent.connection.send(("beat", value))


def serve(descriptor: int) -> None:
    """Runs a worker over the pipe's descriptor, until the parent closes it or dies, or a request fails."""
    connection = parent.connection = Connection(descriptor)
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)  # else it would finish its work for nobody
    logging.disable(logging.WARNING)
    warnings.simplefilter("ignore")
    with contextlib.suppress(EOFError, ConnectionError):  # the parent is gone
        make, arguments = connection.recv()
        kind, target = attempt(make, *arguments)
        connection.send((kind, target if kind == "error" else None))
        while kind == "value":
            step, arguments = connection.recv()
            kind, value = attempt(step, target, *arguments)
            connection.send((kind, value))
            del value


def attempt(function: Callable, *arguments) -> tuple[str, object]:
    """Calls the function; returns ("value", its result) or ("error", a UserError)."""
    try:
        return "value", function(*arguments)
    except UserError as error:
        return "error", error
    except Exception as error:  # memory or a GPU may not be usable from now on
        return "error", WorkerFailed(describe(error))


def describe(error: Exception) -> str:
    """Says what went wrong in one line: `out of memory`, or the error's type and first line."""
    text = f"{type(error).__name__}: {error}"
    if isinstance(error, MemoryError) or any(sign in text for sign in OUT_OF_MEMORY):
        return "out of memory"
    return f"{type(error).__name__}: {first_line(error)}"
