"""What the scripts must agree on: datasets, token ids, batches, shards, parity, result rows, environment.

No torch, transformers, optimum or onnxruntime is imported here at module level, so that every `--help` is instant.
"""

import argparse
import contextlib
import csv
import fcntl
import hashlib
import importlib.metadata
import io
import itertools
import math
import os
import platform
import re
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, NoReturn

import numpy as np

ROOT = Path(__file__).resolve().parent
CACHE = Path(os.environ.get("BENCHMARK_CACHE", ROOT / ".cache"))  # random-roberta-base, token ids, references, peaks
DATASETS = {
    "normal": ("random_sample_10k.csv.gz", "synthetic_10k.csv.gz"),
    "filtered": ("random_sample_10k_filtered.csv.gz", "synthetic_10k_filtered.csv.gz"),
}
ORDERS = ("dataset", "length", "tokens")
UNFIT = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029\ud800-\udfff]")  # for a row, a card or a line of output
MAX_TOKENS = 512
LONG_TEXT = 50_000  # characters, see tokenize
LOCK_TIMEOUT = 10  # seconds
# model types whose positions start behind the padding index, see token_limit
OFFSET_POSITIONS = {"roberta", "xlm-roberta", "xlm-roberta-xl", "camembert", "roberta-prelayernorm", "xmod", "mpnet"}
OFFSET_POSITIONS |= {"data2vec-text", "ibert", "longformer", "esm", "luke"}
VERSIONS = {
    **{"torch": ["torch"], "transformers": ["transformers"], "onnxruntime": ["onnxruntime", "onnxruntime-gpu"]},
    "openvino": ["openvino"],
}
# model types whose layers have BERT's products, see useful_flops
BERT_LAYERS = {"bert", "roberta", "xlm-roberta", "xlm-roberta-xl", "camembert", "roberta-prelayernorm", "distilbert"}
BERT_LAYERS |= {"albert", "electra", "mpnet", "data2vec-text", "ernie", "xmod"}
SPECIAL_TOKENS = ["<s>", "<pad>", "</s>", "<unk>", "<mask>"]  # RoBERTa's, in RoBERTa's order

# A result row: what was asked, what was measured, where it comes from.
CELL = ("model", "workers", "threads", "size", "order", "messages")
COLUMNS = (
    *("workers", "size", "order"),
    *("messages/s", "min", "max", "passes", "tokens/s", "padding", "tflops", "mfu", "end_to_end"),
    *("p50_ms", "p99_ms", "memory_mib", "load", "throttled"),
    *("max_diff", "flips", "status"),
    *("variant", "model", "device", "dataset", "messages", "threads"),
    *("torch", "transformers", "onnxruntime", "openvino", "driver", "commit", "date"),
)


class UserError(Exception):
    """Wrong usage or input: the scripts print its one line and exit with its code."""

    code = 2


class RunError(UserError):
    """What went wrong on the way, through no fault of the input."""

    code = 1


class Parser(argparse.ArgumentParser):
    """An argument parser whose errors are one line, with exit code 2."""

    def error(self, message: str) -> None:
        self.exit(2, f"{self.prog}: {message}\n")


def int_from(least: int, most: float = math.inf):
    """A parser of whole numbers from `least` to `most`."""

    def parse(text: str) -> int:
        if not text.strip().isdecimal() or not least <= int(text) <= most:
            end = "on" if most == math.inf else f"to {most}"
            raise argparse.ArgumentTypeError(f"{text!r} is not a whole number from {least} {end}")
        return int(text)

    return parse


def most_processes() -> int:
    """How many workers, or threads of each, can be asked for: more are a slip that would fill the memory."""
    return max(64, cpu_cores())


def say(line: str = "") -> None:
    print(line, file=sys.stderr, flush=True)


def stop(number: int, _) -> NoReturn:
    """What a signal does: it ends the script, so that what is half-made is cleaned up; a second one does nothing."""
    signal.signal(number, signal.SIG_IGN)
    if number == signal.SIGINT:
        raise KeyboardInterrupt
    sys.exit(128 + number)


