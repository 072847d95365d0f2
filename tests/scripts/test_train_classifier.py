"""data/train_classifier.py with a tiny encoder and invented comments."""

import gzip
import hashlib
from pathlib import Path

import pytest
import torch
import train_classifier
from tiny import make_tiny_encoder
from transformers import AutoModel, pipeline

from bench.tables.datasets import DATASETS

SUBREDDITS = [group.split()[0] for group in train_classifier.TOPICS.values()]


@pytest.fixture
def samples(tmp_path) -> Path:
    """A folder with both samples: 40 comments of a subreddit of each topic, and 40 others."""
    rows = [f"{name},{name} {name} {name} {i}" for name in [*SUBREDDITS, "other"] for i in range(40)]
    for file, _ in DATASETS.values():
        (tmp_path / file).write_bytes(gzip.compress("\n".join(["subreddit,body", *rows]).encode()))
    return tmp_path


@pytest.fixture
def encoder(tmp_path) -> Path:
    return make_tiny_encoder(tmp_path / "encoder", [*SUBREDDITS, "other", *map(str, range(40))])


def test_it_learns_topics_and_normal_and_the_run_change_nothing(samples, encoder, call, monkeypatch):
    monkeypatch.setattr(train_classifier, "PASSES", 10)
    monkeypatch.setattr(train_classifier, "LEARNING_RATE", 0.01)
    monkeypatch.setattr(train_classifier, "THREADS", 1)  # tests run side by side
    hashes = []
    for output in samples / "first", samples / "second":
        code, out, err = call(train_classifier, "--encoder", encoder, "--data-dir", samples, "--output", output)
        assert code == 0, err
        hashes.append(hashlib.sha256((output / "model.safetensors").read_bytes()).hexdigest())
        assert hashes[-1] in out and f"--model-id {output}" in out
        (samples / DATASETS["normal"][0]).write_bytes(gzip.compress(b"subreddit,body\nother,other\n"))
    assert hashes[0] == hashes[1]
    classify = pipeline("text-classification", str(samples / "first"), device="cpu")
    assert classify.model.config.problem_type == "multi_label_classification"
    assert list(classify.model.config.id2label.values()) == list(train_classifier.TOPICS)
    answers = classify([f"{name} {name} {name} 7" for name in SUBREDDITS])
    assert [answer["label"] for answer in answers] == list(train_classifier.TOPICS)
    original, trained = AutoModel.from_pretrained(encoder).state_dict(), classify.model.base_model.state_dict()
    kept = {name for name, weights in original.items() if torch.equal(weights, trained[name])}
    assert kept == {name for name in original if name.startswith(("embeddings.", "encoder.layer.0."))}


def test_what_is_missing_or_in_the_way_is_named(samples, encoder, call, monkeypatch):
    monkeypatch.setattr(train_classifier, "find_spec", lambda name: None)
    options = ("--data-dir", samples, "--output", samples / "new")
    for arguments, named in (
        (options, "--encoder"),
        ((*options, "--encoder", encoder, "--output", encoder), "--output"),
        ((*options, "--encoder", encoder, "--data-dir", encoder), "data/download.py"),
    ):
        code, _, err = call(train_classifier, *arguments)
        assert code == 2 and named in err and err.count("\n") == 1
    assert not (samples / "new").exists()
