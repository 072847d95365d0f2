"""The machine: its devices, their native precisions, and the load that other processes put on them."""

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

from bench.options import int_from
from utils import UserError, first_line

# bits of NVML's nvmlClocksEventReasons -> why a GPU's clock is lower than its load and settings ask for; the software
# power cap (0x04) is left out, because it is the normal state of a busy GPU
THROTTLING = {0x08: "hardware slowdown", 0x20: "heat (driver)", 0x40: "heat (hardware)", 0x80: "power brake"}
# flags in /proc/cpuinfo of CPUs that multiply in BF16, or in INT8 without saturating sums
CPU_FEATURES = {
    "bf16": {"avx512_bf16", "amx_bf16", "bf16"},
    "vnni": {"avx512_vnni", "avx_vnni", "amx_int8", "asimddp"},
}
# instruction sets, the widest first -> their flag in /proc/cpuinfo
WIDTHS = {"amx": "amx_tile", "avx512": "avx512f", "avx2": "avx2"}
CGROUPS, OWN_CGROUPS = Path("/sys/fs/cgroup"), Path("/proc/self/cgroup")
POLL_SECONDS = 0.2  # between two readings of a GPU's clock: shorter than a pass, and hardly any work
BUSY = 0.1  # share of a device used by other processes above which measurements on it can't be compared
BUSY_SECONDS = 0.25  # of CPU load to average: 25 ticks of /proc/stat


@dataclass(frozen=True)
class DeviceInfo:
    """A device."""

    name: str
    driver: str = ""  # of a GPU; empty if NVML does not know it
    uuid: str = ""  # of a GPU, as in NVML


def cpu_cores() -> int:
    """Return the number of cores that this process may use, by its affinity and its control groups' quotas."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return max(1, math.ceil(min([cores, *cpu_quotas()])))


def control_groups(controller: str, root: Path = CGROUPS, groups: Path = OWN_CGROUPS) -> Iterator[tuple[Path, bool]]:
    """Yield the folders of this process's control group and its ancestors; none outside Linux.

    The second value is true for version 1. A container sees its own group as the root.
    """
    for line in groups.read_text().splitlines() if groups.exists() else ():
        _, controllers, path = line.split(":", 2)
        base = root / controller if controller in controllers.split(",") else root
        group = base / path.strip("/")
        for folder in [group, *(parent for parent in group.parents if parent.is_relative_to(base))]:
            yield folder, bool(controllers)


def cpu_quotas(*places: Path) -> Iterator[float]:
    """Yield the quotas, in cores, of this process's control groups.

    Source: cpu.max (version 2) and cpu.cfs_quota_us (version 1) in the kernel's documentation.
    """
    for folder, is_version_1 in control_groups("cpu", *places):
        with contextlib.suppress(OSError, ValueError):  # no such file, or "max" for no limit
            if is_version_1:
                quota, period = ((folder / f"cpu.cfs_{name}_us").read_text() for name in ("quota", "period"))
            else:
                quota, period = (folder / "cpu.max").read_text().split()
            if float(quota) > 0:  # -1: no limit
                yield float(quota) / float(period)


def free_memory(uuid: str | None = None) -> float:
    """Return the free bytes of a GPU, or with None those of this machine within the limits of its control groups.

    Infinite if unknown.
    """
    if uuid is None:
        meminfo = Path("/proc/meminfo")
        found = re.search(r"MemAvailable:\s*(\d+)", meminfo.read_text()) if meminfo.exists() else None
        return min([int(found[1]) * 2**10 if found else math.inf, *memory_limits()])
    import pynvml

    with contextlib.suppress(pynvml.NVMLError):
        return pynvml.nvmlDeviceGetMemoryInfo(nvml_handle(uuid), version=pynvml.nvmlMemory_v2).free
    return math.inf


def memory_limits(*places: Path) -> Iterator[int]:
    """Yield the bytes left in this process's control groups, whose page cache counts as free."""
    for folder, is_version_1 in control_groups("memory", *places):
        names = ("limit_in_bytes", "usage_in_bytes") if is_version_1 else ("max", "current")
        with contextlib.suppress(OSError, ValueError):  # no such file, or "max" for no limit
            limit, used = (int((folder / f"memory.{name}").read_text()) for name in names)
            cached = re.search(r"^(?:total_)?inactive_file (\d+)", (folder / "memory.stat").read_text(), re.MULTILINE)
            yield limit - used + (int(cached[1]) if cached else 0)