def run(main: Callable[[], int]) -> NoReturn:
    """Runs a script: a UserError is one line, Ctrl-C is 130, else the code is what main returns."""
    script = Path(sys.argv[0]).name
    signal.signal(signal.SIGTERM, stop)
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:  # not where a shell has it ignored
        signal.signal(signal.SIGINT, stop)
    sys.stdout.reconfigure(errors="backslashreplace")  # of a text that the terminal can't show
    try:
        if UNFIT.search("".join(sys.argv[1:])):
            raise UserError("an argument has a line break, a control character or bytes that are no UTF-8")
        code = main()
    except UserError as error:
        code = error.code
        print(f"{script}: {error}", file=sys.stderr)
    except KeyboardInterrupt:
        code = 130
        print(f"{script}: interrupted", file=sys.stderr)
    sys.exit(code)


# ---------------------------------------------------------------------------------------------------------- datasets


@dataclass(frozen=True)
class Dataset:
    """`texts` in the file's order, the `name` that rows carry, and `notes`: what was not as asked, in plain lines."""

    name: str
    texts: list[str]
    notes: list[str]


def slug(name: str) -> str:
    """`name` as a part of a file name: letters, digits, dots and dashes (underscores separate the parts)."""
    return re.sub(r"(?:[^\w.]|_)+", "-", name).strip("-.")


def load_dataset(name_or_path: str, column: str = "body", limit: int | None = None) -> Dataset:
    """The texts of `normal`, `filtered` or a CSV, CSV.gz or Parquet file.

    Rows without text (missing, empty, only white space) are dropped and counted in the notes. `limit` keeps that many
    texts, evenly spaced through the file. Raises UserError where the file, the column or every text is missing.
    """
    notes = []
    if name_or_path in DATASETS:
        real, synthetic = (ROOT / "data" / file for file in DATASETS[name_or_path])
        path, name = (real, name_or_path) if real.exists() else (synthetic, f"synthetic-{name_or_path}")
        if path is synthetic:
            notes.append(
                f"dataset {name_or_path}: data/{real.name} is not there, so the bundled data/{synthetic.name} is used "
                "(random words with Reddit's lengths); `python data/download.py` fetches the real one"
            )
    else:
        path = Path(name_or_path)
        name = slug(re.sub(r"(\.csv|\.gz|\.parquet)+$", "", path.name))
    bodies = read_column(path, column)
    texts = [body for body in bodies if isinstance(body, str) and body.strip()]
    if len(texts) < len(bodies):
        notes.append(f"dataset {name}: {len(bodies) - len(texts)} of {len(bodies)} rows have no text and are left out")
    if not texts:
        raise UserError(f"{path} has no text in column {column!r}")
    if limit is not None and limit < len(texts):
        texts = [texts[i] for i in evenly_spaced(len(texts), limit)]
    return Dataset(name, texts, notes)


def read_column(path: Path, column: str) -> list:
    """One column of a CSV, CSV.gz or Parquet file, as it stands there."""
    import pandas as pd

    if not os.path.isfile(path):  # unlike Path's, it takes a name that is too long for one that isn't there
        raise UserError(f"no dataset file {path} (names: {', '.join(DATASETS)}; or a .csv, .csv.gz or .parquet file)")
    try:
        if path.suffix == ".parquet":
            import pyarrow.parquet

            columns = pyarrow.parquet.read_schema(path).names
            table = pd.read_parquet(path, columns=[column]) if column in columns else None
        else:
            # "null" and "NA" are words that people write, not missing values
            options = {"dtype": str, "keep_default_na": False}
            columns = list(pd.read_csv(path, nrows=0, **options).columns)
            # all columns: with usecols, what follows a comma that should have been quoted is lost without a word
            table = pd.read_csv(path, **options) if column in columns else None
            if table is not None and not isinstance(table.index, pd.RangeIndex):
                raise ValueError("its rows have more fields than its header")
        bodies = None if table is None else table[column].tolist()
    except Exception as error:  # pandas, pyarrow and each compression have errors of their own
        raise UserError(f"{path} can't be read: {first_line(error)}") from error
    if bodies is None:
        raise UserError(f"{path} has no column {column!r}; its columns: {', '.join(map(str, columns))}")
    return bodies


