"""Labelling on a Ray cluster: each actor of Ray Data reads, labels and writes parts by itself."""

import contextlib
import logging
import os
import re
import tempfile
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from bench.classifier import Classifier, ClassifierSpec
from bench.inputs.batches import Batching
from bench.inputs.model import WEIGHTS
from bench.inputs.readers import Table
from bench.label.output import OutputSpec, label_table, part_name, read_parts, write_part
from bench.label.pool import N_TRIES
from bench.parity import probabilities
from bench.processes import error_summary
from utils import ROOT, RunError, UserError, clean, cpu_cores, first_line

CODE = "bench", "runtimes", "utils.py"  # that the other machines need


@dataclass(frozen=True)
class RayJob:
    """What each actor gets: how to label, and of which tables. All machines see them and the output `folder`."""

    spec: ClassifierSpec
    batching: Batching
    tables: list[Table]
    output: OutputSpec
    folder: Path


class Actor:
    """Makes parts. `loaded`: a reference to name -> content of all files that the variant loads."""

    def __init__(self, job: RayJob, loaded):
        import ray

        self.job = job
        with tempfile.TemporaryDirectory() as place:
            for name, content in ray.get(loaded).items():
                path = Path(place, name)
                path.parent.mkdir(exist_ok=True)
                path.write_bytes(content)
            model = replace(job.spec.model, folder=Path(place, "model"))
            exported = job.spec.exported and Path(place, "export")
            self.classifier = Classifier(replace(job.spec, model=model, exported=exported))
            _ = model.config, model.tokenizer  # loaded while their files are there

    def __call__(self, batch: dict[str, np.ndarray]) -> dict[str, list]:
        """Makes the part of a number; what went wrong is an answer too, since Ray would wrap it."""
        number, job = int(batch["part"][0]), self.job
        try:
            table = next(read_parts(job.tables, job.output, skip=number * job.output.rows))
            labelled, counts = label_table(table, self.classify, job.output)
            write_part(job.folder, number, labelled)
        except Exception as error:
            words = f"{part_name(number)}: {error_summary(error)}"
            return {"rows": [0], "counts": [np.zeros(3, int)], "error": [words]}
        return {"rows": [len(table)], "counts": [counts], "error": [""]}

    def classify(self, texts: list[str]) -> tuple[np.ndarray, int]:
        predictions = self.classifier.predict(texts, self.job.batching)
        return probabilities(predictions.logits, self.job.spec.model.problem_type), predictions.tokens


@contextlib.contextmanager
def cluster(address: str) -> Iterator[None]:
    """Joins the Ray cluster at an address; `local` starts one on this machine. Raises UserError if there is none."""
    os.environ |= {"RAY_USAGE_STATS_ENABLED": "0", "RAY_BACKEND_LOG_LEVEL": "fatal"} | os.environ
    import ray

    logging.disable(logging.CRITICAL)  # what fails is one line of ours
    warnings.simplefilter("ignore")

    options = {"num_cpus": cpu_cores() + 1} if address == "local" else {}  # one more: see label_on_ray
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


def label_on_ray(numbers: list[int], job: RayJob, workers: int | None) -> Iterator[tuple[int, np.ndarray]]:
    """Makes the parts of these numbers; yields of each (how many rows it has, the counts of label_table).

    `workers`: actors, each with a GPU or as many CPUs as it has threads; without a number as many as there is room for.
    Raises UserError if the cluster has no room, RunError if something fails on the way.
    """
    import ray

    if not numbers:
        return
    gpu, threads = job.spec.device.gpu is not None, job.spec.device.threads
    there = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    room = sum(int(node.get("GPU", 0) if gpu else node.get("CPU", 0) // threads) for node in there)
    if not gpu and sum(node.get("CPU", 0) for node in there) - room * threads < 1:
        room -= 1  # Ray Data needs a CPU for itself: without it, all would wait for ever
    if room < (workers or 1):
        each = "a GPU" if gpu else f"{threads} CPUs"
        raise UserError(f"the cluster has room for {room} workers with {each} each, {workers or 1} are asked for")
    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = context.print_on_execution_start = False
    actors = ray.data.ActorPoolStrategy(size=min(workers or room, len(numbers)))
    options = {"num_gpus": 1} if gpu else {"num_cpus": threads}
    options |= {"max_task_retries": N_TRIES - 1, "fn_constructor_args": (job, ray.put(read_files(job.spec)))}
    items = ray.data.from_items([{"part": number} for number in numbers], override_num_blocks=len(numbers))
    try:
        for row in items.map_batches(Actor, batch_size=1, compute=actors, **options).iter_rows():
            if row["error"]:
                raise RunError(f"{row['error']}; the finished parts stay")
            yield row["rows"], row["counts"]
    except ray.exceptions.RayError as error:  # it shows a traceback with the actor's own error in it
        lines = re.findall(r"^[\w.]*(?:Error|Failed|Exception)\b.*", str(error), re.MULTILINE)
        raise RunError(f"Ray: {clean((lines or [first_line(error)])[-1])}; the finished parts stay") from error


def read_files(spec: ClassifierSpec) -> dict[str, bytes]:
    """Returns name -> content of what a variant loads, so that the other machines need neither model nor export.

    An export travels whole, whatever its runtime keeps in it; the model's weights stay here then.
    """
    files = [file for file in spec.model.folder.iterdir() if file.is_file()]
    if not spec.exported:
        return {f"model/{file.name}": file.read_bytes() for file in files}
    contents = {f"model/{file.name}": file.read_bytes() for file in files if file.suffix not in WEIGHTS}
    return contents | {f"export/{file.name}": file.read_bytes() for file in spec.exported.iterdir() if file.is_file()}
