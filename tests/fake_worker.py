"""The benchmark with a model that loads in no time, answers zeros, and fails where it is told to.

As a script it takes the arguments of run_benchmark.py, and the fault from the environment: FAULT="run stop".
"""

import itertools
import os
import signal
import sys
import time
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import run_benchmark
import utils
import variants

TEXTS = 12


def fail(how: str) -> None:
    if how == "memory":
        raise MemoryError
    if how == "loop":
        while True:
            pass
    if how == "slow":
        time.sleep(0.6)
    else:
        os.kill(os.getpid(), {"die": signal.SIGKILL, "stop": signal.SIGSTOP}[how])


def load(name: str, source: tuple[str, str], place: variants.Place) -> variants.Runner:
    """A runner that fails in the step and in the way that `source` says, in batches of 2."""
    step, how = source
    in_a_pass = False

    def reach(here: str, texts: int) -> None:
        if here == step and texts == 2:
            fail(how)

    def prepare(input_ids, mask):
        nonlocal in_a_pass
        in_a_pass = False
        reach("prepare", len(input_ids))
        return input_ids

    def forward(input_ids):
        reach("run" if in_a_pass else "prepare", len(input_ids))
        return np.zeros((len(input_ids), 1), np.float32)

    def synchronize():
        nonlocal in_a_pass
        in_a_pass = True

    def fetch(logits):
        reach("report", len(logits))
        return logits

    reach("load", 2)
    return variants.Runner(prepare, forward, synchronize, fetch, warm_up=forward)


def serve(*arguments) -> None:
    """A worker with the model above, on a machine whose clock is always set back."""
    variants.load = load
    hours = itertools.count(10**6, -1)
    time.time = lambda: next(hours) * 3600.0
    run_benchmark_serve(*arguments)


run_benchmark_serve = run_benchmark.serve


def make_sweep(source: tuple[str, str] = ("", ""), timeout: float = 60, gpu: object = None) -> run_benchmark.Sweep:
    inputs = run_benchmark.Inputs(
        np.arange(TEXTS * 4, dtype=np.int32), np.full(TEXTS, 4), pad_id=0, checked=np.arange(TEXTS)
    )
    place = variants.Place(gpu=None, threads=1)
    sources = dict.fromkeys(variants.VARIANTS, source)
    reference = np.zeros((TEXTS, 1))
    return run_benchmark.Sweep(
        Path(), [], inputs, 1e9, reference, "regression", sources, place, {"fp32": 1e12}, 0, timeout, gpu
    )


def prepare(args, cells, dataset, device, gpu) -> run_benchmark.Sweep:
    return make_sweep(tuple(os.environ.get("FAULT", " ").split(" ")), args.timeout, gpu)


if __name__ == "__main__":
    run_benchmark.prepare, run_benchmark.serve = prepare, serve
    utils.run(run_benchmark.main)
