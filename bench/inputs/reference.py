"""The reference: the original model in eager FP32 PyTorch, called as transformers documents it."""

import inspect
import json
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from bench.inputs.model import Model
from bench.machine import cpu_cores
from bench.parity import probabilities
from bench.processes import heartbeat

N_PADDED_TEXTS = 5  # that show what padding does: enough for several lengths, and quick
PADDING_TOLERANCE = 1e-3  # of a probability: more than rounding


@dataclass(frozen=True)
class Reference:
    """A model's original weights as a torch `network` in IEEE FP32, without TF32, on a torch `device`."""

    model: Model
    network: object
    device: object

    @classmethod
    def load(cls, model: Model, gpu: int | None = None, threads: int | None = None) -> "Reference":
        """Loads the model on a GPU, or with None on the CPU with so many threads (default: all cores).

        Raises UserError, see Model.load_torch.
        """
        import torch

        torch.set_num_threads(threads or cpu_cores())
        torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
        device = torch.device("cpu" if gpu is None else f"cuda:{gpu}")
        return cls(model, model.load_torch().to(device), device)

    def of_texts(self, texts: list[str]) -> np.ndarray:
        """Returns the probabilities [texts, labels] of each text alone: `model(**tokenizer(text, truncation=True))`.

        It shares neither tokenizing nor padding with what is compared with it.
        """
        accepted = inspect.signature(self.network.forward).parameters
        options = {"truncation": True, "max_length": self.model.max_length, "return_tensors": "pt"}
        rows = []
        for text in texts:
            inputs = self.model.tokenizer(text, **options)
            rows.append(self.run({name: tensor for name, tensor in inputs.items() if name in accepted}))
            heartbeat(len(rows))
        return np.concatenate(rows)

    def of_file(self, file: Path) -> tuple[np.ndarray, float]:
        """Returns (what of_texts() gives for the texts in a JSON file, the seconds that it took)."""
        texts, start = json.loads(file.read_text(encoding="utf-8")), time.monotonic()
        return self.of_texts(texts), time.monotonic() - start

    def of_batch(self, inputs: dict[str, np.ndarray]) -> np.ndarray:
        """Returns the probabilities [texts, labels] of a padded batch."""
        import torch

        return self.run({name: torch.from_numpy(array) for name, array in inputs.items()})

    def run(self, inputs: dict) -> np.ndarray:
        import torch

        with torch.inference_mode():
            inputs = {name: tensor.to(self.device) for name, tensor in inputs.items()}
            logits = self.network(**inputs, return_dict=True).logits
        return probabilities(logits.float().cpu().numpy(), self.model.problem_type)

    def padding_effect(self, texts: list[str], max_length: int | None = None) -> float:
        """Returns how far any probability of a padded batch of texts is from that of its text alone.

        0 where nothing is padded.
        """
        if not self.model.pads:
            return 0.0
        rows, pad = self.model.tokenize(texts, max_length), self.model.pad
        alone = [pad({name: values[i : i + 1] for name, values in rows.items()}) for i in range(len(texts))]
        return float(np.abs(self.of_batch(pad(rows)) - np.concatenate(list(map(self.of_batch, alone)))).max())


def padding_note(model: Model, effect: float) -> str:
    """Says that padding changes a model's answers; nothing where it doesn't."""
    if not model.pads:
        return f"padding changes the answers of a {model.model_type}: only texts of one length share a batch"
    if effect <= PADDING_TOLERANCE:
        return ""
    words = f"padding changes the answers of this {model.model_type}, by up to {effect:.2g}"
    return f"{words} on {N_PADDED_TEXTS} texts: pad little"
