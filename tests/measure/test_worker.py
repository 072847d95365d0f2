"""A worker's steps for a cell, in this process: every variant is correct; what is warmed up and timed."""

import numpy as np
import pytest
from conftest import call_here

from bench.machine import cpu_features
from bench.measure.cells import Cell
from bench.measure.tokens import prepare_tokens, with_reference
from bench.measure.worker import Report, Worker
from bench.model import stream
from bench.model.batches import Batching, make_batches
from bench.model.model import Model
from bench.provenance import missing_packages
from bench.variants import Device, TokenRunner, Variant
from runtimes import VARIANTS
from runtimes.classifier import ClassifierSpec
from runtimes.onnx import io_bound_runner

pytestmark = pytest.mark.usefixtures("in_this_process")

CPU = Device(gpu=None, threads=1)
CPU_VARIANTS = [name for name, variant in VARIANTS.items() if "cpu" not in variant.unsupported]
BASELINES = [name for name in CPU_VARIANTS if VARIANTS[name].library in ("pipeline", "crossencoder")]
CPU_VARIANTS = [name for name in CPU_VARIANTS if not VARIANTS[name].takes_texts]
CPU_VARIANTS.remove("torch-compile-fp16")  # takes seconds to compile, and is of no use on a CPU
# without BF16 in the CPU, compiling for it is just as slow and useless, and OpenVINO computes in another precision
for name, package in (("torch-compile-bf16", "torch"), ("openvino-bf16", "openvino")):
    CPU_VARIANTS.remove(name)
    CPU_VARIANTS.append(pytest.param(name, marks=[pytest.mark.needs("bf16"), pytest.mark.needs(package)]))
EVERY = (Batching("in-order", 8), Batching("sorted", 8), Batching("token-budget", batch_tokens=256))
STAGES = "forward", "end-to-end"


@pytest.fixture(scope="module")
def model(tiny_model) -> Model:
    return Model.from_folder(tiny_model, "tiny")


@pytest.fixture(scope="module")
def tokens(model, texts):
    return with_reference(prepare_tokens(model, texts[:60], call_here), model, None)


@pytest.fixture
def start(model, tiny_exports, tokens):
    """Starts a worker of a variant on the tiny model."""

    def start(name: str, number: int = 0, device: Device = CPU) -> Worker:
        export = VARIANTS[name].export
        exported = tiny_exports / f"tiny{export.suffix}" if export else None
        return Worker(number, ClassifierSpec(model, name, exported, device), tokens)

    return start


def compare(model: Model, tokens, reports: list[Report], stage: str = "end-to-end") -> tuple[float, float]:
    """Returns the largest difference from the reference and the share of flips, over all texts."""
    values, items = (np.concatenate([getattr(one, name) for one in reports]) for name in ("values", "items"))
    answers = values if stage == "end-to-end" else model.task.activate(values)
    in_order = np.full((60, 5), np.nan)
    in_order[items] = answers
    return np.abs(in_order - tokens.reference).max(), model.task.flips(in_order, tokens.reference).mean()


@pytest.mark.parametrize("name", CPU_VARIANTS)
def test_every_cpu_variant_agrees_with_fp32_torch(name, start, model, tokens):
    """In all batchings, from tokens and from texts, against the reference."""
    worker = start(name)
    for batching in EVERY:
        for stage in STAGES:
            worker.prepare(Cell(name, 1, 1, batching, stage))
            begin, end = worker.run()
            report = worker.report()
            assert begin < end and report.padded_tokens >= tokens.lengths.sum()
            assert sorted(report.items) == list(range(60))
            max_diff, flips = compare(model, tokens, [report], stage)
            # this model's logits have a wide range, so its rounding errors are larger than a trained model's
            assert max_diff < {"fp32": 1e-5, "fp16": 5e-3, "bf16": 5e-2, "int8": 2e-1}[VARIANTS[name].precision]
            assert flips < 0.02
            if VARIANTS[name].precision != "fp32":
                assert max_diff > 1e-5, "a lower precision without any difference did not run"


@pytest.mark.parametrize("stage", STAGES)
def test_the_shares_of_all_workers_cover_all_texts(stage, start, model, tokens):
    reports = []
    for number in range(3):
        worker = start("onnx", number)
        worker.prepare(Cell("onnx", 3, 1, Batching("sorted", 4), stage))
        worker.run()
        reports.append(worker.report())
    assert sorted(i for report in reports for i in report.items) == list(range(60))
    assert compare(model, tokens, reports, stage)[0] < 1e-5


