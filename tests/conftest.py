"""Fixtures: tiny models and their exports, made here, so that no test needs a network, a GPU or more than seconds."""

import importlib.util
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "data")]

cache = tempfile.TemporaryDirectory(prefix="benchmark-cache-")
os.environ["BENCHMARK_CACHE"] = cache.name  # for the scripts that the tests run, too
os.environ["HF_HUB_DISABLE_XET"] = "1"  # the fake Hub speaks the plain protocol
for ignored in (signal.SIGHUP, signal.SIGINT, signal.SIGQUIT):  # by `nohup ... &`; what tests start inherits it
    signal.signal(ignored, signal.default_int_handler if ignored == signal.SIGINT else signal.SIG_DFL)
# each of the processes that run tests keeps to one core, and so does what it starts: threads of several that wait for
# each other in turn on the same cores make some tests twenty times as slow
if (process := os.environ.get("PYTEST_XDIST_WORKER")) and hasattr(os, "sched_setaffinity"):
    cores = sorted(os.sched_getaffinity(0))
    os.sched_setaffinity(0, {cores[int(process[2:]) % len(cores)]})

from fake_hub import fake_hub  # noqa: E402
from tiny import make_tiny_roberta  # noqa: E402

CHECKS = [HealthCheck.function_scoped_fixture]  # a file that every example writes anew
settings.register_profile(
    "same", deadline=None, max_examples=100, derandomize=True, database=None, suppress_health_check=CHECKS
)
settings.load_profile("same")

import bench.processes  # noqa: E402
import utils  # noqa: E402
from bench.export import check as export_check  # noqa: E402
from bench.export.select import EXPORT_KINDS, export_model  # noqa: E402
from bench.label import pool  # noqa: E402
from bench.machine import cpu_features  # noqa: E402
from bench.measure import peak, sweep  # noqa: E402
from bench.measure.sweep import Sweep  # noqa: E402
from bench.model import reference  # noqa: E402
from bench.model.model import Model  # noqa: E402
from bench.processes import ProcessPool, attempt  # noqa: E402
from bench.provenance import versions  # noqa: E402
from bench.report.evidence import KEYS  # noqa: E402
from bench.tables.datasets import load_dataset  # noqa: E402
from bench.tables.storage import locate  # noqa: E402
from bench.variants import Device  # noqa: E402
from runtimes import VARIANTS  # noqa: E402


def refused(function, *arguments) -> str:
    """Returns the one line of the UserError that function(*arguments) raises."""
    with pytest.raises(utils.UserError) as caught:
        function(*arguments)
    assert "\n" not in str(caught.value) and caught.value.code == 2
    return str(caught.value)


def children_of(pid: int) -> list[int]:
    """Return the child processes of a process, the oldest first."""
    return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def workers_of(pid: int) -> list[int]:
    """Return the forked workers of a script, the oldest first."""
    return [worker for child in children_of(pid) for worker in children_of(child)]


def kill_after_a_part(process: subprocess.Popen, folder: str | Path) -> None:
    """Kill a labelling run once its folder (local or in a bucket) has a part."""
    limit = time.monotonic() + 60
    while not any("part-" in file.name for file in locate(folder).files()) and time.monotonic() < limit:
        time.sleep(0.02)  # not more often: it may be on the same core
    process.kill()
    _, err = process.communicate()
    assert process.returncode == -signal.SIGKILL, err


def call_here(function, *arguments):
    """Stand in for the `call` of bench.processes.helper_process."""
    return function(*arguments)


def make_sweep(**given) -> Sweep:
    same = {"device": Device(None, 1), "peaks": {"fp32": 1e12}, "min_time": 0}
    keys = {name: dict.fromkeys(KEYS, "x") | {"variant": name, "long": "cut"} for name in VARIANTS}
    return Sweep(**same | {"stall_timeout": 0, "uuid": "", "keys": keys} | given)


@pytest.fixture(scope="session")
def texts() -> list[str]:
    return load_dataset("normal").limited(300).texts


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory, texts) -> Path:
    """The folder of a RoBERTa classifier of 2 layers and 5 labels (multi-label) that takes 128 tokens."""
    return make_tiny_roberta(tmp_path_factory.mktemp("models") / "tiny", texts)


