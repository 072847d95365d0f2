"""Exports a Hugging Face classifier to ONNX and proves that the result is still right.

    python export_onnx.py SamLowe/roberta-base-go_emotions
    python export_onnx.py random-roberta-base --no-upload --limit 200

The model is exported by optimum's O4 (fused nodes, tanh GELU, FP16) or by torch's exporter, whichever fuses more of its
attention. Its graph is looked at, and its probabilities are compared with those of the original model in eager FP32
PyTorch, text by text. The folder holds model.onnx, the config, the tokenizer, a model card (README.md) and the same
figures for machines (parity.json). It is NOT WITHIN TOLERANCE if an output is infinite or not a number, or if
with 95% confidence more than --tolerance of the decisions change. It is uploaded only if asked for, and not then.

Nothing is left behind by an export that fails or is interrupted.

Exit code: 0, 1 if the check or the upload failed, 2 for wrong usage or input, 130 after Ctrl-C.
"""

import json
import os
import shlex
import shutil
import sys
import tempfile
from argparse import Namespace
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
from tqdm import tqdm

from bench.classifier import Classifier, ClassifierSpec
from bench.export.card import write_card
from bench.export.ensure import export_folder, foreign_files
from bench.export.select import EXPORT_KINDS, export_model
from bench.files import LONGEST_NAME, check_writable, new_folder
from bench.inputs.batches import BATCHINGS, Batching
from bench.inputs.datasets import Dataset, load_dataset
from bench.inputs.hub import with_timeout
from bench.inputs.model import WEIGHTS, Model
from bench.inputs.random_model import RANDOM_MODEL
from bench.inputs.reference import Reference
from bench.inputs.resolve import resolve_model
from bench.judge import NOT_WITHIN, TOLERANCE, judge_export
from bench.machine import cpu_cores, describe_device, process_count
from bench.parity import DECISIONS, probabilities, statistics, worst_texts
from bench.processes import ProcessPool, run_in_subprocess
from bench.provenance import project_commit, versions
from bench.variants import REPORT, Device
from runtimes import VARIANTS
from utils import CACHE, Parser, RunError, UserError, clean, first_line, int_from, run, say

RUNTIMES = "torch", "transformers", "optimum-onnx", "onnxruntime-gpu", "onnxruntime"  # whose versions a report has


def parse_arguments() -> Namespace:
    parser = Parser(__doc__)
    add, whole = parser.add_argument, int_from(1)
    add("model_id", metavar="MODEL_ID", help=f"Hub id, local folder, or {RANDOM_MODEL}")
    add("--precision", choices=list(EXPORT_KINDS), default="fp16", help="default: fp16; int8 is for CPUs")
    add("--save-dir", type=Path, help="default: ./<name>-onnx-fp16, or -onnx-int8, -onnx, by precision")
    add("--overwrite", action="store_true", help="replace an existing export")
    add("--disable-shape-inference", action="store_true", help="for very large models")
    add("--device", choices=("gpu", "cpu"), help="where to check (default: gpu if there is one)")
    add("--gpu", type=int_from(0), default=0, help="GPU id (default: 0)")
    add("--threads", type=process_count, default=cpu_cores(), help="CPU threads (default: all cores)")
    add("--dataset", default="normal", help="normal, filtered, or a file as for labelling (default: normal)")
    add("--column", default="body", help="the file's text column (default: body)")
    add("--limit", type=whole, help="only so many texts, evenly spaced (default: all)")
    batching_help = "how the check's batches are made (default: sorted; int8: token-budget, as it labels)"
    add("--batching", choices=BATCHINGS, help=batching_help)
    add("--batch-size", type=whole, default=1, help="batch size of the check (default: 1)")
    add("--batch-tokens", type=whole, default=1024, help="tokens in a batch, for token-budget (default: 1024)")
    tolerance_help = f"largest share of changed decisions (default: {TOLERANCE})"
    add("--tolerance", type=share, default=TOLERANCE, help=tolerance_help)
    asking = parser.add_mutually_exclusive_group()
    asking.add_argument("--upload", action="store_true", help="upload without asking")
    asking.add_argument("--no-upload", action="store_true", help="do not ask, do not upload")
    add("--excerpts", action="store_true", help="show the texts that differ most in the card, for all to read")
    add("--repo-id", help="where to upload (default: <user>/<name>-onnx-fp16)")
    add("--private", action="store_true", help="make the repository private")
    add("--create-pr", action="store_true", help="upload as a pull request")
    token_help = "access token; prefer HF_TOKEN or `hf auth login`, since other users can see command lines"
    add("--hf-token", help=token_help)
    return parser.parse_args()


