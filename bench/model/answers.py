"""A model's outputs for rows of tokens -> answers for items: arithmetic that several tasks share."""

import numpy as np

MIN_NORM = 1e-12  # as in torch.nn.functional.normalize


def run_rows(original, inputs: dict[str, list]) -> np.ndarray:
    """Return the outputs [rows, n] of the original, run row by row."""
    windows = range(len(inputs["input_ids"]))
    rows = [{name: np.array(values[i : i + 1]) for name, values in inputs.items()} for i in windows]
    return np.concatenate(list(map(original.run, rows)))


def sigmoid(logits: np.ndarray) -> np.ndarray:
    return 1 / (1 + np.exp(-np.maximum(logits, -700)))  # below, exp overflows


def softmax(logits: np.ndarray) -> np.ndarray:
    exponents = np.exp(logits - logits.max(axis=1, keepdims=True))
    return exponents / exponents.sum(axis=1, keepdims=True)


def combine_windows(answers: np.ndarray, owners: np.ndarray, items: int, mean: bool) -> np.ndarray:
    """Combine the rows of each item by maximum or mean: [items, labels].

    An item without rows, or with nan in a row, gets nan.
    """
    counts = np.bincount(owners, minlength=items)[:, None]
    if counts.max(initial=0) < 2:  # np.add.at takes ten times as long
        combined = np.full((items, answers.shape[1]), np.nan, answers.dtype)
        combined[owners] = answers
        return combined
    combined = np.full((items, answers.shape[1]), 0.0 if mean else -np.inf)
    (np.add if mean else np.maximum).at(combined, owners, answers)
    return np.where(counts, combined / np.maximum(counts, 1) if mean else combined, np.nan)


def unit(vectors: np.ndarray) -> np.ndarray:
    """Return vectors [n, dims] divided by their lengths, in float64."""
    vectors = vectors.astype(np.float64, copy=False)
    return vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), MIN_NORM)
