"""The lists of requirements agree with each other, and so do the places that name the version."""

import re
import tomllib

import yaml
from conftest import ROOT

CHANGED_BY_TRANSFORMERS_5 = {"transformers", "tokenizers", "huggingface_hub"}
WITHOUT_TRANSFORMERS_5 = {"optimum", "optimum-onnx", "openvino", "ray"}


def read_pins(name: str) -> dict[str, str]:
    """Return package -> version."""
    return dict(re.findall(r"^([\w-]+)(?:\[\w+\])?==([\w.]+)", (ROOT / name).read_text(), re.MULTILINE))


def test_both_environments_pin_the_same_versions():
    first, second = read_pins("requirements.txt"), read_pins("requirements-transformers5.txt")
    assert first.keys() - second.keys() == WITHOUT_TRANSFORMERS_5 and second.keys() <= first.keys()
    assert {name for name in second if first[name] != second[name]} == CHANGED_BY_TRANSFORMERS_5


def test_users_install_no_test_tools():
    users, developers = read_pins("requirements.txt"), read_pins("requirements-dev.txt")
    assert {"pytest", "ruff"} <= developers.keys() and not developers.keys() & users.keys()
    assert "-r requirements.txt" in (ROOT / "requirements-dev.txt").read_text().splitlines()


def test_baselines_need_the_versions_of_requirements_txt():
    assert "-r requirements.txt" in (ROOT / "requirements-baselines.txt").read_text().splitlines()
    assert not read_pins("requirements-baselines.txt").keys() & read_pins("requirements.txt").keys()


def test_pyproject_citation_and_changelog_name_the_same_version():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    release = re.search(r"^## (\S+) - (\S+)$", (ROOT / "CHANGELOG.md").read_text(), re.MULTILINE)
    assert release.groups() == (project["version"], str(citation["date-released"]))
    assert (project["name"], project["version"]) == ("swiftsure", citation["version"])
