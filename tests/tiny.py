"""Tiny classifiers with random weights, saved with tokenizers made from a few texts."""

import json
from pathlib import Path

from bench.model.random_model import train_tokenizer
from bench.model.task import Task

SIZES = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 64}

STRANGE = [
    'quotes "", commas,\nand\r\nlines',
    "😀 " * 20,
    "NUL \0 inside",
    "\0",
    "\u200b",
    "<s> <mask> </s> <pad>",
    "\ufffd\uffff\U0010ffff",
    "text without end " * 600_000,  # 10 MB
]
MULTI_LABEL = {"num_labels": 5, "problem_type": "multi_label_classification", "initializer_range": 0.2}


def make_report() -> dict:
    """Return a report on an invented export."""
    figures = dict.fromkeys(("mean", "std", "min", "p25", "median", "p75", "p90", "p95", "p99", "max"), 0.0)
    report = {"model": "ann/tiny", "repo": "ann/tiny-onnx", "precision": "fp32", "texts": 1}
    report |= {"card": {"activation": "logits", "output_word": "value"}, "task": "text-classification"}
    report |= {"batches": "1 sorted", "batches_matter": False, "max_length": 9, "opset": 17}
    report |= {"labels": ["x"], "thresholds": [0.5], "task_options": {"task": None}, "script": Task.script}
    report |= {"largest_difference": figures, "speed": {"original": 1.0, "export": 1.0}, "worst": [], "findings": []}
    report |= dict.fromkeys(("dataset", "column", "machine", "verdict", "reason", "provider"), "x")
    report |= dict.fromkeys(("mean_over_labels", "flips", "tolerance"), 0.0) | {"non_finite_texts": 0}
    return report | {"changed": 0, "decisions": 1, "decision_words": "x", "gold": {}, "threshold": "", "weak_test": ""}


def make_tiny(folder: Path, tokenizer, config) -> Path:
    """Save a classifier with random weights, and its tokenizer."""
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


def make_tiny_encoder(folder: Path, texts: list[str]) -> Path:
    """A BERT of 2 layers and 32 dimensions without a head, which takes 128 tokens and tells upper from lower case."""
    import torch
    from transformers import BertConfig, BertModel, BertTokenizerFast

    words = sorted({word.strip(".,?!") for text in texts for word in text.split()})
    folder.mkdir()
    (folder / "vocab.txt").write_text("\n".join(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *words]))
    tokenizer = BertTokenizerFast(str(folder / "vocab.txt"), model_max_length=128, do_lower_case=False)
    torch.manual_seed(0)
    config = BertConfig(**SIZES, vocab_size=len(tokenizer), max_position_embeddings=128, initializer_range=0.2)
    BertModel(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def make_sentence_model(folder: Path, encoder: Path, head: list, **options) -> Path:
    """Save a sentence-transformers model of an encoder and further modules, as sentence-transformers does."""
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.sentence_transformer.modules import Transformer

    SentenceTransformer(modules=[Transformer(str(encoder)), *head], device="cpu", **options).save(str(folder))
    return folder


def make_tiny_albert(folder: Path, texts: list[str], **options) -> Path:
    """The layers of an ALBERT share their weights."""
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
    """The folder has a SentencePiece model but no file of a fast tokenizer, like some models on the Hub."""
    import sentencepiece
    from transformers import AutoTokenizer, XLMRobertaConfig

    folder.mkdir()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(texts), model_prefix=str(folder / "sentencepiece.bpe"), vocab_size=500, minloglevel=2
    )
    (folder / "sentencepiece.bpe.vocab").unlink()
    tokenizer_config = {"tokenizer_class": "XLMRobertaTokenizer", "model_max_length": 128}
    (folder / "tokenizer_config.json").write_text(json.dumps(tokenizer_config))
    tokenizer = AutoTokenizer.from_pretrained(folder, use_fast=False)
    config = {"vocab_size": len(tokenizer), "max_position_embeddings": 130, "type_vocab_size": 1}
    return make_tiny(folder, tokenizer, XLMRobertaConfig(**SIZES | MULTI_LABEL | config | options))


def with_a_wrong_head(export):
    """Wrap an export function so that its file has the classifier's weights negated."""

    def wrong(model, target, *arguments, **options):
        import onnx
        from onnx import numpy_helper

        made = export(model, target, *arguments, **options)
        graph = onnx.load(target / "model.onnx")
        [head] = [weight for weight in graph.graph.initializer if weight.name.endswith("classifier.out_proj.weight")]
        head.CopyFrom(numpy_helper.from_array(-numpy_helper.to_array(head), head.name))
        onnx.save(graph, target / "model.onnx")
        return made

    return wrong


