"""The two environments: the same packages, but for transformers and what must go with it."""

import re

from conftest import ROOT

OWN = {"transformers", "tokenizers", "huggingface_hub"}  # of another version with transformers 5


def read_pins(name: str) -> dict[str, str]:
    """Returns package -> version."""
    return dict(re.findall(r"^([\w-]+)(?:\[\w+\])?==([\w.]+)", (ROOT / name).read_text(), re.MULTILINE))


def test_both_environments_pin_the_same_versions():
    first, second = read_pins("requirements.txt"), read_pins("requirements-transformers5.txt")
    shared = first.keys() & second.keys()
    assert len(shared) > 20 and {"torch", "onnxruntime", "pytest"} <= shared
    assert {name for name in shared if first[name] != second[name]} == OWN
    assert second.keys() - first.keys() == set(), "what is only in one of them is in the first"
