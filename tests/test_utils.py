"""utils.py: arguments, printing and signals."""

import errno
import io
import os
import signal
import subprocess
import sys
import tempfile
import time

import pytest
from conftest import ROOT

import classify_texts
import export_onnx
import plot_results
import run_benchmark
import utils
from bench import files
from bench.label import job


@pytest.mark.parametrize("script", [run_benchmark, export_onnx, plot_results])
@pytest.mark.parametrize("argument", ["two\nlines", "no UTF-8: \udcff", "NUL: \0", "\x1b[31m"])
def test_arguments_with_control_characters_are_refused(script, argument, call):
    code, out, err = call(script, argument)
    assert (code, out, err.count("\n")) == (2, "", 1)


def test_a_terminal_that_can_not_show_a_character_does_not_end_the_script(monkeypatch):
    screen = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(screen, encoding="ascii"))
    monkeypatch.setattr(sys, "argv", ["script.py"])
    with pytest.raises(SystemExit) as stopped:
        utils.run(lambda: print("…😀") or 0)
    sys.stdout.flush()
    assert (stopped.value.code, screen.getvalue()) == (0, b"\\u2026\\U0001f600\n")


def test_an_unknown_option_is_named_without_its_value(call):
    err = call(export_onnx, "model", "--limt=5")[2]
    assert "--limt" in err and "--limit?" in err and "=5" not in err
    for secret in (["--hf_token", "SECRET"], ["--hf_token=SECRET"], ["SECRET"]):
        code, out, err = call(export_onnx, "model", *secret)
        assert (code, out, err.count("\n")) == (2, "", 1) and "SECRET" not in err


def test_an_empty_value_is_refused(call):
    """From `--ray "$ADDRESS"` where the variable is not set; a path would mean the working directory."""
    labelling = ["model", "in", "--output", "out"]
    for option in ("--ray", "--column", "--variant", "--results-dir", "--output"):
        code, out, err = call(classify_texts, *labelling, option, "")
        assert (code, out, err.count("\n")) == (2, "", 1) and f"{option}:" in err, err
    for words in (["", "in", "--output", "out"], ["model", "", "--output", "out"]):
        assert call(classify_texts, *words)[0] == 2
    assert "--save-dir" in call(export_onnx, "model", "--save-dir", "")[2]
    assert "--dataset" in call(run_benchmark, "--model", "torch", "--device", "cpu", "--dataset=")[2]


SCRIPT = """
import sys, utils
def main():
    utils.say("a note")
    for i in range(int(sys.argv[1])):
        print("row", i, flush=i % 2 == 0)
    return 0
utils.run(main)
"""


@pytest.mark.parametrize(
    ("how", "code", "output"),
    [
        ('python -c "$SCRIPT" 9999 | head -1', 141, "row 0\n"),
        ('python -c "$SCRIPT" 1 >/dev/full', 1, ""),
        ('python -c "$SCRIPT" 1 >&-', 0, ""),
        ('python -c "$SCRIPT" 1 <&- 2>&-', 0, "row 0\n"),
        ('python -c "$SCRIPT" 1 2>/dev/full', 1, ""),
        ('python -c "$SCRIPT" 1 <&- >&- 2>&-', 0, ""),
    ],
)
def test_standard_streams_may_be_closed_or_full(how, code, output):
    how = how.replace("python", sys.executable)
    environment = os.environ | {"PYTHONPATH": str(ROOT), "SCRIPT": SCRIPT}
    done = subprocess.run(
        ["bash", "-o", "pipefail", "-c", how], env=environment, capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stdout) == (code, output)
    assert "Traceback" not in done.stderr and "Exception" not in done.stderr


def test_a_variable_that_tqdm_cannot_read_has_no_effect():
    code = "import utils; utils.before_imports(lambda: None); import tqdm"
    environment = os.environ | {"TQDM_MININTERVAL": "often"}
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, env=environment, capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stderr) == (0, "")


SLEEPER = """
import time, utils
def main():
    try:
        print("ready", flush=True)
        time.sleep(30)
    finally:
        time.sleep(0.3)
        print("cleaned up", flush=True)
utils.run(main)
"""


