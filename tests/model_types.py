"""Export a tiny classifier of each model type and write the table of the results into results/README.md.

    python tests/model_types.py

This replaces the rows of the installed transformers version in tests/model_types.tsv, the source of the table.
"""

import contextlib
import io
import re
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]

import numpy as np  # noqa: E402
import pandas as pd  # noqa: E402
from tiny import make_tiny, tiny_config, word_level_tokenizer  # noqa: E402

from bench.export.select import EXPORT_KINDS, export_model  # noqa: E402
from bench.exporters.backends import FIRST_TOKEN  # noqa: E402
from bench.model.model import Model  # noqa: E402
from bench.variants import Device  # noqa: E402
from runtimes import VARIANTS  # noqa: E402
from utils import UserError  # noqa: E402

FILE = ROOT / "tests" / "model_types.tsv"
COLUMNS = ["transformers", "type", "precision", "exporter", "attention", "max_diff", "refused"]
KINDS = (
    *("albert", "bart", "bert", "big_bird", "camembert", "convbert", "data2vec-text", "deberta", "deberta-v2"),
    *("distilbert", "electra", "ernie", "esm", "flaubert", "fnet", "funnel", "gpt2", "ibert", "longformer", "luke"),
    *("megatron-bert", "mobilebert", "modernbert", "mpnet", "mra", "nystromformer", "rembert", "roberta"),
    *("roberta-prelayernorm", "roformer", "squeezebert", "xlm", "xlm-roberta", "xlnet", "xmod", "yoso"),
)
# the default tests cover one type for each peculiarity in the code; `pytest -m all_types` runs the others
DEFAULT_TYPES = {
    "bert",  # token types and a pooler on the first token; the reference case of every exporter and fusion
    "roberta",  # positions count from the padding token's id
    "distilbert",  # no token types, and layers with other names
    "albert",  # all layers share their weights
    "deberta-v2",  # relative positions inside attention, so its attention is not fused
    "modernbert",  # rotary positions, local and global attention
    "mpnet",  # a position bias shared by all layers, and a layer norm inside attention
    "convbert",  # padding changes its answers, so only texts of one length share a batch
    "fnet",  # takes no attention mask
    "xlnet",  # padding on the left, the answer from the last token; no exporter supports it
    "gpt2",  # a decoder: the last token before the padding counts
    "bart",  # an encoder and a decoder: the last </s> counts
}
TEXTS = ([50, 40, 3], [1], [7, 7], [2, 30, 11, 25])  # words of each text of a batch
LAYERS = 2
MARKS = "<!-- types:begin -->\n", "<!-- types:end -->"


def as_parameters(kinds) -> list:
    """Return the types as pytest parameters; all but DEFAULT_TYPES are marked `all_types`."""
    import pytest

    return [pytest.param(kind, marks=[] if kind in DEFAULT_TYPES else pytest.mark.all_types) for kind in kinds]


def cover(kind: str, precision: str, folder: Path) -> dict:
    """Export `folder`/source; return the row, with the largest difference from torch on padded batches."""
    target = folder / precision
    target.mkdir()
    found = {"type": kind, "precision": precision}
    try:
        model = Model.from_folder(folder / "source", kind)
        made = export_model(model, precision, target)
    except UserError as error:
        return found | {"refused": str(error)}
    variants = {"torch": None, EXPORT_KINDS[precision].variant: target}
    runners = [VARIANTS[name].load(model, exported, Device(None, 1)) for name, exported in variants.items()]
    rng, off = np.random.default_rng(0), 0.0
    for lengths in TEXTS:
        texts = [" ".join(f"w{i}" for i in rng.integers(0, 196, words)) for words in lengths]
        batch = model.pad(model.tokenize(texts))
        logits = [runner.to_host(runner.forward(runner.prepare(batch))) for runner in runners]
        off = max(off, np.abs(logits[1] - logits[0]).max())
    attention = sum(int(count) for count in re.findall(r"(\d+) (?:MultiHead)?Attention\b", made["nodes"]))
    if attention and FIRST_TOKEN in made["options"]:
        attention = LAYERS  # the last layer has a single query
    found |= {name: made[name] for name in ("exporter", "findings", "options")}
    return found | {"attention": attention, "max_diff": float(f"{off:.1e}")}


