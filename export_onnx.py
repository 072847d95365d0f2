"""Exports a Hugging Face classifier to ONNX and proves that the result is still right.

    python export_onnx.py SamLowe/roberta-base-go_emotions
    python export_onnx.py random-roberta-base --no-upload --limit 200

The export is optimized (optimum's O4: fused nodes, tanh GELU, FP16), its graph is looked at, and its probabilities are
compared with those of the original model in eager FP32 PyTorch, text by text. The folder holds model.onnx, the config,
the tokenizer, a model card (README.md) and the same figures for machines (parity.json). It is uploaded only if asked
for, and only if no output is infinite or not a number and at most --tolerance of the decisions changed.

Nothing is left behind by an export that fails or is interrupted.

Exit code: 0, 1 if the check or the upload failed, 2 for wrong usage or input, 130 after Ctrl-C.
"""

import json
import shlex
import shutil
import sys
import time
from argparse import Namespace, RawDescriptionHelpFormatter
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import numpy as np

import utils
import variants
from utils import UserError, say

PERCENTILES = (25, 50, 75, 90, 95, 99)
WORST = 3
WARM_UP = 3  # shapes, the largest, on a CPU
EXCERPT = 200  # characters of a text that the card shows
ACTIVATIONS = {
    "multi_label_classification": "torch.sigmoid(model(**inputs).logits)",
    "single_label_classification": "torch.softmax(model(**inputs).logits, dim=-1)",
    "regression": "model(**inputs).logits",
}
DECISIONS = {
    "multi_label_classification": "labels that cross 0.5",
    "single_label_classification": "texts with another most probable label",
    "regression": "values that move by more than a tenth of the original's standard deviation",
}
PRECISIONS = {
    "fp16": "FP16 with fused nodes (O4)",
    "int8": "INT8 (dynamically quantized, for CPUs)",
    "fp32": "FP32",
}
OPTIONS = {
    "fp16": "optimum's AutoOptimizationConfig.O4: fusion of attention, layer norm, GELU (tanh approximation) and bias "
    "nodes, then FP16 with FP32 inputs and outputs",
    "int8": "onnxruntime's dynamic quantization: " + variants.INT8_WORDS,
    "fp32": "plain export",
}


# --------------------------------------------------------------------------------------------------------- the check


@dataclass(frozen=True)
class Check:
    """What both models run over: the texts, in batches of `size`, in dataset or length order."""

    texts: list[str]
    size: int
    order: str


@dataclass(frozen=True)
class Comparison:
    """Both models' logits [texts, labels] over the same texts, their messages/s, and what both were given."""

    original: np.ndarray
    export: np.ndarray
    speed: dict[str, float]
    limit: int
    problem: str
    labels: list[str]


def compare(folder: Path, file: Path, check: Check, place: variants.Place) -> Comparison:
    """Runs the original in `folder` and the export in `file` over the same batches."""
    from tqdm import tqdm

    config, tokenizer = variants.load_config(folder), utils.load_tokenizer(folder)
    limit = utils.token_limit(config, tokenizer)
    token_ids = utils.tokenize(tokenizer, check.texts, limit)
    utils.check_vocabulary(token_ids, config)
    lengths = np.array([len(ids) for ids in token_ids])
    widths = lengths if place.gpu is None else utils.few_lengths(lengths, limit)
    batches = utils.make_batches(lengths, check.size, check.order)
    by_shape = {(len(batch), widths[batch].max()): batch for batch in batches}.values()
    first = sorted(by_shape, key=lambda batch: -utils.padded_tokens(widths, batch))
    first = first[: WARM_UP if place.gpu is None else None]
    logits, speed = {}, {}
    for name, runner, width in (
        ("original", variants.load("torch", folder, place), lengths),
        ("export", variants.load_onnx(file, place), widths),
    ):
        logits[name] = np.empty((len(lengths), config.num_labels))
        seconds = 0.0
        for i, batch in enumerate(tqdm([*first, *batches], desc=name, unit="batch", file=sys.stderr)):
            rows = [token_ids[text] for text in batch]
            inputs = runner.prepare(*utils.pad_batch(rows, tokenizer.pad_token_id or 0, width[batch].max()))
            start = time.monotonic()
            outputs = runner.forward(inputs)
            runner.synchronize()
            seconds += time.monotonic() - start if i >= len(first) else 0
            logits[name][batch] = runner.fetch(outputs)
        speed[name] = len(lengths) / seconds
    labels = [str(config.id2label.get(i, f"LABEL_{i}")) for i in range(config.num_labels)]
    return Comparison(logits["original"], logits["export"], speed, limit, utils.problem_type(config), labels)


