"""Each variant in this process: whether it is right, what prepares it, and what a GPU runs, in the CPU's memory."""

import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from conftest import real_sweep

import run_benchmark
import utils
import variants

CPU_VARIANTS = [name for name, variant in variants.VARIANTS.items() if "cpu" not in variant.refused]
CPU_VARIANTS.remove("torch-compile-fp16")  # compiles for seconds, and nobody wants it on a CPU


@pytest.mark.parametrize("name", CPU_VARIANTS)
def test_every_cpu_variant_agrees_with_fp32_torch(name, tiny_model, tiny_exports, texts):
    """In this process: the worker's steps of one variant over all orders, against the reference."""
    sweep = real_sweep(tiny_model, texts)
    inputs, place = sweep.inputs, sweep.place
    variant = variants.VARIANTS[name]
    source = tiny_model
    if variant.runtime != "torch":
        source = tiny_exports / f"tiny{variants.EXPORT_SUFFIX[variant.export]}" / "model.onnx"
    steps = run_benchmark.Steps(variants.load(name, source, place), place, inputs)
    for order in utils.ORDERS:
        size = 256 if order == "tokens" else 8
        steps.release()
        steps.prepare(utils.make_batches(inputs.lengths, size, order))
        steps.run()
        kept = steps.report()["kept"]
        shard = run_benchmark.TextShard(tiny_model, np.arange(60), sweep.texts, size, order)
        steps.prepare_texts(shard)
        _, _, of_texts = steps.run_texts(shard)
        assert sorted(i for batch, _ in of_texts for i in batch) == list(range(60))
        max_diff, flips = np.maximum(run_benchmark.parity(sweep, kept), run_benchmark.parity(sweep, of_texts))
        # this model's logits are wide, so that its rounding errors are larger than a trained model's
        assert max_diff < {"fp32": 1e-5, "fp16": 5e-3, "bf16": 5e-2, "int8": 2e-1}[variant.precision]
        assert flips < 0.02
        if variant.precision != "fp32":
            assert max_diff > 1e-5, "a lower precision that changes nothing did not run"


def test_few_shapes_give_the_same_outputs(tiny_model, texts):
    """Fewer than there are lengths; end to end they are those of the prepared inputs, which were warmed up."""
    sweep = real_sweep(tiny_model, texts)
    inputs = replace(sweep.inputs, few_shapes=True)
    steps = run_benchmark.Steps(variants.load("torch", tiny_model, sweep.place), sweep.place, inputs)
    steps.prepare(utils.make_batches(inputs.widths, 1, "length"))
    shapes = {ids.shape for ids, _ in steps.prepared}
    assert len(shapes) < len(np.unique(inputs.lengths)) and steps.warm == shapes
    steps.run()
    max_diff, flips = run_benchmark.parity(sweep, steps.report()["kept"])
    assert max_diff < 1e-5 and flips == 0

    steps.prepare_texts(run_benchmark.TextShard(tiny_model, np.arange(60), sweep.texts, 1, "length"))
    assert steps.warm == shapes


def test_onnxruntime_on_a_cpu_warms_up_what_is_larger_than_all_before(tiny_exports, monkeypatch):
    runner = variants.load("onnx", tiny_exports / "tiny-onnx" / "model.onnx", variants.Place(gpu=None, threads=1))
    ran = []
    monkeypatch.setattr("onnxruntime.InferenceSession.run", lambda _, __, inputs: ran.append(inputs["input_ids"].shape))
    for shape in ((2, 9), (1, 9), (3, 6), (4, 5)):
        runner.warm_up(runner.prepare(*np.ones((2, *shape), np.int64)))
    assert ran == [(2, 9), (4, 5)]


def test_warming_up_leaves_the_model_whole(tiny_model):
    runner = variants.load("torch", tiny_model, variants.Place(gpu=None, threads=1))
    batch = runner.prepare(np.full((2, 5), 7), np.ones((2, 5), dtype=np.int64))
    before = runner.fetch(runner.forward(batch))
    runner.warm_up(batch)
    assert (runner.fetch(runner.forward(batch)) == before).all()


