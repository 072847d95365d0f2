"""Export a Hugging Face encoder to ONNX, and check that it makes the same decisions as the original model.

    python export_onnx.py SamLowe/roberta-base-go_emotions
    python export_onnx.py my-model --precision int8 --check-only --dataset my.csv --label-column labels

The output folder contains model.onnx, the config, the tokenizer, a model card (README.md) and a report
(parity.json). The exporter is optimum or torch: for fp16 the one that fuses more of the attention, otherwise the first
whose file is correct. The graph is inspected, and its answers are compared with those of the original model in eager
FP32 PyTorch, text by text.

The check fails if an output is NaN or infinite, or if more than --tolerance of the decisions change, with 95%
confidence. Such an export is kept but not uploaded. If the texts decide neither way, the export passes as not proven,
and the report says how many texts would decide. Errors and Ctrl-C leave no partial export behind. --check-only also
accepts exports that the other scripts created.

References and other reusable files are kept in BENCHMARK_CACHE (default: the folder .cache beside this script).
Exit code: 0, 1 if the check or the upload failed, 2 for wrong usage or input, 130 after Ctrl-C.
"""

import contextlib
import sys
from argparse import Namespace
from datetime import UTC, datetime
from pathlib import Path

from bench.machine import cpu_cores, process_count
from bench.naming import counted
from bench.options import (
    BATCHINGS,
    PRECISIONS,
    TASK_OPTIONS,
    Parser,
    add_task_options,
    add_text_options,
    float_from,
    hub_name,
    int_from,
)
from bench.task_options import task_choice, text_columns
from utils import CACHE, UserError, run, say

RESULTS = Path("results")  # folder of the evidence that every check adds to


def argument_parser() -> Parser:
    parser = Parser(__doc__)
    whole = int_from(1)
    add = parser.add_argument_group("model and output").add_argument
    add("model_id", metavar="MODEL", type=hub_name, help="Hub id, local folder, or random-roberta-base")
    add("--precision", choices=PRECISIONS, default="fp16", help="default: fp16, for GPUs; int8 is for CPUs")
    add("--save-dir", type=Path, help="output folder (default: ./<name>-onnx-fp16, -onnx-int8, or -onnx for fp32)")
    add("--overwrite", action="store_true", help="replace an existing export")
    add("--check-only", action="store_true", help="check an existing export, and rewrite its report and card")

    add_task_options(parser.add_argument_group("task"))

    checking = parser.add_argument_group("checking")
    add = checking.add_argument
    add("--dataset", default="normal", help="normal, filtered, or a file of texts (default: normal)")
    add_text_options(checking)
    add("--limit", type=whole, help="number of texts, evenly spaced (default: all)")
    label_help = "column of gold labels (names or numbers, comma-separated); reports F1 and the best thresholds"
    add("--label-column", metavar="COLUMN", help=label_help)
    group_help = "column with the query of each pair; also checks the order of a reranker's scores for each query"
    add("--group-column", metavar="COLUMN", help=group_help)
    tolerance_help = "largest share of decisions that may change (default: %(default)s)"
    add("--tolerance", type=float_from(0, 1), default=0.001, help=tolerance_help)
    add("--device", choices=("gpu", "cpu"), help="where to check (default: gpu if there is one; int8: cpu)")
    add("--gpu", type=int_from(0), default=0, help="GPU id (default: 0)")
    add("--threads", type=process_count, default=cpu_cores(), help="CPU threads (default: all cores)")
    add("--batching", choices=BATCHINGS, help="default: sorted; for int8 token-budget, as in classify_texts.py")
    add("--batch-size", type=whole, default=1, help="texts per batch (default: 1)")
    add("--batch-tokens", type=whole, default=1024, help="tokens per batch for token-budget (default: 1024)")
    add("--excerpts", action="store_true", help="print and publish the texts whose scores differ most")

    upload = parser.add_argument_group("upload, with the token in HF_TOKEN or of `hf auth login`")
    add = upload.add_argument
    asking = upload.add_mutually_exclusive_group()
    asking.add_argument("--upload", action="store_true", help="upload without asking")
    asking.add_argument("--no-upload", action="store_true", help="neither ask nor upload")
    add("--repo-id", help="Hub repository (default: <user>/<name of the output folder>)")
    add("--private", action="store_true", help="create a private repository")
    add("--create-pr", action="store_true", help="upload as a pull request")
    return parser


