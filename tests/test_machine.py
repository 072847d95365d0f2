"""The machine's name, features and load, and the origin of a figure."""

import math
import os
import re
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from unittest.mock import Mock

import pynvml
import pytest
from conftest import refused

from bench import machine, provenance
from bench.machine import (
    DeviceInfo,
    cpu_busy,
    cpu_cores,
    cpu_features,
    cpu_name,
    cpu_quotas,
    describe_device,
    free_memory,
    gpu_busy,
    memory_limits,
)
from bench.provenance import project_commit, versions


def test_names_and_versions():
    assert re.fullmatch(r"[^()@]+, \d+ cores", cpu_name())
    assert versions("pytest", "no-such-package") == {"pytest": pytest.__version__}


CPUINFO = "processor\t: 0\nvendor_id\t: x\ncpu family\t: {}\nmodel\t\t: {}\nmodel name\t: {}\nflags\t\t: fpu {}\n"


@pytest.mark.parametrize(
    ("cpu", "name"),
    [
        ((6, 143, "Intel(R) Xeon(R) Platinum 8481C CPU @ 2.70GHz", "amx_tile"), "Intel Xeon Platinum 8481C"),
        ((25, 1, "AMD EPYC Processor", "avx2"), "AMD EPYC 25-1 avx2"),
        ((25, 17, "AMD EPYC Processor", "avx2 avx512f avx512_vnni"), "AMD EPYC 25-17 avx512 vnni"),
        (
            (6, 167, "Intel(R) Xeon(R) Processor", "avx2 avx512f amx_tile amx_bf16 avx512_vnni"),
            "Intel Xeon 6-167 amx bf16 vnni",
        ),
        ((6, 167, "Intel(R) Xeon(R) Processor", "sse2"), "Intel Xeon 6-167"),
    ],
)
def test_family_model_and_instruction_set_replace_a_hidden_name(cpu, name, monkeypatch):
    real = machine.Path.read_text
    given = CPUINFO.format(*cpu)
    monkeypatch.setattr(
        machine.Path, "read_text", lambda path, *more: given if str(path) == "/proc/cpuinfo" else real(path, *more)
    )
    assert cpu_name() == f"{name}, {cpu_cores()} cores"


def test_the_commit_is_marked_if_the_code_has_changed(tmp_path, monkeypatch):
    monkeypatch.setattr(provenance, "ROOT", tmp_path)
    (tmp_path / "script.py").write_text("1")
    (tmp_path / "bench").mkdir()
    (tmp_path / "bench" / "module.py").write_text("2")
    assert re.fullmatch(r"\+[0-9a-f]{8}", project_commit()), "without git"
    environment = dict.fromkeys(("GIT_AUTHOR_NAME", "GIT_COMMITTER_NAME", "EMAIL"), "x") | {"PATH": os.environ["PATH"]}
    for command in (["init", "-q"], ["add", "."], ["commit", "-qm", "x"]):
        subprocess.run(["git", *command], cwd=tmp_path, env=environment, check=True)
    assert re.fullmatch(r"[0-9a-f]{10}", project_commit())
    (tmp_path / "README.md").write_text("no code")
    assert re.fullmatch(r"[0-9a-f]{10}", project_commit())
    (tmp_path / "bench" / "module.py").write_text("3")
    assert re.fullmatch(r"[0-9a-f]{10}\+[0-9a-f]{8}", project_commit())


def test_load_of_other_processes(monkeypatch):
    with subprocess.Popen([sys.executable, "-c", "while True: pass"]) as burner:
        try:
            assert 0.5 / cpu_cores() < cpu_busy() <= 1
        finally:
            burner.kill()
    ticks = iter([(700, 1000), (702, 1050)])
    monkeypatch.setattr(machine, "cpu_ticks", lambda: next(ticks))
    assert cpu_busy() == pytest.approx(0.04)
    monkeypatch.setattr(machine, "cpu_ticks", lambda: int("?"))
    assert cpu_busy() is None


@pytest.fixture
def nvml(monkeypatch):
    """NVML with one GPU."""
    monkeypatch.setattr(pynvml, "nvmlInit", lambda: None)
    monkeypatch.setattr(pynvml, "nvmlSystemGetDriverVersion", lambda: "580.1")
    monkeypatch.setattr(pynvml, "nvmlDeviceGetUtilizationRates", lambda gpu: SimpleNamespace(gpu=37))
    monkeypatch.setattr(pynvml, "nvmlDeviceGetComputeRunningProcesses", lambda gpu: ["one", "two"])
    monkeypatch.setattr(pynvml, "nvmlDeviceGetMemoryInfo", lambda gpu, version: SimpleNamespace(used=3 * 2**30))

    def handle(uuid):
        if uuid != "GPU-1":
            raise pynvml.NVMLError(pynvml.NVML_ERROR_NOT_FOUND)
        return "gpu"

    monkeypatch.setattr(pynvml, "nvmlDeviceGetHandleByUUID", handle)


