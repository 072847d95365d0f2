"""What a worker does for a cell, in this process: every variant is right, and what is warmed up and timed."""

from dataclasses import replace

import numpy as np
import pytest

from bench import passes, stream
from bench.batches import ORDERS, make_batches
from bench.export import EXPORTS
from bench.inputs import prepare_inputs
from bench.parity import probabilities
from bench.passes import Cell, Job, Worker
from bench.stream import prefetch
from bench.sweep import parity
from bench.texts import load_tokenizer, tokenize
from runtimes import VARIANTS
from runtimes.onnx import bind
from runtimes.runner import Place, Runner, Variant

pytestmark = pytest.mark.usefixtures("in_this_process")

CPU = Place(gpu=None, threads=1)
CPU_VARIANTS = [name for name, variant in VARIANTS.items() if not variant.whole_texts and "cpu" not in variant.refused]
CPU_VARIANTS.remove("torch-compile-fp16")  # compiles for seconds, and nobody wants it on a CPU
# torch emulates what the CPU has not, OpenVINO computes in another precision
CPU_VARIANTS.remove("openvino-bf16")
CPU_VARIANTS.append(pytest.param("openvino-bf16", marks=[pytest.mark.needs("bf16"), pytest.mark.needs("openvino")]))
SIZE = {"dataset": 8, "length": 8, "tokens": 256}


@pytest.fixture(scope="module")
def inputs(tiny_model, texts):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("bench.inputs.in_fresh_process", lambda function, *arguments: function(*arguments))
        return prepare_inputs(tiny_model, texts[:60], None)


@pytest.fixture
def job(tiny_model, tiny_exports, inputs):
    """Makes the job of a variant on the tiny model."""

    def job(name: str, place: Place = CPU) -> Job:
        source = tiny_model
        if VARIANTS[name].export:
            source = tiny_exports / f"tiny{EXPORTS[VARIANTS[name].export].suffix}" / "model.onnx"
        return Job(tiny_model, name, source, place, inputs.folder)

    return job


@pytest.mark.parametrize("name", CPU_VARIANTS)
def test_every_cpu_variant_agrees_with_fp32_torch(name, job, inputs):
    """Over all orders, from tokens and from texts, against the reference."""
    worker = Worker(0, job(name))
    for order in ORDERS:
        for timed in ("forward", "texts"):
            worker.prepare(Cell(name, 1, SIZE[order], order, timed))
            start, end = worker.run()
            report = worker.report()
            assert start < end and report["padded"] >= inputs.lengths.sum()
            assert sorted(i for batch, _ in report["kept"] for i in batch) == list(range(60))
            max_diff, changed, _ = parity(inputs, report["kept"])
            # this model's logits are wide, so that its rounding errors are larger than a trained model's
            assert max_diff < {"fp32": 1e-5, "fp16": 5e-3, "bf16": 5e-2, "int8": 2e-1}[VARIANTS[name].precision]
            assert changed < 0.02
            if VARIANTS[name].precision != "fp32":
                assert max_diff > 1e-5, "a lower precision that changes nothing did not run"


@pytest.mark.parametrize("timed", ["forward", "texts"])
def test_the_shares_of_all_workers_are_all_texts(timed, job, inputs):
    cell = Cell("onnx", 3, 4, "length", timed)
    kept = []
    for number in range(3):
        worker = Worker(number, job("onnx"))
        worker.prepare(cell)
        worker.run()
        kept += worker.report()["kept"]
    assert sorted(i for batch, _ in kept for i in batch) == list(range(60))
    max_diff, _, _ = parity(inputs, kept)
    assert max_diff < 1e-5


@pytest.mark.parametrize(("size", "order"), [(4, "dataset"), (4, "length"), (128, "tokens")])
def test_texts_are_batched_across_chunks_as_if_there_were_none(size, order, job, texts, tiny_model, monkeypatch):
    """A chunk's last, partly filled batch goes on in the next chunk."""
    monkeypatch.setattr(stream, "CHUNK", 7)
    worker = Worker(0, job("onnx"))
    worker.prepare(Cell("onnx", 1, size, order, "texts"))
    batches = list(worker.padded_batches())
    assert sorted(i for batch, _ in batches for i in batch) == list(range(60))
    for batch, inputs in batches:
        for index, row, real in zip(batch, inputs["input_ids"], inputs["attention_mask"], strict=True):
            assert row[real == 1].tolist() == tokenize(load_tokenizer(tiny_model), [texts[index]], 128)["input_ids"][0]
    if order != "tokens":
        assert [len(batch) for batch, _ in batches] == [4] * 15


