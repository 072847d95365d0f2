"""Writes the statistics in data/README.md: those of the bundled files are measured, beside the published samples'.

    python data/describe.py

They stand between the two comments `<!-- statistics -->`, and tests/test_data.py fails when they are not what this
script writes.
"""

import sys
from argparse import RawDescriptionHelpFormatter
from collections.abc import Iterable
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
import utils

README = Path(__file__).with_name("README.md")
MARK = "<!-- statistics -->\n"
SIZES = (8, 16, 32, 64, 128)
PERCENTILES = (5, 25, 50, 75, 95, 99)
# name in the table: what the published samples have, `normal` and `filtered`, measured once in the same way
STATISTICS = {
    "characters: mean, p50, p95, p99, max": ("179, 91, 614, 1411, 5800", "520, 359, 1372, 2604, 9341"),
    "words: mean, p5, p25, p50, p75, p95, p99": ("31.0, 2, 7, 16, 35, 107, 238", "89.2, 35, 45, 63, 98, 233, 436"),
    "tokens: mean, p5, p25, p50, p75, p95, p99": ("45.4, 6, 13, 25, 52, 149, 340", "122, 51, 64, 89, 139, 328, 512"),
    "padded / real tokens, order `dataset`, size 8, 16, 32, 64, 128": (
        "3.26, 4.53, 6.11, 7.71, 9.35",
        "2.35, 2.97, 3.51, 3.94, 4.15",
    ),
    "the same, order `length`": ("1.004, 1.008, 1.019, 1.035, 1.075", "1.001, 1.003, 1.006, 1.012, 1.025"),
}


def describe(texts: list[str], tokens: np.ndarray) -> list[str]:
    """The statistics of texts and their token counts, in the order of STATISTICS."""
    characters = np.array([len(text) for text in texts])
    words = np.array([len(text.split()) for text in texts])
    return [
        join([characters.mean(), *np.percentile(characters, (50, 95, 99)), characters.max()], ".0f"),
        f"{words.mean():.1f}, " + join(np.percentile(words, PERCENTILES), ".0f"),
        f"{tokens.mean():#.3g}, ".replace("., ", ", ") + join(np.percentile(tokens, PERCENTILES), ".0f"),
        join([padding(tokens, size, "dataset") for size in SIZES], ".2f"),
        join([padding(tokens, size, "length") for size in SIZES], ".3f"),
    ]


def join(numbers: Iterable[float], form: str) -> str:
    return ", ".join(format(float(number), form) for number in numbers)


def padding(tokens: np.ndarray, size: int, order: str) -> float:
    """Padded tokens / real tokens of all batches."""
    batches = utils.make_batches(tokens, size, order)
    return sum(utils.padded_tokens(tokens, batch) for batch in batches) / tokens.sum()


def table() -> str:
    """The statistics in Markdown: of each dataset the published sample and the bundled file."""
    texts = [utils.load_dataset(str(README.with_name(bundled))).texts for _, bundled in utils.DATASETS.values()]
    tokenizer = utils.train_tokenizer([text for column in texts for text in column])
    # a token of this tokenizer never spans a space, so every word has to be encoded only once
    words = list({word for column in texts for text in column for word in text.split(" ")})
    tokens = {word: len(encoding.ids) for word, encoding in zip(words, tokenizer.encode_batch(words), strict=True)}
    measured = []
    for column in texts:
        lengths = [sum(tokens[word] for word in text.split(" ")) + 2 for text in column]  # <s> and </s>
        measured.append(describe(column, np.minimum(lengths, utils.MAX_TOKENS)))
    names = [file for files in utils.DATASETS.values() for file in files]
    lines = ["| | " + " | ".join(f"`{name}`" for name in names) + " |", "| --- " * 5 + "|"]
    for (name, published), *bundled in zip(STATISTICS.items(), *measured, strict=True):
        cells = [cell for pair in zip(published, bundled, strict=True) for cell in pair]
        lines.append("| " + " | ".join([name, *cells]) + " |")
    return "\n".join(lines) + "\n"


def main() -> int:
    utils.Parser(description=__doc__, formatter_class=RawDescriptionHelpFormatter).parse_args()
    before, _, after = README.read_text(encoding="utf-8").split(MARK)
    README.write_text(MARK.join([before, table(), after]), encoding="utf-8")
    return 0


if __name__ == "__main__":
    utils.run(main)
