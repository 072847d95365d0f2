"""The model card: metadata from the card of the source model, even from a broken one, and the project's link."""

import pytest

from bench import provenance
from bench.export.reports import write_card

CARDS = {
    b"": ["onnx"],
    b"---\ntags: [one, 5, one]\n---\n": ["one", "5", "onnx"],
    b"---\ntags: [\n---\n": ["onnx"],
    b"---\n- a list\n---\n": ["onnx"],
    b"---\nmodel-index: 5\n---\n": ["onnx"],
    b"\xff\xfe": ["onnx"],
    b'---\ntags: !!python/object/apply:os.system ["touch was-run"]\n---\n': ["onnx"],
}


CARD = {"activation": "logits", "output_word": "value"}


@pytest.mark.parametrize("card", CARDS)
def test_a_broken_card_of_the_source_does_not_stop_the_export(card, tmp_path, tiny_exports, monkeypatch):
    from huggingface_hub import ModelCard

    monkeypatch.chdir(tmp_path)
    (tmp_path / "source").mkdir()
    (tmp_path / "source" / "README.md").write_bytes(card)
    figures = dict.fromkeys(("mean", "std", "min", "p25", "median", "p75", "p90", "p95", "p99", "max"), 0.0)
    report = {"model": "ann/tiny", "repo": "ann/tiny-onnx", "precision": "fp32"}
    report |= {"task": "text-classification", "card": CARD, "batches": "1 sorted", "batches_matter": False}
    report |= {"largest_difference": figures, "speed": {"original": 1.0, "export": 1.0}, "worst": [], "findings": []}
    report |= dict.fromkeys(("dataset", "column", "machine", "verdict", "reason", "provider"), "x")
    report |= dict.fromkeys(("mean_over_labels", "flips", "tolerance"), 0.0) | {"non_finite_texts": 0}
    report |= {"changed": 0, "decisions": 1, "decision_words": "x", "gold": {}}
    write_card(tmp_path, tmp_path / "source", report)
    assert ModelCard.load(tmp_path / "README.md").data.tags == [*CARDS[card], "text-classification", "fp32"]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["README.md", "source"]


@pytest.mark.parametrize(
    ("origin", "url"),
    [
        ("https://github.com/ann/bench.git", "https://github.com/ann/bench"),
        ("git@github.com:ann/bench.git", "https://github.com/ann/bench"),
        ("https://ann:secret@example.org/bench", ""),
        ("/home/ann/bench", ""),
        ("", ""),
    ],
)
def test_the_card_links_the_project_if_it_is_public(origin, url, monkeypatch):
    monkeypatch.setattr(provenance, "git", lambda *_: origin)
    assert provenance.project_url() == url