@pytest.mark.parametrize(
    ("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGHUP, 129), (signal.SIGQUIT, 131)]
)
def test_a_signal_cleans_up_whatever_signal_follows(number, code):
    process = subprocess.Popen(
        [sys.executable, "-c", SLEEPER],
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    process.stdout.readline()
    process.send_signal(number)
    time.sleep(0.1)
    process.send_signal(signal.SIGINT if number == signal.SIGTERM else signal.SIGTERM)
    out, err = process.communicate(timeout=10)
    assert (process.returncode, out) == (code, "cleaned up\n")
    assert "Traceback" not in err


def test_a_signal_that_nohup_ignores_stays_ignored():
    command = ["bash", "-c", 'trap "" HUP; exec "$0" -c "$SLEEPER"', sys.executable]
    environment = os.environ | {"PYTHONPATH": str(ROOT), "SLEEPER": SLEEPER.replace("30", "1")}
    process = subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True)
    process.stdout.readline()
    process.send_signal(signal.SIGHUP)
    assert process.communicate(timeout=10)[0] == "cleaned up\n" and process.returncode == 0


SCRIPTS = ["run_benchmark.py", "export_onnx.py", "classify_texts.py", "plot_results.py"]
ENVIRONMENTS = {
    'exec "$0" -OO "$@"': "PYTHONOPTIMIZE",
    'PYTHONOPTIMIZE=2 exec "$0" "$@"': "PYTHONOPTIMIZE",
    'rmdir "$PWD"; exec "$0" "$@"': "directory",
    'ulimit -f 0; exec "$0" "$@"': "TMPDIR",  # no file can be written to, as on a full disk
}


@pytest.mark.parametrize("script", SCRIPTS)
@pytest.mark.parametrize("how", ENVIRONMENTS)
def test_an_environment_in_which_nothing_works_is_refused_in_one_line(script, how, tmp_path):
    (tmp_path / "here").mkdir()
    command = ["bash", "-c", how, sys.executable, ROOT / script, "--no-such-option"]
    done = subprocess.run(command, cwd=tmp_path / "here", capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout, done.stderr.count("\n")) == (2, "", 1), done.stderr
    assert done.stderr.startswith(f"{script}: ") and ENVIRONMENTS[how] in done.stderr


@pytest.mark.parametrize("script", [name for name in SCRIPTS if name != "export_onnx.py"])
def test_ctrl_c_during_the_imports_ends_the_script(script, tmp_path):
    command = [sys.executable, "-X", "importtime", ROOT / script, "--model", "torch", "--device", "cpu"]
    process = subprocess.Popen(command, cwd=tmp_path, stderr=subprocess.PIPE, text=True)
    assert any("xxhash" in line for line in process.stderr), "the first of the heavy ones"
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 130 and "Traceback" not in err, err


def test_a_cache_that_can_not_be_written_is_named(call, monkeypatch, tmp_path):
    (tmp_path / "file").touch()
    arguments = {run_benchmark: ["--model", "torch", "--device", "cpu"], export_onnx: ["m"]}
    arguments[classify_texts] = ["m", "in.csv", "--output", "out"]
    for module in (files, job, run_benchmark, export_onnx):
        monkeypatch.setattr(module, "CACHE", tmp_path / "file" / "cache")
    for script, given in arguments.items():
        code, _, err = call(script, *given, *(["--no-save"] if script is run_benchmark else []))
        assert code == 2 and all(name in err.splitlines()[-1] for name in (str(tmp_path), "BENCHMARK_CACHE")), err
        assert "BENCHMARK_CACHE" in call(script, "--help")[1]


def test_a_full_temporary_folder_is_named():
    message = utils.first_line(OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)))
    assert all(name in message for name in ("TMPDIR", tempfile.gettempdir(), os.strerror(errno.ENOSPC)))


def test_a_file_that_does_not_fit_on_the_disk_is_named(tmp_path):
    code = "import sys, utils; from pathlib import Path; from bench.files import new_file\n"
    code += "def main():\n  with new_file(Path(sys.argv[1])) as whole: whole.write(b'x' * 9999)\nutils.run(main)"
    command = ["bash", "-c", 'ulimit -f 1; exec "$0" "$@"', sys.executable, "-c", code, tmp_path / "x"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 1 and done.stderr.count("\n") == 1 and str(tmp_path / "x") in done.stderr, done.stderr
    assert not list(tmp_path.iterdir())
