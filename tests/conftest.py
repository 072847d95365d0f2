"""A tiny classifier made here, so that no test needs a network, a GPU or more than seconds."""

import json
import os
import signal
import sys
import tempfile
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

cache = tempfile.TemporaryDirectory(prefix="benchmark-cache-")
os.environ["BENCHMARK_CACHE"] = cache.name  # for the scripts that the tests run, too
signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell ignores it in what it runs in the background
os.environ["HF_HUB_DISABLE_XET"] = "1"  # the fake Hub speaks the plain protocol

import run_benchmark  # noqa: E402
import utils  # noqa: E402
import variants  # noqa: E402

# peaks as if they had been measured in this hour and in the next, which takes seconds
device = f"{utils.slug(utils.cpu_name())}, torch {utils.versions()['torch']}"
hours = [datetime.now(UTC) + timedelta(hours=hours) for hours in (0, 1)]
peaks = {f"{hour:%Y-%m-%dT%H}, {device}, {name}": 1e12 for hour in hours for name in ("fp32", "bf16", "fp16", "int8")}
(Path(cache.name) / "peaks.json").write_text(json.dumps(peaks))


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


SIZES = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 64}
MULTI_LABEL = {"num_labels": 5, "problem_type": "multi_label_classification", "initializer_range": 0.2}


def make_tiny(folder: Path, tokenizer, config) -> Path:
    """A classifier of random weights, saved with its tokenizer."""
    import torch
    from transformers import AutoModelForSequenceClassification

    torch.manual_seed(0)
    AutoModelForSequenceClassification.from_config(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def make_tiny_roberta(folder: Path, texts: list[str], **options) -> Path:
    from transformers import RobertaConfig, RobertaTokenizerFast

    folder.mkdir()
    utils.train_tokenizer(texts).save_model(str(folder))
    tokenizer = RobertaTokenizerFast.from_pretrained(folder, add_prefix_space=True, model_max_length=512)
    positions = {"vocab_size": len(tokenizer), "max_position_embeddings": 130, "type_vocab_size": 1}
    return make_tiny(folder, tokenizer, RobertaConfig(**SIZES | MULTI_LABEL | positions | options))


def word_tokenizer(texts: list[str], folder: Path):
    from transformers import BertTokenizerFast

    words = sorted({word.strip(".,?!").lower() for text in texts for word in text.split()})
    folder.mkdir()
    (folder / "vocab.txt").write_text("\n".join(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *words]))
    return BertTokenizerFast(str(folder / "vocab.txt"), model_max_length=128)


def make_tiny_bert(folder: Path, texts: list[str], **options) -> Path:
    from transformers import BertConfig

    tokenizer = word_tokenizer(texts, folder)
    config = {"vocab_size": len(tokenizer), "max_position_embeddings": 128}
    return make_tiny(folder, tokenizer, BertConfig(**SIZES | MULTI_LABEL | config | options))


def make_tiny_albert(folder: Path, texts: list[str], **options) -> Path:
    """Its layers share their weights."""
    from transformers import AlbertConfig

    tokenizer = word_tokenizer(texts, folder)
    config = {"vocab_size": len(tokenizer), "embedding_size": 16, "max_position_embeddings": 128}
    return make_tiny(folder, tokenizer, AlbertConfig(**SIZES | MULTI_LABEL | config | options))


def make_tiny_distilbert(folder: Path, texts: list[str], **options) -> Path:
    from transformers import DistilBertConfig

    tokenizer = word_tokenizer(texts, folder)
    config = {"vocab_size": len(tokenizer), "max_position_embeddings": 128, "dim": 32, "hidden_dim": 64}
    return make_tiny(folder, tokenizer, DistilBertConfig(n_layers=2, n_heads=4, **MULTI_LABEL | config | options))


def make_tiny_xlm_roberta(folder: Path, texts: list[str], **options) -> Path:
    """With a SentencePiece model alone, without the file of a fast tokenizer, as some on the Hub."""
    import sentencepiece
    from transformers import XLMRobertaConfig, XLMRobertaTokenizer

    folder.mkdir()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(texts), model_prefix=str(folder / "sentencepiece.bpe"), vocab_size=500, minloglevel=2
    )
    (folder / "sentencepiece.bpe.vocab").unlink()
    tokenizer = XLMRobertaTokenizer(str(folder / "sentencepiece.bpe.model"), model_max_length=128)
    config = {"vocab_size": len(tokenizer), "max_position_embeddings": 130, "type_vocab_size": 1}
    return make_tiny(folder, tokenizer, XLMRobertaConfig(**SIZES | MULTI_LABEL | config | options))


def real_sweep(model: Path, texts: list[str]) -> run_benchmark.Sweep:
    """Of 60 texts in one thread, without a time limit, still without sources."""
    place = variants.Place(gpu=None, threads=1)
    ready = run_benchmark.prepare_inputs(model, texts[:60], place)
    inputs = run_benchmark.Inputs(*(ready[key] for key in ("token_ids", "lengths", "pad_id", "checked", "limit")))
    known = (inputs, float(ready["flops"]), ready["reference"], ready["problem"])
    return run_benchmark.Sweep(model, texts[:60], *known, {}, place, {"fp32": 1e12}, 0)


def pytest_collection_modifyitems(config, items):
    """Tests marked `gpu` are left out where there is no GPU."""
    import torch

    if not torch.cuda.is_available():
        gpu = [item for item in items if item.get_closest_marker("gpu")]
        items[:] = [item for item in items if item not in gpu]
        config.hook.pytest_deselected(items=gpu)
