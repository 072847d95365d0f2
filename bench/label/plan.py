"""How texts are labelled: as the fastest row that is proven to be right says, else in FP32."""

import contextlib
import math
import shlex
from argparse import Namespace
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path

from bench.export.ensure import ensure_export
from bench.judge import WITHIN
from bench.label import on_ray
from bench.label.job import read_job
from bench.label.splits import InputSplit
from bench.machine import BUSY, DeviceInfo, cpu_cores, describe_device
from bench.measure.cells import batching_of
from bench.measure.quick import Job, head_texts, mean_tokens, quick_benchmark
from bench.model.batches import Batching
from bench.model.model import Model
from bench.naming import slug
from bench.provenance import package_versions
from bench.report.rows import latest_per_cell, read_results
from bench.report.verdict import rank
from bench.tables.storage import Location, locate
from bench.variants import Device, digest_export
from runtimes import VARIANTS
from runtimes.classifier import ClassifierSpec
from utils import UserError, say

# where nothing was measured: what was best or close to it in all our sweeps of a CPU; for a GPU a guess
DEFAULT_TOKENS = {"gpu": 16384, "cpu": 1024}
ALIKE = 1.5  # times as many tokens of a text, at most, have texts of one kind: above, another batching may be best
PLAN_OPTIONS = "device", "variant", "workers", "threads", "batch_tokens", "long"  # of the command line


@dataclass(frozen=True)
class LabelPlan:
    """A `variant` on a `device` (gpu or cpu), in so many `workers` (on a GPU for each of them) of so many `threads`.

    speed: messages/s that were measured of exactly this, end to end; 0 if that is not known.
    """

    device: str
    variant: str
    workers: int
    threads: int
    batching: Batching
    speed: float = field(default=0.0, compare=False)

    def __str__(self) -> str:
        return f"{self.variant}, {self.workers} x {self.threads}, {self.batching}"


def fastest_valid_row(
    results_dir: Path, device_name: str, model: Model, tokens: float, variant: str | None
) -> dict | None:
    """Returns the fastest row, end to end, of what is proven to be within tolerance; None without one.

    It is of this device, these weights and thresholds, the installed packages, and texts of about as many `tokens` on
    average. Of several sets of texts, whose speeds can't be compared, the one with most rows counts. With a `variant`
    the row is of that, proven or not.
    """
    rows, _, _ = read_results(sorted(results_dir.rglob("*.tsv")))
    same = {"device": device_name, "weights_id": model.weights_id, "threshold": model.task.rule_id}
    rows = rows[(rows[[*same]] == list(same.values())).all(axis=1)]
    rows = rows[rows["variant"].isin([variant] if variant else VARIANTS)]
    rows = rows[rows["versions"] == rows["variant"].map(lambda name: package_versions(VARIANTS[name]))]
    others = []
    groups = [group for _, group in rows.groupby(["dataset", "texts", "texts_id"])]
    for group in sorted(groups, key=len, reverse=True):
        of_a_text = (group["tokens/s"] / group["messages/s"]).median()
        if not 1 / ALIKE <= of_a_text / tokens <= ALIKE:
            others.append(f"{group['dataset'].iloc[0]} of {of_a_text:.0f} tokens a text")
            continue
        ranked = rank(latest_per_cell(group))
        fit = ranked if variant else ranked[ranked["verdict"] == WITHIN]
        if len(fit):
            return fit.iloc[0].to_dict()
    if others:
        say(f"measured   only {', '.join(dict.fromkeys(others))}, while these have {tokens:.0f}")
    return None


def choose_plan(device: str, measured: dict | None, asked: dict) -> LabelPlan:
    """Returns the plan of a measured row, or FP32 torch, with what was asked for; says what was measured.

    `asked`: variant, workers, threads and batch_tokens, None where it was not asked. Raises UserError for a variant
    that can't run there.
    """
    plan = LabelPlan(device, "torch", 1, cpu_cores(), Batching("token-budget", batch_tokens=DEFAULT_TOKENS[device]))
    if measured:
        same = {name: measured[name] for name in ("variant", "workers", "threads")}
        batching = budget_of(measured)
        plan = LabelPlan(device=device, batching=batching, speed=float(measured["messages/s"]), **same)
        words = f"{measured['variant']}, {measured['messages/s']:.1f} messages/s on {measured['dataset']}"
        words += " while others kept the device busy" * (measured["busy"] > BUSY)
        say(f"measured   {words}, {measured['date'][:10]}: {measured['verdict'].lower()}")
    elif not asked["variant"]:
        say("measured   nothing that fits: FP32 torch, which is right and needs no look")
    wanted = {name: asked[name] for name in ("variant", "workers", "threads") if asked[name]}
    changed = any(getattr(plan, name) != value for name, value in wanted.items()) or asked["batch_tokens"]
    plan = replace(plan, **wanted, **{"speed": 0.0} if changed else {})
    variant = VARIANTS[plan.variant]
    if device in variant.unsupported:
        raise UserError(f"{plan.variant} can't run on a {device}: {variant.unsupported[device]}")
    windows = asked["long"] != "cut"
    if variant.takes_texts and (asked["batch_tokens"] or windows):
        option = "--long windows" if windows else "--batch-tokens"
        raise UserError(f"{option}: {plan.variant} takes the texts themselves and makes its own batches")
    if variant.takes_texts and not plan.batching.batch_size:
        return replace(plan, batching=Batching("in-order", batch_size=1))
    tokens = asked["batch_tokens"] or plan.batching.batch_tokens
    if variant.takes_texts:
        return plan
    return replace(plan, batching=Batching("token-budget", 0, tokens, asked["long"]))


