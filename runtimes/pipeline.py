"""transformers' own text-classification pipeline: what most people use. It takes the texts themselves."""

import numpy as np

from bench.inputs.model import Model
from bench.variants import Device, TextRunner, Variant

N_AT_ONCE = 256  # texts that are given to it, at least: seconds of work, after which it tells how far it is


def load(model: Model, _, device: Device) -> TextRunner:
    """Loads the pipeline in FP32, as it is by default; texts go in as they come, in batches of a size."""
    import torch
    from transformers import pipeline

    torch.set_num_threads(device.threads)
    network = model.load_torch()
    network.config.id2label = {i: str(i) for i in range(network.config.num_labels)}  # names need not be unique
    place = -1 if device.gpu is None else device.gpu
    model.tokenizer.padding_side = model.padding_side
    pipe = pipeline("text-classification", model=network, tokenizer=model.tokenizer, device=place)
    options = {"top_k": None, "function_to_apply": "none", "truncation": True}

    def classify(texts: list[str], batch_size: int, max_length: int, on_progress) -> np.ndarray:
        logits = np.empty((len(texts), network.config.num_labels), dtype=np.float32)
        batch_size = batch_size if model.pads else 1
        step = -(-N_AT_ONCE // batch_size) * batch_size
        for start in range(0, len(texts), step):
            scores = pipe(texts[start : start + step], batch_size=batch_size, max_length=max_length, **options)
            for i, labels in enumerate(scores, start):
                for label in labels:
                    logits[i, int(label["label"])] = label["score"]
            on_progress(min(start + step, len(texts)))
        return logits

    return TextRunner(classify)


VARIANTS = {"pipeline": Variant(load, "fp32", ("transformers",), default_on=(), takes_texts=True)}