def table(rows: pd.DataFrame) -> str:
    """Return the table: types with the same result in all versions share a line."""
    versions = sorted(rows["transformers"].unique())
    results = {kind: tuple(result(group, version) for version in versions) for kind, group in rows.groupby("type")}
    lines = {}
    for kind, outcome in results.items():
        lines.setdefault(outcome, []).append(kind)
    ordered = sorted(lines.items(), key=lambda line: -len(line[1]))
    text = [
        f"| type | {' | '.join(f'transformers {version}' for version in versions)} |",
        f"|{' --- |' * (1 + len(versions))}",
    ]
    text += [f"| {', '.join(kinds)} | {' | '.join(outcome)} |" for outcome, kinds in ordered]
    off = rows.groupby("precision")["max_diff"].max()
    whole = rows["refused"].isna().groupby([rows["transformers"], rows["type"]]).all()
    right = [int(whole[version].sum()) for version in versions]
    words = "Each cell names the exporter for FP32 and FP16; *fused* means that attention is a single node. "
    words += f"With transformers {' and '.join(versions)}, {' and '.join(map(str, right))} of {len(results)} "
    words += "model types export in both precisions. "
    words += "Largest logit difference from PyTorch (tiny models, same padded batches, CPU): "
    return "\n".join([*text, "", f"{words}FP32 {off['fp32']:.1g}, FP16 {off['fp16']:.1g}.", ""])


def result(rows: pd.DataFrame, version: str) -> str:
    """Return the table's cell for a type and a version: the exporter per precision, and if attention is fused."""
    words = {}
    for row in rows[rows["transformers"] == version].to_dict("records"):
        fused = {0: "not fused", LAYERS: "fused"}.get(row["attention"], "fused in part")
        fused = "" if row["precision"] == "fp32" else f", {fused}"
        made = row["exporter"].split(",")[0] if isinstance(row["exporter"], str) else ""
        words[row["precision"].upper()] = f"{made}{fused}" if made else "refused"
    if len(set(words.values())) == 1:
        return words["FP16"]
    return "; ".join(f"{precision} {word}" for precision, word in sorted(words.items(), reverse=True))


def write_readme(text: str) -> str:
    """Return results/README.md with the table inserted."""
    readme = (ROOT / "results" / "README.md").read_text(encoding="utf-8")
    before, rest = readme.split(MARKS[0])
    return before + MARKS[0] + text + MARKS[1] + rest.split(MARKS[1])[1]


def main() -> None:
    import transformers

    rows = pd.read_csv(FILE, sep="\t") if FILE.exists() else pd.DataFrame(columns=COLUMNS)
    found = []
    for kind in KINDS:
        with tempfile.TemporaryDirectory() as folder, contextlib.redirect_stderr(io.StringIO()):
            (Path(folder) / "source").mkdir()
            make_tiny(Path(folder) / "source", word_level_tokenizer(kind), tiny_config(kind))
            found += [cover(kind, precision, Path(folder)) for precision in ("fp32", "fp16")]
        print(*found[-2:], sep="\n", flush=True)
    new = pd.DataFrame(found, columns=COLUMNS).assign(transformers=transformers.__version__)
    rows = pd.concat([rows[rows["transformers"] != transformers.__version__], new])
    rows.sort_values(COLUMNS[:3]).to_csv(FILE, sep="\t", index=False)
    (ROOT / "results" / "README.md").write_text(write_readme(table(pd.read_csv(FILE, sep="\t"))), encoding="utf-8")


if __name__ == "__main__":
    main()
