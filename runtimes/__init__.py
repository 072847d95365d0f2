"""The runtimes that are compared, one file each, and the table of all their variants."""

from runtimes import onnx, openvino, pipeline, pytorch

VARIANTS = pytorch.VARIANTS | onnx.VARIANTS | openvino.VARIANTS | pipeline.VARIANTS