def statistics(probs: np.ndarray, reference: np.ndarray, problem: str) -> dict:
    """Of two [texts, labels]: the distribution over the texts of the largest absolute difference of any label, the mean
    difference over all labels, the share of changed decisions, and how many texts have a value that is not finite;
    those are left out of the differences, and count as changed.
    """
    finite = np.isfinite(probs).all(axis=1)
    differences = np.abs(probs - reference)[finite]
    worst = differences.max(axis=1) if finite.any() else np.array([np.nan])
    percentiles = {f"p{p}": float(np.percentile(worst, p)) for p in PERCENTILES}
    percentiles["median"] = percentiles.pop("p50")
    return {
        "largest_difference": {
            "mean": float(worst.mean()),
            "std": float(worst.std()),
            "min": float(worst.min()),
            "max": float(worst.max()),
            **percentiles,
        },
        "mean_over_labels": float(differences.mean()) if finite.any() else float("nan"),
        "changed_decisions": utils.flips(probs, reference, problem),
        "non_finite_texts": int((~finite).sum()),
    }


def worst_texts(probs: np.ndarray, reference: np.ndarray, texts: list[str], labels: list[str]) -> list[dict]:
    """The texts whose labels differ most, each with its labels, the most different first."""
    differences = np.nan_to_num(np.abs(probs - reference), nan=np.inf)
    found = []
    for i in np.argsort(-differences.max(axis=1), kind="stable")[:WORST]:
        table = [
            {
                "label": labels[j],
                "original": float(reference[i, j]),
                "export": float(probs[i, j]),
                "difference": float(probs[i, j] - reference[i, j]),
            }
            for j in np.argsort(-differences[i], kind="stable")
        ]
        excerpt = " ".join(texts[i].split())
        found.append({"excerpt": excerpt[:EXCERPT] + "…" * (len(excerpt) > EXCERPT), "labels": table})
    return found


def failed_gate(stats: dict, tolerance: float) -> str:
    """Why the export must not be used; empty if it may."""
    if stats["non_finite_texts"]:
        return f"{stats['non_finite_texts']} texts have outputs that are not finite"
    if stats["changed_decisions"] > tolerance:
        return f"{stats['changed_decisions']:.3%} of the decisions changed, more than the tolerance of {tolerance:.3%}"
    return ""


# --------------------------------------------------------------------------------------------------- card and upload


