"""PyTorch, eager or compiled, on a GPU or a CPU. It loads the model's own folder."""

import os
import re
import shutil
import sysconfig
from functools import partial
from pathlib import Path

from runtimes.runner import Place, Runner, Variant, runs
from utils import UserError, first_line

DTYPES = {"fp32": "float32", "fp16": "float16", "bf16": "bfloat16"}


def load(folder: Path, place: Place, precision: str = "fp32", compiled: bool = False) -> Runner:
    """Loads the model in torch, with SDPA where it has it. FP32 is IEEE FP32, without TF32.

    It is compiled with dynamic shapes as one graph; a graph break or the limit of recompilations, after which torch
    would run eagerly without a word, is an error. Raises UserError where weights are missing: they would be random.
    """
    import torch

    torch.set_num_threads(place.threads)
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
    device = torch.device("cpu" if place.gpu is None else f"cuda:{place.gpu}")
    if place.gpu is not None:
        torch.cuda.set_device(device)
    model = load_model(folder, precision).to(device)
    if compiled:
        torch._dynamo.config.fail_on_recompile_limit_hit = True
        model.compile(dynamic=True, fullgraph=True)

    @torch.inference_mode()
    def forward(inputs):
        return model(**inputs, return_dict=True).logits

    def prepare(inputs):
        return {name: torch.from_numpy(array).to(device) for name, array in inputs.items()}

    return Runner(
        prepare=prepare,
        forward=forward,
        synchronize=(lambda: None) if place.gpu is None else partial(torch.cuda.synchronize, device),
        fetch=lambda logits: logits.float().cpu().numpy(),
        warm_up=forward if compiled or place.gpu is not None else partial(run_one_layer, model, forward),
    )


def load_model(folder: Path, precision: str = "fp32", **options):
    """Loads a folder's classifier on the CPU, checked for missing weights and layers. Raises UserError.

    `options` are from_pretrained's.
    """
    import torch
    from transformers import AutoModelForSequenceClassification

    options |= {"output_loading_info": True, "trust_remote_code": False, "local_files_only": True}
    options["dtype"] = getattr(torch, DTYPES[precision])
    try:
        model, loading = AutoModelForSequenceClassification.from_pretrained(folder, **options)
    except Exception as error:  # a wrong config and a broken file fail in as many ways as there are
        raise UserError(f"{folder} can't be loaded: {first_line(error)}") from error
    if loading["missing_keys"]:
        raise UserError(f"{folder} lacks weights: {', '.join(sorted(loading['missing_keys'])[:3])}")
    if unused := [key for key in sorted(loading["unexpected_keys"]) if re.search(r"\.\d+\.", key)]:
        raise UserError(f"{folder} has layers that its config.json doesn't count: {', '.join(unused[:3])}")
    return model.eval()


def run_one_layer(model, forward, inputs) -> None:
    """Warms up a shape by one layer alone: on a CPU, oneDNN keeps what it prepares for the layers that follow."""
    import torch

    stacks = [module for module in model.modules() if isinstance(module, torch.nn.ModuleList)]
    stacks = [stack for stack in stacks if len(stack) == model.config.num_hidden_layers]
    if len(stacks) != 1:
        forward(inputs)
        return
    [layers] = stacks
    others = layers[1:]
    del layers[1:]
    try:
        forward(inputs)
    finally:
        layers.extend(others)


def check_compiler(gpu: int | None) -> None:
    """Raises UserError if what torch.compile compiles with is missing: a C compiler (C++ on a CPU), Python's headers.

    Triton builds its launcher at run time, inductor its kernels for a CPU.
    """
    names = [os.environ.get("CXX"), "g++", "clang++"] if gpu is None else [os.environ.get("CC"), "gcc", "cc", "clang"]
    if not any(shutil.which(name) for name in names if name):
        raise UserError(f"torch.compile needs a compiler, and none of {', '.join(filter(None, names))} is there")
    header = Path(sysconfig.get_path("include"), "Python.h")
    if not header.exists():
        raise UserError(f"torch.compile needs Python's headers (such as the package python3-dev): there is no {header}")


def on_cpu(gpu: int | None) -> bool:
    return gpu is None


def variant(precision: str, compiled: bool = False, **options) -> Variant:
    load_it = partial(load, precision=precision, compiled=compiled)
    return Variant(load_it, precision, ("torch",), check=check_compiler if compiled else runs, **options)


VARIANTS = {
    "torch": variant("fp32"),
    "torch-compile": variant("fp32", compiled=True),
    "torch-fp16": variant("fp16", all_on=("gpu",)),
    "torch-compile-fp16": variant("fp16", compiled=True, all_on=("gpu",)),
    "torch-bf16": variant("bf16", needs="bf16", plans_shapes=on_cpu),  # by oneDNN
    "torch-compile-bf16": variant("bf16", compiled=True, needs="bf16", plans_shapes=on_cpu),
}
