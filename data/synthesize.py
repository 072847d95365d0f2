"""Makes the two bundled datasets: texts that cost an encoder what Reddit comments cost, with nothing of Reddit in them.

    pip install wordfreq==3.1.1      # needed here only
    python data/synthesize.py        # writes data/synthetic_10k.csv.gz and data/synthetic_10k_filtered.csv.gz

A text is a run of random English words, drawn by their frequency, cut into sentences of random length. What makes
throughput on it throughput on Reddit is its length in tokens: the lengths follow the quantiles below, in a random
order. The tokenizer is the one that `random-roberta-base` gets, trained on these very texts; since the texts need it
to be measured and it needs the texts to be trained, both are made twice, the first time with lengths counted in words.

The same seed and the same wordfreq version give the same files. They say nothing about how well a model classifies.
"""

import sys
from argparse import RawDescriptionHelpFormatter
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pandas as pd

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
import utils

TEXTS = 10_000
WORDS = 60_000  # the most frequent English words
STOPS = ",", ".", "?", "!", "..."
# Token counts, <s> and </s> included and nothing cut off, at these shares of the published Reddit samples, measured
# with a byte-level BPE of 30,000 tokens trained on both samples.
SHARES = (
    0, 0.01, 0.02, 0.05, 0.1, 0.15, 0.2, 0.25, 0.3, 0.35, 0.4, 0.45, 0.5, 0.55, 0.6, 0.65, 0.7, 0.75, 0.8, 0.85, 0.9,
    0.93, 0.95, 0.97, 0.98, 0.985, 0.99, 0.993, 0.995, 0.997, 0.998, 0.999, 1,
)  # fmt: skip
QUANTILES = {
    "synthetic_10k.csv.gz": (
        3, 4, 5, 6, 8, 10, 11, 13, 15, 17, 19, 22, 25, 29, 33, 38, 44, 52, 61, 76, 98,
        123, 149, 194, 241, 282, 340, 413, 505, 590, 676, 848, 1527,
    ),
    "synthetic_10k_filtered.csv.gz": (
        35, 45, 47, 51, 54, 58, 61, 64, 68, 72, 77, 83, 89, 96, 103, 113, 124, 139, 158, 184, 230,
        281, 328, 405, 489, 549, 663, 721, 832, 1029, 1126, 1525, 2873,
    ),
}  # fmt: skip


def draw_lengths(quantiles: tuple[int, ...], rng: np.random.Generator) -> np.ndarray:
    """Token counts [TEXTS] that follow the quantiles exactly, in a random order."""
    shares = (np.arange(TEXTS) + 0.5) / TEXTS
    return rng.permutation(np.interp(shares, SHARES, quantiles).round().astype(int))


def draw_pieces(count: int, rng: np.random.Generator) -> list[str]:
    """A stream of `count` words in sentences: the first word capitalized, the last one with its stop."""
    try:
        from wordfreq import top_n_list, word_frequency
    except ImportError as error:
        raise utils.UserError("wordfreq is missing: pip install wordfreq==3.1.1") from error

    words = top_n_list("en", WORDS)
    frequencies = np.array([word_frequency(word, "en") for word in words])
    drawn = rng.choice(words, size=count, p=frequencies / frequencies.sum()).tolist()
    stops = rng.choice(STOPS, size=count, p=(0.4, 0.45, 0.08, 0.05, 0.02))
    start = True
    for i, ends in enumerate(rng.random(count) < 0.12):
        drawn[i] = drawn[i].capitalize() if start else drawn[i]
        drawn[i] += stops[i] if ends else ""
        start = ends and stops[i] != ","
    return drawn


def compose(lengths: np.ndarray, pieces: Iterator[tuple[str, int]]) -> list[str]:
    """Texts of exactly `lengths` tokens from (piece, its tokens): a piece too long for what is left is passed over."""
    texts = []
    for length in lengths:
        text, left = [], length - 2
        while left:
            piece, tokens = next(pieces)
            if tokens <= left:
                text.append(piece)
                left -= tokens
        texts.append(" ".join(text))
    return texts


def main() -> int:
    parser = utils.Parser(description=__doc__, formatter_class=RawDescriptionHelpFormatter)
    parser.add_argument("--seed", type=utils.int_from(0), default=0, help="default: 0, the bundled files' seed")
    parser.add_argument("--output-dir", type=Path, default=Path(__file__).parent, help="default: this folder")
    args = parser.parse_args()
    utils.check_writable(args.output_dir)

    rng = np.random.default_rng(args.seed)
    lengths = {name: draw_lengths(quantiles, rng) for name, quantiles in QUANTILES.items()}
    pieces = draw_pieces(sum(map(sum, lengths.values())), rng)
    tokens = [1 + piece.endswith(STOPS) for piece in pieces]
    for _ in range(2):
        stream = iter(zip(pieces, tokens, strict=True))
        texts = {name: compose(lengths[name], stream) for name in lengths}
        tokenizer = utils.train_tokenizer([text for column in texts.values() for text in column])
        tokens = [len(encoding.ids) for encoding in tokenizer.encode_batch(pieces)]
    for name, column in texts.items():
        table = pd.DataFrame({"id": [f"s{i:05d}" for i in range(TEXTS)], "subreddit": "synthetic", "body": column})
        # no time stamp in the gzip header: the same texts give the same bytes
        table.to_csv(args.output_dir / name, index=False, compression={"method": "gzip", "mtime": 0})
    return 0


if __name__ == "__main__":
    utils.run(main)
