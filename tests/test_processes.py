"""Workers that answer, die, hang, raise and are interrupted."""

import contextlib
import functools
import gc
import multiprocessing.spawn
import operator
import os
import resource
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from conftest import InProcessPool, children_of
from faults import Echo, fail

from bench import processes
from bench.processes import ProcessPool, WorkerFailed, error_summary, heartbeat, helper_process, run_in_subprocess
from utils import ROOT, RunError, UserError

STALL_SECONDS = 0.15


@contextlib.contextmanager
def time_limit(seconds: float):
    def late(*_):
        raise AssertionError(f"not done in {seconds} s")

    before = signal.signal(signal.SIGALRM, late)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def is_running(pid: int) -> bool:
    with contextlib.suppress(FileNotFoundError):
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    return False


def wait_for_end(*pids: int) -> None:
    with time_limit(10):
        while any(map(is_running, pids)):
            time.sleep(0.02)


def descendants(pid: int) -> list[int]:
    with contextlib.suppress(FileNotFoundError):
        children = children_of(pid)
        return [*filter(is_running, children)] + [one for child in children for one in descendants(child)]
    return []


@pytest.fixture(autouse=True, scope="module")
def empty_torch(tmp_path_factory):
    """Let new processes import an empty torch: the real one takes seconds."""
    folder = tmp_path_factory.mktemp("empty")
    for name in ("torch", "transformers"):
        (folder / f"{name}.py").write_text("")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", str(folder))
        end_process_that_forks()
        yield folder
        end_process_that_forks()


def end_process_that_forks() -> None:
    pid = run_in_subprocess(os.getppid)
    os.kill(pid, signal.SIGKILL)
    wait_for_end(pid)


@pytest.fixture(autouse=True)
def nothing_is_left(empty_torch):
    """Check that a test leaves no process and no descriptor behind, except what the first fork has started."""
    run_in_subprocess(int)

    def count() -> tuple[int, int]:
        return len(descendants(os.getpid())), len(os.listdir("/proc/self/fd"))

    before, deadline = count(), time.monotonic() + 30
    yield
    while any(map(operator.gt, count(), before)):
        gc.collect()  # errors keep the frames that raised them
        assert time.monotonic() < deadline, (count(), before)
        time.sleep(0.02)


@pytest.fixture(params=[False, True], ids=["fresh", "forked"])
def pool(request, monkeypatch):
    monkeypatch.setattr(processes, "HEARTBEAT_SECONDS", 0.05)
    return functools.partial(ProcessPool, forked=request.param)


def test_values_come_in_the_order_of_the_workers(pool):
    with pool(Echo, [("a",), ("b",), ("c",)]) as three:
        assert three.call(Echo.tell, 1, 2) == [("a", 1, 2), ("b", 1, 2), ("c", 1, 2)]
        assert len(set(three.call(Echo.own_pid)) | {os.getpid()}) == 4


def test_a_pool_in_this_process_has_the_same_interface():
    with InProcessPool(Echo, [("a",), ("b",)], stall_timeout=1, forked=True) as two:
        assert two.call(Echo.tell, 1, on_heartbeat=print) == [("a", 1), ("b", 1)]
        assert two.call(Echo.own_pid) == [os.getpid()] * 2
        with pytest.raises(WorkerFailed, match="ValueError: one"):
            two.call(Echo.fail_in, "b", "value")


def test_heartbeats_report_progress_and_keep_a_long_step_from_stalling(monkeypatch):
    heard = []
    monkeypatch.setattr(processes, "HEARTBEAT_SECONDS", 0.1)
    with ProcessPool(Echo, [("a",)], forked=True) as one:
        one.stall_timeout = 0.5
        [done] = one.call(Echo.count, 0.7, 0.02, on_heartbeat=lambda beats: heard.append(beats[0]))
    assert 2 <= len(heard) <= 8, "at most one in 0.1 s"
    assert heard == sorted(heard) and heard[-1] < done
    heartbeat(5)  # does nothing here


def test_large_arguments_reach_every_worker(pool):
    texts = [f"{i} \udcff" + "ä" * 400 for i in range(5_000)]
    with time_limit(20), pool(Echo, [("a",), ("b",)]) as two:
        assert two.call(Echo.tell, texts) == [("a", texts), ("b", texts)]


def test_a_worker_that_never_reads_a_large_argument_is_stalled(pool):
    with time_limit(20), pool(Echo, [("a",)]) as one:
        one.stall_timeout = STALL_SECONDS
        os.kill(one.call(Echo.own_pid)[0], signal.SIGSTOP)
        with pytest.raises(WorkerFailed, match="tell"):
            one.call(Echo.tell, "x" * 10**7)