def evenly_spaced(total: int, count: int) -> np.ndarray:
    """`count` (or `total`, if fewer) distinct indices below `total`, evenly spaced, ascending."""
    count = min(count, total)
    return np.arange(count) * total // count


def first_line(error: BaseException) -> str:
    """The error's message cut to its first line, or its type where it has none."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:300]


# --------------------------------------------------------------------------------------------------------- token ids


def train_tokenizer(texts: list[str]):
    """A byte-level BPE tokenizer of at most 30,000 tokens, of the class `tokenizers.ByteLevelBPETokenizer`."""
    from tokenizers import ByteLevelBPETokenizer

    tokenizer = ByteLevelBPETokenizer(add_prefix_space=True)
    tokenizer.train_from_iterator(
        texts, vocab_size=30_000, min_frequency=2, special_tokens=SPECIAL_TOKENS, show_progress=False
    )
    return tokenizer


def load_tokenizer(folder: Path):
    """The folder's tokenizer: the fast one, or the slow one where it has no file of a fast one and it can't be made
    fast (some SentencePiece models). Raises UserError where there is none.
    """
    from transformers import AutoTokenizer

    reason = ""
    for fast in (True, False):
        try:
            return AutoTokenizer.from_pretrained(folder, use_fast=fast, trust_remote_code=False, local_files_only=True)
        except Exception as error:  # a bad tokenizer fails in as many ways as there are formats
            reason = first_line(error)
        if (folder / "tokenizer.json").exists():
            break
    if not any(any(folder.glob(name)) for name in ("tokenizer.json", "vocab.*", "*.model")):
        reason = "no tokenizer.json, vocabulary or SentencePiece model"
    raise UserError(f"{folder} has no tokenizer that can be loaded: {reason}")


def token_limit(config, tokenizer) -> int:
    """The most tokens of a text that the model takes, at most 512.

    RoBERTa and its relatives number positions from padding_idx + 1 (`create_position_ids_from_input_ids` in
    transformers), so that many of their position embeddings are never used.
    """
    positions = getattr(config, "max_position_embeddings", MAX_TOKENS)
    if config.model_type in OFFSET_POSITIONS:
        positions -= (config.pad_token_id or 0) + 1
    return min(MAX_TOKENS, positions if positions > 0 else MAX_TOKENS, tokenizer.model_max_length)


def tokenize(tokenizer, texts: list[str], limit: int) -> list[list[int]]:
    """Token ids of each text, special tokens included, truncated to `limit`, not padded.

    A fast tokenizer is asked without transformers between, whose work for each text no other core can share. A text of
    10 MB takes 15 seconds and 2 GB in whole. So of one over LONG_TEXT only the beginning is tokenized, where that gives
    at least twice `limit`: what the cut changes is behind the tokens that are kept then.
    """

    def truncated(texts: list[str], limit: int) -> list[list[int]]:
        if not tokenizer.is_fast:
            return tokenizer(texts, truncation=True, max_length=limit, return_attention_mask=False)["input_ids"]
        fast = tokenizer.backend_tokenizer
        fast.no_padding()
        fast.enable_truncation(limit, direction=tokenizer.truncation_side)
        return [encoding.ids for encoding in fast.encode_batch_fast(texts)]

    beginnings = [text[:LONG_TEXT] for text in texts]
    for i, text in enumerate(texts):
        if len(text) > LONG_TEXT and len(truncated([beginnings[i]], 2 * limit)[0]) < 2 * limit:
            beginnings[i] = text
    return truncated(beginnings, limit)


def check_vocabulary(token_ids: list[list[int]], config) -> None:
    """Raises UserError for a token that the model has no embedding of: a GPU would read one out of bounds."""
    highest = max(max(ids) for ids in token_ids)
    if highest >= config.vocab_size:
        raise UserError(
            f"the tokenizer gives token {highest}, the model has {config.vocab_size}: they don't belong together"
        )


# ------------------------------------------------------------------------------------------------ batches and shards


def make_batches(lengths: np.ndarray, size: int, order: str) -> list[np.ndarray]:
    """Batches of `size` texts (the last may be smaller), each an array of indices into `lengths`; in order `tokens`
    as many texts as stay within `size` tokens once they are padded, but at least one.

    Every index occurs once. In orders `length` and `tokens` the texts are sorted by token count (stable); writing a
    batch's results at its indices puts them back in the caller's order.
    """
    indices = np.arange(len(lengths)) if order == "dataset" else np.argsort(lengths, kind="stable")
    starts = list(range(0, len(indices), size))
    if order == "tokens":
        starts = [0]
        for end, length in enumerate(lengths[indices]):  # ascending, so that the text at the end is the longest
            if end > starts[-1] and (end + 1 - starts[-1]) * length > size:
                starts.append(end)
    return np.split(indices, starts[1:])


def few_lengths(lengths: np.ndarray, limit: int) -> np.ndarray:
    """The lengths rounded up to multiples of 2 from 32 on, of 4 from 64 on and so forth, but never above `limit`: a
    third of the shapes for 1 to 2% more padding.
    """
    step = 2 ** np.maximum(np.floor(np.log2(lengths)).astype(int) - 4, 0)
    return np.minimum(-(-lengths // step) * step, limit)


def padded_tokens(lengths: np.ndarray, batch: np.ndarray) -> int:
    """Tokens of a batch once each of its texts is padded to its longest."""
    return len(batch) * int(lengths[batch].max())


def deal_shards(lengths: np.ndarray, batches: list[np.ndarray], workers: int) -> list[list[np.ndarray]]:
    """One list of batches for each worker, of about the same padded tokens: each batch, the most expensive first,
    goes to the worker with the least so far (longest processing time first, Graham 1969), then each list is put back
    in the order of `batches`. With fewer batches than workers some lists are empty.
    """
    costs = np.array([padded_tokens(lengths, batch) for batch in batches])
    loads, shards = np.zeros(workers), [[] for _ in range(workers)]
    for i in np.argsort(-costs, kind="stable"):
        worker = int(loads.argmin())
        loads[worker] += costs[i]
        shards[worker].append(i)
    return [[batches[i] for i in sorted(shard)] for shard in shards]


def pad_batch(rows: list, pad_id: int, width: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Token ids and attention mask of the rows of a batch, both int64 [texts, longest, or `width` if that is more],
    padded on the right.
    """
    lengths = np.array([len(row) for row in rows])
    mask = np.arange(max(lengths.max(), width)) < lengths[:, None]
    input_ids = np.full(mask.shape, pad_id, dtype=np.int64)
    input_ids[mask] = np.concatenate(rows)
    return input_ids, mask.astype(np.int64)


