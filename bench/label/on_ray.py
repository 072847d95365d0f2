"""Labelling on a Ray cluster: each actor reads, labels and writes parts by itself."""

import contextlib
import logging
import os
import re
import tempfile
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

from bench.classifier import Classifier, ClassifierSpec
from bench.inputs.batches import Batching
from bench.inputs.model import WEIGHTS
from bench.inputs.readers import Table
from bench.label.output import part_name, write_part
from bench.label.pool import N_TRIES, Part, token_counts
from bench.label.rows import Answers, OutputSpec, label_table, read_parts
from bench.label.sample import pick_sample
from bench.machine import cpu_cores
from bench.parity import probabilities
from bench.processes import error_summary
from utils import ROOT, RunError, UserError, clean, first_line

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
    """Makes parts. `files`: name -> content of all that the variant loads."""

    def __init__(self, job: RayJob, files: dict[str, bytes]):
        self.job = job
        with tempfile.TemporaryDirectory() as place:
            for name, content in files.items():
                path = Path(place, name)
                path.parent.mkdir(exist_ok=True)
                path.write_bytes(content)
            model = replace(job.spec.model, folder=Path(place, "model"), weights_id="")  # read_files() has checked them
            exported = job.spec.exported and Path(place, "export")
            self.classifier = Classifier(replace(job.spec, model=model, exported=exported, export_id=""))
            _ = model.config, model.tokenizer  # loaded while their files are there

    def make(self, number: int) -> Part:
        """Makes the part of a number. Raises RunError."""
        job = self.job
        try:
            table = next(read_parts(job.tables, job.output, skip=number * job.output.rows))
            labelled, counts = label_table(table, self.classify, job.output)
            write_part(job.folder, number, labelled, counts)
        except Exception as error:
            raise RunError(f"{part_name(number)}: {error_summary(error)}; the finished parts stay") from error
        return Part(counts, pick_sample(number, table, job.output.text_column, job.spec.model))

    def classify(self, texts: list[str]) -> Answers:
        predictions = self.classifier.predict(texts, self.job.batching, halve=True)
        return Answers(probabilities(predictions.logits, self.job.spec.model.problem_type), token_counts(predictions))


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


def label_on_ray(numbers: list[int], job: RayJob, workers: int | None) -> Iterator[Part]:
    """Makes the parts of these numbers; yields each.

    `workers`: actors, each with a GPU or as many CPUs as it has threads; without a number as many as there is room for.
    Raises UserError if the cluster has no room, RunError if something fails on the way.
    """
    import ray
    from ray.util import ActorPool

    gpu, threads = job.spec.device.gpu is not None, job.spec.device.threads
    alive = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    room = sum(int(node.get("GPU", 0) if gpu else node.get("CPU", 0) // threads) for node in alive)
    if room < (workers or 1):
        each = "a GPU" if gpu else f"{threads} CPUs"
        raise UserError(f"the cluster has room for {room} workers with {each} each, {workers or 1} are asked for")
    again = {"max_restarts": N_TRIES - 1, "max_task_retries": N_TRIES - 1}
    actor = ray.remote(Actor).options(**again, **({"num_gpus": 1} if gpu else {"num_cpus": threads}))
    files = ray.put(read_files(job.spec))
    pool = ActorPool([actor.remote(job, files) for _ in range(min(workers or room, len(numbers)))])
    try:
        yield from pool.map_unordered(lambda actor, number: actor.make.remote(number), numbers)
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
