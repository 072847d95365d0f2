"""OpenVINO on Intel's CPUs, from the plain ONNX export."""

from pathlib import Path

from runtimes.onnx import feed
from runtimes.runner import Place, Runner, Variant
from utils import UserError


def load(file: Path, place: Place) -> Runner:
    """Compiles the export for the CPU plugin in BF16 on `place.threads`.

    Raises UserError if OpenVINO is missing, or if it would compute in another precision on this CPU.
    """
    try:
        import openvino
    except ImportError as error:
        raise UserError("openvino-bf16 needs OpenVINO: pip install openvino") from error

    settings = {"INFERENCE_PRECISION_HINT": "bf16", "INFERENCE_NUM_THREADS": place.threads, "NUM_STREAMS": 1}
    settings |= {"ENABLE_CPU_PINNING": False}
    compiled = openvino.compile_model(file, "CPU", settings)
    precision = compiled.get_property("INFERENCE_PRECISION_HINT").get_type_name()
    if precision != "bf16":
        raise UserError(f"OpenVINO computes in {precision} on this CPU, which has no BF16")
    request = compiled.create_infer_request()
    names = [node.any_name for node in compiled.inputs]

    def forward(inputs):
        return request.infer(inputs, share_inputs=True)[0].copy()

    return Runner(
        prepare=lambda inputs: feed(names, inputs),
        forward=forward,
        synchronize=lambda: None,
        fetch=lambda logits: logits,
        warm_up=forward,
    )


VARIANTS = {
    "openvino-bf16": Variant(
        load,
        "bf16",
        ("openvino",),
        export="fp32",
        all_on=("cpu",),
        needs="bf16",
        plans_shapes=lambda gpu: True,  # by oneDNN
        refused={"gpu": "OpenVINO runs on Intel's devices"},
    )
}