# ---------------------------------------------------------------------------------------------------------- the work


def useful_flops(config, lengths: np.ndarray) -> float:
    """FLOPs of an encoder's forward pass over texts of so many tokens, padding not counted; nan for a model type whose
    layers are not BERT's.

    A multiplication and an addition are 2 FLOPs. For each layer and token: 2 x (4 h² + 2 h i) for the products with
    weights (query, key, value and output, and the two of the feed-forward part), 4 h L for the two of the attention at
    length L, with h the hidden and i the intermediate size: the count of Kaplan et al., Scaling Laws for Neural
    Language Models, 2020, section 2.1, with an attention that looks at the whole text and a feed-forward part of any
    width. Embeddings, the head and everything element by element are left out: below 1% in a model of base size.
    """
    if config.model_type not in BERT_LAYERS:
        return float("nan")
    hidden, layers = config.hidden_size, config.num_hidden_layers
    inner = config.hidden_dim if config.model_type == "distilbert" else config.intermediate_size
    lengths = lengths.astype(float)
    return float(layers * (2 * (4 * hidden**2 + 2 * hidden * inner) * lengths + 4 * hidden * lengths**2).sum())


# ------------------------------------------------------------------------------------------------------------ parity


def problem_type(config) -> str:
    """`regression`, `single_label_classification` or `multi_label_classification`, from a transformers config.

    A problem type of None is resolved as transformers' models do in their loss: one label is regression, several are
    single label.
    """
    return config.problem_type or ("regression" if config.num_labels == 1 else "single_label_classification")


