"""What every script shares: arguments, printing, signals."""

import io
import os
import signal
import subprocess
import sys

import pytest
from conftest import ROOT

import export_onnx
import plot_results
import run_benchmark
import utils


@pytest.mark.parametrize("script", [run_benchmark, export_onnx, plot_results])
@pytest.mark.parametrize("argument", ["two\nlines", "no UTF-8: \udcff", "NUL: \0", "\x1b[31m"])
def test_an_argument_that_no_row_card_or_line_can_hold_is_refused(script, argument, call):
    code, out, err = call(script, argument)
    assert (code, out, err.count("\n")) == (2, "", 1)
    assert "a line break, a control character or bytes that are no UTF-8" in err


def test_a_terminal_that_can_not_show_a_text_does_not_end_the_script(monkeypatch):
    screen = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(screen, encoding="ascii"))
    monkeypatch.setattr(sys, "argv", ["script.py"])
    with pytest.raises(SystemExit) as stopped:
        utils.run(lambda: print("…😀") or 0)
    sys.stdout.flush()
    assert (stopped.value.code, screen.getvalue()) == (0, b"\\u2026\\U0001f600\n")


SLEEPER = """
import time, utils
def main():
    try:
        print("ready", flush=True)
        time.sleep(30)
    finally:
        print("cleaned up", flush=True)
utils.run(main)
"""


@pytest.mark.parametrize(("sign", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_cleans_up(sign, code):
    process = subprocess.Popen(
        [sys.executable, "-c", SLEEPER],
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    process.stdout.readline()
    process.send_signal(sign)
    out, err = process.communicate(timeout=10)
    assert (process.returncode, out) == (code, "cleaned up\n")
    assert "Traceback" not in err