# the names of sizes in the configs of all types
SMALL = {
    **dict.fromkeys(("vocab_size", "n_words"), 200),
    **dict.fromkeys(("hidden_size", "d_model", "n_embd", "emb_dim", "dim", "embed_dim"), 32),
    **dict.fromkeys(("num_hidden_layers", "encoder_layers", "decoder_layers", "n_layer", "n_layers", "num_layers"), 2),
    **dict.fromkeys(
        ("num_attention_heads", "encoder_attention_heads", "decoder_attention_heads", "n_head", "n_heads"), 4
    ),
    **dict.fromkeys(("intermediate_size", "encoder_ffn_dim", "decoder_ffn_dim", "hidden_dim", "d_inner", "d_ff"), 36),
    **dict.fromkeys(("max_position_embeddings", "n_positions", "n_ctx"), 64),
    **{
        "n_head": 4,
        "n_heads": 4,
        "num_heads": 4,
        "num_experts": 4,
        "num_experts_per_tok": 2,
        "num_local_experts": 4,
        "num_key_value_heads": 2,
        "head_dim": 8,
        "d_head": 8,
        "d_kv": 8,
        "embedding_size": 16,
    },
    **{"rotary_dim": 4, "initializer_range": 0.3, "init_std": 0.3, "initializer_factor": 3.0},
}
TOKENS = {"bos_token_id": 0, "pad_token_id": 1, "eos_token_id": 2, "cls_token_id": 0, "sep_token_id": 2}
TOKENS |= {"decoder_start_token_id": 2}
# other fields that some types need
SPECIAL = {
    "squeezebert": {"embedding_size": 32},
    "gpt_neo": {"attention_types": [[["global", "local"], 1]]},
    "funnel": {"block_sizes": [1, 1], "num_decoder_layers": 0},
    "layoutlmv3": {"coordinate_size": 5, "shape_size": 6, "input_size": 32, "patch_size": 16},
    "lilt": {"hidden_size": 24},
    "longformer": {"attention_window": 8},
    "deepseek_v2": {"n_group": 1, "topk_group": 1, "first_k_dense_replace": 9},
    "reformer": {"axial_pos_embds_dim": (16, 16), "axial_pos_shape": (8, 8), "attn_layers": ["local", "local"]},
    "luke": {"entity_vocab_size": 10},
    "perceiver": {"d_latents": 32, "num_latents": 8, "num_self_attends_per_block": 2},
    "xmod": {"languages": ["en_XX"], "default_language": "en_XX"},
    "xlm": {"use_lang_emb": False},
    "mobilebert": {"initializer_range": 0.15},  # without layer norm, larger weights overflow FP16
}


def tiny_config(kind: str):
    """Return a config of the type with small sizes and three labels."""
    from transformers import CONFIG_MAPPING

    config = CONFIG_MAPPING[kind]
    default = config()
    names = {*default.to_dict(), *default.attribute_map}
    aliases = {alias for alias, name in default.attribute_map.items() if alias != name}
    sizes = {name: size for name, size in SMALL.items() if name in names - aliases}
    return config(**sizes | TOKENS | {"num_labels": 3} | SPECIAL.get(kind, {}))


def word_level_tokenizer(kind: str):
    """Return a fast tokenizer of 200 tokens with the inputs and the padding side of the type's own tokenizer."""
    import transformers
    from tokenizers import Tokenizer, models, pre_tokenizers, processors
    from transformers.models.auto.tokenization_auto import TOKENIZER_MAPPING_NAMES

    vocabulary = {token: i for i, token in enumerate(["<s>", "<pad>", "</s>", "<unk>", *(f"w{i}" for i in range(196))])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    single, pair = "<s>:0 $A:0 </s>:0", "<s>:0 $A:0 </s>:0 $B:1 </s>:1"
    if kind == "xlnet":
        single, pair = "$A:0 </s>:0 <s>:2", "$A:0 </s>:0 $B:1 </s>:1 <s>:2"
    special = [("<s>", 0), ("</s>", 2)]
    tokenizer.post_processor = processors.TemplateProcessing(single=single, pair=pair, special_tokens=special)
    names = TOKENIZER_MAPPING_NAMES.get(kind, ())  # a tuple in transformers 4, one name in 5
    name = next((name for name in ([names] if isinstance(names, str) else names) if name), "PreTrainedTokenizerFast")
    original = getattr(transformers, name)
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        model_input_names=[name for name in original.model_input_names if name != "bbox"],
        padding_side=original.padding_side,
        pad_token_type_id=3 if kind == "xlnet" else 0,
        model_max_length=60,
        **{"bos_token": "<s>", "eos_token": "</s>", "pad_token": "<pad>", "unk_token": "<unk>"},
    )
