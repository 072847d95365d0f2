"""The things compared: a file for each runtime, and here the table of all their variants."""

from runtimes import onnx, openvino, pipeline, pytorch

VARIANTS = pytorch.VARIANTS | onnx.VARIANTS | openvino.VARIANTS | pipeline.VARIANTS
