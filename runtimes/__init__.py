"""The runtimes that are compared, one file each, and the table of all their variants."""

from bench.naming import nearest
from runtimes import baselines, onnx, openvino, pytorch
from utils import UserError

VARIANTS = pytorch.VARIANTS | onnx.VARIANTS | openvino.VARIANTS | baselines.VARIANTS


def check_variant(name: str, *others: str) -> None:
    """Raise UserError if a name is neither a variant's nor one of the `others` that --variant takes."""
    names = [*VARIANTS, *others]
    if name in names:
        return
    if similar := nearest(name, names, cutoff=0.6):
        advice = f"did you mean {similar}?"
    else:
        own = (name for name, variant in VARIANTS.items() if not variant.library)
        advice = f"docs/variants.md describes them: {', '.join([*own, *others])}"
    where = " (a model is --model-id)" if "/" in name else ""
    raise UserError(f"--variant {name}: no such variant{where}; {advice}")
