"""transformers' own text-classification pipeline: what most people use, timed from the texts alone."""

from pathlib import Path

import numpy as np

from runtimes.pytorch import load_model
from runtimes.runner import Place, Runner, Variant

AT_ONCE = 256  # texts that are given to it, at least: then it gives a sign of life


def load(folder: Path, place: Place) -> Runner:
    """Loads the pipeline in FP32, as it is by default; texts go in as they come, in batches of a size."""
    import torch
    from transformers import AutoTokenizer, pipeline

    torch.set_num_threads(place.threads)
    model = load_model(folder)
    model.config.id2label = {i: str(i) for i in range(model.config.num_labels)}  # names need not be unique
    tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
    device = -1 if place.gpu is None else place.gpu
    pipe = pipeline("text-classification", model=model, tokenizer=tokenizer, device=device)
    options = {"top_k": None, "function_to_apply": "none", "truncation": True}

    def answer(texts: list[str], size: int, limit: int, beat) -> np.ndarray:
        """Returns the logits, float32 [texts, labels]."""
        logits = np.empty((len(texts), model.config.num_labels), dtype=np.float32)
        step = -(-AT_ONCE // size) * size
        for start in range(0, len(texts), step):
            scores = pipe(texts[start : start + step], batch_size=size, max_length=limit, **options)
            for i, labels in enumerate(scores, start):
                for label in labels:
                    logits[i, int(label["label"])] = label["score"]
            beat(start)
        return logits

    return Runner(*[None] * 5, answer=answer)


VARIANTS = {"pipeline": Variant(load, "fp32", ("transformers",), all_on=(), whole_texts=True)}
