"""The baselines give the original's answers."""

import numpy as np
import pytest
from sentence_transformers import SentenceTransformer
from sentence_transformers.sentence_transformer.modules import Normalize, Pooling
from tiny import make_sentence_model, make_tiny_encoder

from bench.export.select import export_model
from bench.model.batches import Batching
from bench.model.model import Model
from bench.variants import Device
from runtimes.classifier import Classifier, ClassifierSpec


@pytest.mark.needs("optimum")
def test_the_baselines_of_an_embedding_model_are_encode_with_torch_and_onnx(tmp_path, in_this_process, texts):
    encoder = make_tiny_encoder(tmp_path / "encoder", texts)
    folder = make_sentence_model(tmp_path / "model", encoder, [Pooling(32, "mean"), Normalize()])
    model = Model.from_folder(folder, "model", None, {"prompt": "a "})
    expected = SentenceTransformer(str(folder), device="cpu").encode(texts[:20], prompt="a ")
    (tmp_path / "onnx").mkdir()
    export_model(model, "fp32", tmp_path / "onnx")
    for variant, exported in (("pipeline", None), ("optimum-pipeline", tmp_path / "onnx")):
        classifier = Classifier(ClassifierSpec(model, variant, exported, Device(None, 1)))
        answers = classifier.predict(texts[:20], Batching("in-order", 4)).answers
        assert np.abs(answers - expected).max() < 1e-5