@pytest.mark.parametrize(
    ("device", "flags", "only_here"),
    [
        ("gpu", "amx_bf16", {"torch-fp16", "torch-compile-fp16", "onnx-fp16", "onnx-fp16-packed"}),
        ("cpu", "amx_bf16", {"onnx-int8", "openvino-bf16"}),
        ("cpu", "avx2", {"onnx-int8"}),
    ],
)
def test_all_are_those_that_make_sense(device, flags, only_here, monkeypatch):
    real = Path.read_text
    monkeypatch.setattr(Path, "read_text", lambda path: f"flags : {flags}" if "cpuinfo" in str(path) else real(path))
    everywhere = {"torch", "torch-compile", "torch-bf16", "torch-compile-bf16", "onnx"}
    assert set(variants.choose_variants(["all"], device)) == everywhere | only_here


def test_a_session_without_cuda_is_an_error(tiny_exports, monkeypatch):
    """onnxruntime gives a session on the CPU without raising, as it does here where there is no GPU."""
    monkeypatch.setattr("onnxruntime.InferenceSession.get_providers", lambda _: ["CPUExecutionProvider"])
    with pytest.raises(utils.UserError, match="a session on CPUExecutionProvider instead of CUDAExecutionProvider"):
        variants.load("onnx", tiny_exports / "tiny-onnx" / "model.onnx", variants.Place(gpu=0, threads=1))


@pytest.mark.parametrize("graphs", [False, True])
def test_bound_inputs_and_outputs_are_right(graphs, tiny_exports, monkeypatch):
    """What runs on a GPU, in the memory of the CPU: each batch has outputs of its own, and with CUDA graphs each shape
    runs in one memory, under one number.
    """
    import onnxruntime
    import torch

    session = onnxruntime.InferenceSession(tiny_exports / "tiny-onnx" / "model.onnx")
    runs = []
    run = type(session).run_with_iobinding

    def note(session, binding, options):
        runs.append((id(binding), options.get_run_config_entry("gpu_graph_id")))
        run(session, binding, options)

    monkeypatch.setattr(type(session), "run_with_iobinding", note)
    runner = variants.bind_onnx(session, torch.device("cpu"), graphs)
    rng = np.random.default_rng(0)
    arrays = [(rng.integers(4, 90, shape), np.ones(shape, np.int64)) for shape in [(2, 9), (3, 5), (2, 9)]]
    prepared = [runner.prepare(*batch) for batch in arrays]
    for batch in prepared[:2]:
        runner.warm_up(batch)
    warm, runs[:] = list(runs), []
    outputs = [runner.forward(batch) for batch in prepared]
    for (input_ids, mask), logits in zip(arrays, outputs, strict=True):
        expected = session.run(None, {"input_ids": input_ids, "attention_mask": mask})[0]
        assert np.allclose(runner.fetch(logits), expected, atol=1e-6)
    if graphs:
        assert [graph for _, graph in warm] == ["1", "2"]
        assert runs == [warm[0], warm[1], warm[0]]
    else:
        assert {graph for _, graph in [*warm, *runs]} == {"-1"}


@pytest.mark.parametrize("graphs", [False, True])
def test_a_worker_of_a_gpu_in_the_memory_of_the_cpu(graphs, tiny_model, tiny_exports, texts, monkeypatch):
    """All of its steps over several cells: each shape is warmed up in each cell, batches are timed one by one, and the
    outputs are right.
    """
    import onnxruntime
    import torch

    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda gpu: (2**30, 3 * 2**30))
    sweep = real_sweep(tiny_model, texts)
    inputs = replace(sweep.inputs, few_shapes=True)
    session = onnxruntime.InferenceSession(tiny_exports / "tiny-onnx" / "model.onnx")
    runner = variants.bind_onnx(session, torch.device("cpu"), graphs)
    steps = run_benchmark.Steps(runner, variants.Place(gpu=0, threads=1), inputs)
    for size, order in ((8, "dataset"), (8, "length"), (256, "tokens")):
        steps.release()
        assert not steps.warm
        steps.prepare(utils.make_batches(inputs.widths, size, order))
        start, end = steps.run()
        report = steps.report()
        assert report["memory"] == 2048 and start < end
        assert len(report["latencies"]) == len(steps.batches) and min(report["latencies"]) > 0
        shard = run_benchmark.TextShard(tiny_model, np.arange(60), sweep.texts, size, order)
        steps.prepare_texts(shard)
        for kept in (report["kept"], steps.run_texts(shard)[2]):
            max_diff, flips = run_benchmark.parity(sweep, kept)
            assert max_diff < 1e-5 and flips == 0


