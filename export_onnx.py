"""Exports a Hugging Face classifier to ONNX and proves that the result is still right.

    python export_onnx.py SamLowe/roberta-base-go_emotions
    python export_onnx.py random-roberta-base --no-upload --limit 200

The model is exported by optimum's O4 (fused nodes, tanh GELU, FP16) or by torch's exporter, whichever fuses more of its
attention. Its graph is looked at, and its probabilities are compared with those of the original model in eager FP32
PyTorch, text by text. The folder holds model.onnx, the config, the tokenizer, a model card (README.md) and the same
figures for machines (parity.json). It is NOT GOOD if an output is infinite or not a number, or if with 95% confidence
more than --tolerance of the decisions change. It is uploaded only if asked for, and not if it is NOT GOOD.

Nothing is left behind by an export that fails or is interrupted.

Exit code: 0, 1 if the check or the upload failed, 2 for wrong usage or input, 130 after Ctrl-C.
"""

import json
import os
import shlex
import shutil
import sys
from argparse import Namespace
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
from tqdm import tqdm

from bench.card import write_card
from bench.export import EXPORTS, export, export_folder, foreign_files
from bench.files import LONGEST_NAME, check_writable, new_folder
from bench.hub import with_timeout
from bench.inputs import Inputs, prepare_inputs
from bench.machine import cpu_name, find_gpu, project_commit, versions
from bench.models import RANDOM_MODEL, find_model
from bench.parity import DECISIONS, TOLERANCE, probabilities, statistics, verdict_of, worst_texts
from bench.passes import Cell, Job, Worker
from bench.sweep import gather
from bench.texts import Dataset, load_dataset
from bench.workers import Workers, in_fresh_process
from runtimes import VARIANTS
from runtimes.onnx import check
from runtimes.runner import Place
from utils import CACHE, Parser, RunError, UserError, clean, cpu_cores, first_line, int_from, process_count, run, say


def parse_arguments() -> Namespace:
    parser = Parser(__doc__)
    add, whole = parser.add_argument, int_from(1)
    add("model_id", metavar="MODEL_ID", help=f"Hub id, local folder, or {RANDOM_MODEL}")
    add("--precision", choices=list(EXPORTS), default="fp16", help="default: fp16; int8 is for CPUs")
    add("--save-dir", type=Path, help="default: ./<name>-onnx-fp16, or -onnx-int8, -onnx, by precision")
    add("--overwrite", action="store_true", help="replace an existing export")
    add("--disable-shape-inference", action="store_true", help="for very large models")
    add("--device", choices=("gpu", "cpu"), help="where to check (default: gpu if there is one)")
    add("--gpu", type=int_from(0), default=0, help="GPU id (default: 0)")
    add("--threads", type=process_count, default=cpu_cores(), help="CPU threads (default: all cores)")
    add("--dataset", default="normal", help="normal, filtered, or a CSV, CSV.gz or Parquet file (default: normal)")
    add("--column", default="body", help="the file's text column (default: body)")
    add("--limit", type=whole, help="only so many texts, evenly spaced (default: all)")
    order_help = "order of the check's batches (default: length)"
    add("--order", choices=("dataset", "length"), default="length", help=order_help)
    add("--batch-size", type=whole, default=1, help="batch size of the check (default: 1)")
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


def find_place(args: Namespace) -> tuple[Place, str]:
    """Returns where the check runs, and the machine's name; a GPU is used if there is one, unless --device says cpu."""
    if args.device != "cpu" and args.precision != "int8":
        try:
            name, driver, _ = in_fresh_process(find_gpu, args.gpu)
            in_fresh_process(check, args.gpu)
            return Place(args.gpu, args.threads), f"{name} (driver {driver})"
        except UserError as error:
            if args.device == "gpu":
                raise
            say(f"checking on the CPU: {error}")
    if args.device == "gpu":
        raise UserError("int8 has kernels for CPUs only: check it with --device cpu")
    return Place(None, args.threads), f"{cpu_name()}, {args.threads} threads"


def check_target(target: Path, source: Path, overwrite: bool) -> None:
    """Raises UserError if the folder is taken or can't be made, or if the disk is too full."""
    here, there = target.resolve(), source.resolve()
    if here == there or here in there.parents or there in here.parents:
        raise UserError(f"{target} is, holds or lies in the model's own folder {source}")
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
    needed = 3 * sum(file.stat().st_size for file in source.iterdir() if file.suffix in (".safetensors", ".bin"))
    free = shutil.disk_usage(target.absolute().parent).free
    if free < needed:
        raise UserError(f"too little room for {target}: {needed / 2**30:.1f} GiB needed, {free / 2**30:.1f} GiB free")


def run_over(inputs: Inputs, job: Job, cell: Cell) -> tuple[np.ndarray, float]:
    """Runs a variant once over all texts; returns its logits [texts, labels] and messages/s."""
    with (
        Workers(Worker, [(0, job)]) as workers,
        tqdm(desc=cell.variant, total=len(inputs.lengths), unit="text", file=sys.stderr) as progress,
    ):
        workers.ask(Worker.prepare, cell)
        [(start, end)] = workers.ask(Worker.run, on_beat=lambda done: progress.update(done[0] * cell.size - progress.n))
        [report] = workers.ask(Worker.report)
        progress.update(progress.total - progress.n)
    return gather(inputs, report["kept"]), len(inputs.lengths) / (end - start)


