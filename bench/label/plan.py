"""How texts are labelled: as the fastest row that is not known to be wrong says, or as should be fast."""

from dataclasses import dataclass, replace
from pathlib import Path

from bench.inputs.batches import Batching
from bench.machine import cpu_cores, cpu_features
from bench.measure.cells import batching_of
from bench.provenance import package_versions
from bench.report.rows import latest_per_cell, read_results
from bench.report.verdict import rank
from bench.variants import Device
from runtimes import VARIANTS
from utils import UserError, say

# where nothing was measured: what was best or close to it in all our sweeps of a CPU; for a GPU a guess
DEFAULT_TOKENS = {"gpu": 16384, "cpu": 1024}
PLAN_OPTIONS = "device", "variant", "workers", "threads", "batch_tokens"  # of the command line


@dataclass(frozen=True)
class LabelPlan:
    """A `variant` on a `device` (gpu or cpu), in so many `workers` (on a GPU for each of them) of so many `threads`."""

    device: str
    variant: str
    workers: int
    threads: int
    batching: Batching

    def __str__(self) -> str:
        return f"{self.variant}, {self.workers} x {self.threads}, {self.batching}"


def fastest_valid_row(results_dir: Path, device_name: str, weights_id: str, variant: str | None) -> dict | None:
    """Returns the fastest row, end to end, of this device, these weights and the installed packages; None without one.

    Of several sets of texts, whose speeds can't be compared, those with most rows count.
    """
    rows, _, _ = read_results(sorted(results_dir.rglob("*.tsv")))
    rows = rows[(rows["device"] == device_name) & (rows["weights_id"] == weights_id)]
    rows = rows[rows["variant"].isin([variant] if variant else VARIANTS)]
    rows = rows[rows["versions"] == rows["variant"].map(lambda name: package_versions(VARIANTS[name]))]
    if rows.empty:
        return None
    texts = ["dataset", "texts", "texts_id"]
    fullest = rows.groupby(texts).size().idxmax()
    ranked = rank(latest_per_cell(rows[(rows[texts] == list(fullest)).all(axis=1)]))
    within = ranked[ranked["within"]].to_dict("records")
    return within[0] if within else None


def choose_plan(device: str, measured: dict | None, asked: dict) -> LabelPlan:
    """Returns the plan of a measured row, or of what should be fast, with what was asked for; says which it is.

    `asked`: variant, workers, threads and batch_tokens, None where it was not asked. Raises UserError for a variant
    that can't run there.
    """
    best = "onnx-fp16" if device == "gpu" else "torch-bf16" if "bf16" in cpu_features() else "onnx"
    plan = LabelPlan(device, best, 1, cpu_cores(), Batching("token-budget", batch_tokens=DEFAULT_TOKENS[device]))
    if measured:
        same = {name: measured[name] for name in ("variant", "workers", "threads")}
        plan = LabelPlan(device=device, batching=batching_of(measured), **same)
        words = f"{measured['variant']}, {measured['messages/s']:.1f} messages/s on {measured['dataset']}"
        say(f"fastest row that is not known to be wrong: {words}, {measured['date'][:10]}")
    else:
        say("nothing usable was measured for this device and model: taking what should be fast")
    wanted = {name: asked[name] for name in ("variant", "workers", "threads") if asked[name]}
    plan = replace(plan, **wanted)
    variant = VARIANTS[plan.variant]
    if device in variant.unsupported:
        raise UserError(f"{plan.variant} can't run on a {device}: {variant.unsupported[device]}")
    if asked["batch_tokens"] and variant.takes_texts:
        raise UserError(f"--batch-tokens: {plan.variant} takes the texts themselves and makes its own batches")
    if asked["batch_tokens"]:
        return replace(plan, batching=Batching("token-budget", batch_tokens=asked["batch_tokens"]))
    if variant.takes_texts and not plan.batching.batch_size:
        return replace(plan, batching=Batching("in-order", batch_size=1))
    return plan


def worker_devices(plan: LabelPlan, gpus: list[int]) -> list[Device]:
    """Returns where each worker runs: `plan.workers` on each of the GPUs, or on the CPU."""
    places = gpus if plan.device == "gpu" else [None]
    exclusive = len(places) * plan.workers == 1
    return [Device(gpu, plan.threads, exclusive) for gpu in places for _ in range(plan.workers)]
