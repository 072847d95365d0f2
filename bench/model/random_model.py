"""random-roberta-base: a model that needs no network, built on this machine."""

from pathlib import Path

from bench.files import make_once
from bench.processes import run_in_subprocess
from bench.provenance import versions
from bench.tables.datasets import bundled_texts
from utils import CACHE, say

RANDOM_MODEL = "random-roberta-base"
SPECIAL_TOKENS = ["<s>", "<pad>", "</s>", "<unk>", "<mask>"]  # RoBERTa's, in RoBERTa's order


def random_roberta_base() -> Path:
    """Return the folder of `random-roberta-base`, building it if needed.

    It has RoBERTa-base's architecture with seeded random weights, and a byte-level BPE tokenizer trained on the bundled
    texts. Speed doesn't depend on the weights. They are spread so that parity means something: probabilities vary from
    text to text (the attention's value path is 3 times its usual width), and about 1 label in 100 is above 0.5, as in
    a trained classifier of 28 emotions (the head is 8 times as wide, around -4).
    """
    [version] = versions("transformers").values()  # an older version can't read everything that a newer one saves
    folder = CACHE / f"transformers-{version}" / RANDOM_MODEL
    if not folder.exists():
        say(f"building {RANDOM_MODEL} in {folder}")
    make_once(folder, lambda temporary: run_in_subprocess(build_random_roberta_base, temporary))
    return folder


def build_random_roberta_base(folder: Path) -> None:
    import torch
    from transformers import RobertaConfig, RobertaForSequenceClassification, RobertaTokenizerFast

    tokenizer = train_tokenizer([*bundled_texts("normal"), *bundled_texts("filtered")])
    torch.manual_seed(0)
    config = RobertaConfig(
        vocab_size=tokenizer.get_vocab_size(),
        max_position_embeddings=514,
        type_vocab_size=1,
        layer_norm_eps=1e-5,
        num_labels=28,
        problem_type="multi_label_classification",
    )
    model = RobertaForSequenceClassification(config)
    with torch.no_grad():
        for layer in model.roberta.encoder.layer:
            layer.attention.self.value.weight *= 3
            layer.attention.output.dense.weight *= 3
        model.classifier.out_proj.weight *= 8
        model.classifier.out_proj.bias -= 4
    model.save_pretrained(folder)
    tokenizer.save_model(str(folder))
    RobertaTokenizerFast.from_pretrained(folder, add_prefix_space=True, model_max_length=512).save_pretrained(folder)


def train_tokenizer(texts: list[str]):
    """Train a byte-level BPE of at most 30,000 tokens: a `tokenizers.ByteLevelBPETokenizer`."""
    from tokenizers import ByteLevelBPETokenizer

    tokenizer = ByteLevelBPETokenizer(add_prefix_space=True)
    tokenizer.train_from_iterator(
        texts, vocab_size=30_000, min_frequency=2, special_tokens=SPECIAL_TOKENS, show_progress=False
    )
    return tokenizer
