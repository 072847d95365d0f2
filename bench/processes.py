"""Runs work in processes that may die, hang or be interrupted: the only protocol of workers in the project.

A worker makes one object and then answers requests: call this method of it with these arguments. Requests are pickled
and may be large: 100,000 texts take 0.2 s. A worker is in a process group of its own, so that Ctrl-C reaches the
parent only. The end of its pipe means that it died. No heartbeat for too long means that it hangs, so long work calls
`heartbeat` as it goes.
"""

import contextlib
import os
import pickle
import signal
import threading
import time
from collections.abc import Callable, Iterator
from multiprocessing import Pipe
from multiprocessing.connection import Connection, wait
from types import SimpleNamespace

from bench.fork_server import CAN_FORK, be_a_worker, fork_python, start_python
from utils import RunError, UserError, first_line

PIPE_BYTES = 2**16  # that a pipe takes although nobody reads
POLL_SECONDS = 1.0  # between two heartbeats, and between two looks at the clock
OUT_OF_MEMORY = "out of memory"  # what error_summary says of these:
MEMORY_SIGNS = "OutOfMemory", "out of memory", "can't allocate memory", "Failed to allocate memory", "ALLOC_FAILED"
parent = SimpleNamespace(connection=None, last_heartbeat=0.0)  # in a worker: its pipe to the parent


class WorkerFailed(RunError):
    """A worker died, hung or raised; the message says which, and in what step."""


class ProcessPool:
    """Starts a process for each tuple of arguments, calls methods in all of them, and kills them at the end.

    A context manager. Each process makes its object with `make(*arguments)`. `stall_timeout`: seconds without a
    heartbeat after which a worker counts as hung, 0 for never; forked: whether the processes start with torch and
    transformers imported, see fork_server, or with nothing.
    """

    def __init__(self, make: Callable, arguments: list[tuple], stall_timeout: float = 0, forked: bool = False):
        self.stall_timeout, self.forked = stall_timeout, forked
        self.connections, self.processes, self.senders = [], [], []
        try:
            for _ in arguments:
                self.start()
            for connection, own in zip(self.connections, arguments, strict=True):
                self.send(connection, pickle.dumps((make, own)))
            self.collect("load")
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
            start = fork_python if self.forked and CAN_FORK else start_python
            self.processes.append(start(serve, theirs))

    def send(self, connection: Connection, request: bytes) -> None:
        """Send a pickled request. A large one is sent in a thread: a worker that hangs may never read it."""

        def write() -> None:
            with contextlib.suppress(OSError):  # the worker died; collect() reports it
                connection.send_bytes(request)

        if len(request) < PIPE_BYTES:
            write()
        else:
            self.senders = [*filter(threading.Thread.is_alive, self.senders), threading.Thread(target=write, daemon=True)]
            self.senders[-1].start()

    def call(self, step: Callable, *arguments, on_heartbeat: Callable[[list], object] | None = None) -> list:
        """Calls `step(object, *arguments)` in every worker and returns the values in the workers' order.

        `on_heartbeat` gets the value of each worker's latest heartbeat. Raises WorkerFailed at once if a worker died or
        hangs, and after all have answered if one raised an error; a UserError is raised as it is.
        """
        request = pickle.dumps((step, arguments))
        for connection in self.connections:
            self.send(connection, request)
        return self.collect(step.__name__, on_heartbeat)

    def collect(self, step: str, on_heartbeat: Callable | None = None) -> list:
        waiting, heard = dict(enumerate(self.connections)), [time.monotonic()] * len(self.connections)
        values, beats, errors = [None] * len(waiting), [None] * len(waiting), []
        while waiting:
            ready = wait(waiting.values(), POLL_SECONDS)
            now = time.monotonic()
            for i, connection in list(waiting.items()):
                if connection in ready:
                    kind, value = self.receive(i, step)
                    heard[i] = now
                    if kind == "heartbeat":
                        beats[i] = value
                        if on_heartbeat:
                            on_heartbeat(beats)
                        continue
                    values[i] = value
                    errors += [value] if kind == "error" else []
                    del waiting[i]
                elif 0 < self.stall_timeout < now - heard[i]:
                    raise WorkerFailed(f"stalled: no heartbeat for {self.stall_timeout:g} s (step {step})")
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
        for sender in self.senders:
            sender.join()
        for connection in self.connections:
            connection.close()

    def __enter__(self) -> "ProcessPool":
        return self

    def __exit__(self, *_) -> None:
        self.kill()


@contextlib.contextmanager
def helper_process() -> Iterator[Callable]:
    """Starts a process and yields call(function, *arguments), which runs a function there.

    Its imports, memory and GPU context stay out of this process, and several calls share them. What it prints goes to
    standard error. A UserError is raised here as it is, any other error as a RunError; either ends the process.
    """
    with ProcessPool(Helper, [()], forked=True) as pool:

        def call(function: Callable, *arguments):
            try:
                return pool.call(Helper.call, function, *arguments)[0]
            except WorkerFailed as error:
                raise RunError(f"{function.__name__}: {error}") from error

        yield call


class Helper:
    """Calls functions in a process of its own."""

    def call(self, function: Callable, *arguments):
        return function(*arguments)


def run_in_subprocess(function: Callable, *arguments):
    """Calls one function in a process of its own, see helper_process."""
    with helper_process() as call:
        return call(function, *arguments)


def heartbeat(value=None) -> None:
    """Sends a heartbeat to the parent, at most once a second, with a value that tells how far the work is.

    Does nothing in a process that is no worker.
    """
    now = time.monotonic()
    if parent.connection and now - parent.last_heartbeat >= POLL_SECONDS:
        parent.last_heartbeat = now
        parent.connection.send(("heartbeat", value))


def serve(descriptor: int) -> None:
    """Runs a worker over the pipe's descriptor, until the parent closes it or dies, or a request fails."""
    connection = parent.connection = Connection(descriptor)
    be_a_worker()
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
        return "error", WorkerFailed(error_summary(error))


def error_summary(error: Exception) -> str:
    """Says what went wrong in one line: `out of memory`, or the error's type and first line."""
    text = f"{type(error).__name__}: {error}"
    if isinstance(error, MemoryError) or any(sign in text for sign in MEMORY_SIGNS):
        return OUT_OF_MEMORY
    return f"{type(error).__name__}: {first_line(error)}"