@pytest.mark.parametrize(
    ("how", "named"),
    [
        ("die", ["2 of 2", "SIGKILL", "fail_in"]),
        ("exit", ["2 of 2", "exit code 3", "fail_in"]),
        ("stop", ["fail_in", "0.15 s"]),
        ("loop", ["fail_in", "0.15 s"]),
        ("memory", ["out of memory"]),
        ("value", ["ValueError: one"]),
        ("end of file", ["EOFError: half a file"]),
    ],
)
def test_a_fault_is_one_failure_with_its_reason(pool, how, named):
    with time_limit(20), pool(Echo, [("a",), ("b",)]) as two:
        two.stall_timeout = STALL_SECONDS
        with pytest.raises(WorkerFailed) as caught:
            two.call(Echo.fail_in, "b", how)
    assert all(word in str(caught.value) for word in named)


def test_a_fault_while_loading(pool):
    for how, named in (("die", "1 of 1 .*SIGKILL.* load"), ("memory", "out of memory")):
        with time_limit(20), pytest.raises(WorkerFailed, match=named):
            pool(Echo, [("a", how)])
    with pytest.raises(UserError, match="no such thing") as caught:
        pool(Echo, [("a", "user")])
    assert caught.value.code == 2, "a user's error stays one"


def test_a_function_in_its_own_process(capfd):
    assert run_in_subprocess(operator.add, 2, 3) == 5
    assert run_in_subprocess(os.getpgrp) != os.getpgrp(), "Ctrl-C must not reach it"
    assert run_in_subprocess(print, "to standard error") is None
    assert capfd.readouterr() == ("", "to standard error\n")
    with pytest.raises(RunError, match=r"^fail: .*SIGKILL"):
        run_in_subprocess(fail, "die")
    with pytest.raises(RunError, match=r"^fail: ValueError: one"):
        run_in_subprocess(fail, "value")


def test_the_calls_of_a_helper_share_a_process_until_one_fails():
    with time_limit(20), helper_process() as call:
        assert call(os.getpid) == call(os.getpid) != os.getpid()
        with pytest.raises(RunError, match=r"^fail: ValueError: one"):
            call(fail, "value")
        with pytest.raises(RunError, match=r"^getpid: "):
            call(os.getpid)


def test_a_worker_that_dies_before_it_reads_does_not_hang_the_run(monkeypatch):
    monkeypatch.setattr(multiprocessing.spawn, "_python_exe", b"/bin/false")
    with time_limit(10), pytest.raises(WorkerFailed, match=r"1 of 1 .*exit code 1.* load"):
        ProcessPool(Echo, [("x" * 10**6,)])


def test_more_workers_than_the_machine_can_start_is_a_failure(pool):
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    before = os.listdir("/proc/self/fd")
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (len(before) + 12, hard))
        with pytest.raises(WorkerFailed, match=r"worker \d+ of 50.*Too many open files"):
            pool(Echo, [("a",)] * 50)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    gc.collect()
    for leaked in set(os.listdir("/proc/self/fd")) - {*before}:
        with contextlib.suppress(OSError):  # multiprocessing forgets a pipe if it can't make the second one
            os.close(int(leaked))


def test_a_worker_has_the_variables_and_folder_of_its_parent_now(pool, monkeypatch, tmp_path):
    monkeypatch.setenv("A_NEW_ONE", "1")
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.chdir(tmp_path)
    with pool(Echo, [("a",)]) as one:
        assert one.call(Echo.evaluate, "os.getenv('A_NEW_ONE')") == ["1"]
        assert one.call(Echo.evaluate, "os.getcwd()") == [str(tmp_path)]
        assert one.call(Echo.evaluate, "os.getenv('PYTHONSAFEPATH')") == [os.getenv("PYTHONSAFEPATH")]
        assert int(one.call(Echo.evaluate, "os.getenv('OMP_NUM_THREADS')")[0]) >= 1


def test_only_a_fork_has_imported_torch_before_it_starts(pool):
    with pool(Echo, [("a",)]) as one:
        is_fork = pool.keywords["forked"]
        assert one.call(Echo.evaluate, "'torch' in sys.modules") == [is_fork]
        if is_fork:
            assert one.call(Echo.evaluate, "len(os.listdir('/proc/self/task'))") == [1], "no thread is missing"