def probabilities(logits: np.ndarray, problem: str) -> np.ndarray:
    """What a user gets of logits [texts, labels], in float64: sigmoid, softmax, or the raw value of a regression. Of a
    logit that is infinite it is nan, not 0 or 1.
    """
    logits = np.where(np.isfinite(logits), logits, np.nan).astype(np.float64)
    if problem == "regression":
        return logits
    if problem == "multi_label_classification":
        return 1 / (1 + np.exp(-np.maximum(logits, -700)))  # below, exp overflows
    exponents = np.exp(logits - logits.max(axis=1, keepdims=True))
    return exponents / exponents.sum(axis=1, keepdims=True)


def flips(probs: np.ndarray, reference: np.ndarray, problem: str) -> float:
    """The share of changed decisions between two [texts, labels]: of labels that cross 0.5 (multi-label), of texts
    with another argmax (single label). A regression decides nothing: there it is the share of values that move by more
    than a tenth of their standard deviation in the reference (or by 0.0001). A non-finite value is a change.
    """
    lost = ~np.isfinite(probs)
    if problem == "single_label_classification":
        return float(((probs.argmax(axis=1) != reference.argmax(axis=1)) | lost.any(axis=1)).mean())
    if problem == "multi_label_classification":
        changed = (probs > 0.5) != (reference > 0.5)
    else:
        changed = np.abs(probs - reference) > np.maximum(reference.std(axis=0) / 10, 1e-4)
    return float((changed | lost).mean())


# ------------------------------------------------------------------------------------------------------- result rows


def results_path(results_dir: Path, row: dict) -> Path:
    """The file of a row: `<results_dir>/<model>/<device>_<variant>_<dataset>.tsv`."""
    file = "_".join(slug(row[key]) for key in ("device", "variant", "dataset"))
    return results_dir / slug(Path(row["model"]).resolve().name) / f"{file}.tsv"


def read_rows(path: Path) -> list[dict[str, str]]:
    """The rows of a results file, or none if there is no such file. Raises UserError if it is not one of ours."""
    try:
        rows, damaged = read_whole_rows(path)
    except OSError as error:
        raise UserError(f"{path} can't be read: {error.strerror}") from error
    if damaged:
        raise UserError(f"{path} is damaged, or not a results file of this version; move it away")
    return rows


def read_whole_rows(path: Path) -> tuple[list[dict[str, str]], bool]:
    """The whole rows of a results file, and whether there is more in it than those. Columns that an older version did
    not have yet are empty.
    """
    if not path.exists():
        return [], False
    text = path.read_bytes().decode("utf-8-sig", errors="surrogateescape")
    reader, rows, damaged = csv.DictReader(io.StringIO(text, newline=""), delimiter="\t"), [], not text.endswith("\n")
    try:
        header = reader.fieldnames or []
        if len(set(header)) < len(header) or not {*CELL, "messages/s", "status"} <= set(header) <= set(COLUMNS):
            return [], True
        for row in reader:
            if None in row or None in row.values() or re.search("[\ud800-\udfff]", "".join(row.values())):
                damaged = True
            else:
                rows.append(dict.fromkeys(COLUMNS, "") | row)
    except csv.Error:
        damaged = True
    return rows, damaged


def check_writable(folder: Path) -> None:
    """Raises UserError if no file can be made in `folder`, which is made if need be."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=folder).close()
    except OSError as error:
        raise UserError(f"nothing can be saved in {folder}: {error.strerror}") from error


def same_cell(row: dict, other: dict) -> bool:
    """Whether two rows of one file are about the same cell."""
    return all(str(row[key]) == str(other[key]) for key in CELL)


def save_row(path: Path, row: dict) -> None:
    """Puts a row into its file, in the place of an older one of the same cell. A file that is damaged is moved aside,
    and its whole rows stay. Raises OSError if nothing can be saved.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with locked(path.parent / ".lock"):
        rows, damaged = read_whole_rows(path)
        if damaged:
            aside = unused(path.with_name(f"{path.name}.damaged"))
            with atomic_file(aside) as file:
                file.write(path.read_bytes())
            say(f"{path} is damaged: {len(rows)} whole rows stay in it, all that was in it is in {aside.name}")
        with atomic_file(path) as file:
            rows = [other for other in rows if not same_cell(row, other)]
            file.write(table([*rows, row]).encode(errors="replace"))