def write_card(folder: Path, source: Path, report: dict) -> None:
    """README.md from the template model_card.md, with the licence, language and tags of the source's card."""
    from huggingface_hub import ModelCard, ModelCardData

    card, inherited = source / "README.md", ModelCardData()
    try:
        inherited = ModelCard.load(card).data if card.is_file() else inherited
    except Exception as error:  # YAML's, the Hub's, the file's: no reason to lose the export
        say(f"{card} can't be read, so the card has no licence, language and tags of it: {utils.first_line(error)}")
    known = {key: getattr(inherited, key, None) for key in ("license", "language", "datasets")}
    data = ModelCardData(
        library_name="optimum",
        pipeline_tag="text-classification",
        tags=list(dict.fromkeys([*map(str, inherited.tags or []), "onnx", "text-classification", report["precision"]])),
        **{key: value for key, value in known.items() if value},
    )
    model, link = report["model"], f"`{report['model']}`"
    if not Path(model).exists() and model != variants.RANDOM_MODEL:
        data.base_model, data.base_model_relation = model, "quantized"
        link = f"[{model}](https://huggingface.co/{model})"
    problem = report["problem"]
    text = ModelCard.from_template(
        data,
        template_path=str(utils.ROOT / "model_card.md"),
        **report,
        title=Path(report["repo"]).name,
        source=link,
        precision_words=PRECISIONS[report["precision"]],
        output_word="value" if problem == "regression" else "probability",
        decision_words=DECISIONS[problem],
        stats=report["largest_difference"],
        non_finite=report["non_finite_texts"],
        activation=ACTIVATIONS[problem],
        runtime_package="onnxruntime" if report["precision"] == "int8" else "onnxruntime-gpu",
        ray_gpus="" if report["precision"] == "int8" else ", num_gpus=1",
        gate_passed=not report["gate"],
    )
    (folder / "README.md").write_text(str(text), encoding="utf-8")


def find_destination(args: Namespace, name: str):
    """The Hub's API with its token, and the repository to upload to.

    Raises UserError if the token is missing or not valid, or may not write there. A pull request may go anywhere.
    """
    from huggingface_hub import HfApi, errors, get_token

    token = args.hf_token or get_token()
    if not token:
        raise UserError("no token for the upload: set HF_TOKEN or run `hf auth login`")
    api = HfApi(token=token)
    try:
        me = variants.within(variants.HUB_TIMEOUT, api.whoami)
    except (errors.HfHubHTTPError, OSError) as error:
        raise UserError(f"no upload with this token: {utils.first_line(error)}") from error
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


def upload(api, repo: str, folder: Path, args: Namespace) -> int:
    """One commit with the whole folder; returns the exit code."""
    try:
        if not args.create_pr:
            api.create_repo(repo, private=args.private, exist_ok=True)
            if args.private and not api.model_info(repo).private:
                raise UserError(f"{repo} exists and is public")
        message = f"ONNX {args.precision} export"
        commit = api.upload_folder(repo_id=repo, folder_path=folder, commit_message=message, create_pr=args.create_pr)
    except Exception as error:  # requests', the Hub's, the disk's
        options = ["--create-pr"] * args.create_pr + ["--private"] * args.private
        again = shlex.join(["hf", "upload", repo, str(folder), ".", *options])
        say(f"the upload failed: {utils.first_line(error)}; the folder is kept, to try again: {again}")
        return 1
    say(f"uploaded: {commit.pr_url or commit.commit_url}")
    return 0


# ---------------------------------------------------------------------------------------------------- the experiment


def parse_arguments() -> Namespace:
    parser = utils.Parser(description=__doc__, formatter_class=RawDescriptionHelpFormatter, allow_abbrev=False)
    add = parser.add_argument
    add("model_id", metavar="MODEL_ID", help=f"Hub id, local folder, or {variants.RANDOM_MODEL}")
    add("--precision", choices=list(PRECISIONS), default="fp16", help="default: fp16; int8 is for CPUs")
    add("--save-dir", type=Path, help="default: ./<name>-onnx-fp16, or -onnx-int8, -onnx, by precision")
    add("--overwrite", action="store_true", help="replace an existing export")
    add("--disable-shape-inference", action="store_true", help="for very large models")
    add("--device", choices=("gpu", "cpu"), help="where to check (default: gpu if there is one)")
    add("--gpu", type=utils.int_from(0), default=0, help="GPU id (default: 0)")
    few, cores = utils.int_from(1, utils.most_processes()), utils.cpu_cores()
    add("--threads", type=few, default=cores, help="CPU threads (default: all cores)")
    add("--dataset", default="normal", help="normal, filtered, or a CSV, CSV.gz or Parquet file (default: normal)")
    add("--column", default="body", help="the file's text column (default: body)")
    add("--limit", type=utils.int_from(1), help="only so many texts, evenly spaced (default: all)")
    add(
        "--order",
        choices=("dataset", "length"),
        default="length",
        help="order of the batches (default: length)",
    )
    add("--batch-size", type=utils.int_from(1), default=1, help="batch size of the check (default: 1)")
    add("--tolerance", type=share, default=0.001, help="largest share of changed decisions (default: 0.001)")
    asking = parser.add_mutually_exclusive_group()
    asking.add_argument("--upload", action="store_true", help="upload without asking")
    asking.add_argument("--no-upload", action="store_true", help="do not ask, do not upload")
    add("--repo-id", help="where to upload (default: <user>/<name>-onnx-fp16)")
    add("--private", action="store_true", help="make the repository private")
    add("--create-pr", action="store_true", help="upload as a pull request")
    add("--hf-token", help="better: HF_TOKEN or `hf auth login`, since any user sees the command lines of a machine")
    return parser.parse_args()


