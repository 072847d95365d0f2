"""The documents name what the code has: columns, variants, options and files."""

import re

import pytest
from conftest import ROOT

from bench.report.rows import COLUMNS
from runtimes import VARIANTS

DOCUMENTS = "README.md", "CONTRIBUTING.md", "data/README.md", "results/README.md"
DOCUMENTS += "docs/recipes.md", "docs/variants.md"


def read(name: str) -> str:
    """Return a document without the blocks that scripts write."""
    return re.sub(r"<!-- (\w+):begin -->.*?<!-- \1:end -->", "", (ROOT / name).read_text(), flags=re.DOTALL)


@pytest.mark.parametrize(("name", "words"), [("docs/variants.md", VARIANTS), ("results/README.md", COLUMNS)])
def test_every_variant_and_column_is_described(name, words):
    assert set(words) <= set(re.findall(r"`([^`\n]+)`", read(name)))


@pytest.mark.parametrize("name", DOCUMENTS)
def test_named_options_and_files_exist(name):
    text, folder = read(name), (ROOT / name).parent
    code = [*ROOT.glob("*.py"), *ROOT.glob("data/*.py"), *ROOT.glob("bench/**/*.py")]
    code = "".join(file.read_text() for file in code)
    options = set(re.findall(r"(?<![\w-])--[a-z][a-z0-9-]+", text))
    assert not [option for option in options if f'"{option}"' not in code]
    files = re.findall(r"\]\(([^:)#]+)[#)]", text) + re.findall(r"`((?:bench|runtimes|tests)/[\w/]+\.py)`", text)
    assert not [file for file in files if not ((folder / file).exists() or (ROOT / file).exists())]


@pytest.mark.parametrize(("name", "lines"), [("README.md", 150), ("results/README.md", 800)])
def test_documents_are_short_with_short_lines(name, lines):
    assert len((ROOT / name).read_text().splitlines()) <= lines
    assert max(map(len, read(name).splitlines())) <= 100


def test_named_tests_exist():
    """Otherwise .ci/run fails, but only after minutes."""
    names = re.findall(r"(test_\w+\.py)::(\w+)", (ROOT / ".ci/run").read_text())
    assert names
    for file, name in names:
        assert f"def {name}(" in (ROOT / "tests/scripts" / file).read_text()
