"""The machine: device, versions, commit, what others do on it, and how much it could do."""

import contextlib
import hashlib
import importlib.metadata
import os
import platform
import re
import subprocess
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from runtimes.pytorch import DTYPES, load_model
from runtimes.runner import Place
from utils import ROOT, UserError, cpu_cores, first_line

# what makes a GPU's clock lower than its load and its settings ask for, by NVML's nvmlClocksEventReasons; the software
# power cap (0x04) is the normal state of a busy GPU
THROTTLING = {
    0x08: "hardware slowdown",
    0x20: "heat (driver)",
    0x40: "heat (hardware)",
    0x80: "power brake",
}
# what /proc/cpuinfo says of a CPU that multiplies in BF16, or in INT8 without sums that saturate
CAPABILITIES = {
    "bf16": {"avx512_bf16", "amx_bf16", "bf16"},
    "vnni": {"avx512_vnni", "avx_vnni", "amx_int8", "asimddp"},
}
POLL_SECONDS = 0.2  # between two looks at a GPU's clock
PEAK_PRODUCTS = ((8192, 1024, 4096), (4096, 4096, 4096), (2048, 2048, 2048))  # rows, inner, columns
GPU_PEAK_PRODUCTS = ((8192, 8192, 8192), *PEAK_PRODUCTS)
PEAK_SECONDS = 0.5  # for each of them


# ------------------------------------------------------------------------------------------------- what it is


def versions(*packages: str) -> dict[str, str]:
    """Returns the versions of those of the packages that are installed."""
    found = {}
    for package in packages:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            found[package] = importlib.metadata.version(package)
    return found


def project_commit() -> str:
    """Returns this project's commit; where the code is not the commit's, "+" and a digest of the code follow."""
    files = sorted(path for folder in (".", "bench", "runtimes") for path in (ROOT / folder).glob("*.py"))
    code = hashlib.sha256(b"".join(path.read_bytes() for path in files)).hexdigest()[:8]

    def git(*arguments: str) -> str:
        return subprocess.run(
            ["git", "-C", ROOT, *arguments], capture_output=True, text=True, check=True
        ).stdout.strip()

    try:
        commit = git("rev-parse", "--short=10", "HEAD")
        changed = git("status", "--porcelain", "--", *(str(path.relative_to(ROOT)) for path in files))
    except (OSError, subprocess.CalledProcessError):
        commit, changed = "", "no git"
    return f"{commit}+{code}" if changed else commit


def cpu_name() -> str:
    """Returns the processor's name without trade marks and clock, and its cores: `Intel Xeon 8481C, 4 cores`."""
    name = platform.processor() or platform.machine()
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        match = re.search(r"^model name\s*:\s*(.+)$", cpuinfo.read_text(), re.MULTILINE)
        name = match[1] if match else name
    name = re.sub(r"\((R|TM|tm)\)|\bCPU\b|\bProcessor\b|@.*$|\d+-Core", " ", name)
    return f"{' '.join(name.split())}, {cpu_cores()} cores"


def cpu_capabilities() -> set[str]:
    """Returns what the processor multiplies natively, see CAPABILITIES; nothing outside Linux, which doesn't say."""
    cpuinfo = Path("/proc/cpuinfo")
    flags = set(cpuinfo.read_text().split()) if cpuinfo.exists() else set()
    return {name for name, signs in CAPABILITIES.items() if flags & signs}


def find_gpu(gpu: int) -> tuple[str, str, str]:
    """Returns a GPU's name, driver and NVML id. Call it in a fresh process: it starts CUDA.

    Raises UserError if there is no such GPU, with the reason that torch gives, such as a driver that is too old.
    """
    import torch

    if not torch.cuda.is_available():
        reason = "torch finds no CUDA device here"
        try:
            torch.cuda.init()
        except Exception as error:  # torch's, and its assertions
            reason = first_line(error)
        raise UserError(f"no GPU: {reason} (CUDA 13 needs driver 580 or newer); --device cpu runs without one")
    if gpu >= torch.cuda.device_count():
        raise UserError(f"no GPU {gpu}: there are {torch.cuda.device_count()}, numbered from 0")
    import pynvml

    try:
        pynvml.nvmlInit()
        driver = pynvml.nvmlSystemGetDriverVersion()
    except pynvml.NVMLError:
        driver = ""
    return torch.cuda.get_device_name(gpu), driver, f"GPU-{torch.cuda.get_device_properties(gpu).uuid}"


# ---------------------------------------------------------------------------------------- what others do on it


def cpu_load() -> float | None:
    """Returns the share of this process's cores that others keep busy now; None where it is not known (not Linux)."""
    try:
        before = cpu_seconds()
        time.sleep(0.25)
        busy, total = cpu_seconds() - before
    except (OSError, AttributeError, TypeError, ValueError):  # other systems, and containers that number cores anew
        return None
    return busy / max(total, 1)


