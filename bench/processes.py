"""Run work in processes that may die, hang or be interrupted: the only protocol for workers in this project.

A worker creates one object, then answers requests: call this method of it with these arguments. Requests are pickled
and may be large: 100,000 texts take 0.2 s. Each worker leads its own process group, so Ctrl-C reaches only the parent.
If its pipe closes, the worker has died. If it sends no heartbeat for too long, it hangs; so long work calls
`heartbeat` regularly.
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

from bench.machine import DeviceInfo, describe_device
from bench.start_process import become_worker, can_fork, start_process, wait_for_end
from utils import RunError, UserError, first_line

HEARTBEAT_SECONDS = 1.0  # between two heartbeats, and between two checks for stalled workers
START_SECONDS = 300  # for a fork; the first one waits until torch is imported, perhaps from a slow disk
EXIT_SECONDS = 10  # for the end of a killed worker; it may have much memory to give back
OUT_OF_MEMORY = "out of memory"  # the message for all of MEMORY_SIGNS
MEMORY_SIGNS = "OutOfMemory", "out of memory", "can't allocate memory", "Failed to allocate memory", "ALLOC_FAILED"
parent = SimpleNamespace(connection=None, pause=0.0, last_heartbeat=0.0)  # of a worker


class WorkerFailed(RunError):
    """A worker died, hung or raised; the message names the worker and the step."""


class ProcessPool(contextlib.AbstractContextManager):
    """A context manager that starts a worker per tuple of arguments, calls methods in all, and kills them at the end.

    Each worker creates its object with `make(*arguments)`.
    stall_timeout: seconds without a heartbeat after which a worker counts as hung, 0 for never;
    forked: whether workers start with torch and transformers already imported (see preload.py), or with nothing.
    """

    def __init__(self, make: Callable, arguments: list[tuple], stall_timeout: float = 0, forked: bool = False):
        self.stall_timeout = stall_timeout
        self.connections, self.processes, self.senders = [], [], []
        try:
            for _ in arguments:
                connection, theirs = Pipe()
                self.connections.append(connection)
                with theirs:
                    self.processes.append(start_process(serve, theirs, forked and can_fork(), START_SECONDS))
            for connection, worker_arguments in zip(self.connections, arguments, strict=True):
                self.send(connection, pickle.dumps((make, worker_arguments, HEARTBEAT_SECONDS)))
            self.collect("load")
        except BaseException as error:
            number = len(self.processes) + 1
            self.kill()
            if isinstance(error, OSError):
                raise WorkerFailed(f"can't start worker {number} of {len(arguments)}: {first_line(error)}") from error
            raise

    def send(self, connection: Connection, request: bytes) -> None:
        """Send a pickled request in a thread, because a worker that hangs may never read a large one."""

        def write() -> None:
            with contextlib.suppress(OSError):  # the worker died; collect() reports it
                connection.send_bytes(request)

        self.senders.append(threading.Thread(target=write, daemon=True))
        self.senders[-1].start()

    def call(self, step: Callable, *arguments, on_heartbeat: Callable[[list], object] | None = None) -> list:
        """Call `step(object, *arguments)` in every worker and return the values in the order of the workers.

        `on_heartbeat` gets a list with the value of each worker's latest heartbeat. Raises WorkerFailed at once if a
        worker died or hangs. If a worker raised an error, waits for the others and then raises it: a UserError as it
        is, any other as WorkerFailed.
        """
        self.senders.clear()  # they have finished, since all workers have answered
        request = pickle.dumps((step, arguments))
        for connection in self.connections:
            self.send(connection, request)
        return self.collect(step.__name__, on_heartbeat)

    def collect(self, step: str, on_heartbeat: Callable | None = None) -> list:
        waiting, heard = dict(enumerate(self.connections)), [time.monotonic()] * len(self.connections)
        values, beats, errors = [None] * len(waiting), [None] * len(waiting), []
        while waiting:
            ready = wait(waiting.values(), HEARTBEAT_SECONDS)
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
                    if kind == "error":
                        errors.append(value)
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
            how = wait_for_end(self.processes[i], EXIT_SECONDS)
            raise WorkerFailed(f"worker {i + 1} of {len(self.processes)} died ({how}) in step {step}") from None

    def kill(self) -> None:
        for process in self.processes:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)  # includes the compilers that it may have started
            process.kill()  # a fork that has just started may not lead its group yet
        for process in self.processes:
            wait_for_end(process, EXIT_SECONDS)
        self.processes.clear()  # closes their descriptors
        for sender in self.senders:
            sender.join()
        for connection in self.connections:
            connection.close()

    def __exit__(self, *_) -> None:
        self.kill()


@contextlib.contextmanager
def helper_process() -> Iterator[Callable]:
    """Start a process and yield call(function, *arguments), which runs a function there.

    Its imports, memory and GPU context stay out of this process, and several calls share them. Its output goes to
    standard error. A UserError is raised here as it is, any other error as RunError; either ends the process.
    """
    with ProcessPool(Helper, [()], forked=True) as pool:

        def call(function: Callable, *arguments):
            try:
                return pool.call(Helper.call, function, *arguments)[0]
            except WorkerFailed as error:
                raise RunError(f"{function.__name__}: {error}") from error

        yield call


class Helper:
    """The object of a helper process: it calls functions."""

    def call(self, function: Callable, *arguments):
        return function(*arguments)


def run_in_subprocess(function: Callable, *arguments):
    """Call one function in its own process, see helper_process."""
    with helper_process() as call:
        return call(function, *arguments)


def device_info(gpu: int | None) -> DeviceInfo:
    """Describe a GPU, in its own process, or with None the CPU. Raises UserError, see describe_device."""
    return describe_device(None) if gpu is None else run_in_subprocess(describe_device, gpu)


def heartbeat(value=None) -> None:
    """Send a heartbeat to the parent, unless the last one is recent; `value` tells the progress.

    Does nothing in a process that is not a worker.
    """
    now = time.monotonic()
    if parent.connection and now - parent.last_heartbeat >= parent.pause:
        parent.last_heartbeat = now
        parent.connection.send(("heartbeat", value))


def serve(connection: Connection) -> None:
    """Answer requests until the parent closes the pipe or dies, or until one fails."""
    become_worker()
    with contextlib.suppress(EOFError, ConnectionError):  # the parent is gone
        make, arguments, parent.pause = connection.recv()
        parent.connection = connection
        kind, target = attempt(make, *arguments)
        connection.send((kind, target if kind == "error" else None))
        while kind == "value":
            step, arguments = connection.recv()
            kind, value = attempt(step, target, *arguments)
            connection.send((kind, value))
            del value, arguments


def attempt(function: Callable, *arguments) -> tuple[str, object]:
    """Call the function; return ("value", its result) or ("error", a UserError)."""
    try:
        return "value", function(*arguments)
    except UserError as error:
        return "error", error
    except Exception as error:  # memory or a GPU may not be usable from now on
        return "error", WorkerFailed(error_summary(error))


def error_summary(error: Exception) -> str:
    """Return an error's type and first line, or `out of memory`."""
    text = f"{type(error).__name__}: {error}"
    if isinstance(error, MemoryError) or any(sign in text for sign in MEMORY_SIGNS):
        return OUT_OF_MEMORY
    return f"{type(error).__name__}: {first_line(error)}"
