"""What several tasks share: tokens for the reference, and the arithmetic from outputs for rows to answers for items."""

import numpy as np

from bench.model.tokenizing import call_tokenizer, invalid_items, overlap
from bench.tables.items import Item

MIN_NORM = 1e-12  # as in torch.nn.functional.normalize


def original_inputs(model, tokenizer, item: Item, long: str) -> dict[str, list] | None:
    """Return what the library's tokenizer gives for an item, or for its windows; None if the model can't answer."""
    options = {"truncation": model.task.truncation, "max_length": model.max_length}
    room = 1
    if long != "cut":
        room += overlap(model.max_length)
        options |= {"truncation": "only_first", "return_overflowing_tokens": True, "stride": room - 1}
    if invalid_items(tokenizer, [item], model.max_length, options["truncation"], room):
        return None
    inputs = call_tokenizer(tokenizer, [item], **options)
    if not all(map(model.is_valid_input, inputs["input_ids"])):
        return None
    return {name: inputs[name] for name in inputs if name in model.forward_names}


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
    """Combine the rows of each item by maximum or mean: [items, labels], nan without rows or with nan in one."""
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
