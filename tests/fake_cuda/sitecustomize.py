"""With this folder in PYTHONPATH every Python process behaves as if it had a GPU, but computes on the CPU.

Modules are patched when they are imported: most processes import none of them, and torch takes seconds.
"""

import importlib.util
import sys
from types import SimpleNamespace

NAME, DRIVER = "Fake H200", "580.1"
MIB = 2**20


def patch_torch(torch) -> None:
    class DeviceType(type):
        """The type of a stand-in for torch.device that returns the CPU instead of a GPU."""

        real = torch.device

        def __instancecheck__(cls, value):
            return isinstance(value, DeviceType.real)

        def __call__(cls, *arguments):
            return DeviceType.real("cpu" if str(arguments[0]).startswith("cuda") else arguments[0], *arguments[1:])

    torch.device = DeviceType("device", (), {})
    torch.cuda.is_available = lambda: True
    torch.cuda.device_count = lambda: 1
    torch.cuda.get_device_name = lambda gpu: NAME
    torch.cuda.get_device_capability = lambda gpu: (9, 0)
    torch.cuda.get_device_properties = lambda gpu: SimpleNamespace(uuid="1")
    torch.cuda.set_device = lambda device: None
    torch.cuda.empty_cache = lambda: None
    torch.cuda.synchronize = lambda device=None: None
    torch.cuda.mem_get_info = lambda gpu: (MIB, 3 * MIB)


def patch_onnxruntime(onnxruntime) -> None:
    class Session(onnxruntime.InferenceSession):
        def __init__(self, *arguments, providers=("CPUExecutionProvider",), **more):
            self.asked = [provider if isinstance(provider, str) else provider[0] for provider in providers]
            super().__init__(*arguments, providers=["CPUExecutionProvider"], **more)

        def get_providers(self):
            return self.asked

    onnxruntime.InferenceSession = Session


def patch_pynvml(pynvml) -> None:
    pynvml.nvmlInit = lambda: None
    pynvml.nvmlSystemGetDriverVersion = lambda: DRIVER
    pynvml.nvmlDeviceGetHandleByUUID = {"GPU-1": "gpu"}.get
    pynvml.nvmlDeviceGetUtilizationRates = lambda gpu: SimpleNamespace(gpu=0)
    pynvml.nvmlDeviceGetComputeRunningProcesses = lambda gpu: []
    pynvml.nvmlDeviceGetMemoryInfo = lambda gpu, version: SimpleNamespace(used=0, free=2**40)
    pynvml.nvmlDeviceGetCurrentClocksEventReasons = lambda gpu: 0x04


def patch_peak(peak) -> None:
    peak.GPU_PEAK_PRODUCTS = ((64, 64, 64),)
    peak.PEAK_SECONDS = 0.01


PATCHES = {"torch": patch_torch, "onnxruntime": patch_onnxruntime, "pynvml": patch_pynvml}
PATCHES |= {"bench.measure.peak": patch_peak}


class PatchingFinder:
    @staticmethod
    def find_spec(name, _path, _target=None):
        if name not in PATCHES:
            return None
        sys.meta_path.remove(PatchingFinder)
        spec = importlib.util.find_spec(name)
        sys.meta_path.insert(0, PatchingFinder)
        execute = spec.loader.exec_module

        def exec_module(module):
            execute(module)
            PATCHES[name](module)

        spec.loader.exec_module = exec_module
        return spec


sys.meta_path.insert(0, PatchingFinder)
