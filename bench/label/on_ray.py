"""Labelling on a Ray cluster: each actor reads splits of the input, labels them and writes their parts."""

import contextlib
import logging
import os
import re
import tempfile
import warnings
from collections import deque
from collections.abc import Callable, Collection, Iterator
from dataclasses import replace
from pathlib import Path

from bench.label.pool import KEPT, N_TRIES, LabelPool
from bench.label.receipt import Sample
from bench.label.rows import OutputSpec
from bench.label.splits import Footer, InputSplit
from bench.machine import cpu_cores
from bench.model_files import export_files, model_files, small_files
from bench.processes import Helper, ProcessPool, WorkerFailed, error_summary
from bench.variants import Device
from runtimes.classifier import ClassifierSpec
from utils import ROOT, RunError, UserError, clean, first_line

CODE = "bench", "runtimes", "utils.py"  # that the other machines need
JOIN_SECONDS = 60.0  # for joining a cluster: seconds, unless the network or the disk is slow


class Actor:
    """Labels splits, one part per call. `files`: name -> content of what the variant loads."""

    def __init__(self, pool: LabelPool, output: OutputSpec, existing: Collection[str], files: dict[str, bytes]):
        self.output, self.existing, self.directory = output, existing, tempfile.TemporaryDirectory()
        root, spec = Path(self.directory.name), pool.specs[0]
        for name, content in files.items():
            path = root / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(content)
        model = replace(spec.model, folder=root / "model", weights_id="")  # read_files() has checked the files
        spec = replace(spec, model=model, exported=spec.exported and root / "export", export_id="")
        self.pool = LabelPool([spec], pool.batching, pool.folder)
        self.next_part, self.parts = None, iter(())

    def label_next(self, split: InputSplit, start: int) -> tuple[Footer, Sample] | None:
        """Label the first missing part of a split that begins at row `start` or later; None if there is none.

        Reading continues where the last call stopped, and starts again for another split or after a restart.
        """
        try:
            if self.next_part != (split.file, start):
                parts = (part for part in split.read(self.output, self.existing) if part.first >= start)
                self.parts = self.pool.label_parts(parts, self.output)
            part = next(self.parts, None)
        except UserError:
            raise
        except Exception as error:
            raise RunError(f"{error_summary(error)}; {KEPT}") from error
        self.next_part = (split.file, part[0].end) if part and not part[0].last else None
        return part


@contextlib.contextmanager
def cluster(address: str) -> Iterator[None]:
    """Join the Ray cluster at an address; `local` starts one on this machine.

    Raises UserError if that fails, and any later error of Ray or of its tasks as UserError or RunError.
    """
    os.environ |= {"RAY_USAGE_STATS_ENABLED": "0", "RAY_BACKEND_LOG_LEVEL": "fatal"} | os.environ
    if address != "local":
        check_answers(address)
    os.dup2(2, 1)  # Ray's own lines (raylet, autoscaler) do not belong on standard output
    join(address)
    import ray

    try:
        yield
    except ray.exceptions.RayError as error:
        raise in_one_line(error) from error
    finally:
        ray.shutdown()


def join(address: str, silently: bool = False) -> None:
    """Call ray.init so that workers import this project's code, and nothing from the working directory."""
    if silently:
        os.dup2(os.open(os.devnull, os.O_WRONLY), 2)  # for Ray's own log lines
    logging.disable(logging.CRITICAL)  # errors are reported in one line of ours
    warnings.simplefilter("ignore")
    options = {"num_cpus": cpu_cores()} if address == "local" else {}
    options |= {"runtime_env": {"py_modules": [str(ROOT / name) for name in CODE]}}
    try:
        import ray

        with contextlib.chdir(ROOT):  # Ray adds the current folder to its workers' sys.path
            ray.init(address, log_to_driver=False, logging_level="ERROR", **options)
    except Exception as error:
        raise UserError(f"--ray {address}: cannot join the cluster: {first_line(error)}") from error


