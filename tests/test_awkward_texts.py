"""Labelling gives the answer of transformers' own call for that text alone, or none.

That call is `model(**tokenizer(text, truncation=True, return_tensors="pt"))`, made here without the project's code.
"""

import inspect
import os
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from model_types import as_parameters
from tiny import make_tiny, make_tiny_bert, make_tiny_roberta, make_tiny_xlm_roberta, tiny_config, word_level_tokenizer
from transformers.models.auto.modeling_auto import MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING_NAMES

from bench.export.select import export_model
from bench.model.batches import Batching
from bench.model.model import Model
from bench.variants import Device
from runtimes.classifier import Classifier, ClassifierSpec

TOLERANCE = 1e-4  # of a probability
BATCHINGS = [Batching("in-order", 4), Batching("sorted", 4), Batching("token-budget", batch_tokens=128)]
WORDS = " ".join(f"w{i}" for i in range(90))
AWKWARD = [
    *("", "w1", "w1 w2 w3", WORDS, WORDS[:170], WORDS[170:], "w1 </s> w2 w3", "w4 w5 </s>", "</s></s> w8 w9", "<s>"),
    *("<pad> w5", "w6 <pad>", "w7 <mask> w9 [SEP] w3 [PAD] [CLS]", "w1 " * 20_000, "a" * 300, "w11 w12 w13 w14 w15"),
    *("😀 w4 👍🏽", "שלום w3 عليكم", "e\u0301", "NUL \0", "half \ud83d w5"),
]
AWKWARD_PAIRS = [("", ""), ("w1 w2", "w3"), ("", "w1"), ("w1", ""), (WORDS, "w1 w2"), ("w2", WORDS), (WORDS, WORDS[9:])]
AWKWARD_PAIRS += [
    ("w1 </s> w2", "<s> w3 <pad>"),
    ("שלום w3", "😀 w4"),
    ("half \ud83d", "w5"),
    ("w5", "\udc00"),
    ("w6", "w7 w8"),
]
KINDS = sorted(MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING_NAMES)
NOT_HERE = {
    **dict.fromkeys(("layoutlmv2", "qdqbert", "jamba", "zamba", "zamba2", "qwen3_next"), "needs packages or a GPU"),
    **dict.fromkeys(("gemma3", "t5gemma", "deepseek_v2", "deepseek_v3", "lilt", "transfo-xl"), "has no small config"),
    # in transformers 5
    **dict.fromkeys(("axk1", "axk2", "cohere_compass_text", "esmc", "minicpm3", "mistral4"), "has no small config"),
    **dict.fromkeys(("qwen3_5", "qwen3_5_text", "t5gemma2", "ultravbert"), "has no small config"),
    "qwen2": "has its own tokenizer in transformers 5, whose vocabulary can't be chosen",
    **{"tapas": "reads tables, not texts", "canine": "rejects texts of a few letters"},
    "funnel": "rejects texts of one token",
}


class Truth:
    """A model's folder, opened by transformers without any code of the project."""

    def __init__(self, folder: Path, max_length: int):
        from transformers import AutoModelForSequenceClassification, AutoTokenizer

        self.tokenizer = AutoTokenizer.from_pretrained(folder)
        self.network = AutoModelForSequenceClassification.from_pretrained(folder).eval()
        self.max_length = max_length

    def probabilities(self, item: str | tuple[str, str]) -> np.ndarray | None:
        """Return the probabilities [labels] of a text or a pair of texts; None if the tokenizer rejects it."""
        import torch

        try:
            texts = [[text] for text in ([item] if isinstance(item, str) else item)]  # a single "" would be no pair
            inputs = self.tokenizer(*texts, truncation=True, max_length=self.max_length, return_tensors="pt")
        except (TypeError, UnicodeEncodeError):
            return None
        accepted = inspect.signature(self.network.forward).parameters
        with torch.inference_mode():
            logits = self.network(**{name: ids for name, ids in inputs.items() if name in accepted}).logits[0]
        several = self.network.config.problem_type == "multi_label_classification"
        return (logits.sigmoid() if several or len(logits) == 1 else logits.softmax(0)).double().numpy()


def classifiers(folder: Path, exported: Path | None = None, task: str | None = None) -> list[Classifier]:
    model = Model.from_folder(folder, folder.name, task)
    specs = [ClassifierSpec(model, "torch", None, Device(None, 1))]
    if exported:
        exported.mkdir()
        export_model(model, "fp32", exported)
        specs.append(ClassifierSpec(model, "onnx", exported, Device(None, 1)))
    environment = dict(os.environ)
    try:
        return [Classifier(spec) for spec in specs]
    finally:  # variants set variables, since they normally run in their own process
        os.environ.clear()
        os.environ.update(environment)


def assert_the_truth(texts: list[str], truth: Truth, tested: list[Classifier], batchings: list[Batching]) -> None:
    expected = [truth.probabilities(text) for text in texts]
    for classifier in tested:
        for batching in batchings:
            predictions = classifier.predict(texts, batching)
            for text, answer, length, true_answer in zip(
                texts, predictions.answers, predictions.lengths, expected, strict=True
            ):
                where = f"{text[:40]!r}, {batching}, {type(classifier.runner).__name__}"
                if true_answer is None:
                    assert not length and np.isnan(answer).all(), where
                else:
                    np.testing.assert_allclose(answer, true_answer, atol=TOLERANCE, rtol=0, err_msg=where)


@pytest.mark.parametrize("kind", as_parameters(kind for kind in KINDS if kind not in NOT_HERE))
def test_every_type_answers_as_transformers_does(kind, tmp_path, in_this_process):
    folder = tmp_path / kind
    folder.mkdir()
    make_tiny(folder, word_level_tokenizer(kind), tiny_config(kind))
    opened = classifiers(folder, tmp_path / "onnx" if kind == "bart" else None)
    truth = Truth(folder, opened[0].model.max_length)
    assert_the_truth(AWKWARD, truth, opened, BATCHINGS)
    types = getattr(truth.network.config, "type_vocab_size", 2)
    if types > 1 or "token_type_ids" not in opened[0].model.pad_values:  # otherwise transformers' own call fails
        assert_the_truth(AWKWARD_PAIRS, truth, classifiers(folder, task="pairs"), BATCHINGS[1:])


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
    """The truth and the classifiers of a model whose tokenizer was trained on comments."""
    parent = tmp_path_factory.mktemp("trained")
    folder = request.param(parent / "model", texts)
    opened = classifiers(folder, parent / "onnx")
    return Truth(folder, opened[0].model.max_length), opened


@settings(max_examples=12)
@given(
    st.lists(st.text() | st.lists(st.sampled_from(PIECES), max_size=200).map("".join), min_size=1, max_size=9),
    st.sampled_from([Batching("in-order", 3), *BATCHINGS]),
)
def test_any_texts_are_answered_as_transformers_does(trained, texts, batching):
    assert_the_truth(texts, *trained, [batching])


def test_awkward_texts_of_trained_tokenizers(trained):
    assert_the_truth(AWKWARD, *trained, BATCHINGS)
