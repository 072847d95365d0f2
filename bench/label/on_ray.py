"""Labelling on a Ray cluster: each actor reads a split of the input, labels it and writes its parts by itself."""

import contextlib
import logging
import os
import re
import tempfile
import warnings
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

from bench.label.output import Footer, parts_there
from bench.label.pool import N_TRIES, LabelPool, WrittenPart
from bench.label.rows import OutputSpec
from bench.label.splits import InputSplit
from bench.machine import cpu_cores
from bench.model.batches import Batching
from bench.model.model import WEIGHTS
from bench.processes import error_summary
from bench.tables.storage import Location
from bench.variants import Device
from runtimes.classifier import ClassifierSpec
from utils import ROOT, RunError, UserError, clean, first_line

CODE = "bench", "runtimes", "utils.py"  # that the other machines need


@dataclass(frozen=True)
class RayJob:
    """What each actor gets: how to label, and what is `there` already. All machines see the output `folder`."""

    spec: ClassifierSpec
    batching: Batching
    output: OutputSpec
    folder: Location
    there: dict[str, Footer]


class Actor:
    """Labels splits part by part. `files`: name -> content of all that the variant loads."""

    def __init__(self, job: RayJob, files: dict[str, bytes]):
        self.job, self.place = job, tempfile.TemporaryDirectory()
        for name, content in files.items():
            path = Path(self.place.name, name)
            path.parent.mkdir(exist_ok=True)
            path.write_bytes(content)
        model = replace(job.spec.model, folder=Path(self.place.name, "model"), weights_id="")  # see read_files
        exported = job.spec.exported and Path(self.place.name, "export")
        spec = replace(job.spec, model=model, exported=exported, export_id="")
        self.pool = LabelPool([spec], job.batching, job.folder)
        self.next, self.parts = None, iter(())

    def make(self, split: InputSplit, done: int) -> WrittenPart | None:
        """Makes the next part that is missing behind `done` rows of a split; None if none is. Raises RunError.

        An actor that was started again, or gets another split, begins to read; else it reads on.
        """
        try:
            if self.next != (split.file, split.first + done):
                rows = split.read(self.job.output, done, self.job.there)
                self.parts = self.pool.label_parts(rows, self.job.output)
            part = next(self.parts, None)
        except UserError:
            raise
        except Exception as error:
            raise RunError(f"{error_summary(error)}; the finished parts stay") from error
        self.next = (part.file, part.first + part.counts.rows) if part and not part.last else None
        return part


@contextlib.contextmanager
def cluster(address: str) -> Iterator[None]:
    """Joins the Ray cluster at an address; `local` starts one on this machine. Raises UserError if there is none."""
    os.environ |= {"RAY_USAGE_STATS_ENABLED": "0", "RAY_BACKEND_LOG_LEVEL": "fatal"} | os.environ
    import ray

    logging.disable(logging.CRITICAL)  # what fails is one line of ours
    warnings.simplefilter("ignore")

    options = {"num_cpus": cpu_cores()} if address == "local" else {}
    options |= {"runtime_env": {"py_modules": [str(ROOT / name) for name in CODE]}}
    try:
        ray.init(address, log_to_driver=False, logging_level="ERROR", **options)
    except Exception as error:
        raise UserError(f"no Ray cluster at {address}: {first_line(error)}") from error
    try:
        yield
    finally:
        ray.shutdown()


def on_a_node(function: Callable, *arguments):
    """Calls a function on a machine of the cluster, one with a GPU if there is one."""
    import ray

    gpus = int(ray.cluster_resources().get("GPU", 0) > 0)
    try:
        return ray.get(ray.remote(num_gpus=gpus)(function).remote(*arguments))
    except ray.exceptions.RayTaskError as error:
        raise error.cause from error


def count_actors(device: Device, workers: int | None) -> int:
    """Returns how many actors label, each with a GPU or as many CPUs as it has threads: `workers`, or all that fit.

    Raises UserError if the cluster has no room for them.
    """
    import ray

    gpu, threads = device.gpu is not None, device.threads
    alive = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    room = sum(int(node.get("GPU", 0) if gpu else node.get("CPU", 0) // threads) for node in alive)
    if room < (workers or 1):
        each = "a GPU" if gpu else f"{threads} CPUs"
        raise UserError(f"the cluster has room for {room} workers with {each} each, {workers or 1} are asked for")
    return workers or room


def label_on_ray(splits: list[InputSplit], job: RayJob, actors: int) -> Iterator[WrittenPart]:
    """Labels what is missing of splits, of which each actor reads one at a time; yields each part.

    Raises RunError if something fails on the way.
    """
    import ray

    gpu, threads = job.spec.device.gpu is not None, job.spec.device.threads
    again = {"max_restarts": N_TRIES - 1, "max_task_retries": N_TRIES - 1}
    actor = ray.remote(Actor).options(**again, **({"num_gpus": 1} if gpu else {"num_cpus": threads}))
    files, waiting, running = ray.put(read_files(job.spec)), deque(splits), {}

    def go_on(actor, split: InputSplit, done: int) -> None:
        running[actor.make.remote(split, done)] = actor, split

    def begin(actor) -> None:
        if waiting:
            split = waiting.popleft()
            go_on(actor, split, parts_there(split, job.there)[1])

    try:
        for _ in range(min(actors, len(splits))):
            begin(actor.remote(job, files))
        while running:
            [ready], _ = ray.wait([*running])
            one, split = running.pop(ready)
            part = ray.get(ready)
            if part is None or part.last:
                begin(one)
            else:
                go_on(one, split, part.first + part.counts.rows - split.first)
            if part:
                yield part
    except ray.exceptions.RayTaskError as error:
        raise error.cause from error
    except ray.exceptions.RayError as error:  # it shows a traceback with the actor's own error in it
        lines = re.findall(r"^[\w.]*(?:Error|Failed|Exception)\b.*", str(error), re.MULTILINE)
        raise RunError(f"Ray: {clean((lines or [first_line(error)])[-1])}; the finished parts stay") from error


def read_files(spec: ClassifierSpec) -> dict[str, bytes]:
    """Returns name -> content of what a variant loads, so that the other machines need neither model nor export.

    An export travels whole, whatever its runtime keeps in it; the model's weights stay here then. Raises RunError if
    the files have changed since the run began.
    """
    files = {f"model/{file.name}": file for file in spec.model.folder.iterdir() if file.is_file()}
    if spec.exported:
        files = {name: file for name, file in files.items() if file.suffix not in WEIGHTS}
        files |= {f"export/{file.name}": file for file in spec.exported.iterdir() if file.is_file()}
    contents = {name: file.read_bytes() for name, file in files.items()}
    spec.check_unchanged()
    return contents
