"""The one loop from texts to logits: which scripts run it, and when outputs are fetched."""

import re
from dataclasses import replace

import numpy as np
import pytest

import classify_texts
import export_onnx
import run_benchmark
from bench.model.batches import Batching
from bench.model.model import Model
from bench.model.stream import prefetch
from bench.variants import Device
from runtimes.classifier import Classifier, ClassifierSpec
from utils import UserError


def test_end_to_end_rows_the_check_of_an_export_and_labelling_run_the_same_loop(
    call, tiny_model, tiny_exports, monkeypatch, tmp_path, texts
):
    ran, predict = [], Classifier.predict

    def recorded(self, texts, batching, *more, **options):
        ran.append((len(texts), batching))
        return predict(self, texts, batching, *more, **options)

    monkeypatch.setattr(Classifier, "predict", recorded)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "tiny-onnx").symlink_to(tiny_exports / "tiny-onnx")
    (tmp_path / "ten.csv").write_text("body\n" + "some text\n" * 10)
    options = ["--device", "cpu", "--threads", 1]
    same = [*options, "--dataset", "ten.csv"]
    batches = ["--batches", 3, "--batching", "sorted", "--min-time", 0, "--no-save"]
    assert call(run_benchmark, "--model", "onnx", "--model-id", tiny_model, *same, *batches)[0] == 0
    assert ran == [(10, Batching("sorted", 3))]
    made = ["--precision", "fp32", "--save-dir", "made", "--no-upload", "--batch-size", 5]
    assert call(export_onnx, tiny_model, *same, *made)[0] == 0
    assert ran[1:] == [(10, Batching("sorted", 5))], "only the export: the original runs as transformers documents it"
    labelled = ["--variant", "onnx", "--output", "labelled", "--batch-tokens", 64]
    assert call(classify_texts, tiny_model, "ten.csv", *options, *labelled)[0] == 0
    assert ran[2:] == [(10, Batching("token-budget", batch_tokens=64))]


@pytest.fixture
def classifier(tiny_model, tiny_exports, in_this_process) -> Classifier:
    model = Model.from_folder(tiny_model, "tiny")
    return Classifier(ClassifierSpec(model, "onnx", tiny_exports / "tiny-onnx", Device(None, 1)))


def test_outputs_are_fetched_along_the_way_and_another_number_of_labels_is_refused(classifier, texts, monkeypatch):
    waiting, fetched = [], []
    forward, to_host = classifier.runner.forward, classifier.runner.to_host
    watched = replace(
        classifier.runner,
        forward=lambda inputs: waiting.append(1) or forward(inputs),
        to_host=lambda outputs: fetched.append(len(waiting) - len(fetched)) or to_host(outputs),
    )
    monkeypatch.setattr(classifier, "runner", watched)
    monkeypatch.setattr("runtimes.classifier.FETCH_EVERY", 5)
    predictions = classifier.predict(texts[:33], Batching("in-order", 1))
    assert len(fetched) == 33 and max(fetched) == 5 and np.isfinite(predictions.answers).all()
    monkeypatch.setattr(classifier, "runner", replace(watched, to_host=lambda outputs: to_host(outputs)[:, :4]))
    with pytest.raises(UserError) as caught:
        classifier.predict(texts[:3], Batching("in-order", 1))
    assert {"4", "5"} <= set(re.findall(r"\d+", str(caught.value)))


def test_a_batch_too_large_for_the_memory_is_halved_only_on_request(classifier, texts, monkeypatch):
    batching, forward, sizes = Batching("token-budget", batch_tokens=512), classifier.runner.forward, []
    whole = classifier.predict(texts[:60], batching).answers

    def limited(inputs):
        sizes.append(len(inputs["input_ids"]))
        if sizes[-1] > most:
            raise RuntimeError("CUDA out of memory. Tried to allocate 20.00 MiB")
        return forward(inputs)

    most = 3
    monkeypatch.setattr(classifier, "runner", replace(classifier.runner, forward=limited))
    found = classifier.predict(texts[:60], batching, halve_on_oom=True)
    assert np.allclose(found.answers, whole, atol=1e-5, equal_nan=True) and np.isfinite(whole).any() and max(sizes) > 7
    with pytest.raises(RuntimeError, match="out of memory"):
        classifier.predict(texts[:60], batching)
    most = 0
    with pytest.raises(RuntimeError, match="out of memory"):
        classifier.predict(texts[:60], batching, halve_on_oom=True)


def test_an_error_while_texts_are_prepared_reaches_the_worker():
    def items():
        yield 1
        raise ValueError("broken text")

    made = prefetch(items())
    assert next(made) == 1
    with pytest.raises(ValueError, match="broken text"):
        next(made)
