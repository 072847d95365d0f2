"""Downloads from the Hub, here a fake one on this machine."""

import socket
import time

import pytest
from conftest import refused

from bench.model import hub as hub_module
from bench.model.hub import download
from utils import RunError


def test_a_model_that_is_not_on_the_hub_is_one_line(hub):
    assert "ann/nowhere" in refused(download, "ann/nowhere")
    assert "not a name" in refused(download, "not a name")


def test_a_hub_that_never_answers_times_out(hub, monkeypatch):
    assert hub_module.TIMEOUT < 12, "the error has to come within 15 seconds"
    monkeypatch.setattr(hub_module, "TIMEOUT", 0.5)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", f"http://127.0.0.1:{silent.getsockname()[1]}")
        start = time.monotonic()
        assert "ann/tiny" in refused(download, "ann/tiny")
    assert time.monotonic() - start < 3


def test_a_download_folder_that_can_not_be_written_is_named(hub, monkeypatch, tmp_path):
    hub.models["ann/small"] = tmp_path / "small"
    hub.models["ann/small"].mkdir()
    (hub.models["ann/small"] / "config.json").write_text("{}")
    (tmp_path / "file").touch()
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "file" / "hub"))
    with pytest.raises(RunError) as caught:
        download("ann/small", ["config.json"])
    message = str(caught.value)
    assert "\n" not in message and all(name in message for name in ("ann/small", str(tmp_path / "file"), "HF_HOME"))