def share(text: str) -> float:
    """A number from 0 to 1."""
    value = float(text)
    if not 0 <= value <= 1:
        raise ValueError  # argparse says "invalid share value"
    return value


def find_place(args: Namespace) -> tuple[variants.Place, str]:
    """Where the check runs, and the machine's name; a GPU that was not asked for is used if there is one."""
    if args.device != "cpu" and args.precision != "int8":
        try:
            name, driver, _ = variants.in_fresh_process(variants.check_gpu, args.gpu, True)
            return variants.Place(args.gpu, args.threads), f"{name} (driver {driver})"
        except UserError as error:
            if args.device == "gpu":
                raise
            say(f"checking on the CPU: {error}")
    if args.device == "gpu":
        raise UserError("int8 has kernels for CPUs only: check it with --device cpu")
    return variants.Place(None, args.threads), f"{utils.cpu_name()}, {args.threads} threads"


def check_target(target: Path, source: Path, overwrite: bool) -> None:
    """Raises UserError if the folder is taken or can't be made, or if the disk has too little room."""
    if target.exists() and not (overwrite and (target / "model.onnx").is_file()):
        hint = "it holds no model.onnx, so --overwrite won't replace it" if overwrite else "--overwrite replaces it"
        raise UserError(f"{target} exists; {hint}")
    utils.check_writable(target.absolute().parent)
    needed = 3 * sum(file.stat().st_size for file in source.iterdir() if file.suffix in (".safetensors", ".bin"))
    free = shutil.disk_usage(target.absolute().parent).free
    if free < needed:
        raise UserError(f"too little room for {target}: {needed / 2**30:.1f} GiB needed, {free / 2**30:.1f} GiB free")


def export_and_check(args: Namespace, source: Path, dataset: utils.Dataset, folder: Path, repo: str) -> dict:
    """Fills `folder`: the export, the check's report, the card. Returns the report."""
    place, machine = find_place(args)
    say(f"exporting {args.model_id} in {args.precision}")
    graph = variants.in_fresh_process(variants.export, source, folder, args.precision, not args.disable_shape_inference)
    for finding in graph["findings"]:
        say(f"graph: {finding}")
    say(f"checking on {len(dataset.texts)} texts on {machine}")
    check = Check(dataset.texts, args.batch_size, args.order)
    comparison = variants.in_fresh_process(compare, source, folder / "model.onnx", check, place)
    reference = utils.probabilities(comparison.original, comparison.problem)
    probs = utils.probabilities(comparison.export, comparison.problem)
    stats = statistics(probs, reference, comparison.problem)
    versions = utils.versions() | {"commit": utils.project_commit()}
    report = {
        "model": args.model_id,
        "repo": repo,
        "precision": args.precision,
        "options": OPTIONS[args.precision],
        "command": shlex.join(["python", "export_onnx.py", *hidden_token(sys.argv[1:])]),
        "versions": ", ".join(f"{name} {version}" for name, version in versions.items() if version),
        "date": datetime.now(UTC).strftime("%Y-%m-%d"),
        "machine": machine,
        "provider": "CPUExecutionProvider" if place.gpu is None else "CUDAExecutionProvider",
        "fp16_exercised": args.precision != "fp16" or place.gpu is not None,
        "dataset": dataset.name,
        "column": args.column,
        "messages": len(dataset.texts),
        "batch_size": args.batch_size,
        "order": args.order,
        "limit": comparison.limit,
        "problem": comparison.problem,
        **graph,
        **stats,
        "speed": comparison.speed,
        "worst": worst_texts(probs, reference, dataset.texts, comparison.labels),
        "tolerance": args.tolerance,
        "gate": failed_gate(stats, args.tolerance),
    }
    (folder / "parity.json").write_text(json.dumps(without_nan(report), indent=2, allow_nan=False), encoding="utf-8")
    write_card(folder, source, report)
    return report