def check_answers(address: str) -> None:
    """Raise UserError unless another process, which can be killed, joins the cluster within JOIN_SECONDS."""
    try:
        with ProcessPool(Helper, [()], JOIN_SECONDS, forked=True) as pool:
            pool.call(Helper.call, join, address, True)
    except WorkerFailed as error:
        message = f"--ray {address}: no cluster answered in {JOIN_SECONDS:g} s"
        raise UserError(f"{message}; check the address, and that the cluster is running") from error


def in_one_line(error: Exception) -> UserError:
    """Return the UserError that a task raised, or a RunError for any other exception of ray.get."""
    cause = getattr(error, "cause", None)  # of a RayTaskError
    if isinstance(cause, UserError):
        return cause
    # else the text may be a traceback that contains the actor's own error
    pattern = r"^[\w.]*(?:Error|Failed|Exception)\b.*"
    lines = [error_summary(cause)] if cause else re.findall(pattern, str(error), re.MULTILINE)
    return RunError(f"Ray: {clean((lines or [first_line(error)])[-1])}; {KEPT}")


def call_on_node(function: Callable, *arguments):
    """Call a function on a machine of the cluster, one with a GPU if there is one."""
    import ray

    gpus = int(ray.cluster_resources().get("GPU", 0) > 0)
    task = ray.remote(num_gpus=gpus, max_retries=N_TRIES - 1)(function)
    return ray.get(task.remote(*arguments))


def resources(device: Device) -> tuple[str, int]:
    return ("GPU", 1) if device.gpu is not None else ("CPU", device.threads)


def count_actors(device: Device, workers: int | None) -> int:
    """Return the number of actors: `workers`, or as many as the cluster has room for. Raises UserError."""
    import ray

    kind, count = resources(device)
    nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    room = sum(int(node.get(kind, 0) // count) for node in nodes)
    if room < (workers or 1):
        reason = f"the cluster has room for {room} workers with {count} {kind} each, not for {workers or 1}"
        raise UserError(f"--workers: {reason}")
    return workers or room


def label_on_ray(
    splits: list[InputSplit], pool: LabelPool, output: OutputSpec, existing: Collection[str], actors: int
) -> Iterator[tuple[Footer, Sample]]:
    """Label as pool.label_parts() does, each split on one actor, except for `existing` parts. Raises RunError."""
    import ray

    kind, count = resources(pool.specs[0].device)
    retries = {"max_restarts": N_TRIES - 1, "max_task_retries": N_TRIES - 1}
    remote = ray.remote(Actor).options(**retries, **{f"num_{kind.lower()}s": count})
    files, running = ray.put(read_files(pool.specs[0])), {}
    waiting = deque((split, 0) for split in splits)  # each with the row to begin at

    def label_next(actor) -> None:
        if waiting:
            split, start = waiting.popleft()
            running[actor.label_next.remote(split, start)] = actor, split

    for _ in range(min(actors, len(splits))):
        label_next(remote.remote(pool, output, existing, files))
    while running:
        [ready], _ = ray.wait([*running])
        actor, split = running.pop(ready)
        part = ray.get(ready)
        if part and not part[0].last:
            waiting.appendleft((split, part[0].end))  # for this actor
        label_next(actor)
        if part:
            yield part


def read_files(spec: ClassifierSpec) -> dict[str, bytes]:
    """Return name -> content of what a variant loads, so that other machines need neither model nor export.

    With an export the model's weights are left out. Raises RunError if the files have changed since the run began.
    """
    model, exported = spec.model.folder, spec.exported
    files = {f"model/{file.relative_to(model)}": file for file in (small_files if exported else model_files)(model)}
    files |= {f"export/{file.relative_to(exported)}": file for file in (export_files(exported) if exported else ())}
    contents = {name: file.read_bytes() for name, file in files.items()}
    spec.check_unchanged()
    return contents