def test_the_probe_of_a_gpu_is_one_that_a_session_runs(tmp_path):
    import onnxruntime
    import torch

    session = onnxruntime.InferenceSession(variants.write_probe(tmp_path / "probe.onnx"))
    runner = variants.bind_onnx(session, torch.device("cpu"), graphs=False)
    assert runner.fetch(runner.forward(runner.prepare(np.array([[5, 7]]), None))).tolist() == [[5, 7]]


def test_outputs_of_a_cuda_graph_of_torch_are_kept(tiny_model, monkeypatch):
    """A stand-in for the compiled model that, as a CUDA graph does, puts the outputs of a shape into one memory."""
    import torch

    static, runs, asked = {}, [], {}

    def compile_module(model, **options):
        asked.update(options)
        forward = model.forward

        def replay(input_ids, mask):
            runs.append(tuple(input_ids.shape))
            logits = forward(input_ids, mask).logits
            return SimpleNamespace(logits=static.setdefault(input_ids.shape, torch.empty_like(logits)).copy_(logits))

        model.forward = replay

    monkeypatch.setattr(torch.nn.Module, "compile", compile_module)
    place = variants.Place(gpu=None, threads=1)
    runner = variants.load("torch-fp16-graphs", tiny_model, place)
    assert asked["mode"] == "reduce-overhead" and torch._inductor.config.triton.cudagraph_or_error
    prepared = [runner.prepare(np.full((2, 9), token), np.ones((2, 9), np.int64)) for token in (5, 50)]
    runner.warm_up(prepared[0])
    assert runs == [(2, 9)] * 3  # torch captures in the second, so that the third is the first that is as fast as later
    outputs = [runner.fetch(logits) for logits in [runner.forward(batch) for batch in prepared]]
    eager = variants.load("torch-fp16", tiny_model, place)
    assert all(
        (eager.fetch(eager.forward(batch)) == logits).all() for batch, logits in zip(prepared, outputs, strict=True)
    )


def test_a_compiled_model_that_torch_would_run_eagerly_is_an_error(tiny_model, monkeypatch):
    """At the limit of recompilations, here of one; the backend is of no account."""
    import torch

    compile_module = torch.nn.Module.compile
    monkeypatch.setattr(torch.nn.Module, "compile", lambda *args, **kw: compile_module(*args, **kw, backend="eager"))
    torch.compiler.reset()
    with torch._dynamo.config.patch(recompile_limit=1):
        runner = variants.load("torch-compile", tiny_model, variants.Place(gpu=None, threads=1))
        with pytest.raises(Exception, match="recompile_limit") as caught:
            for shape in [(4, 8), (1, 8), (4, 1), (1, 1)]:
                runner.forward(runner.prepare(np.ones(shape, np.int64), np.ones(shape, np.int64)))
    torch.compiler.reset()
    assert "recompile_limit" in run_benchmark.status_of(caught.value)


def test_a_run_on_a_gpu_whose_place_the_cpu_takes(tiny_model, tiny_exports, tmp_path):
    """From the probe to the row, with all that is asked of CUDA and NVML; the reference is torch's on the GPU."""
    (tmp_path / "tiny-onnx-fp16").symlink_to(tiny_exports / "tiny-onnx-fp16")
    options = ["--model", "onnx-fp16-graphs", "--device", "gpu", "--model-id", tiny_model, "--limit", 40]
    options += ["--batches", 1, "--order", "length", "--min-time", 0]
    command = [sys.executable, utils.ROOT / "tests" / "fake_cuda.py", "run_benchmark", *map(str, options)]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "machine    Fake H200, driver 580.1" in done.stderr
    [row] = utils.read_rows(next(tmp_path.glob("results/*/Fake-H200_onnx-fp16-graphs_*.tsv")))
    assert (row["status"], row["throttled"], row["memory_mib"]) == ("ok", "power cap", "2")
    assert float(row["padding"]) > 1, "of few lengths, though of size 1"
    assert 1e-5 < float(row["max_diff"]) < 5e-3 and float(row["end_to_end"]) > 0
