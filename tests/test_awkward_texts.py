"""The standard of every answer: labelling gives what transformers' own call gives for that text alone, or nothing.

The truth is `model(**tokenizer(text, truncation=True, return_tensors="pt"))`, called here without any code of ours.
"""

import inspect
import os
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny import make_tiny, make_tiny_bert, make_tiny_roberta, make_tiny_xlm_roberta, tiny_config, word_level_tokenizer
from transformers.models.auto.modeling_auto import MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING_NAMES

from bench.export.select import export_model
from bench.model.batches import Batching
from bench.model.model import Model
from bench.variants import Device
from runtimes.classifier import Classifier, ClassifierSpec

TOLERANCE = 4e-4  # of a logit, which is 1e-4 of a probability at most
BATCHINGS = [Batching("in-order", 4), Batching("sorted", 4), Batching("token-budget", batch_tokens=128)]
WORDS = " ".join(f"w{i}" for i in range(90))
AWKWARD = [
    *("", "w1", "w1 w2 w3", WORDS, WORDS[:170], WORDS[170:], "w1 </s> w2 w3", "w4 w5 </s>", "</s></s> w8 w9", "<s>"),
    *("<pad> w5", "w6 <pad>", "w7 <mask> w9 [SEP] w3 [PAD] [CLS]", "w1 " * 20_000, "a" * 300, "w11 w12 w13 w14 w15"),
    *("😀 w4 👍🏽", "שלום w3 عليكم", "e\u0301", "NUL \0", "half \ud83d w5"),
]
KINDS = sorted(MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING_NAMES)
NOT_HERE = {
    **dict.fromkeys(("layoutlmv2", "qdqbert", "jamba", "zamba", "zamba2", "qwen3_next"), "needs packages or a GPU"),
    **dict.fromkeys(("gemma3", "t5gemma", "deepseek_v2", "deepseek_v3", "lilt", "transfo-xl"), "has no small config"),
    # of transformers 5
    **dict.fromkeys(("axk1", "axk2", "cohere_compass_text", "esmc", "minicpm3", "mistral4"), "has no small config"),
    **dict.fromkeys(("qwen3_5", "qwen3_5_text", "t5gemma2", "ultravbert"), "has no small config"),
    "qwen2": "has a tokenizer of its own in transformers 5, whose words can't be chosen",
    **{"tapas": "reads tables, not texts", "canine": "takes no texts of a few letters"},
    "funnel": "takes no texts of one token",
}


class Truth:
    """A model's folder, opened by transformers alone."""

    def __init__(self, folder: Path, max_length: int):
        from transformers import AutoModelForSequenceClassification, AutoTokenizer

        self.tokenizer = AutoTokenizer.from_pretrained(folder)
        self.network = AutoModelForSequenceClassification.from_pretrained(folder).eval()
        self.max_length = max_length

    def logits(self, text: str) -> np.ndarray | None:
        """Returns the logits [labels] of a text; None where the tokenizer takes no such text."""
        import torch

        try:
            inputs = self.tokenizer(text, truncation=True, max_length=self.max_length, return_tensors="pt")
        except (TypeError, UnicodeEncodeError):
            return None
        accepted = inspect.signature(self.network.forward).parameters
        with torch.inference_mode():
            return self.network(**{name: ids for name, ids in inputs.items() if name in accepted}).logits[0].numpy()


def classifiers(folder: Path, exported: Path | None = None) -> list[Classifier]:
    model = Model.from_folder(folder, folder.name)
    specs = [ClassifierSpec(model, "torch", None, Device(None, 1))]
    if exported:
        exported.mkdir()
        export_model(model, "fp32", exported)
        specs.append(ClassifierSpec(model, "onnx", exported, Device(None, 1)))
    environment = dict(os.environ)
    try:
        return [Classifier(spec) for spec in specs]
    finally:  # what variants set is for a process of their own
        os.environ.clear()
        os.environ.update(environment)


def assert_the_truth(texts: list[str], truth: Truth, some: list[Classifier], batchings: list[Batching]) -> None:
    expected = [truth.logits(text) for text in texts]
    for classifier in some:
        for batching in batchings:
            predictions = classifier.predict(texts, batching)
            for text, logits, has_tokens, right in zip(
                texts, predictions.logits, predictions.has_tokens, expected, strict=True
            ):
                words = f"{text[:40]!r}, {batching}, {type(classifier.runner).__name__}"
                if right is None:
                    assert not has_tokens and np.isnan(logits).all(), words
                else:
                    np.testing.assert_allclose(logits, right, atol=TOLERANCE, rtol=0, err_msg=words)


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind not in NOT_HERE])
def test_every_type_answers_as_transformers_does(kind, tmp_path, in_this_process):
    folder = tmp_path / kind
    folder.mkdir()
    make_tiny(folder, word_level_tokenizer(kind), tiny_config(kind))
    some = classifiers(folder, tmp_path / "onnx" if kind == "bart" else None)
    assert_the_truth(AWKWARD, Truth(folder, some[0].model.max_length), some, BATCHINGS)


PIECES = [
    "the ",
    "I'm ",
    "NO",
    "a",
    ", ",
    "\n",
    "</s>",
    "<s>",
    "<pad>",
    "<mask>",
    "[SEP]",
    "[PAD]",
    " ",
    "é",
    "😀",
    "שלום",
]


@pytest.fixture(scope="module", params=[make_tiny_roberta, make_tiny_bert, make_tiny_xlm_roberta])
def trained(request, tmp_path_factory, texts):
    """A truth and the classifiers of a model with a tokenizer that was trained on comments."""
    place = tmp_path_factory.mktemp("trained")
    folder = request.param(place / "model", texts)
    some = classifiers(folder, place / "onnx")
    return Truth(folder, some[0].model.max_length), some


@settings(max_examples=12)
@given(
    st.lists(st.text() | st.lists(st.sampled_from(PIECES), max_size=200).map("".join), min_size=1, max_size=9),
    st.sampled_from([Batching("in-order", 3), *BATCHINGS]),
)
def test_any_texts_are_answered_as_transformers_does(trained, texts, batching):
    assert_the_truth(texts, *trained, [batching])


def test_awkward_texts_of_trained_tokenizers(trained):
    assert_the_truth(AWKWARD, *trained, BATCHINGS)
