"""Labelling on a Ray cluster: each actor of Ray Data reads, labels and writes parts by itself."""

import contextlib
import logging
import os
import re
import tempfile
import warnings
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np

from bench.classify import TRIES, Classifier, Way
from bench.inputs import WEIGHTS
from bench.parts import Layout, label_table, part_name, read_parts, write_part
from bench.workers import describe
from utils import ROOT, RunError, UserError, clean, cpu_cores, first_line

CODE = "bench", "runtimes", "utils.py"  # that the other machines need


class Actor:
    """Makes parts of `output` from `files`. `loaded`: a reference to name -> content of all that the way loads."""

    def __init__(self, way: Way, loaded, files: list[Path], layout: Layout, output: Path):
        import ray

        self.files, self.layout, self.output = files, layout, output
        with tempfile.TemporaryDirectory() as folder:
            for name, content in ray.get(loaded).items():
                path = Path(folder, name)
                path.parent.mkdir(exist_ok=True)
                path.write_bytes(content)
            model, source = Path(folder, "model"), Path(folder, "export", way.source.name)
            self.classifier = Classifier(0, replace(way, model=model, source=source if source.exists() else model))

    def __call__(self, batch: dict[str, np.ndarray]) -> dict[str, list]:
        """Makes the part of a number; what went wrong is an answer too, since Ray would wrap it."""
        number = int(batch["part"][0])
        try:
            table = next(read_parts(self.files, self.layout, number * self.layout.rows))
            labelled, counts = label_table(table, self.classifier.classify, self.layout)
            write_part(self.output, number, labelled)
        except Exception as error:
            return {"rows": [0], "counts": [np.zeros(3, int)], "error": [f"{part_name(number)}: {describe(error)}"]}
        return {"rows": [len(table)], "counts": [counts], "error": [""]}


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


def label_on_ray(numbers: list[int], way: Way, workers: int | None, *rest) -> Iterator[tuple[int, np.ndarray]]:
    """Makes the parts of these numbers; yields of each (how many rows it has, the counts of label_table).

    `workers`: actors, each with `way.place.threads` CPUs or a GPU; without a number as many as there is room for.
    `rest`: files, layout and output as the Actor has them, in storage that all machines see. Raises UserError if the
    cluster has no room, RunError if something fails on the way.
    """
    import ray

    if not numbers:
        return
    gpu, threads = way.place.gpu is not None, way.place.threads
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
    options |= {"max_task_retries": TRIES - 1, "fn_constructor_args": (way, ray.put(read_files(way)), *rest)}
    items = ray.data.from_items([{"part": number} for number in numbers], override_num_blocks=len(numbers))
    try:
        for row in items.map_batches(Actor, batch_size=1, compute=actors, **options).iter_rows():
            if row["error"]:
                raise RunError(f"{row['error']}; the finished parts stay")
            yield row["rows"], row["counts"]
    except ray.exceptions.RayError as error:  # it shows a traceback with the actor's own error in it
        lines = re.findall(r"^[\w.]*(?:Error|Failed|Exception)\b.*", str(error), re.MULTILINE)
        raise RunError(f"Ray: {clean((lines or [first_line(error)])[-1])}; the finished parts stay") from error


def read_files(way: Way) -> dict[str, bytes]:
    """Returns name -> content of what a way loads, so that the other machines need neither the model nor the export."""
    own = way.source != way.model  # an export: then the model's weights are not needed
    files = [file for file in way.model.iterdir() if file.is_file() and not (own and file.suffix in WEIGHTS)]
    contents = {f"model/{file.name}": file.read_bytes() for file in files}
    if own:
        parts = way.source.parent.glob(f"{way.source.name}*")
        contents |= {f"export/{file.name}": file.read_bytes() for file in parts}
    return contents
