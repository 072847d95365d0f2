"""The runtimes that are compared, one file each, and the table of all their variants."""

from runtimes import baselines, onnx, openvino, pytorch

VARIANTS = pytorch.VARIANTS | onnx.VARIANTS | openvino.VARIANTS | baselines.VARIANTS
