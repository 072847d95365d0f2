"""Tiny classifiers of random weights, saved with tokenizers that are made from a few texts."""

from pathlib import Path

from bench.texts import train_tokenizer

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
    train_tokenizer(texts).save_model(str(folder))
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