@pytest.fixture(scope="session")
def tiny_exports(tmp_path_factory, tiny_model) -> Path:
    """A working directory with the tiny model's exports, where the benchmark finds them."""
    folder = tmp_path_factory.mktemp("exports")
    for precision, kind in EXPORT_KINDS.items():
        if set(kind.backends) == {"optimum"} and not versions("optimum-onnx"):  # as with transformers 5
            continue
        (folder / f"tiny{kind.suffix}").mkdir()
        export_model(Model.from_folder(tiny_model, "tiny"), precision, folder / f"tiny{kind.suffix}")
    return folder


@pytest.fixture(autouse=True)
def subnormal_numbers():
    """A variant that is loaded in this process sets them to zero; the next test has them again."""
    yield
    if torch := sys.modules.get("torch"):
        torch.set_flush_denormal(False)


class InProcessPool(ProcessPool):
    """A ProcessPool without processes: its objects live in this process, and send no heartbeats."""

    def __init__(self, make: Callable, arguments: list[tuple], *_, **__):
        self.objects = [self.attempt(make, *worker_arguments) for worker_arguments in arguments]

    def call(self, step: Callable, *arguments, on_heartbeat: Callable | None = None) -> list:
        return [self.attempt(step, target, *arguments) for target in self.objects]

    def attempt(self, function: Callable, *arguments):
        kind, value = attempt(function, *arguments)
        if kind == "error":
            raise value
        return value

    def kill(self) -> None:
        pass


@pytest.fixture
def in_this_process(monkeypatch):
    """Run workers and helpers in this process, and measure the peak in no time."""
    for module in (bench.processes, sweep, pool, export_check, reference):
        monkeypatch.setattr(module, "ProcessPool", InProcessPool)
    monkeypatch.setattr(peak, "PEAK_SECONDS", 0.001)
    monkeypatch.setattr(peak, "PEAK_PRODUCTS", ((64, 64, 64),))
    before = dict(os.environ)
    yield
    os.environ.clear()  # because workers set variables
    os.environ.update(before)


@pytest.fixture
def call(monkeypatch, capsys, in_this_process):
    """Runs a script in this process: returns its exit code, standard output and standard error."""

    def call(script, *arguments) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", [f"{script.__name__}.py", *map(str, arguments)])
        with pytest.raises(SystemExit) as stopped:
            utils.run(script.main)
        return stopped.value.code, *capsys.readouterr()

    return call


@pytest.fixture
def label(call, tiny_model, source, options, tmp_path, monkeypatch):
    """Return a function that labels a test file's `source` with its `options`, and returns exit code and errors."""
    import classify_texts

    monkeypatch.chdir(tmp_path)

    def label(*arguments, source=source, output="out"):
        code, _, err = call(classify_texts, tiny_model, source, "--output", output, *options, *arguments)
        assert "Traceback" not in err
        return code, err

    return label


@pytest.fixture
def hub(monkeypatch, tmp_path):
    """A fake Hub on this machine, with a cache of its own, and nobody logged in."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub-cache"))
    monkeypatch.delenv("HF_TOKEN", raising=False)
    with fake_hub() as hub:
        monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", hub.url)
        template = f"{hub.url}/{{repo_id}}/resolve/{{revision}}/{{filename}}"
        for module in ("constants", "file_download"):  # of huggingface_hub 2, and of 0.36
            monkeypatch.setattr(f"huggingface_hub.{module}.HUGGINGFACE_CO_URL_TEMPLATE", template, raising=False)
        yield hub


def pytest_collection_modifyitems(config, items):
    """Leaves out tests marked `gpu` without a GPU, and those marked `needs` where what they need isn't there."""
    import torch

    here = cpu_features() | ({"gpu"} if torch.cuda.is_available() else set())
    here |= {name for name in ("torch", "optimum", "openvino", "ray") if importlib.util.find_spec(name)}
    for item in items[:]:
        needs = {"gpu"} if item.get_closest_marker("gpu") else set()
        needs |= {mark.args[0] for mark in item.iter_markers("needs")}
        if not needs <= here:
            items.remove(item)
            config.hook.pytest_deselected(items=[item])


def pytest_terminal_summary(terminalreporter):
    """Prints what tests marked `gpu` recorded, as a block to paste into an issue."""
    reports = [report for kind in ("passed", "failed") for report in terminalreporter.getreports(kind)]
    lines = [text for report in reports for name, text in getattr(report, "user_properties", []) if name == "gpu"]
    failed = [f"FAILED {report.nodeid}" for report in reports if report.failed]
    if lines:
        terminalreporter.section("to paste into an issue")
        terminalreporter.write_line("\n".join(["```", *lines, *failed, "```"]))
