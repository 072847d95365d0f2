"""How a job runs: like the fastest result that is proven to match the original model, otherwise in FP32 PyTorch."""

import math
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path

from bench.export.ensure import ensure_export
from bench.judge import WITHIN
from bench.label import on_ray
from bench.label.record import read_record
from bench.label.splits import LabelJob, tables_of
from bench.machine import BUSY, DeviceInfo, cpu_cores, describe_device
from bench.measure.cells import batching_of
from bench.measure.quick import Job, head_texts, mean_tokens, quick_benchmark
from bench.measure.splits import share_cores
from bench.model.batches import Batching
from bench.model.model import Model
from bench.naming import slug
from bench.processes import run_in_subprocess
from bench.provenance import package_versions
from bench.report.evidence import EvidenceFile
from bench.report.rows import add_slowdowns, latest_per_cell, read_results
from bench.report.verdict import rank
from bench.tables.items import Item
from bench.variants import Device, digest_export
from runtimes import VARIANTS, check_variant
from runtimes.classifier import ClassifierSpec
from utils import RunError, UserError, say

# if nothing was measured: at or near the best in all our CPU sweeps; the value for GPUs is a guess
DEFAULT_TOKENS = {"gpu": 16384, "cpu": 1024}
MOST_BATCH_TOKENS = 2**20  # of a row that somebody else may have written
SIMILAR_LENGTH = 1.5  # largest ratio of mean token counts at which the best batching is expected to be the same


@dataclass(frozen=True)
class PlanOptions:
    """What the command line asks for; None leaves it to the plan."""

    device: str | None = None  # gpu or cpu
    variant: str | None = None
    workers: int | None = None
    threads: int | None = None
    batch_tokens: int | None = None
    long: str = "cut"
    gpu: list[int] | None = None  # ids
    ray: str | None = None  # address of a cluster
    results_dir: Path = Path("results")

    def __post_init__(self) -> None:
        if self.variant:
            check_variant(self.variant)
        if self.device not in (None, *DEFAULT_TOKENS):
            raise UserError(f"--device {self.device}: choose from {', '.join(DEFAULT_TOKENS)}")


@dataclass(frozen=True)
class LabelPlan:
    """How the workers label."""

    device: str  # gpu or cpu
    variant: str
    workers: int  # on each GPU
    threads: int  # of each worker
    batching: Batching
    speed: float = field(default=0.0, compare=False)  # messages/s measured end to end with this plan; 0 if unknown

    def __str__(self) -> str:
        return f"{self.variant}, {self.workers} x {self.threads}, {self.batching}"


def find_plan(job: LabelJob, options: PlanOptions, call: Callable) -> LabelPlan:
    """Return a plan for this machine, on the device and with the variant of the job's earlier runs, if there are any.

    Workers and batches may suit the machine of each run. `call` runs a function in a helper process.
    """
    record = read_record(job.folder)
    device, variant = (record.get("options", {}).get(name) for name in ("--device", "--variant"))
    is_same = record.get("model") == job.model.weights_id and device in DEFAULT_TOKENS and variant in VARIANTS
    if is_same and not job.overwrite:  # though another variant may be the fastest in results/ by now
        options = replace(options, device=options.device or device, variant=options.variant or variant)
    return plan_for(job.model, head_texts(tables_of(job.splits), job.output.text_columns), options, call, job)


def plan_for(
    model: Model, texts: list[Item], options: PlanOptions, call: Callable, job: LabelJob | None = None
) -> LabelPlan:
    """Return the plan of the fastest proven result for a model and texts like these, or of a benchmark of the job."""
    kind, info = find_device(options)
    tokens = call(mean_tokens, model, texts)
    measured = fastest_valid_row(options.results_dir, slug(info.name), model, tokens, options)
    if not measured and job and not options.variant and not options.ray:
        asked = options.workers or options.threads
        splits = share_cores([options.workers or 1], options.threads) if asked else None
        quick_job = Job(job.source.name, model, texts, job.estimate_rows(), splits)
        device = Device((options.gpu or [0])[0] if kind == "gpu" else None, cpu_cores())
        measured = quick_benchmark(quick_job, info, device, options.results_dir, call)
    return choose_plan(kind, measured, options, model.task.parts)


def find_device(options: PlanOptions) -> tuple[str, DeviceInfo]:
    """Return `gpu` or `cpu` and the device's description, on Ray those of one of its machines."""
    call = on_ray.call_on_node if options.ray else run_in_subprocess
    needs_cpu = options.variant and not options.device and "gpu" in VARIANTS[options.variant].unsupported
    if options.device != "cpu" and not needs_cpu:
        try:
            return "gpu", call(describe_device, options.gpu[0] if options.gpu else 0)
        except UserError as error:
            if options.device == "gpu" or options.gpu or isinstance(error, RunError):
                raise
    return "cpu", call(describe_device, None)