def test_load_of_a_gpu(nvml):
    assert gpu_busy("GPU-1") == (0.37, 2, 3072)
    assert "Not Found" in refused(gpu_busy, "GPU-2")


def test_a_gpu_is_found_checked_and_named(nvml, monkeypatch):
    import torch

    old = RuntimeError("The NVIDIA driver on your system is too old (found version 12080).\nUpdate it")
    monkeypatch.setattr(torch.cuda, "init", Mock(side_effect=old))
    monkeypatch.setattr(torch.version, "cuda", None)
    assert "--device" in refused(describe_device, 0)
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    message = refused(describe_device, 0)
    assert "driver on your system is too old (found version 12080)" in message and "--device" in message
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda gpu: "NVIDIA H200")
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda gpu: SimpleNamespace(uuid="1"))
    assert describe_device(0) == DeviceInfo("NVIDIA H200", "580.1", "GPU-1")
    assert "GPU 1" in refused(describe_device, 1)


@pytest.mark.parametrize(
    ("flags", "capabilities"),
    [
        ("fma avx2 f16c", set()),
        ("avx2 avx_vnni", {"vnni"}),
        ("avx512f avx512_vnni avx512_bf16", {"vnni", "bf16"}),
        ("amx_bf16 amx_tile amx_int8", {"vnni", "bf16"}),
        ("asimd asimddp i8mm bf16", {"vnni", "bf16"}),
    ],
)
def test_cpu_features_are_read_from_its_flags(flags, capabilities, monkeypatch):
    monkeypatch.setattr(Path, "read_text", lambda _: f"processor\t: 0\nflags\t\t: fpu {flags} smep\nbogomips\t: 5\n")
    assert cpu_features() == capabilities


def test_the_quotas_of_a_container_and_its_ancestors_count(tmp_path):
    own, root = tmp_path / "cgroup", tmp_path / "root"
    (root / "slice" / "job").mkdir(parents=True)
    own.write_text("0::/slice/job\n")
    (root / "slice" / "job" / "cpu.max").write_text("max 100000\n")
    (root / "slice" / "cpu.max").write_text("150000 100000\n")
    (root / "cpu.max").write_text("800000 100000\n")
    assert list(cpu_quotas(root, own)) == [1.5, 8.0]
    own.write_text("3:cpuset:/\n2:cpu,cpuacct:/job\n0::/none\n")
    (root / "cpu" / "job").mkdir(parents=True)
    for place, quota in (("job", "50000"), ("", "-1")):
        (root / "cpu" / place / "cpu.cfs_quota_us").write_text(quota)
        (root / "cpu" / place / "cpu.cfs_period_us").write_text("100000")
    assert list(cpu_quotas(root, own)) == [0.5, 8.0]
    assert list(cpu_quotas(root, tmp_path / "none")) == [], "not Linux"


def test_the_memory_that_a_container_has_left_counts(tmp_path, monkeypatch):
    own, root = tmp_path / "cgroup", tmp_path / "root"
    (root / "job").mkdir(parents=True)
    own.write_text("0::/job\n")
    for folder, limit in ((root, "max"), (root / "job", "5000")):
        (folder / "memory.max").write_text(f"{limit}\n")
        (folder / "memory.current").write_text("3000\n")
        (folder / "memory.stat").write_text("anon 1900\ninactive_file 1000\nactive_file 100\n")
    assert list(memory_limits(root, own)) == [5000 - 3000 + 1000]
    own.write_text("2:memory:/job\n")
    (root / "memory" / "job").mkdir(parents=True)
    for name, value in (("limit_in_bytes", "700"), ("usage_in_bytes", "400"), ("stat", "total_inactive_file 90\n")):
        (root / "memory" / "job" / f"memory.{name}").write_text(value)
    assert list(memory_limits(root, own)) == [700 - 400 + 90]
    monkeypatch.setattr(machine, "memory_limits", lambda: [])
    assert free_memory() == pytest.approx(os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"), rel=9)
    monkeypatch.setattr(machine, "memory_limits", lambda: [7])
    assert free_memory() == 7


def test_the_free_memory_of_a_gpu(monkeypatch):
    def info(handle, version):
        if handle == "GPU-1":
            return SimpleNamespace(free=5)
        raise pynvml.NVMLError(pynvml.NVML_ERROR_NOT_SUPPORTED)

    monkeypatch.setattr(machine, "nvml_handle", str)
    monkeypatch.setattr(pynvml, "nvmlDeviceGetMemoryInfo", info)
    assert (free_memory("GPU-1"), free_memory("GPU-2")) == (5, math.inf)


def test_there_is_at_least_one_core(monkeypatch):
    monkeypatch.setattr(machine, "cpu_quotas", lambda: [0.3, 64])
    assert cpu_cores() == 1
    monkeypatch.setattr(machine, "cpu_quotas", lambda: [])
    assert cpu_cores() == len(os.sched_getaffinity(0))