@pytest.mark.parametrize("batching", [Batching("in-order", 4), Batching("sorted", 4), Batching("token-budget", 0, 128)])
def test_texts_are_batched_across_chunks_as_if_there_were_none(batching, start, texts, model, monkeypatch):
    """The last, partly filled batch of a chunk is continued in the next chunk."""
    monkeypatch.setattr(stream, "CHUNK_TEXTS", 7)
    batches = list(start("onnx").batches(texts[:60], batching))
    assert sorted(i for batch in batches for i in batch.indices) == list(range(60))
    for batch in batches:
        ids, mask = batch.inputs["input_ids"], batch.inputs["attention_mask"]
        assert list(batch.lengths) == list(mask.sum(axis=1))
        for index, row, real in zip(batch.indices, ids, mask, strict=True):
            assert row[real == 1].tolist() == model.tokenize([texts[index]])["input_ids"][0]
    if batching.batch_size:
        assert [len(batch.indices) for batch in batches] == [4] * 15


@pytest.fixture
def warmed(monkeypatch, start):
    """A worker of a stand-in variant, and the shapes that it warms up."""
    shapes = []
    runner = TokenRunner(
        prepare=lambda inputs: inputs["input_ids"],
        forward=lambda ids: np.zeros((len(ids), 5)),
        warm_up=lambda ids: shapes.append(ids.shape),
    )
    monkeypatch.setitem(VARIANTS, "stand-in", Variant(lambda *_: runner, "fp32", ("torch",)))
    return start("stand-in"), shapes


def test_each_new_shape_is_warmed_up_once_and_the_largest_first(warmed, tokens):
    worker, shapes = warmed
    for batching in (Batching("in-order", 1), Batching("sorted", 1), Batching("sorted", 4)):
        batches = make_batches(tokens.lengths, batching)
        every = {(len(batch), int(tokens.lengths[batch].max())) for batch in batches}
        before = len(shapes)
        worker.prepare(Cell("stand-in", 1, 1, batching))
        worker.run()
        worker.report()
        new = shapes[before:]
        assert set(new) == every - set(shapes[:before]) and len(new) == len(set(new))
        assert new == sorted(new, key=np.prod, reverse=True)
    assert len(shapes) == len(set(shapes))


def test_a_report_releases_the_cell(warmed):
    worker, _ = warmed
    worker.prepare(Cell("stand-in", 1, 1, Batching("sorted", 8)))
    worker.run()
    assert worker.prepared and worker.outputs
    assert len(worker.report().items)
    assert not (worker.prepared or worker.outputs or worker.shard or worker.latencies)


def test_a_worker_on_a_fake_gpu(start, model, tokens, tiny_exports, monkeypatch):
    """All of its steps: few shapes, warmed up in each cell, batches timed one by one, and correct outputs."""
    import onnxruntime
    import torch

    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda gpu: (2**30, 3 * 2**30))
    session = onnxruntime.InferenceSession(tiny_exports / "tiny-onnx" / "model.onnx")
    runner = io_bound_runner(session, "logits", torch.device("cpu"))
    variant = Variant(lambda *_: runner, "fp16", ("onnxruntime-gpu",), new_shapes_are_costly=lambda gpu: True)
    monkeypatch.setitem(VARIANTS, "stand-in", variant)
    worker = start("stand-in", device=Device(gpu=0, threads=1))
    for batching in EVERY:
        for stage in STAGES:
            worker.prepare(Cell("stand-in", 1, 1, batching, stage))
            assert worker.warm and all(width < 32 or width % 2 == 0 for _, width in worker.warm)
            worker.run()
            report = worker.report()
            assert not worker.warm, "torch gave its memory back"
            assert report.memory_mib == 2048
            if stage == "forward":
                assert report.latencies and min(report.latencies) > 0
            assert np.isfinite(report.values).all()
            max_diff, flips = compare(model, tokens, [report], stage)
            assert max_diff < 1e-5 and flips == 0


@pytest.mark.parametrize(("name", "fewer"), [("torch", False), ("torch-bf16", True), ("onnx", False)])
def test_a_cpu_gets_fewer_lengths_only_in_bf16(name, fewer, start, model, tokens):
    """oneDNN prepares each new length there."""
    worker = start(name)
    assert (worker.widths > tokens.lengths).any() == fewer
    assert (worker.widths >= tokens.lengths).all() and worker.widths.max() <= model.max_length


@pytest.mark.parametrize("name", BASELINES)
def test_a_baseline_is_timed_end_to_end_and_agrees(name, start, model, tokens):
    if missing := missing_packages(VARIANTS[name]):
        pytest.skip(f"needs {missing[0]}")
    if name.endswith("openvino-bf16") and "bf16" not in cpu_features():
        pytest.skip("needs a CPU with BF16")
    reports = []
    for number in range(2):
        worker = start(name, number)
        worker.prepare(Cell(name, 2, 1, Batching("in-order", 8), "end-to-end"))
        begin, end = worker.run()
        reports.append(worker.report())
        assert end > begin and reports[-1].padded_tokens > tokens.lengths.sum() / 2 and not reports[-1].latencies
    max_diff, flips = compare(model, tokens, reports)
    if VARIANTS[name].precision == "fp32":
        assert max_diff < 1e-5 and flips == 0
    else:
        assert 1e-5 < max_diff < 5e-2 and flips < 0.02
