"""Exports a Hugging Face classifier to ONNX and proves that the result is still right.

    python export_onnx.py SamLowe/roberta-base-go_emotions
    python export_onnx.py random-roberta-base --no-upload --limit 200
    python export_onnx.py my-model --precision int8 --check-only --dataset my.csv --label-column labels

The model is exported by optimum's O4 (fused nodes, tanh GELU, FP16) or by torch's exporter, whichever fuses more of its
attention. Its graph is looked at, and its probabilities are compared with those of the original model in eager FP32
PyTorch, text by text. The folder holds model.onnx, the config, the tokenizer, a model card (README.md) and the same
figures for machines (parity.json). It is NOT WITHIN TOLERANCE if an output is infinite or not a number, or if
with 95% confidence more than --tolerance of the decisions change. It is uploaded only if asked for, and not then.

--check-only checks an export that is there, whoever of the scripts made it, and writes its report and card anew.
--label-column compares original and export with gold labels, too: micro and macro F1; accuracy where one label holds.

Nothing is left behind by an export that fails or is interrupted.

Exit code: 0, 1 if the check or the upload failed, 2 for wrong usage or input, 130 after Ctrl-C.
"""

import json
import math
import os
import shlex
import shutil
import sys
from argparse import ArgumentTypeError, Namespace
from datetime import UTC, datetime
from pathlib import Path

from bench.export.card import score_lines, write_card
from bench.export.check import check_export, without_nan
from bench.export.ensure import export_folder, foreign_files, stale_reason
from bench.export.gold import check_gold
from bench.export.publish import hub_client, upload, wants_upload
from bench.export.select import EXPORT_KINDS, MANIFEST, describe_export, export_model
from bench.files import LONGEST_NAME, check_writable, new_file, new_folder, read_json
from bench.judge import NOT_WITHIN, TOLERANCE, UNPROVEN, decisions_needed
from bench.machine import cpu_cores, describe_device, process_count
from bench.model.batches import BATCHINGS, Batching
from bench.model.model import WEIGHTS, Model
from bench.model.random_model import RANDOM_MODEL
from bench.model.resolve import resolve_model
from bench.processes import run_in_subprocess
from bench.provenance import project_commit, versions
from bench.tables import format_csv
from bench.tables.datasets import Dataset, load_dataset
from bench.variants import REPORT, Device
from runtimes import VARIANTS
from runtimes.classifier import ClassifierSpec
from utils import CACHE, Parser, UserError, clean, int_from, run, say

# options that a check of the same folder needs again
OF_THE_CHECK = "precision", "save_dir", "device", "dataset", "column", "threshold", "tolerance", "label_column"
OF_THE_CHECK += "delimiter", "encoding", "batching", "batch_size", "batch_tokens", "gpu"
RUNTIMES = "torch", "transformers", "optimum-onnx", "onnxruntime-gpu", "onnxruntime"  # whose versions a report has


def argument_parser() -> Parser:
    parser = Parser(__doc__)
    add, whole = parser.add_argument, int_from(1)
    add("model_id", metavar="MODEL_ID", help=f"Hub id, local folder, or {RANDOM_MODEL}")
    add("--precision", choices=list(EXPORT_KINDS), default="fp16", help="default: fp16; int8 is for CPUs")
    add("--save-dir", type=Path, help="default: ./<name>-onnx-fp16, or -onnx-int8, -onnx, by precision")
    add("--overwrite", action="store_true", help="replace an existing export")
    add("--check-only", action="store_true", help="export nothing: check the folder that is there")
    add("--disable-shape-inference", action="store_true", help="for very large models")
    add("--device", choices=("gpu", "cpu"), help="where to check (default: gpu if there is one)")
    add("--gpu", type=int_from(0), default=0, help="GPU id (default: 0)")
    add("--threads", type=process_count, default=cpu_cores(), help="CPU threads (default: all cores)")
    add("--dataset", default="normal", help="normal, filtered, or a file as for labelling (default: normal)")
    add("--column", default="body", help="the file's text column (default: body)")
    label_help = "a column with each text's label, or labels with commas between them, as names or numbers"
    format_csv.add_options(parser)
    add("--label-column", metavar="COLUMN", help=label_help)
    add("--limit", type=whole, help="only so many texts, evenly spaced (default: all)")
    threshold_help = "above which a label holds: a number, or a JSON file of label -> number (default: 0.5)"
    add("--threshold", metavar="NUMBER|FILE", help=threshold_help)
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
    return parser


def share(text: str) -> float:
    """Parses a number from 0 to 1."""
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if not 0 <= value <= 1:
        raise ArgumentTypeError(f"{text!r} is not a number from 0 to 1")
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


def check_existing(model: Model, folder: Path) -> None:
    """Raises UserError if a folder is no export of this model as it is now."""
    if not folder.is_dir():
        raise UserError(f"--check-only: there is no folder {folder}; --save-dir names another one")
    if reason := stale_reason(folder, model.weights_id):
        raise UserError(f"--check-only: {folder} {reason}")


