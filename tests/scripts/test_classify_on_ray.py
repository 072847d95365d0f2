"""classify_texts.py --ray: the same parts as on one machine, and errors of Ray in one line."""

import json
import re
import shutil
import socket
import subprocess
import sys
import time

import pandas as pd
import pytest
from conftest import ROOT, kill_after_a_part, refused

import classify_texts
from bench.label import on_ray

pytestmark = pytest.mark.needs("ray")

CLUSTER = """
import os, sys, utils
from bench.label import on_ray
def main():
    out = os.fdopen(os.dup(1), "w")
    with on_ray.cluster("local"):
        import ray
        print(ray.get_runtime_context().gcs_address, file=out, flush=True)
        os.write(1, b"(raylet) a line of its own\\n")
        sys.stdin.readline()
        try:
            on_ray.call_on_node(lambda: int("x"))
        except ray.exceptions.RayError as error:
            utils.say(str(on_ray.in_one_line(error)))
        on_ray.call_on_node(lambda: os._exit(1))
utils.run(main)
"""


@pytest.fixture
def cluster(monkeypatch):
    """A Ray cluster on this machine: a process, and its address. After a line of input, its tasks fail."""
    monkeypatch.setenv("RAY_AUTH_MODE", "disabled")
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    pipes = dict.fromkeys(("stdin", "stdout", "stderr"), subprocess.PIPE)
    with subprocess.Popen([sys.executable, "-c", CLUSTER], text=True, **pipes) as process:
        yield process, process.stdout.readline().strip()
        process.kill()


@pytest.fixture
def source(tmp_path, texts):
    """Write a folder with a CSV, a CSV.gz and a Parquet file: 90 rows, some without text."""
    rows = pd.DataFrame({"id": range(90), "body": [None if i % 20 == 3 else text for i, text in enumerate(texts[:90])]})
    rows.loc[3, "body"] = "x\n" * 101
    (tmp_path / "source").mkdir()
    rows[:30].to_csv(tmp_path / "source" / "a.csv", index=False)
    rows[30:60].to_csv(tmp_path / "source" / "b.csv.gz", index=False)
    rows[60:].to_parquet(tmp_path / "source" / "c.parquet", index=False, row_group_size=7)
    return tmp_path / "source"


def part_names(folder) -> list[str]:
    return sorted(path.name for path in folder.glob("part-*"))


def test_parts_from_ray_are_the_same_and_its_errors_are_one_line(
    tiny_model, tiny_exports, source, tmp_path, call, cluster, monkeypatch
):
    """The export travels to the actors, which import nothing from the working directory. A killed run is resumed."""
    process, address = cluster
    monkeypatch.chdir(tmp_path)
    shutil.copytree(tiny_exports / "tiny-onnx", tmp_path / "tiny-onnx")
    options = [tiny_model, source, "--device", "cpu", "--rows-per-file", 9, "--threads", 1]
    assert call(classify_texts, *options, "--variant", "torch", "--output", "whole")[0] == 0
    for name in ("numpy", "pyarrow", "torch"):
        (tmp_path / f"{name}.py").write_text("raise RuntimeError('foreign')")
    options += ["--variant", "onnx", "--output", "ray", "--ray", address]
    command = [sys.executable, *map(str, [ROOT / "classify_texts.py", *options])]
    killed = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, start_new_session=True)
    kill_after_a_part(killed, tmp_path / "ray")
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0 and re.search(r"\b90\b", done.stderr), done.stderr
    frames = [pd.read_parquet(tmp_path / name) for name in ("ray", "whole")]
    pd.testing.assert_frame_equal(*frames, check_exact=False, atol=1e-5)
    names = part_names(tmp_path / "ray")
    assert names == part_names(tmp_path / "whole") and len(names) == 4 + 4 + 5
    assert json.loads((tmp_path / "ray" / "_job.json").read_text())["options"]["--variant"] == "onnx"
    assert not done.stdout and "a.csv, line 106" in done.stderr
    out, err = process.communicate("\n")
    assert not out and "(raylet)" in err
    assert process.returncode == 1 and "Traceback" not in err and "ValueError" in err, err
    assert err.splitlines()[-1].startswith("-c: ") and "Ray" in err.splitlines()[-1]


def test_an_address_where_no_cluster_answers_is_given_up(monkeypatch):
    monkeypatch.setattr(on_ray, "JOIN_SECONDS", 2)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        address = "{}:{}".format(*silent.getsockname())
        start = time.monotonic()
        assert address in refused(on_ray.cluster(address).__enter__)
        assert time.monotonic() - start < 60
    assert "no-address" in refused(on_ray.cluster("no-address").__enter__)