def share(text: str) -> float:
    """Parses a number from 0 to 1."""
    value = float(text)
    if not 0 <= value <= 1:
        raise ValueError  # argparse says "invalid share value"
    return value


def check_device(args: Namespace) -> tuple[Device, str]:
    """Returns where the check runs, and the machine's name; a GPU is used if there is one, unless --device says cpu."""
    variant = VARIANTS[EXPORT_KINDS[args.precision].variant]
    if args.device != "cpu":
        try:
            if "gpu" in variant.unsupported:
                raise UserError(f"{args.precision} can't be checked on a gpu: {variant.unsupported['gpu']}")
            info = run_in_subprocess(describe_device, args.gpu)
            run_in_subprocess(variant.check_device, args.gpu)
            return Device(args.gpu, args.threads), f"{info.name} (driver {info.driver})"
        except UserError as error:
            if args.device == "gpu":
                raise
            say(f"checking on the CPU: {error}")
    return Device(None, args.threads), f"{describe_device(None).name}, {args.threads} threads"


def check_target(target: Path, model: Path, overwrite: bool) -> None:
    """Raises UserError if the folder is taken or can't be made, or if the disk is too full."""
    here, there = target.resolve(), model.resolve()
    if here == there or here in there.parents or there in here.parents:
        raise UserError(f"{target} is, holds or lies in the model's own folder {model}")
    if os.path.lexists(target):
        if not overwrite:
            raise UserError(f"{target} exists; --overwrite replaces it")
        if not target.is_dir() or target.is_symlink():
            raise UserError(f"{target} is not a folder, so --overwrite won't replace it")
        if foreign := foreign_files(target):
            raise UserError(f"{target} holds {foreign[0]}, which no export made, so --overwrite won't replace it")
    if len(os.fsencode(target.name)) > LONGEST_NAME - 20:  # a temporary name is longer
        raise UserError(f"{target.name[:20]}... is too long for the name of a folder")
    check_writable(target.absolute().parent)
    needed = 3 * sum(file.stat().st_size for file in model.iterdir() if file.suffix in WEIGHTS)
    free = shutil.disk_usage(target.absolute().parent).free
    if free < needed:
        raise UserError(f"too little room for {target}: {needed / 2**30:.1f} GiB needed, {free / 2**30:.1f} GiB free")


def run_over(texts: list[str], name: str, make: Callable, arguments: tuple, method: Callable, *more):
    """Calls method(made object, file of the texts, *more) in a process of its own, with a progress bar."""
    with (
        tempfile.NamedTemporaryFile("w", suffix=".json", encoding="utf-8") as file,
        ProcessPool(make, [arguments]) as pool,
        tqdm(desc=name, total=len(texts), unit="text", file=sys.stderr) as progress,
    ):
        json.dump(texts, file)
        file.flush()
        request = method, Path(file.name), *more
        [answer] = pool.call(*request, on_heartbeat=lambda done: progress.update(done[0] - progress.n))
        progress.update(progress.total - progress.n)
    return answer


def compare(model: Model, exported: ClassifierSpec, texts: list[str], batching: Batching, tolerance: float) -> dict:
    """Runs the export and the original over the same texts; returns what the report says of both.

    The original runs text by text, as transformers documents it, see Reference.
    """
    problem_type, device = model.problem_type, exported.device
    arguments = texts, exported.variant, Classifier, (exported,), Classifier.predict_share, batching
    _, predictions = run_over(*arguments)
    full = np.flatnonzero(predictions.has_tokens)
    if not len(full):
        raise UserError("the tokenizer gives no token for any text")
    full_texts = [texts[i] for i in full]
    arguments = full_texts, "original", Reference.load, (model, device.gpu, device.threads), Reference.of_file
    reference, seconds = run_over(*arguments)
    probs = probabilities(predictions.logits, problem_type)[full]
    speed = {"original": len(full) / seconds, "export": len(texts) / (predictions.end - predictions.start)}
    stats = statistics(probs, reference, problem_type)
    verdict, reason = judge_export(stats, tolerance)
    return {
        "max_length": model.max_length,
        "problem_type": problem_type,
        **stats,
        "speed": speed,
        "worst": worst_texts(probs, reference, full_texts, model.labels),
        "tolerance": tolerance,
        "verdict": verdict,
        "reason": reason,
    }