def check(args: Namespace, model: Model, dataset: Dataset, about: dict, folder: Path) -> dict:
    """Checks the export in a folder, and writes its report and card there. Returns the report.

    `about`: what describe_export says of it, and what `repo` it is named after.
    """
    device, machine = check_device(args)
    kind = EXPORT_KINDS[args.precision]
    name = args.batching or ("token-budget" if kind.batches_matter else "sorted")
    tokens = args.batch_tokens if name == "token-budget" else 0
    batching = Batching(name, batch_size=0 if tokens else args.batch_size, batch_tokens=tokens)
    say(f"checking on {len(dataset.texts)} texts on {machine}")
    known = versions(*RUNTIMES) | {"commit": project_commit()}
    report = {
        "model": args.model_id if model.folder != Path(args.model_id) else model.folder.resolve().name,
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
        **about,
        **check_export(ClassifierSpec(model, kind.variant, folder, device), dataset, batching, args.tolerance),
    }
    public = report if args.excerpts else report | {"worst": []}
    with new_file(folder / REPORT) as file:
        file.write(json.dumps(without_nan(public), indent=2, allow_nan=False).encode())
    write_card(folder, model.folder, public)
    return report


def export_and_check(args: Namespace, model: Model, dataset: Dataset, target: Path) -> dict:
    """Makes the export in `target`, or takes the one that is there, and checks it. Returns the report."""
    if args.check_only:
        check_existing(model, target)
        return check(args, model, dataset, describe_export(model, target) | {"repo": target.name}, target)
    with new_folder(target, args.overwrite) as folder:
        say(f"exporting {args.model_id} in {args.precision}")
        graph = run_in_subprocess(export_model, model, args.precision, folder, not args.disable_shape_inference)
        for finding in (f"made by {graph['exporter']}", *graph["findings"]):
            say(f"graph: {finding}")
        return check(args, model, dataset, graph | {"repo": target.name}, folder)


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
    print(f"changed decisions (flips): {changed} ({report['decision_words']})")
    for line in score_lines(report["gold"]):
        print(f"by the gold labels of {report['gold']['original']['texts']:,} texts, {line}")
    print(f"texts with outputs that are not finite: {report['non_finite_texts']}")
    print(f"messages/s, end to end: {speed['export']:.1f}, original {speed['original']:.1f}")
    for text in report["worst"]:
        print(f"\n  {text['excerpt']!r}")
        for label in text["labels"][:5]:
            original, export, difference = (label[key] for key in ("original", "export", "difference"))
            print(f"    {label['label']:<24} {original:8.4f} {export:8.4f} {difference:+.2g}")
    if not report["fp16_exercised"]:
        print("\na CPU computes this file in FP32 between casts: FP16 arithmetic was not exercised")


def say_larger_check(args: Namespace, report: dict, texts: int) -> None:
    """Says which command checks as many texts as will tell, of the dataset's `texts`."""
    needed = decisions_needed(report["changed"], report["decisions"], args.tolerance)
    if not needed:
        return
    limit = math.ceil(report["texts"] * needed / report["decisions"])
    if limit > texts:
        say(f"more texts: about {limit:,} would tell, {report['dataset']} has {texts:,}; --dataset names another file")
        return
    words = ["python", "export_onnx.py", args.model_id, "--check-only", "--limit", limit]
    usual = argument_parser()
    for name in OF_THE_CHECK:
        if (value := getattr(args, name)) != usual.get_default(name):
            words += [f"--{name.replace('_', '-')}", value]
    say(f"more texts: {shlex.join(map(str, words))}")


def main() -> int:
    args = argument_parser().parse_args()
    check_writable(CACHE)
    source, target = resolve_model(args.model_id), args.save_dir or export_folder(args.model_id, args.precision)
    if args.check_only:
        manifest = target / MANIFEST
        args.precision = read_json(manifest).get("precision", args.precision) if manifest.is_file() else args.precision
    else:
        check_target(target, source, args.overwrite)
    csv = format_csv.Csv(args.delimiter, args.encoding)
    dataset = load_dataset(args.dataset, [args.column], args.limit, args.label_column, csv)
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
    model = run_in_subprocess(Model.from_folder, source, args.model_id).with_thresholds(args.threshold)
    if dataset.gold:
        check_gold(dataset.gold, model)
    report = export_and_check(args, model, dataset, target)
    print_report(report)
    print(f"\n{target}: {report['verdict']}, {report['reason']}", flush=True)
    if report["verdict"] == NOT_WITHIN:
        return 1
    if report["verdict"] == UNPROVEN:
        say_larger_check(args, report, len(dataset.all_texts))
    if api and (args.upload or wants_upload(repo)):
        report |= {"repo": repo} if args.excerpts else {"repo": repo, "worst": []}
        write_card(target, model.folder, report)  # its example loads the repository, not the folder
        upload(api, repo, target, args)
    return 0


if __name__ == "__main__":
    run(main)
