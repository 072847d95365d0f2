"""Workers that work, die, hang, raise and are interrupted."""

import contextlib
import functools
import operator
import os
import re
import resource
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from conftest import children_of
from faults import Echo, fail

from bench import fork_server
from bench.processes import ProcessPool, WorkerFailed, error_summary, heartbeat, helper_process, run_in_subprocess
from utils import ROOT, RunError, UserError


@contextlib.contextmanager
def time_limit(seconds: float):
    def late(*_):
        raise AssertionError(f"it hangs: not done in {seconds} s")

    before = signal.signal(signal.SIGALRM, late)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def is_running(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except FileNotFoundError:
        return False


def children() -> list[int]:
    """Returns the processes that this one has started, but for the one that forks."""
    return [pid for pid in children_of(os.getpid()) if pid != fork_server.current.server.process.pid]


@pytest.fixture(autouse=True)
def nothing_is_left():
    """No test leaves a process or a descriptor behind, but the process that forks."""
    run_in_subprocess(int)
    before = children(), len(os.listdir("/proc/self/fd"))
    yield
    assert (children(), len(os.listdir("/proc/self/fd"))) == before


@pytest.fixture(params=[False, True], ids=["fresh", "forked"])
def pool(request):
    return functools.partial(ProcessPool, forked=request.param)


def test_values_come_in_the_workers_order(pool):
    with pool(Echo, [("a",), ("b",), ("c",)]) as three:
        assert three.call(Echo.tell, 1, 2) == [("a", 1, 2), ("b", 1, 2), ("c", 1, 2)]
        assert len(set(three.call(Echo.own_pid)) | {os.getpid()}) == 4


def test_heartbeats_tell_how_far_the_work_is_and_keep_a_long_step_from_timing_out(pool):
    heard = []
    with pool(Echo, [("a",)], stall_timeout=2) as one:
        [done] = one.call(Echo.count, 3.5, 0.1, on_heartbeat=lambda beats: heard.append(beats[0]))
    assert 2 <= len(heard) <= 5, "one a second"
    assert heard == sorted(heard) and heard[-1] < done
    heartbeat(5)  # does nothing here


def test_large_arguments_reach_every_worker(pool):
    texts = [f"{i} \udcff" + "ä" * 400 for i in range(20_000)]
    with time_limit(20), pool(Echo, [("a",), ("b",)]) as two:
        assert two.call(Echo.tell, texts) == [("a", texts), ("b", texts)]


def test_a_worker_that_never_reads_a_large_argument_is_stalled():
    with time_limit(20), ProcessPool(Echo, [("a",)], stall_timeout=0.5) as one:
        os.kill(one.call(Echo.own_pid)[0], signal.SIGSTOP)
        with pytest.raises(WorkerFailed, match="tell"):
            one.call(Echo.tell, "x" * 10**7)


@pytest.mark.parametrize(
    ("how", "message"),
    [
        ("die", "worker 2 of 2 died (SIGKILL) in step fail_in"),
        ("exit", "worker 2 of 2 died (exit code 3) in step fail_in"),
        ("stop", "stalled: no heartbeat for 2 s (step fail_in)"),
        ("loop", "stalled: no heartbeat for 2 s (step fail_in)"),
        ("memory", "out of memory"),
        ("value", "ValueError: one"),
        ("end of file", "EOFError: half a file"),
    ],
)
def test_a_fault_is_one_clear_failure(pool, how, message):
    with time_limit(20), pool(Echo, [("a",), ("b",)], stall_timeout=2) as two:
        with pytest.raises(WorkerFailed, match=re.escape(message)) as caught:
            two.call(Echo.fail_in, "b", how)
        assert str(caught.value) == message


def test_a_fault_while_loading(pool):
    for how, message in (("die", "worker 1 of 1 died (SIGKILL) in step load"), ("memory", "out of memory")):
        with time_limit(20), pytest.raises(WorkerFailed, match=re.escape(message)):
            pool(Echo, [("a", how)])
    with pytest.raises(UserError, match=r"^no such thing$") as caught:
        pool(Echo, [("a", "user")])
    assert caught.value.code == 2, "a user's error stays one"


def test_a_function_in_a_fresh_process(capfd):
    assert run_in_subprocess(operator.add, 2, 3) == 5
    assert run_in_subprocess(os.getpgrp) != os.getpgrp(), "Ctrl-C must not reach it"
    assert run_in_subprocess(print, "to standard error") is None
    assert capfd.readouterr() == ("", "to standard error\n")
    with pytest.raises(RunError, match=r"^fail: worker 1 of 1 died \(SIGKILL\) in step call$"):
        run_in_subprocess(fail, "die")
    with pytest.raises(RunError, match=r"^fail: ValueError: one$"):
        run_in_subprocess(fail, "value")


def test_the_calls_of_a_helper_share_a_process_until_one_fails():
    with time_limit(20), helper_process() as call:
        assert call(os.getpid) == call(os.getpid) != os.getpid()
        with pytest.raises(RunError, match=r"^fail: ValueError: one$"):
            call(fail, "value")
        with pytest.raises(RunError, match=r"^getpid: worker 1 of 1 died"):
            call(os.getpid)


def test_a_worker_that_dies_before_it_reads_does_not_hang_the_run(monkeypatch):
    monkeypatch.setattr(sys, "executable", "/bin/false")
    with time_limit(10), pytest.raises(WorkerFailed, match=r"worker 1 of 1 died \(exit code 1\) in step load"):
        ProcessPool(Echo, [("x" * 10**6,)])


def test_more_workers_than_the_machine_can_start_is_a_failure(pool):
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (len(os.listdir("/proc/self/fd")) + 8, hard))
        with pytest.raises(WorkerFailed, match=r"worker \d can't be started: .*Too many open files"):
            pool(Echo, [("a",)] * 50)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def test_a_fork_has_what_its_parent_has_now(monkeypatch, tmp_path):
    before = run_in_subprocess(os.getppid)
    monkeypatch.setenv("A_NEW_ONE", "1")
    monkeypatch.chdir(tmp_path)
    assert run_in_subprocess(os.getenv, "A_NEW_ONE") == "1" and run_in_subprocess(os.getcwd) == str(tmp_path)
    assert run_in_subprocess(os.getppid) == before


