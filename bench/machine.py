"""The machine: its devices, what they compute natively, and what others do on them."""

import contextlib
import math
import os
import platform
import re
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from utils import UserError, first_line, int_from

# what makes a GPU's clock lower than its load and its settings ask for, by NVML's nvmlClocksEventReasons; the software
# power cap (0x04) is the normal state of a busy GPU
THROTTLING = {0x08: "hardware slowdown", 0x20: "heat (driver)", 0x40: "heat (hardware)", 0x80: "power brake"}
# what /proc/cpuinfo says of a CPU that multiplies in BF16, or in INT8 without sums that saturate
CPU_FEATURES = {
    "bf16": {"avx512_bf16", "amx_bf16", "bf16"},
    "vnni": {"avx512_vnni", "avx_vnni", "amx_int8", "asimddp"},
}
# how much a processor multiplies at once, the widest first, and what /proc/cpuinfo says then
WIDTHS = {"amx": "amx_tile", "avx512": "avx512f", "avx2": "avx2"}
POLL_SECONDS = 0.2  # between two looks at a GPU's clock: shorter than a pass, and hardly any work
BUSY = 0.1  # others' share of a device above which what is measured on it can't be compared
BUSY_SECONDS = 0.25  # over which the load of a CPU is taken: 25 ticks of /proc/stat


# ------------------------------------------------------------------------------------------------- what it is


@dataclass(frozen=True)
class DeviceInfo:
    """A device's `name`; of a GPU also its `driver` and NVML's id (`uuid`), empty where NVML does not tell."""

    name: str
    driver: str = ""
    uuid: str = ""


def cpu_cores() -> int:
    """Counts the cores that this process may use, by its affinity and by the quotas of its control groups."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return max(1, math.ceil(min([cores, *cpu_quotas()])))


def cpu_quotas(root: Path = Path("/sys/fs/cgroup"), own: Path = Path("/proc/self/cgroup")) -> Iterator[float]:
    """Yields the quotas, in cores, of this process's control group and of all that hold it; none outside Linux.

    Source: cpu.max (version 2) and cpu.cfs_quota_us (version 1) in the kernel's documents. A container sees its own
    group as the root.
    """
    for line in own.read_text().splitlines() if own.exists() else ():
        _, controllers, path = line.split(":", 2)
        base = root / "cpu" if "cpu" in controllers.split(",") else root
        group = base / path.strip("/")
        for folder in [group, *(parent for parent in group.parents if parent.is_relative_to(base))]:
            with contextlib.suppress(OSError, ValueError):  # no such file, or "max" where there is no limit
                if controllers:
                    quota, period = ((folder / f"cpu.cfs_{name}_us").read_text() for name in ("quota", "period"))
                else:
                    quota, period = (folder / "cpu.max").read_text().split()
                if float(quota) > 0:  # -1: no limit
                    yield float(quota) / float(period)


def process_count(text: str) -> int:
    """Parses a number of workers or threads; more than the machine could ever use is a slip of the finger."""
    return int_from(1, max(64, cpu_cores()))(text)


def cpu_name() -> str:
    """Returns the processor's name without trade marks and clock, and its cores: `Intel Xeon 8481C, 4 cores`.

    Where a virtual machine hides the model's number, family, model and what it multiplies stand in for it: `AMD EPYC
    25-1 avx2, 2 cores`.
    """
    name = platform.processor() or platform.machine()
    cpuinfo = Path("/proc/cpuinfo")
    text = cpuinfo.read_text() if cpuinfo.exists() else ""
    known = dict(re.findall(r"^(model name|cpu family|model)\s*:\s*(.+)$", text, re.MULTILINE))
    name = known.get("model name", name)
    name = " ".join(re.sub(r"\((R|TM|tm)\)|\bCPU\b|\bProcessor\b|@.*$|\d+-Core", " ", name).split())
    if "cpu family" in known and not re.search(r"\d{3}", name):
        widest = [word for word, flag in WIDTHS.items() if flag in text.split()][:1]
        name = " ".join([name, f"{known['cpu family']}-{known['model']}", *widest, *sorted(cpu_features())])
    return f"{name}, {cpu_cores()} cores"


def cpu_features() -> set[str]:
    """Returns what the processor multiplies natively, see CPU_FEATURES; nothing outside Linux, which doesn't say."""
    cpuinfo = Path("/proc/cpuinfo")
    flags = set(cpuinfo.read_text().split()) if cpuinfo.exists() else set()
    return {name for name, signs in CPU_FEATURES.items() if flags & signs}


def describe_device(gpu: int | None) -> DeviceInfo:
    """Describes a GPU, or with None the CPU. For a GPU call it in a process of its own: it starts CUDA.

    Raises UserError if there is no such GPU, with the reason that torch gives, such as a driver that is too old.
    """
    if gpu is None:
        return DeviceInfo(cpu_name())
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

    driver, uuid = "", f"GPU-{torch.cuda.get_device_properties(gpu).uuid}"
    with contextlib.suppress(pynvml.NVMLError):
        pynvml.nvmlInit()
        driver = pynvml.nvmlSystemGetDriverVersion()
    return DeviceInfo(torch.cuda.get_device_name(gpu), driver, uuid)


# ---------------------------------------------------------------------------------------- what others do on it


def cpu_busy() -> float | None:
    """Return the share of this process's cores that is busy now; None if the system does not tell."""
    try:
        busy_before, total_before = cpu_ticks()
        time.sleep(BUSY_SECONDS)
        busy, total = cpu_ticks()
    except (OSError, AttributeError, ValueError):  # not Linux, or a container that numbers its cores differently
        return None
    return (busy - busy_before) / max(total - total_before, 1)


def cpu_ticks() -> tuple[int, int]:
    """Return the busy and the total time of this process's cores since the machine started, in 1/100 s."""
    cores = {f"cpu{core}" for core in os.sched_getaffinity(0)}
    lines = [line.split() for line in Path("/proc/stat").read_text().splitlines() if line.split()[0] in cores]
    ticks = [sum(map(int, column)) for column in zip(*(line[1:9] for line in lines), strict=True)]
    _, _, _, idle, iowait, *_ = ticks  # proc(5)
    return sum(ticks) - idle - iowait, sum(ticks)


def gpu_busy(uuid: str) -> tuple[float, int, float]:
    """Returns what others do on a GPU: the share of the last second in which it was busy, processes, and used MiB.

    Raises UserError where NVML does not tell. In a container, the processes outside are not seen.
    """
    import pynvml

    try:
        gpu = nvml_handle(uuid)
        busy = pynvml.nvmlDeviceGetUtilizationRates(gpu).gpu / 100
        others = len(pynvml.nvmlDeviceGetComputeRunningProcesses(gpu))
        return busy, others, pynvml.nvmlDeviceGetMemoryInfo(gpu, version=pynvml.nvmlMemory_v2).used / 2**20
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
