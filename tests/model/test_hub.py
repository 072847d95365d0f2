"""Downloads from the Hub, with a fake one on this machine."""

import socket
import time

from conftest import refused

from bench.model import hub as room
from bench.model.hub import download


def test_a_model_that_is_not_on_the_hub_is_one_line(hub):
    assert "no model ann/nowhere on the Hub" in refused(download, "ann/nowhere")
    assert "'not a name' is neither a local folder nor a Hub id" in refused(download, "not a name")


def test_a_hub_that_never_answers_is_given_up(hub, monkeypatch):
    assert room.TIMEOUT < 12, "it has to be said within 15 seconds"
    monkeypatch.setattr(room, "TIMEOUT", 0.5)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", f"http://127.0.0.1:{silent.getsockname()[1]}")
        start = time.monotonic()
        assert "the Hub is out of reach and ann/tiny is not in its cache" in refused(download, "ann/tiny")
    assert time.monotonic() - start < 3