def test_a_fork_is_there_at_once_and_alone():
    with helper_process() as call:
        assert call(eval, "'transformers' in __import__('sys').modules")
        assert len(call(os.listdir, "/proc/self/task")) == 1, "no thread of the process that forks is lost"
        assert call(os.getpgrp) == call(os.getpid)


def test_workers_end_with_the_process_that_forks_and_the_next_ones_have_another():
    with time_limit(30), helper_process() as call:
        worker = call(os.getpid)
        os.kill(call(os.getppid), signal.SIGKILL)
        while is_running(worker):
            time.sleep(0.01)
        with pytest.raises(RunError, match=r"^getpid: worker 1 of 1 died \(SIGKILL\)"):
            call(os.getpid)
    assert run_in_subprocess(operator.add, 2, 3) == 5


def test_the_process_that_forks_asks_for_no_gpu():
    """CUDA can't be used in a fork of a process that has looked for a device."""
    code = """
import importlib, torch
from bench.fork_server import IMPORTED
def fail(*_): raise AssertionError
torch.cuda.is_available = torch.cuda.device_count = torch.cuda.init = torch.cuda._lazy_init = fail
[importlib.import_module(name) for name in IMPORTED]
"""
    subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT)


@pytest.fixture
def parent(forked):
    """A process with two workers, of which the second loops for ever, and their pids."""
    command = [sys.executable, "-c", f"import faults; faults.parent({forked})"]
    environment = os.environ | {"PYTHONPATH": f"{ROOT}:{ROOT / 'tests'}"}
    process = subprocess.Popen(
        command, env=environment, start_new_session=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    pids = [int(pid) for pid in process.stdout.readline().split()]
    assert len(pids) == 2
    yield process, pids
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.communicate()


@pytest.mark.parametrize(("stopped", "forked"), [(False, False), (True, False), (True, True)])
def test_workers_die_with_their_parent(parent, stopped, forked):
    process, pids = parent
    for pid in pids if stopped else []:
        os.kill(pid, signal.SIGSTOP)
    process.kill()
    process.wait()
    deadline = time.monotonic() + 10
    while any(map(is_running, pids)) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not any(map(is_running, pids))


@pytest.mark.parametrize(("stopped", "forked"), [(False, False), (True, False), (True, True)])
def test_ctrl_c_reaches_the_parent_alone_and_ends_the_workers(parent, stopped, forked):
    """As a terminal sends it: to the whole process group."""
    process, pids = parent
    for pid in pids if stopped else []:
        os.kill(pid, signal.SIGSTOP)
    os.killpg(process.pid, signal.SIGINT)
    _, errors = process.communicate(timeout=10)
    assert errors.count("Traceback") == 1 and errors.endswith("KeyboardInterrupt\n"), "the parent's own"
    assert not any(map(is_running, pids))


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (MemoryError(), "out of memory"),
        (RuntimeError("DefaultCPUAllocator: can't allocate memory: x"), "out of memory"),
        (RuntimeError("CUDA out of memory. Tried to allocate"), "out of memory"),
        (RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED"), "out of memory"),
        (ValueError("one\ntwo"), "ValueError: one"),
    ],
)
def test_errors_in_words(error, said):
    assert error_summary(error) == said