def process_count(text: str) -> int:
    """Parse a number of workers or threads; more than the machine could ever use is a typing error."""
    return int_from(1, max(64, cpu_cores()))(text)


def cpu_name() -> str:
    """Return the processor's name without trademarks and clock, and its cores: `Intel Xeon 8481C, 4 cores`.

    If a virtual machine hides the model number, family, model and instruction set replace it: `AMD EPYC 25-1 avx2,
    2 cores`.
    """
    name = platform.processor() or platform.machine()
    cpuinfo = Path("/proc/cpuinfo")
    text = cpuinfo.read_text() if cpuinfo.exists() else ""
    known = dict(re.findall(r"^(model name|cpu family|model)\s*:\s*(.+)$", text, re.MULTILINE))
    name = known.get("model name", name)
    name = " ".join(re.sub(r"\((R|TM|tm)\)|\bCPU\b|\bProcessor\b|@.*$|\d+-Core", " ", name).split())
    if "cpu family" in known and not re.search(r"\d{3}", name):
        widest = [name for name, flag in WIDTHS.items() if flag in text.split()][:1]
        name = " ".join([name, f"{known['cpu family']}-{known['model']}", *widest, *sorted(cpu_features())])
    return f"{name}, {cpu_cores()} cores"


def cpu_features() -> set[str]:
    """Return the keys of CPU_FEATURES that this processor has; empty outside Linux, where they are unknown."""
    cpuinfo = Path("/proc/cpuinfo")
    flags = set(cpuinfo.read_text().split()) if cpuinfo.exists() else set()
    return {name for name, signs in CPU_FEATURES.items() if flags & signs}


def describe_device(gpu: int | None) -> DeviceInfo:
    """Describe a GPU, or with None the CPU. For a GPU, call it in a separate process, because it initializes CUDA.

    Raises UserError with torch's reason if there is no such GPU, for instance because the driver is too old.
    """
    if gpu is None:
        return DeviceInfo(cpu_name())
    import torch

    if not torch.cuda.is_available():
        if not torch.version.cuda:
            raise UserError(f"no GPU: torch {torch.__version__} is a build for CPUs; --device cpu runs on this one")
        reason = "torch finds no CUDA device"
        try:
            torch.cuda.init()
        except Exception as error:  # from the driver
            reason = first_line(error)
        raise UserError(f"no GPU: {reason}. CUDA 13 needs driver 580 or newer; --device cpu runs without a GPU")
    if gpu >= torch.cuda.device_count():
        raise UserError(f"no GPU {gpu}: this machine has {torch.cuda.device_count()}, numbered from 0")
    import pynvml

    driver, uuid = "", f"GPU-{torch.cuda.get_device_properties(gpu).uuid}"
    with contextlib.suppress(pynvml.NVMLError):
        pynvml.nvmlInit()
        driver = pynvml.nvmlSystemGetDriverVersion()
    return DeviceInfo(torch.cuda.get_device_name(gpu), driver, uuid)


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
    """Return a GPU's load: its busy share of the last second, the number of processes, and the used MiB.

    Raises UserError if NVML fails. A container does not see the processes outside.
    """
    import pynvml

    try:
        gpu = nvml_handle(uuid)
        busy = pynvml.nvmlDeviceGetUtilizationRates(gpu).gpu / 100
        others = len(pynvml.nvmlDeviceGetComputeRunningProcesses(gpu))
        return busy, others, pynvml.nvmlDeviceGetMemoryInfo(gpu, version=pynvml.nvmlMemory_v2).used / 2**20
    except pynvml.NVMLError as error:
        raise UserError(f"the GPU's load and throttling are unknown: NVML reports {error}") from error


def nvml_handle(uuid: str):
    import pynvml

    pynvml.nvmlInit()
    return pynvml.nvmlDeviceGetHandleByUUID(uuid)


@contextlib.contextmanager
def watch_throttling(uuid: str) -> Iterator[set[str]]:
    """Yield a set that collects the reasons in THROTTLING that occur while the block runs."""
    import pynvml

    reasons, done = set(), threading.Event()

    def watch() -> None:
        try:
            gpu, finished = nvml_handle(uuid), False
            while not finished:
                bits = pynvml.nvmlDeviceGetCurrentClocksEventReasons(gpu)
                reasons.update(name for bit, name in THROTTLING.items() if bits & bit)
                finished = done.wait(POLL_SECONDS)
        except pynvml.NVMLError:
            reasons.add("not known")

    thread = threading.Thread(target=watch, daemon=True)
    thread.start()
    try:
        yield reasons
    finally:
        done.set()
        thread.join()