def cpu_seconds() -> np.ndarray:
    """Returns for the cores that this process may use, since the machine's start: busy and all time, in 1/100 s."""
    cores = {f"cpu{core}" for core in os.sched_getaffinity(0)}
    lines = [line.split() for line in Path("/proc/stat").read_text().splitlines() if line.split()[0] in cores]
    user, nice, system, idle, iowait, irq, softirq, steal = np.array([line[1:9] for line in lines], int).sum(axis=0)
    busy = user + nice + system + irq + softirq + steal  # proc(5)
    return np.array([busy, busy + idle + iowait])


def gpu_load(uuid: str) -> tuple[float, int, float]:
    """Returns what others do on a GPU: the share of the last second in which it was busy, processes, and used MiB.

    Raises UserError where NVML does not tell. In a container, the processes outside are not seen.
    """
    import pynvml

    try:
        gpu = nvml_handle(uuid)
        load = pynvml.nvmlDeviceGetUtilizationRates(gpu).gpu / 100
        others = len(pynvml.nvmlDeviceGetComputeRunningProcesses(gpu))
        return load, others, pynvml.nvmlDeviceGetMemoryInfo(gpu, version=pynvml.nvmlMemory_v2).used / 2**20
    except pynvml.NVMLError as error:
        raise UserError(f"whether others use the GPU, or its clock is throttled, is not known: {error}") from error


def nvml_handle(uuid: str):
    import pynvml

    pynvml.nvmlInit()
    return pynvml.nvmlDeviceGetHandleByUUID(uuid)


@contextlib.contextmanager
def watch_throttling(uuid: str) -> Iterator[set[str]]:
    """Yields a set that collects, while the block runs, why the GPU's clock is held down: see THROTTLING."""
    import pynvml

    reasons, done = set(), threading.Event()

    def watch() -> None:
        try:
            gpu, over = nvml_handle(uuid), False
            while not over:
                bits = pynvml.nvmlDeviceGetCurrentClocksEventReasons(gpu)
                reasons.update(name for bit, name in THROTTLING.items() if bits & bit)
                over = done.wait(POLL_SECONDS)
        except pynvml.NVMLError:
            reasons.add("not known")

    thread = threading.Thread(target=watch, daemon=True)
    thread.start()
    try:
        yield reasons
    finally:
        done.set()
        thread.join()


# ------------------------------------------------------------------------------------------ how much it could do


def measure_peaks(precisions: list[str], place: Place) -> dict[str, float]:
    """Measures for each precision the FLOP/s that the best of a few large matrix products reaches on all of the device.

    That is what a user can get of it, not what its data sheet says. INT8 has none: torch's product is far from it.
    """
    import torch

    torch.set_num_threads(cpu_cores())
    torch.backends.cuda.matmul.allow_tf32 = False
    device = torch.device("cpu" if place.gpu is None else f"cuda:{place.gpu}")
    wait = (lambda: None) if place.gpu is None else (lambda: torch.cuda.synchronize(device))
    repeats = 1 if place.gpu is None else 10  # products between two waits
    peaks = {}
    for precision in set(precisions) & {*DTYPES}:
        for rows, inner, columns in PEAK_PRODUCTS if place.gpu is None else GPU_PEAK_PRODUCTS:
            dtype = getattr(torch, DTYPES[precision])
            left, right = (torch.rand(n, inner, device=device).to(dtype) for n in (rows, columns))
            torch.mm(left, right.T)
            begin = time.monotonic()
            while time.monotonic() - begin < PEAK_SECONDS:
                wait()
                start = time.monotonic()
                for _ in range(repeats):
                    torch.mm(left, right.T)
                wait()
                seconds = (time.monotonic() - start) / repeats
                peaks[precision] = max(peaks.get(precision, 0), 2 * rows * inner * columns / seconds)
    return peaks


def count_flops(folder: Path, lengths: np.ndarray, example: list[int]) -> float:
    """Counts the FLOPs of the model's forward pass over texts of so many tokens, padding not counted.

    `example`: the token ids of the longest text, of which beginnings and the last token are run.

    torch's counter counts some lengths with eager attention (of others it misses the products on a CPU); between them
    the FLOPs a token are interpolated, which are linear in the length but for the head and for relative positions.
    A multiplication and an addition are 2 FLOPs. What is done element by element is left out.
    """
    import torch
    from torch.utils.flop_counter import FlopCounterMode

    model = load_model(folder, attn_implementation="eager")
    counted = np.unique(np.clip([0, 16, 64, 256, 10**9], lengths.min(), lengths.max()))
    per_token = []
    for length in counted:
        ids = torch.tensor([[*example[: length - 1], example[-1]]])
        with torch.inference_mode(), FlopCounterMode(display=False) as counter:
            model(input_ids=ids, attention_mask=torch.ones_like(ids))
        per_token.append(counter.get_total_flops() / length)
    return float((np.interp(lengths, counted, per_token) * lengths).sum())