@pytest.mark.parametrize("forked", [False, True])
def test_a_project_in_a_folder_with_a_colon_starts_workers(tmp_path, forked):
    folder = tmp_path / "a:b"
    shutil.copytree(ROOT / "bench", folder / "bench")
    shutil.copy(ROOT / "utils.py", folder)
    (folder / "script.py").write_text(
        "import os; from bench.processes import *\n"
        f"with ProcessPool(Helper, [()], forked={forked}) as pool: print(*pool.call(Helper.call, os.getppid))\n"
    )
    command = [sys.executable, folder / "script.py"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip().isdecimal()


@pytest.mark.parametrize("forked", [False, True])
def test_nothing_is_imported_from_the_working_directory_nor_the_script_again(tmp_path, forked):
    (tmp_path / "data").mkdir()
    for name in ("random", "socket", "bench", "torch"):
        (tmp_path / "data" / f"{name}.py").write_text("print('foreign')")
    (tmp_path / "script.py").write_text(
        f"import os, sys; sys.path.append({str(ROOT)!r}); print('script', flush=True)\n"
        "from bench.processes import *\n"
        f"with ProcessPool(Helper, [()], forked={forked}) as pool: pool.call(Helper.call, print, 'worker')\n"
    )
    command = [sys.executable, tmp_path / "script.py"]
    done = subprocess.run(command, cwd=tmp_path / "data", capture_output=True, text=True, check=True)
    assert (done.stdout, done.stderr) == ("script\n", "worker\n")


def test_when_the_process_that_forks_dies_so_do_workers_and_the_next_ones_have_another():
    with time_limit(60), helper_process() as call:
        worker = call(os.getpid)
        os.kill(call(os.getppid), signal.SIGKILL)
        wait_for_end(worker)
        with pytest.raises(RunError, match=r"^getpid: .*1 of 1 died"):
            call(os.getpid)
    assert run_in_subprocess(operator.add, 2, 3) == 5


def test_when_the_process_that_forks_does_not_answer_a_start_fails(monkeypatch):
    monkeypatch.setattr(processes, "START_SECONDS", 0.3)
    pid = run_in_subprocess(os.getppid)
    os.kill(pid, signal.SIGSTOP)
    with time_limit(20), pytest.raises(WorkerFailed, match="worker 1"):
        ProcessPool(Echo, [("a",)], forked=True)
    wait_for_end(pid)
    monkeypatch.undo()
    assert run_in_subprocess(operator.add, 2, 3) == 5


@pytest.mark.parametrize("delay", [0.02, 0.06, 0.1])
def test_ctrl_c_while_the_first_worker_starts_is_one_line(delay):
    code = "from bench.processes import *; import utils; utils.run(lambda: print(flush=True) or run_in_subprocess(int))"
    process = subprocess.Popen(
        [sys.executable, "-c", code], cwd=ROOT, start_new_session=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    process.stdout.readline()
    time.sleep(delay)
    os.killpg(process.pid, signal.SIGINT)
    _, errors = process.communicate(timeout=20)
    assert process.returncode in {0, 130} and errors.count(b"\n") <= 1, errors


@pytest.fixture
def parent(forked, empty_torch):
    """A script with two workers, of which the second loops for ever, and their pids."""
    command = [sys.executable, "-c", f"import faults; faults.parent({forked})"]
    environment = os.environ | {"PYTHONPATH": f"{ROOT}:{ROOT / 'tests'}:{empty_torch}"}
    process = subprocess.Popen(
        command, env=environment, start_new_session=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    pids = [int(pid) for pid in process.stdout.readline().split()]
    assert len(pids) == 2
    yield process, pids
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.communicate()


def stop(which: str, workers: list[int]) -> list[int]:
    """Stop both workers, or the process that forked them; return these with the workers."""
    server = int(Path(f"/proc/{workers[0]}/stat").read_text().rsplit(")", 1)[1].split()[1])
    for pid in {"workers": workers, "server": [server]}.get(which, []):
        os.kill(pid, signal.SIGSTOP)
    return [*workers, server] if which == "server" else workers


STOPPED = [("nothing", False), ("workers", False), ("workers", True), ("server", True)]


@pytest.mark.parametrize(("stopped", "forked"), STOPPED)
def test_workers_die_with_their_parent(parent, stopped, forked):
    process, workers = parent
    pids = stop(stopped, workers)
    process.kill()
    process.wait()
    wait_for_end(*pids)


@pytest.mark.parametrize(
    ("stopped", "forked", "number", "code"),
    [*((*case, signal.SIGINT, 130) for case in STOPPED), ("server", True, signal.SIGTERM, 143)],
)
def test_a_signal_reaches_only_the_parent_and_ends_the_workers(parent, stopped, forked, number, code):
    """The signal goes to the whole process group, as a terminal sends Ctrl-C."""
    process, workers = parent
    pids = stop(stopped, workers)
    os.killpg(process.pid, number)
    _, errors = process.communicate(timeout=20)
    assert process.returncode == code and errors.count("\n") == (number == signal.SIGINT), errors
    wait_for_end(*pids)


@pytest.mark.parametrize("forked", [True])
def test_a_worker_that_dies_while_the_process_that_forked_it_is_stopped_ends_the_run(parent, forked):
    process, workers = parent
    pids = stop("server", workers)
    os.kill(workers[1], signal.SIGKILL)
    _, errors = process.communicate(timeout=20)
    assert process.returncode == 1 and "2 of 2" in errors and errors.count("\n") == 1
    wait_for_end(*pids)


@pytest.mark.parametrize(
    ("error", "summary"),
    [
        (MemoryError(), "out of memory"),
        (RuntimeError("DefaultCPUAllocator: can't allocate memory: x"), "out of memory"),
        (RuntimeError("CUDA out of memory. Tried to allocate"), "out of memory"),
        (RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED"), "out of memory"),
        (ValueError("one\ntwo"), "ValueError: one"),
    ],
)
def test_error_summaries(error, summary):
    assert error_summary(error) == summary