def export_and_check(args: Namespace, model, dataset, target: Path) -> dict:
    """Create the export in `target`, unless --check-only, and check it. Return the report."""
    from bench.export import check, reports, select
    from bench.files import new_folder
    from bench.model.batches import Batching
    from bench.processes import run_in_subprocess
    from bench.report.evidence import EvidenceFile
    from runtimes.classifier import ClassifierSpec

    if args.group_column and len(model.labels) > 1:
        raise UserError(f"--group-column is for models with one score; this model: {model.task.summary}")
    kind = select.EXPORT_KINDS[args.precision]
    device, machine = check.choose_device(args.precision, args.device, args.gpu, args.threads)
    batching = Batching(args.batching or ("token-budget" if kind.batches_matter else "sorted"), args.batch_size)
    if batching.name == "token-budget":
        batching = Batching(batching.name, batch_tokens=args.batch_tokens)
    with contextlib.nullcontext(target) if args.check_only else new_folder(target, args.overwrite) as folder:
        if args.check_only:
            graph = select.describe_export(model, folder)
        else:
            say(f"exporting {args.model_id} to {args.precision}")
            graph = run_in_subprocess(select.export_model, model, args.precision, folder)
            for finding in (f"made by {graph['exporter']}", *graph["findings"]):
                say(f"graph: {finding}")
        say(f"checking on {counted(len(dataset.texts), 'text')} on {machine}")
        export = ClassifierSpec(model, kind.variant, folder, device)
        report = {
            "model": model.public_name,
            "command": reports.public_command(sys.argv[1:]),
            "versions": reports.runtime_versions(),
            "date": datetime.now(UTC).strftime("%Y-%m-%d"),
            "machine": machine,
            "column": ", ".join(text_columns(args)),
            "task_options": {name: getattr(args, name) for name in TASK_OPTIONS if name != "threshold"},
            "repo": target.resolve().name,
            **graph,
            **check.check_export(export, dataset, batching, args.tolerance, EvidenceFile(RESULTS)),
        }
        if not args.excerpts:
            report["worst"] = []
        reports.write_report(folder, model.folder, report)
    return report


def main() -> int:
    args = argument_parser().parse_args()

    from bench.export import ensure, gold, publish, reports, select
    from bench.files import check_writable
    from bench.judge import NOT_WITHIN, UNPROVEN
    from bench.model.resolve import read_model, resolve_model
    from bench.processes import run_in_subprocess
    from bench.tables.datasets import load_dataset
    from bench.tables.format_csv import Csv

    task, task_options = task_choice(args)
    check_writable(CACHE)
    source = resolve_model(args.model_id, task)
    target = args.save_dir or ensure.export_folder(args.model_id, args.precision)
    if args.check_only:
        args.precision = select.read_manifest(target).get("precision", args.precision)
    else:
        ensure.check_target(target, source, args.overwrite)
    columns = text_columns(args), Csv.from_options(args), args.label_column, args.group_column
    dataset = load_dataset(args.dataset, *columns).limited(args.limit)
    for note in dataset.notes:
        say(note)
    if args.batch_size > len(dataset.texts):
        raise UserError(f"--batch-size {args.batch_size} exceeds the {len(dataset.texts)} texts of {dataset.name}")
    api, repo = None, ""
    if args.upload or (not args.no_upload and sys.stdin.isatty()):
        try:
            api, repo = publish.find_repository(args.repo_id, target.name, args.create_pr)
        except UserError as error:
            if args.upload:
                raise
            say(f"upload skipped: {error}")
    model = run_in_subprocess(read_model, source, args.model_id, task, task_options).with_thresholds(args.threshold)
    if dataset.gold:
        gold.check_gold(dataset.gold, model.task)
    if args.check_only and (reason := ensure.stale_reason(target, model.weights_id)):
        raise UserError(f"--check-only: {target} {reason}; choose another --save-dir")
    report = export_and_check(args, model, dataset, target)
    reports.print_report(report)
    say(file=sys.stdout)
    say(f"{target}: {report['verdict']}, {report['reason']}", file=sys.stdout)
    if report["verdict"] == NOT_WITHIN:
        return 1
    if report["verdict"] == UNPROVEN:
        say("for a verdict, check more texts: --check-only with a larger --limit or --dataset")
    if api and (args.upload or publish.wants_upload(repo)):
        report |= {"repo": repo}  # which the example in the card loads
        reports.write_card(target, model.folder, report)
        publish.upload(api, repo, ensure.report_file(target, report["threshold"]), args.private, args.create_pr)
    return 0


if __name__ == "__main__":
    run(main)