def export_and_check(args: Namespace, model: Model, dataset: Dataset, folder: Path, repo: str) -> dict:
    """Fills `folder` with the export, the check's report and the card. Returns the report."""
    device, machine = check_device(args)
    kind = EXPORT_KINDS[args.precision]
    name = args.batching or ("token-budget" if kind.batches_matter else "sorted")
    tokens = args.batch_tokens if name == "token-budget" else 0
    batching = Batching(name, batch_size=0 if tokens else args.batch_size, batch_tokens=tokens)
    say(f"exporting {args.model_id} in {args.precision}")
    graph = run_in_subprocess(export_model, model, args.precision, folder, not args.disable_shape_inference)
    for finding in (f"made by {graph['exporter']}", *graph["findings"]):
        say(f"graph: {finding}")
    say(f"checking on {len(dataset.texts)} texts on {machine}")
    known = versions(*RUNTIMES) | {"commit": project_commit()}
    spec = ClassifierSpec(model, kind.variant, folder, device)
    report = {
        "model": args.model_id if model.folder != Path(args.model_id) else model.folder.resolve().name,
        "repo": repo,
        "precision": args.precision,
        "command": clean(shlex.join(["python", "export_onnx.py", *public_arguments(sys.argv[1:])])).replace("`", "'"),
        "versions": ", ".join(f"{name} {version}" for name, version in known.items()),
        "date": datetime.now(UTC).strftime("%Y-%m-%d"),
        "machine": machine,
        "provider": "CPUExecutionProvider" if device.gpu is None else "CUDAExecutionProvider",
        "fp16_exercised": args.precision != "fp16" or device.gpu is not None,
        "dataset": dataset.name,
        "column": args.column,
        "texts": len(dataset.texts),
        "batches": str(batching),
        "batches_matter": kind.batches_matter,
        **graph,
        **compare(model, spec, dataset.texts, batching, args.tolerance),
    }
    public = report if args.excerpts else report | {"worst": []}
    (folder / REPORT).write_text(json.dumps(without_nan(public), indent=2, allow_nan=False), encoding="utf-8")
    write_card(folder, model.folder, public)
    return report


def without_nan(value):
    """Replaces what is not finite in a report by None, since JSON has no word for it."""
    if isinstance(value, dict):
        return {key: without_nan(item) for key, item in value.items()}
    if isinstance(value, list):
        return [without_nan(item) for item in value]
    return None if isinstance(value, float) and not np.isfinite(value) else value


def public_arguments(arguments: list[str]) -> list[str]:
    """Replaces a token among the arguments by dots, and a path of this machine by its last part."""
    public = []
    for i, argument in enumerate(arguments):
        option, equals, value = argument.rpartition("=") if argument.startswith("--") else ("", "", argument)
        if "--hf-token" in (option, *arguments[i - 1 : i]):
            value = "..."
        elif os.path.isabs(value) or os.path.exists(value):
            value = Path(value).resolve().name
        public.append(f"{option}{equals}{value}")
    return public


def print_report(report: dict) -> None:
    """Prints the check's result on standard output."""
    stats, speed = report["largest_difference"], report["speed"]
    print(f"largest difference of any label, over {report['texts']} texts ({report['dataset']}):")
    print("  " + "  ".join(f"{name} {value:.3g}" for name, value in stats.items()))
    print(f"mean difference over all labels: {report['mean_over_labels']:.3g}")
    changed = f"{report['changed']:,} of {report['decisions']:,}, {report['flips']:.4%}"
    print(f"changed decisions (flips): {changed} ({DECISIONS[report['problem_type']]})")
    print(f"texts with outputs that are not finite: {report['non_finite_texts']}")
    print(f"messages/s, end to end: {speed['export']:.1f}, original {speed['original']:.1f}")
    for text in report["worst"]:
        print(f"\n  {text['excerpt']!r}")
        for label in text["labels"][:5]:
            original, export, difference = (label[key] for key in ("original", "export", "difference"))
            print(f"    {label['label']:<24} {original:8.4f} {export:8.4f} {difference:+.2g}")
    if not report["fp16_exercised"]:
        print("\na CPU computes this file in FP32 between casts: FP16 arithmetic was not exercised")


