"""With this folder in PYTHONPATH every Python process behaves as if it had a GPU, but computes on the CPU."""

from types import SimpleNamespace

import onnxruntime
import pynvml
import torch

from bench.measure import peak

NAME, DRIVER = "Fake H200", "580.1"
MIB = 2**20


class DeviceType(type):
    """The type of a stand-in for torch.device that returns the CPU instead of a GPU."""

    real = torch.device

    def __instancecheck__(cls, value):
        return isinstance(value, DeviceType.real)

    def __call__(cls, *arguments):
        return DeviceType.real("cpu" if str(arguments[0]).startswith("cuda") else arguments[0], *arguments[1:])


class Session(onnxruntime.InferenceSession):
    def __init__(self, *arguments, providers=("CPUExecutionProvider",), **more):
        self.asked = [provider if isinstance(provider, str) else provider[0] for provider in providers]
        super().__init__(*arguments, providers=["CPUExecutionProvider"], **more)

    def get_providers(self):
        return self.asked


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
onnxruntime.InferenceSession = Session
pynvml.nvmlInit = lambda: None
pynvml.nvmlSystemGetDriverVersion = lambda: DRIVER
pynvml.nvmlDeviceGetHandleByUUID = {"GPU-1": "gpu"}.get
pynvml.nvmlDeviceGetUtilizationRates = lambda gpu: SimpleNamespace(gpu=0)
pynvml.nvmlDeviceGetComputeRunningProcesses = lambda gpu: []
pynvml.nvmlDeviceGetMemoryInfo = lambda gpu, version: SimpleNamespace(used=0)
pynvml.nvmlDeviceGetCurrentClocksEventReasons = lambda gpu: 0x04
peak.GPU_PEAK_PRODUCTS = ((64, 64, 64),)
peak.PEAK_SECONDS = 0.01
