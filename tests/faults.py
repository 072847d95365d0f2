"""Small functions for workers in tests: they count, fail, hang and die."""

import os
import signal
import sys
import time

from bench import processes
from bench.processes import ProcessPool, heartbeat
from utils import UserError, run


class Echo:
    """A worker's object that knows its name and fails on request."""

    def __init__(self, name: str, fault: str = ""):
        self.name = name
        fail(fault)

    def tell(self, *arguments) -> tuple:
        return self.name, *arguments

    def fail_in(self, name: str, how: str) -> None:
        if self.name == name:
            fail(how)

    def count(self, seconds: float, pause: float) -> int:
        """Work for this many seconds, with a heartbeat after each pause."""
        begin, done = time.monotonic(), 0
        while time.monotonic() - begin < seconds:
            time.sleep(pause)
            done += 1
            heartbeat(done)
        return done

    def evaluate(self, expression: str):
        return eval(expression)

    def own_pid(self) -> int:
        return os.getpid()


def fail(how: str) -> None:
    if how == "die":
        os.kill(os.getpid(), signal.SIGKILL)
    if how == "stop":
        os.kill(os.getpid(), signal.SIGSTOP)
    if how == "exit":
        sys.exit(3)
    while how == "loop":
        pass
    if how == "memory":
        raise MemoryError
    if how == "end of file":
        raise EOFError("half a file")
    if how == "value":
        raise ValueError("one\ntwo")
    if how == "user":
        raise UserError("no such thing")


def parent(forked: bool) -> None:
    """Run a script with two workers, of which the second loops for ever; print their pids."""

    def main() -> int:
        processes.EXIT_SECONDS = 0.2
        with ProcessPool(Echo, [("a",), ("b",)], forked=forked) as pool:
            print(*pool.call(Echo.own_pid), flush=True)
            pool.call(Echo.fail_in, "b", "loop")
        return 0

    run(main)