def fastest_valid_row(
    results_dir: Path, device_name: str, model: Model, tokens: float, options: PlanOptions
) -> dict | None:
    """Return the fastest end-to-end row within tolerance for this device, model and the installed packages.

    Its texts must have a similar mean number of `tokens`. If several datasets do, the one with the most rows counts,
    since speeds differ between texts. A given variant need not be proven. Rows that overload the machine are skipped.
    """
    variant = options.variant
    most_threads = 4 * (on_ray.call_on_node(cpu_cores) if options.ray else cpu_cores())
    rows, _, _ = read_results(sorted(results_dir.rglob("*.tsv")))
    wanted = {"device": device_name, "weights_id": model.weights_id, "threshold": model.task.rule_id}
    rows = rows[(rows[[*wanted]] == list(wanted.values())).all(axis=1)]
    rows = rows[rows["variant"].isin([variant] if variant else VARIANTS)]
    takes_texts = rows["variant"].isin([name for name, variant in VARIANTS.items() if variant.takes_texts])
    rows = rows[takes_texts | (rows["tokens/s"] * rows["padding"]).between(1e-9, 1e15)]  # for choose_plan()
    budgets = rows["batch_tokens"] + rows["batch_size"] * rows["tokens/s"] / rows["messages/s"] * rows["padding"]
    rows = rows[(rows["workers"] * rows["threads"] <= most_threads) & ~(budgets > MOST_BATCH_TOKENS)]
    rows = rows[rows["versions"] == rows["variant"].map(lambda name: package_versions(VARIANTS[name]))]
    evidence = EvidenceFile(results_dir)
    datasets = [group for _, group in rows.groupby("dataset")]
    for group in sorted(datasets, key=len, reverse=True):
        mean = (group["tokens/s"] / group["messages/s"]).median()
        if not 1 / SIMILAR_LENGTH <= mean / tokens <= SIMILAR_LENGTH:
            continue
        ranked = rank(latest_per_cell(add_slowdowns(group), any_texts=True), evidence)
        valid = ranked if variant else ranked[ranked["verdict"] == WITHIN]
        if len(valid):
            return valid.iloc[0].to_dict()
    return None


def choose_plan(device: str, measured: dict | None, options: PlanOptions, parts: int = 1) -> LabelPlan:
    """Return the plan of a measured row, or FP32 PyTorch, changed as asked; report what was measured.

    A fixed number of texts per batch becomes a token budget, with the mean padded length: a row measured on short texts
    never leads to batches larger than the machine is known to hold. `parts`: of each text, see Task.parts.
    """
    plan = LabelPlan(device, "torch", 1, cpu_cores(), Batching("token-budget", batch_tokens=DEFAULT_TOKENS[device]))
    if measured:
        batching, speed = batching_of(measured), float(measured["messages/s"])
        if not batching.batch_tokens and not VARIANTS[measured["variant"]].takes_texts:
            padded_length = measured["tokens/s"] / measured["messages/s"] / parts * measured["padding"]
            batching = Batching("token-budget", batch_tokens=math.ceil(batching.batch_size * padded_length))
        plan = LabelPlan(device, measured["variant"], measured["workers"], measured["threads"], batching, speed)
        line = f"measured   {measured['variant']}, {measured['messages/s']:.1f} messages/s on {measured['dataset']}"
        if measured["busy"] > BUSY:
            line += " while the device was busy"
        say(f"{line}, {measured['date'][:10]}: {measured['verdict'].lower()} in that benchmark")
    elif not options.variant:
        reason = "no result for this model, device, text length and package versions"
        say(f"measured   {reason}: using FP32 PyTorch. run_benchmark.py finds faster variants")
    asked = {name: getattr(options, name) for name in ("variant", "workers", "threads") if getattr(options, name)}
    if options.workers not in (None, plan.workers) and not options.ray:
        [(_, asked["threads"])] = share_cores([options.workers], options.threads)
    if options.batch_tokens or replace(plan, **asked) != plan:
        plan = replace(plan, **asked, speed=0.0)
    variant = VARIANTS[plan.variant]
    if device in variant.unsupported:
        raise UserError(f"--variant {plan.variant} cannot run on a {device}: {variant.unsupported[device]}")
    if not variant.takes_texts:
        tokens = options.batch_tokens or plan.batching.batch_tokens
        return replace(plan, batching=Batching("token-budget", 0, tokens, options.long))
    if options.batch_tokens or options.long != "cut":
        option = f"--long {options.long}" if options.long != "cut" else "--batch-tokens"
        raise UserError(f"{option} has no effect on {plan.variant}, which makes its own batches; drop one of them")
    return plan if plan.batching.batch_size else replace(plan, batching=Batching("in-order", batch_size=1))


def worker_specs(model: Model, plan: LabelPlan, gpus: list[int]) -> tuple[list[ClassifierSpec], str]:
    """Return (what each worker loads, where it comes from); create the export if needed."""
    exported, origin = None, model.id
    if export := VARIANTS[plan.variant].export:
        exported, origin = ensure_export(model, export.precision)
    export_id = digest_export(exported) if exported else ""
    worker_gpus = [gpu for gpu in (gpus if plan.device == "gpu" else [None]) for _ in range(plan.workers)]
    devices = [Device(gpu, plan.threads, exclusive=len(worker_gpus) == 1) for gpu in worker_gpus]
    return [ClassifierSpec(model, plan.variant, exported, device, export_id) for device in devices], origin