def compare(args: Namespace, source: Path, file: Path, texts: list[str], place: Place) -> dict:
    """Runs the original and the export over the same batches; returns what the report says of both."""
    inputs = prepare_inputs(source, texts, place.gpu, with_reference=False)
    exported = next(name for name, variant in VARIANTS.items() if variant.export == args.precision)
    logits, speed = {}, {}
    for name, variant, loaded in (("original", "torch", source), ("export", exported, file)):
        cell = Cell(variant, 1, args.batch_size, args.order)
        logits[name], speed[name] = run_over(inputs, Job(source, variant, loaded, place, inputs.folder), cell)
    problem = inputs.about["problem"]
    reference, probs = (probabilities(logits[name], problem) for name in ("original", "export"))
    stats = statistics(probs, reference, problem)
    return {
        "limit": inputs.about["limit"],
        "problem": problem,
        **stats,
        "speed": speed,
        "worst": worst_texts(probs, reference, texts, inputs.about["labels"]),
        "tolerance": args.tolerance,
        **dict(zip(("verdict", "reason"), verdict_of(stats, args.tolerance), strict=True)),
    }


def export_and_check(args: Namespace, source: Path, dataset: Dataset, folder: Path, repo: str) -> dict:
    """Fills `folder` with the export, the check's report and the card. Returns the report."""
    place, machine = find_place(args)
    say(f"exporting {args.model_id} in {args.precision}")
    graph = in_fresh_process(export, source, folder, args.precision, not args.disable_shape_inference)
    for finding in (f"made by {graph['exporter']}", *graph["findings"]):
        say(f"graph: {finding}")
    say(f"checking on {len(dataset.texts)} texts on {machine}")
    known = versions("torch", "transformers", "optimum-onnx", "onnxruntime-gpu", "onnxruntime")
    report = {
        "model": args.model_id if source != Path(args.model_id) else source.resolve().name,
        "repo": repo,
        "precision": args.precision,
        "command": clean(shlex.join(["python", "export_onnx.py", *public_arguments(sys.argv[1:])])).replace("`", "'"),
        "versions": ", ".join(f"{name} {version}" for name, version in [*known.items(), ("commit", project_commit())]),
        "date": datetime.now(UTC).strftime("%Y-%m-%d"),
        "machine": machine,
        "provider": "CPUExecutionProvider" if place.gpu is None else "CUDAExecutionProvider",
        "fp16_exercised": args.precision != "fp16" or place.gpu is not None,
        "dataset": dataset.name,
        "column": args.column,
        "messages": len(dataset.texts),
        "batch_size": args.batch_size,
        "order": args.order,
        **graph,
        **compare(args, source, folder / "model.onnx", dataset.texts, place),
    }
    public = report if args.excerpts else report | {"worst": []}
    (folder / "parity.json").write_text(json.dumps(without_nan(public), indent=2, allow_nan=False), encoding="utf-8")
    write_card(folder, source, public)
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
    print(f"largest difference of any label, over {report['messages']} texts ({report['dataset']}):")
    print("  " + "  ".join(f"{name} {value:.3g}" for name, value in stats.items()))
    print(f"mean difference over all labels: {report['mean_over_labels']:.3g}")
    changed = f"{report['changed']:,} of {report['decisions']:,}, {report['flips']:.4%}"
    print(f"changed decisions (flips): {changed} ({DECISIONS[report['problem']]})")
    print(f"texts with outputs that are not finite: {report['non_finite_texts']}")
    print(f"messages/s: {speed['export']:.1f}, original {speed['original']:.1f}")
    for text in report["worst"]:
        print(f"\n  {text['excerpt']!r}")
        for label in text["labels"][:5]:
            original, export, difference = (label[key] for key in ("original", "export", "difference"))
            print(f"    {label['label']:<24} {original:8.4f} {export:8.4f} {difference:+.2g}")
    if not report["fp16_exercised"]:
        print("\na CPU computes this file in FP32 between casts: FP16 arithmetic was not exercised")


def find_destination(args: Namespace, name: str):
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
    source = find_model(args.model_id)
    target = args.save_dir or export_folder(args.model_id, args.precision)
    check_target(target, source, args.overwrite)
    check_writable(CACHE)
    dataset = load_dataset(args.dataset, args.column, args.limit)
    for note in dataset.notes:
        say(clean(note))
    if args.batch_size > len(dataset.texts):
        raise UserError(f"--batch-size {args.batch_size}: there are only {len(dataset.texts)} texts")
    api, repo = None, ""
    if args.upload or (not args.no_upload and sys.stdin.isatty()):
        try:
            api, repo = find_destination(args, target.name)
        except UserError as error:
            if args.upload:
                raise
            say(f"it will not be uploaded: {error}")
    with new_folder(target, args.overwrite) as folder:
        report = export_and_check(args, source, dataset, folder, target.name)
    print_report(report)
    print(f"\n{target}: {report['verdict']}, {report['reason']}", flush=True)
    if report["verdict"] == "NOT GOOD":
        return 1
    if api and (args.upload or wants_upload(repo)):
        report |= {"repo": repo} if args.excerpts else {"repo": repo, "worst": []}
        write_card(target, source, report)  # its example loads the repository, not the folder
        upload(api, repo, target, args)
    return 0


if __name__ == "__main__":
    run(main)