def test_an_error_while_texts_are_prepared_reaches_the_worker():
    def items():
        yield 1
        raise ValueError("broken text")

    made = prefetch(items())
    assert next(made) == 1
    with pytest.raises(ValueError, match="broken text"):
        next(made)


@pytest.fixture
def warmed(monkeypatch, job):
    """A worker of a stand-in for a variant, and the shapes that are warmed up."""
    shapes = []
    runner = Runner(
        prepare=lambda inputs: inputs["input_ids"],
        forward=lambda ids: np.zeros((len(ids), 5)),
        synchronize=lambda: None,
        fetch=np.asarray,
        warm_up=lambda ids: shapes.append(ids.shape),
    )
    variant = Variant(lambda source, place: runner, "fp32", ("torch",))
    monkeypatch.setitem(VARIANTS, "stand-in", variant)
    return Worker(0, replace(job("onnx"), variant="stand-in")), shapes


def test_each_new_shape_is_warmed_up_once_and_the_largest_first(warmed, inputs):
    worker, shapes = warmed
    for size, order in ((1, "dataset"), (1, "length"), (4, "length")):
        batches = make_batches(inputs.lengths, size, order)
        every = {(len(batch), int(inputs.lengths[batch].max())) for batch in batches}
        before = len(shapes)
        worker.prepare(Cell("stand-in", 1, size, order))
        worker.run()
        worker.report()
        new = shapes[before:]
        assert set(new) == every - set(shapes[:before]) and len(new) == len(set(new))
        assert new == sorted(new, key=np.prod, reverse=True)
    assert len(shapes) == len(set(shapes))


def test_a_report_forgets_the_cell(warmed):
    worker, _ = warmed
    worker.prepare(Cell("stand-in", 1, 8, "length"))
    worker.run()
    assert worker.prepared and worker.outputs
    assert worker.report()["kept"]
    assert not (worker.prepared or worker.outputs or worker.batches or worker.latencies)


def test_a_worker_on_a_gpu_in_the_memory_of_the_cpu(job, inputs, monkeypatch):
    """All of its steps: few shapes, warmed up in each cell, batches timed one by one, and right outputs."""
    import onnxruntime
    import torch

    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda gpu: (2**30, 3 * 2**30))
    session = onnxruntime.InferenceSession(job("onnx").source)
    variant = Variant(
        lambda *_: bind(session, torch.device("cpu")), "fp16", ("onnxruntime-gpu",), plans_shapes=lambda gpu: True
    )
    monkeypatch.setitem(VARIANTS, "stand-in", variant)
    worker = Worker(0, replace(job("onnx"), variant="stand-in", place=Place(gpu=0, threads=1)))
    for order in ORDERS:
        for timed in ("forward", "texts"):
            worker.prepare(Cell("stand-in", 1, SIZE[order], order, timed))
            assert worker.warm and all(width < 32 or width % 2 == 0 for _, width in worker.warm)
            worker.run()
            report = worker.report()
            assert not worker.warm, "torch gave its memory back"
            assert report["memory"] == 2048
            if timed == "forward":
                assert report["latencies"] and min(report["latencies"]) > 0
            probs = probabilities(np.concatenate([logits for _, logits in report["kept"]]), "regression")
            assert np.isfinite(probs).all()
            max_diff, changed, _ = parity(inputs, report["kept"])
            assert max_diff < 1e-5 and changed == 0


@pytest.mark.parametrize(("name", "rounds"), [("torch", False), ("torch-bf16", True), ("onnx", False)])
def test_a_cpu_gets_fewer_lengths_only_in_bf16(name, rounds, job, inputs):
    """Where oneDNN prepares itself for each."""
    worker = Worker(0, job(name))
    assert (worker.widths > inputs.lengths).any() == rounds
    assert (worker.widths >= inputs.lengths).all() and worker.widths.max() <= inputs.about["limit"]


def test_transformers_pipeline_is_timed_from_texts_and_agrees(job, inputs):
    found = []
    for number in range(2):
        worker = Worker(number, job("pipeline"))
        worker.prepare(Cell("pipeline", 2, 8, "dataset", "texts"))
        start, end = worker.run()
        report = worker.report()
        assert end > start and report["padded"] > inputs.lengths.sum() / 2 and not report["latencies"]
        found += report["kept"]
    max_diff, changed, _ = parity(inputs, found)
    assert max_diff < 1e-5 and changed == 0


def test_memory_is_this_processs_own():
    before = passes.used_memory_mib(None)
    held = np.ones(2**24)
    assert passes.used_memory_mib(None) - before + 50 > 100 and held.nbytes == 2**27