def table(rows: list[dict]) -> str:
    """Rows as the text of a results file."""
    text = io.StringIO()
    writer = csv.DictWriter(text, COLUMNS, delimiter="\t", lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()


def unused(path: Path) -> Path:
    """`path`, or where there is such a file, the first of `<path>-2`, `<path>-3`, ... that is not there."""
    names = (path.with_name(f"{path.name}-{i}") for i in itertools.count(2))
    return next(name for name in itertools.chain([path], names) if not name.exists())


@contextlib.contextmanager
def locked(path: Path) -> Iterator[None]:
    """Holds the lock file `path`, which is one for all processes; without a lock where the file system has none.
    Raises TimeoutError where another process keeps it.
    """
    deadline = time.monotonic() + LOCK_TIMEOUT
    with path.open("a") as file:
        while True:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if time.monotonic() > deadline:
                    raise TimeoutError(f"another process keeps {path} locked") from None
                time.sleep(0.01)
            except OSError:
                break
        yield


@contextlib.contextmanager
def atomic_file(path: Path) -> Iterator[BinaryIO]:
    """A file to write that becomes `path` at the end of the block, or vanishes if the block fails."""
    path.parent.mkdir(parents=True, exist_ok=True)
    descriptor, temporary = tempfile.mkstemp(dir=path.parent, suffix=".tmp")
    try:
        with open(descriptor, "wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.chmod(temporary, 0o644)
        os.replace(temporary, path)
    finally:
        Path(temporary).unlink(missing_ok=True)


# ------------------------------------------------------------------------------------------------------- environment


def versions() -> dict[str, str]:
    """The installed versions that a row carries, by column; empty where a package is missing."""
    return {column: next(iter(installed(packages).values()), "") for column, packages in VERSIONS.items()}


def installed(packages: list[str]) -> dict[str, str]:
    """The versions of those of the packages that are installed."""
    found = {}
    for package in packages:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            found[package] = importlib.metadata.version(package)
    return found


def project_commit() -> str:
    """The commit of this project; where its code is not that of the commit, "+" and a digest of the code behind it."""
    code = hashlib.sha256(b"".join(path.read_bytes() for path in sorted(ROOT.glob("*.py")))).hexdigest()[:8]

    def git(*arguments: str) -> str:
        return subprocess.run(
            ["git", "-C", ROOT, *arguments], capture_output=True, text=True, check=True
        ).stdout.strip()

    try:
        commit, changed = git("rev-parse", "--short=10", "HEAD"), git("status", "--porcelain", "--", ":(glob)*.py")
    except (OSError, subprocess.CalledProcessError):
        commit, changed = "", "no git"
    return f"{commit}+{code}" if changed else commit


def cpu_name() -> str:
    """The processor's name without trade marks and clock, and its cores: `Intel Xeon Platinum 8481C, 4 cores`."""
    name = platform.processor() or platform.machine()
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        match = re.search(r"^model name\s*:\s*(.+)$", cpuinfo.read_text(), re.MULTILINE)
        name = match[1] if match else name
    name = re.sub(r"\((R|TM|tm)\)|\bCPU\b|\bProcessor\b|@.*$|\d+-Core", " ", name)
    return f"{' '.join(name.split())}, {cpu_cores()} cores"


def cpu_has_bf16() -> bool:
    """Whether the processor multiplies in BF16 (AVX512-BF16 or AMX; not known, so False, where it is not Linux)."""
    cpuinfo = Path("/proc/cpuinfo")
    return cpuinfo.exists() and bool(re.search(r"\b(avx512_bf16|amx_bf16)\b", cpuinfo.read_text()))


def cpu_cores() -> int:
    """The cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