def hub_client(args: Namespace, name: str):
    """Returns the Hub's API with its token, and the repository to upload to.

    Raises UserError if the token is missing or not valid, or may not write there. A pull request may go anywhere.
    """
    from huggingface_hub import HfApi, get_token

    token = args.hf_token or get_token()
    if not token:
        raise UserError("no token for the upload: set HF_TOKEN or run `hf auth login`")
    api = HfApi(token=token)
    try:
        me = with_timeout(api.whoami)
    except Exception as error:  # requests', the Hub's, ours
        raise UserError(f"no upload with this token: {first_line(error)}") from error
    repo = args.repo_id or f"{me['name']}/{name}"
    owner = repo.split("/")[0]
    owners = [me["name"], *(org["name"] for org in me.get("orgs", []) if org.get("roleInOrg") != "read")]
    access = me.get("auth", {}).get("accessToken", {})
    scopes = access.get("fineGrained", {}).get("scoped", [])
    writable = [scope["entity"].get("name") for scope in scopes if "repo.write" in scope["permissions"]]
    if access.get("role") == "read":
        raise UserError("the token may only read: make one that may write, https://huggingface.co/settings/tokens")
    if not args.create_pr and (owner not in owners or (access.get("role") == "fineGrained" and owner not in writable)):
        raise UserError(f"the token may not write to {owner} (user {me['name']}); see --repo-id and --create-pr")
    return api, repo


def upload(api, repo: str, folder: Path, args: Namespace) -> None:
    """Uploads the whole folder in one commit. Raises UserError where it can't, with the command to try again."""
    options = ["--create-pr"] * args.create_pr + ["--private"] * args.private
    again = shlex.join(["hf", "upload", repo, str(folder), ".", *options])
    public = False
    try:
        if not args.create_pr:
            api.create_repo(repo, private=args.private, exist_ok=True)
            public = args.private and not api.model_info(repo).private
        if not public:
            message = f"ONNX {args.precision} export"
            commit = api.upload_folder(
                repo_id=repo, folder_path=folder, commit_message=message, create_pr=args.create_pr
            )
    except Exception as error:  # requests', the Hub's, the disk's
        raise RunError(f"the upload failed: {first_line(error)}; {folder} is kept, to try again: {again}") from error
    if public:
        raise UserError(f"nothing is uploaded: {repo} exists and is public; {folder} is kept")
    say(f"uploaded: {commit.pr_url or commit.commit_url}")


def wants_upload(repo: str) -> bool:
    try:
        return input(f"upload to {repo}? [y/N] ").strip().lower() in ("y", "yes")
    except EOFError:
        return False


def main() -> int:
    args = parse_arguments()
    check_writable(CACHE)
    source, target = resolve_model(args.model_id), args.save_dir or export_folder(args.model_id, args.precision)
    check_target(target, source, args.overwrite)
    dataset = load_dataset(args.dataset, args.column, args.limit)
    for note in dataset.notes:
        say(clean(note))
    if args.batch_size > len(dataset.texts):
        raise UserError(f"--batch-size {args.batch_size}: there are only {len(dataset.texts)} texts")
    api, repo = None, ""
    if args.upload or (not args.no_upload and sys.stdin.isatty()):
        try:
            api, repo = hub_client(args, target.name)
        except UserError as error:
            if args.upload:
                raise
            say(f"it will not be uploaded: {error}")
    model = run_in_subprocess(Model.from_folder, source, args.model_id)
    with new_folder(target, args.overwrite) as folder:
        report = export_and_check(args, model, dataset, folder, target.name)
    print_report(report)
    print(f"\n{target}: {report['verdict']}, {report['reason']}", flush=True)
    if report["verdict"] == NOT_WITHIN:
        return 1
    if api and (args.upload or wants_upload(repo)):
        report |= {"repo": repo} if args.excerpts else {"repo": repo, "worst": []}
        write_card(target, model.folder, report)  # its example loads the repository, not the folder
        upload(api, repo, target, args)
    return 0


if __name__ == "__main__":
    run(main)
