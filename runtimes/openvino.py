"""OpenVINO on a CPU, from the plain ONNX export."""

from pathlib import Path

from bench.exporters.graph import select_inputs
from bench.model.model import Model
from bench.model_files import graph_of
from bench.variants import Device, TokenRunner, Variant
from runtimes.onnx import FP32
from utils import UserError


def load(model: Model, exported: Path, device: Device) -> TokenRunner:
    """Compile the export for the CPU plugin in BF16 with `device.threads` threads."""
    try:
        import openvino
    except ImportError as error:
        raise UserError("openvino-bf16 needs OpenVINO; install it with `pip install openvino`") from error

    settings = {"INFERENCE_PRECISION_HINT": "bf16", "INFERENCE_NUM_THREADS": device.threads, "NUM_STREAMS": 1}
    settings |= {"ENABLE_CPU_PINNING": False}
    compiled = openvino.compile_model(graph_of(exported), "CPU", settings)
    precision = compiled.get_property("INFERENCE_PRECISION_HINT").get_type_name()
    if precision != "bf16":
        raise UserError(f"this CPU has no BF16: OpenVINO would compute in {precision}")
    request = compiled.create_infer_request()
    names = [node.any_name for node in compiled.inputs]
    outputs = compiled.outputs
    output = next((node for node in outputs if model.task.output in node.names), outputs[0])

    def forward(inputs):
        return request.infer(inputs, share_inputs=True)[output].copy()

    return TokenRunner(prepare=lambda inputs: select_inputs(names, inputs), forward=forward, warm_up=forward)


VARIANTS = {
    "openvino-bf16": Variant(
        load,
        "bf16",
        ("openvino",),
        export=FP32,
        environment={"USE_TORCH": "0"},  # transformers, here for its tokenizer only, would otherwise import torch
        default_on=("cpu",),
        required_cpu_feature="bf16",
        new_shapes_are_costly=lambda gpu: True,  # by oneDNN
        unsupported={"gpu": "OpenVINO does not support NVIDIA's GPUs"},
    )
}
