"""The PyTorch runtime: its warm-up, and that no compiled variant silently runs eagerly."""

import sys

import numpy as np
import pytest
from conftest import refused
from tiny import make_tiny_roberta

from bench.model.batches import pad
from bench.model.model import Model
from bench.processes import error_summary
from bench.variants import Device
from runtimes import VARIANTS
from runtimes.pytorch import check_compiler, load

CPU = Device(gpu=None, threads=1)
PAD_VALUES = {"input_ids": 1, "attention_mask": 0}


@pytest.mark.parametrize("depth", [1, 2, 5])
def test_warming_up_runs_the_first_and_the_last_layer_and_leaves_the_model_whole(depth, tmp_path, texts, monkeypatch):
    from transformers.models.roberta.modeling_roberta import RobertaLayer

    layers, real = [], RobertaLayer.forward
    folder = make_tiny_roberta(tmp_path / "deep", texts, num_hidden_layers=depth)
    monkeypatch.setattr(RobertaLayer, "forward", lambda *args, **more: layers.append(1) or real(*args, **more))
    runner = load(Model.from_folder(folder, "deep"), None, CPU)
    batch = runner.prepare(pad({"input_ids": [[0, 7, 7, 2]]}, PAD_VALUES))
    layers.clear()
    before = runner.to_host(runner.forward(batch))
    assert len(layers) == depth
    runner.warm_up(batch)
    assert len(layers) == depth + min(depth, 2)
    assert (runner.to_host(runner.forward(batch)) == before).all()


def test_a_compiled_model_that_torch_would_run_eagerly_is_an_error(tiny_model, monkeypatch):
    """The limit of recompilations, here one, is reached; the backend doesn't matter."""
    import torch

    compile_module = torch.nn.Module.compile
    monkeypatch.setattr(torch.nn.Module, "compile", lambda *args, **kw: compile_module(*args, **kw, backend="eager"))
    torch.compiler.reset()
    with torch._dynamo.config.patch(recompile_limit=1):
        runner = VARIANTS["torch-compile"].load(Model.from_folder(tiny_model, "tiny"), None, CPU)
        with pytest.raises(Exception, match="recompile_limit") as caught:
            for texts, tokens in [(4, 8), (1, 8), (4, 1), (1, 1)]:
                runner.forward(runner.prepare(pad({"input_ids": np.ones((texts, tokens), int)}, PAD_VALUES)))
    torch.compiler.reset()
    assert "recompile_limit" in error_summary(caught.value)


def test_the_needs_of_compiling_are_checked_before_it(monkeypatch, tmp_path, tiny_model):
    check_compiler(None)
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("CXX", raising=False)
    monkeypatch.delenv("CC", raising=False)
    message = refused(VARIANTS["torch-compile-bf16"].load, Model.from_folder(tiny_model, "tiny"), None, CPU)
    assert "g++" in message and "clang++" in message
    message = refused(check_compiler, 0)
    assert "gcc" in message and "clang" in message and "++" not in message
    monkeypatch.setenv("CC", sys.executable)
    monkeypatch.setattr("sysconfig.get_path", lambda name: str(tmp_path))
    assert "Python.h" in refused(check_compiler, 0)
