"""A tiny classifier made here, so that no test needs a network, a GPU or more than seconds."""

import os
import sys
import tempfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

cache = tempfile.TemporaryDirectory(prefix="benchmark-cache-")
os.environ["BENCHMARK_CACHE"] = cache.name  # for the scripts that the tests run, too

import utils  # noqa: E402
import variants  # noqa: E402


@pytest.fixture(scope="session")
def texts() -> list[str]:
    return utils.load_dataset("normal", limit=300).texts


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory, texts) -> Path:
    """The folder of a RoBERTa classifier of 2 layers and 5 labels (multi-label) that takes 128 tokens."""
    return make_tiny_roberta(tmp_path_factory.mktemp("models") / "tiny", texts)


@pytest.fixture(scope="session")
def tiny_exports(tmp_path_factory, tiny_model) -> Path:
    """A working directory with the tiny model's exports, where the benchmark finds them."""
    folder = tmp_path_factory.mktemp("exports")
    for precision, suffix in variants.EXPORT_SUFFIX.items():
        (folder / f"tiny{suffix}").mkdir()
        variants.export(tiny_model, folder / f"tiny{suffix}", precision)
    return folder


def make_tiny_roberta(folder: Path, texts: list[str], **config) -> Path:
    import torch
    from transformers import RobertaConfig, RobertaForSequenceClassification, RobertaTokenizerFast

    folder.mkdir()
    utils.train_tokenizer(texts).save_model(str(folder))
    tokenizer = RobertaTokenizerFast.from_pretrained(folder, add_prefix_space=True, model_max_length=512)
    tokenizer.save_pretrained(folder)
    torch.manual_seed(0)
    settings = {
        "vocab_size": len(tokenizer),
        "hidden_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "intermediate_size": 64,
        "max_position_embeddings": 130,
        "type_vocab_size": 1,
        "num_labels": 5,
        "problem_type": "multi_label_classification",
        "initializer_range": 0.2,
    }
    RobertaForSequenceClassification(RobertaConfig(**settings | config)).save_pretrained(folder)
    return folder


def pytest_collection_modifyitems(config, items):
    """Tests marked `gpu` are left out where there is no GPU."""
    import torch

    if not torch.cuda.is_available():
        gpu = [item for item in items if item.get_closest_marker("gpu")]
        items[:] = [item for item in items if item not in gpu]
        config.hook.pytest_deselected(items=gpu)
