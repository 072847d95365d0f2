"""Downloads from the Hub, here a fake one on this machine."""

import socket
import time

from conftest import refused

from bench.model import hub as hub_module
from bench.model.hub import download


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