def without_nan(value):
    """A report's values with None, which JSON has, for what is not finite, which it has not."""
    if isinstance(value, dict):
        return {key: without_nan(item) for key, item in value.items()}
    if isinstance(value, list):
        return [without_nan(item) for item in value]
    return None if isinstance(value, float) and not np.isfinite(value) else value


def hidden_token(arguments: list[str]) -> list[str]:
    """The arguments without a token that stands among them."""
    hidden = []
    for i, argument in enumerate(arguments):
        is_value = i > 0 and arguments[i - 1] == "--hf-token"
        hidden.append("..." if is_value else "--hf-token=..." if argument.startswith("--hf-token=") else argument)
    return hidden


def print_report(report: dict) -> None:
    """The check's result, on standard output."""
    stats, speed = report["largest_difference"], report["speed"]
    print(f"largest difference of any label, over {report['messages']} texts ({report['dataset']}):")
    print("  " + "  ".join(f"{name} {value:.3g}" for name, value in stats.items()))
    print(f"mean difference over all labels: {report['mean_over_labels']:.3g}")
    print(f"changed decisions: {report['changed_decisions']:.4%} ({DECISIONS[report['problem']]})")
    print(f"texts with outputs that are not finite: {report['non_finite_texts']}")
    print(f"messages/s: {speed['export']:.1f}, original {speed['original']:.1f}")
    for text in report["worst"]:
        print(f"\n  {text['excerpt']!r}")
        for label in text["labels"][:5]:
            original, export, difference = (label[key] for key in ("original", "export", "difference"))
            print(f"    {label['label']:<24} {original:8.4f} {export:8.4f} {difference:+.2g}")
    if not report["fp16_exercised"]:
        print("\na CPU computes this file in FP32 between casts: FP16 arithmetic was not exercised")


def main() -> int:
    args = parse_arguments()
    source = variants.find_model(args.model_id)
    target = args.save_dir or Path(Path(args.model_id).resolve().name + variants.EXPORT_SUFFIX[args.precision])
    check_target(target, source, args.overwrite)
    dataset = utils.load_dataset(args.dataset, args.column, args.limit)
    for note in dataset.notes:
        say(note)
    if args.batch_size > len(dataset.texts):
        raise UserError(f"--batch-size {args.batch_size}: there are only {len(dataset.texts)} texts")
    api, repo = None, str(target)
    if args.upload or (not args.no_upload and sys.stdin.isatty()):
        try:
            api, repo = find_destination(args, target.name)
        except UserError as error:
            if args.upload:
                raise
            say(f"it will not be uploaded: {error}")
    variants.in_fresh_process(variants.check_exportable, source, args.precision)
    with variants.new_folder(target, args.overwrite) as folder:
        report = export_and_check(args, source, dataset, folder, repo)
    print_report(report)
    print(f"\n{target}: " + (f"NOT GOOD, {report['gate']}" if report["gate"] else "good"))
    if report["gate"]:
        return 1
    if not api:
        return 0
    if args.upload or input(f"upload to {repo}? [y/N] ").strip().lower() in ("y", "yes"):
        return upload(api, repo, target, args)
    write_card(target, source, report | {"repo": str(target)})  # its example loads the folder, not the repository
    return 0


if __name__ == "__main__":
    utils.run(main)