def budget_of(measured: dict) -> Batching:
    """Returns the batching of a measured row; of so many texts the tokens that these had on average, padding counted.

    So a row that was measured with short texts puts no more of long ones into a batch than the machine has shown to
    hold. A variant that takes the texts themselves knows numbers of texts alone.
    """
    batching = batching_of(measured)
    if batching.batch_tokens or VARIANTS[measured["variant"]].takes_texts:
        return batching
    of_a_text = measured["tokens/s"] / measured["messages/s"] * measured["padding"]
    return Batching("token-budget", batch_tokens=math.ceil(batching.batch_size * of_a_text))


def find_device(args: Namespace, call: Callable) -> tuple[str, DeviceInfo]:
    """Returns `gpu` or `cpu`, and what describes the device; on Ray those of one of its machines.

    `call` runs a function in a helper process.
    """
    if args.gpu and (args.ray or args.device == "cpu"):
        raise UserError("--gpu goes with neither --ray nor --device cpu")
    call = on_ray.on_a_node if args.ray else call
    if args.device != "cpu":
        found = call(device_or_reason, args.gpu[0] if args.gpu else 0)
        if isinstance(found, DeviceInfo):
            return "gpu", found
        if args.device == "gpu" or args.gpu:
            raise found
    return "cpu", call(describe_device, None)


def device_or_reason(gpu: int) -> DeviceInfo | UserError:
    """Returns what describes a GPU, or why it can't be used: an error that is raised would end a helper process."""
    try:
        return describe_device(gpu)
    except UserError as error:
        return error


def find_plan(args: Namespace, model: Model, splits: list[InputSplit], call: Callable) -> LabelPlan:
    """Returns how to label: as an interrupted run with the same options and weights, or as choose_plan says.

    `call` runs a function in a helper process.
    """
    before = read_job(args.output)
    same = (before.get("options"), before.get("model")) == (plan_options(args), model.weights_id)
    if same and not args.overwrite and (plan := read_plan(before)):
        return plan  # though by now another may be the fastest in results/
    kind, info = find_device(args, call)
    texts = head_texts(list({split.file: split.table for split in splits}.values()), args.column)
    tokens = call(mean_tokens, model, texts)
    measured = fastest_valid_row(args.results_dir, slug(info.name), model, tokens, args.variant)
    if not measured and not args.variant and not args.ray:
        job = Job(locate(args.input).name, model, texts, sum(split.estimate_rows() for split in splits))
        device = Device((args.gpu or [0])[0] if kind == "gpu" else None, args.threads or cpu_cores())
        measured = quick_benchmark(job, info, device, args.results_dir, call)
    if not measured and not args.variant and args.ray:
        say("           run_benchmark.py on a machine of the cluster finds a faster way, --variant names one")
    return choose_plan(kind, measured, plan_options(args))


def measuring_command(args: Namespace, plan: LabelPlan, file: Location) -> str:
    """Returns the command that measures what fits a job; nothing where the job asks for what no benchmark measures."""
    if args.workers or args.batch_tokens:
        return ""
    words = ["python", "run_benchmark.py", "--model", args.variant or "all", "--quick", "--device", plan.device]
    words += ["--model-id", args.model_id, "--dataset", file, "--column", args.column]
    for name in ("delimiter", "encoding", "threshold", "threads"):
        value = getattr(args, name)
        if value not in (None, "utf-8"):
            words += [f"--{name}", value]
    return shlex.join(map(str, words)) + (f" --gpu {args.gpu[0]}" if args.gpu else "")


def read_plan(job: dict) -> LabelPlan | None:
    """Returns the plan of a job; None where it is damaged, or of a version of ours that had other fields."""
    with contextlib.suppress(KeyError, TypeError):
        plan = LabelPlan(**job["plan"] | {"batching": Batching(**job["plan"]["batching"])})
        if plan.variant in VARIANTS:
            return plan
    return None


def plan_options(args: Namespace) -> dict:
    return {name: getattr(args, name) for name in PLAN_OPTIONS}


def worker_specs(model: Model, plan: LabelPlan, gpus: list[int]) -> tuple[list[ClassifierSpec], str]:
    """Returns what each worker loads, which is exported if need be, and a few words that say where it is from."""
    exported, origin, variant = None, model.id, VARIANTS[plan.variant]
    if variant.export:
        exported, origin = ensure_export(model, variant.export.precision)
    export_id = digest_export(exported) if exported else ""
    devices = worker_devices(plan, gpus)
    return [ClassifierSpec(model, plan.variant, exported, device, export_id) for device in devices], origin


def worker_devices(plan: LabelPlan, gpus: list[int]) -> list[Device]:
    """Returns where each worker runs: `plan.workers` on each of the GPUs, or on the CPU."""
    places = gpus if plan.device == "gpu" else [None]
    exclusive = len(places) * plan.workers == 1
    return [Device(gpu, plan.threads, exclusive) for gpu in places for _ in range(plan.workers)]
