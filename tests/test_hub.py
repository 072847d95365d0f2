"""Downloads from the Hub and uploads to it, with a fake one on this machine."""

import socket
import time
from argparse import Namespace

import pytest
from conftest import refused

from bench import hub as room
from bench.hub import download, upload


@pytest.fixture
def arguments():
    return Namespace(create_pr=False, private=False, precision="fp16")


@pytest.fixture
def api(hub):
    from huggingface_hub import HfApi

    return HfApi(token="good")


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


def test_an_upload_that_breaks_keeps_the_folder_and_says_how_to_go_on(tiny_exports, hub, api, arguments, capsys):
    hub.broken = True
    folder = tiny_exports / "tiny-onnx"
    assert upload(api, "ann/tiny", folder, arguments) == 1
    said = capsys.readouterr().err
    assert f"hf upload ann/tiny {folder} ." in said
    assert "Traceback" not in said
    assert (folder / "model.onnx").exists()


def test_a_private_upload_to_a_public_repository_is_refused(tiny_exports, hub, api, arguments, capsys):
    hub.public = arguments.private = True
    assert upload(api, "ann/tiny", tiny_exports / "tiny-onnx", arguments) == 1
    assert "ann/tiny exists and is public" in capsys.readouterr().err
    assert not hub.commits


def test_upload_as_a_pull_request(tiny_exports, hub, api, arguments, capsys):
    arguments.create_pr = True
    assert upload(api, "other/tiny", tiny_exports / "tiny-onnx", arguments) == 0
    assert f"uploaded: {hub.url}/other/tiny/discussions/7" in capsys.readouterr().err
    assert not hub.repos
