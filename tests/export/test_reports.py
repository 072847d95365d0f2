"""The model card: metadata from the card of the source model, even from a broken one, and the project's link."""

import pytest
import yaml
from tiny import make_report

from bench import provenance
from bench.export.reports import write_card

CARDS = {
    b"": ["onnx"],
    b"---\ntags: [one, 5, one]\n---\n": ["one", "5", "onnx"],
    b"---\ntags: [\n---\n": ["onnx"],
    b"---\n- a list\n---\n": ["onnx"],
    b"---\nmodel-index: 5\n---\n": ["onnx"],
    b"---\r\ntags: legal\r\n---\r\n": ["legal", "onnx"],
    b"\xff\xfe": ["onnx"],
    b'---\ntags: !!python/object/apply:os.system ["touch was-run"]\n---\n': ["onnx"],
}


@pytest.mark.parametrize("card", CARDS)
def test_a_broken_card_of_the_source_does_not_stop_the_export(card, tmp_path, tiny_exports, monkeypatch):
    from huggingface_hub import ModelCard

    monkeypatch.chdir(tmp_path)
    (tmp_path / "source").mkdir()
    (tmp_path / "source" / "README.md").write_bytes(card)
    write_card(tmp_path, tmp_path / "source", make_report())
    assert ModelCard.load(tmp_path / "README.md").data.tags == [*CARDS[card], "text-classification", "fp32"]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["README.md", "source"]


@pytest.mark.parametrize(
    ("metadata", "kept"),
    [
        ("language: no", {"language": "no"}),
        ("language: [en, no]", {"language": ["en", "no"]}),
        ("license: other\nlicense_name: bsl-1.1\nlicense_link: LICENSE", None),
        ("license: mit\ndatasets: squad", None),
    ],
)
def test_the_card_keeps_licence_and_language(metadata, kept, tmp_path):
    (tmp_path / "README.md").write_text(f"---\n{metadata}\n---\n# Title\n")
    (tmp_path / "export").mkdir()
    write_card(tmp_path / "export", tmp_path, make_report())
    written = yaml.safe_load((tmp_path / "export" / "README.md").read_text().split("---\n")[1])
    expected = kept or yaml.safe_load(metadata)
    assert {key: value for key, value in written.items() if key.startswith(("lic", "lang", "dat"))} == expected


HOSTILE = """---
tags: ["\u202egnp", "two\\n---\\nlines", "<script>", [deep]]
license: mit
license_name: "a\u202eb<script>"
license_link: javascript:alert(1)
datasets: [squad, ../../x]
language: yes
---
"""


def test_the_card_passes_on_no_markup_and_no_addresses_of_other_kinds(tmp_path):
    (tmp_path / "README.md").write_text(HOSTILE)
    (tmp_path / "export").mkdir()
    write_card(tmp_path / "export", tmp_path, make_report())
    written = yaml.safe_load((tmp_path / "export" / "README.md").read_text().split("---\n")[1])
    assert written["tags"][:2] == ["gnp", "two --- lines"] and written["tags"][2] == "onnx"
    kept = {key: value for key, value in written.items() if key.startswith(("lic", "lang", "dat"))}
    assert kept == {"license": "mit", "datasets": ["squad"], "language": "yes"}


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


@pytest.mark.parametrize(("thresholds", "named"), [([], False), ([0.5], False), ([0.4], True)])
def test_the_card_names_thresholds_only_if_they_are_not_the_default(thresholds, named, tmp_path):
    pairs = {"threshold": "pairs longest_first", "thresholds": thresholds, "task_options": {"pair_column": "other"}}
    write_card(tmp_path, tmp_path, make_report() | pairs)
    card = (tmp_path / "README.md").read_text()
    assert "--pair-column second" in card and ("--threshold" in card) == named == ("thresholds-in-use.json" in card)
