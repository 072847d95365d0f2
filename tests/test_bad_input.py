"""Attacks on the scripts: options, datasets, models and results that are not what they should be."""

import contextlib
import gzip
import io
import json
import pickle
import runpy
import shutil
import struct
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from conftest import make_tiny_bert, make_tiny_xlm_roberta, real_sweep

import export_onnx
import plot_results
import run_benchmark
import utils
import variants
from utils import UserError

CPU = variants.Place(gpu=None, threads=1)


@pytest.fixture
def call(monkeypatch, tmp_path, capsys):
    """Runs a script in this process and an empty folder: its exit code, standard output and standard error."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(variants, "in_fresh_process", lambda function, *arguments: function(*arguments))

    def call(script, *arguments) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", [f"{script.__name__}.py", *map(str, arguments)])
        with pytest.raises(SystemExit) as stopped:
            utils.run(script.main)
        return stopped.value.code, *capsys.readouterr()

    return call


def refused(function, *arguments) -> str:
    """The one line of the UserError that function(*arguments) raises."""
    with pytest.raises(UserError) as caught:
        function(*arguments)
    assert "\n" not in str(caught.value) and caught.value.code == 2
    return str(caught.value)


# ----------------------------------------------------------------------------------------------------------- options

NO_NUMBERS = ("-1", "abc", "1e9", "", " ", "1,,2", "1.5", "nan", "inf", "0x10", "1_000")
BENCHMARK = ["--model", "torch", "--device", "cpu", "--limit", "10", "--dry-run"]
EXPORT = ["nowhere/at/all", "--no-upload", "--device", "cpu"]
NUMERIC = [
    *((run_benchmark, BENCHMARK, option, ("0", *NO_NUMBERS)) for option in ("--batches", "--limit")),
    *((run_benchmark, BENCHMARK, option, ("0", "1000000000", *NO_NUMBERS)) for option in ("--workers", "--threads")),
    (run_benchmark, BENCHMARK, "--gpu", NO_NUMBERS),
    (run_benchmark, BENCHMARK, "--min-time", ("-1", "abc", "1e9", "", "1,,2", "nan", "inf")),
    *((export_onnx, EXPORT, option, ("0", *NO_NUMBERS)) for option in ("--batch-size", "--limit")),
    (export_onnx, EXPORT, "--threads", ("0", "1000000000", *NO_NUMBERS)),
    (export_onnx, EXPORT, "--gpu", NO_NUMBERS),
    (export_onnx, EXPORT, "--tolerance", ("-1", "abc", "1e9", "", "1,,2", "nan", "inf")),
    (plot_results, [], "--figsize", ("0", "-1", "abc", "1e9", "", "8,,8", "8,1e9", "8,nan", "0,0")),
]


@pytest.mark.parametrize(("script", "options", "option", "values"), NUMERIC)
def test_what_can_be_no_number_of_an_option_is_one_line(script, options, option, values, call):
    for value in values:
        code, out, err = call(script, *options, f"{option}={value}")
        assert (code, out, err.count("\n")) == (2, "", 1), value
        assert err.startswith(f"{script.__name__}.py: argument {option}: ")


@pytest.mark.parametrize("many", ["1000000000", "11"])
def test_sizes_above_the_number_of_messages_are_left_out_and_named(many, call):
    code, out, err = call(run_benchmark, *BENCHMARK, "--order", "length", "--batches", f"8,{many},10")
    assert (code, out) == (0, "torch\t1\t8\tlength\ntorch\t1\t10\tlength\n")
    assert f"note       sizes {many} are left out: there are only 10 messages\n" in err
    code, out, err = call(run_benchmark, *BENCHMARK, "--batches", many)
    assert (code, out) == (2, "")
    assert err.endswith(f"run_benchmark.py: --batches {many}: there are only 10 messages\n")


def test_a_check_in_larger_batches_than_there_are_texts_is_refused(call, tiny_model):
    code, _, err = call(export_onnx, tiny_model, "--no-upload", "--limit", 10, "--batch-size", "1000000000")
    assert code == 2 and err.endswith("export_onnx.py: --batch-size 1000000000: there are only 10 texts\n")


def test_values_given_twice_count_once(call):
    lists = ["--batches", "8,8,4,8", "--model", "onnx,torch,onnx", "--order", "length,length", "--workers", "2,2"]
    _, out, _ = call(run_benchmark, *BENCHMARK, *lists)
    assert out.splitlines() == [
        "onnx\t2\t8\tlength",
        "onnx\t2\t4\tlength",
        "torch\t2\t8\tlength",
        "torch\t2\t4\tlength",
    ]
    assert plot_results.formats("png,svg,png") == ["png", "svg"]


@pytest.mark.parametrize("script", [run_benchmark, export_onnx, plot_results])
@pytest.mark.parametrize("argument", ["two\nlines", "no UTF-8: \udcff", "NUL: \0", "\x1b[31m"])
def test_an_argument_that_no_row_card_or_line_can_hold_is_refused(script, argument, call):
    code, out, err = call(script, argument)
    assert (code, out, err.count("\n")) == (2, "", 1)
    assert "a line break, a control character or bytes that are no UTF-8" in err


def test_a_terminal_that_can_not_show_a_text_does_not_end_the_script(monkeypatch):
    screen = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(screen, encoding="ascii"))
    monkeypatch.setattr(sys, "argv", ["script.py"])
    with pytest.raises(SystemExit) as stopped:
        utils.run(lambda: print("…😀") or 0)
    sys.stdout.flush()
    assert (stopped.value.code, screen.getvalue()) == (0, b"\\u2026\\U0001f600\n")


@pytest.mark.parametrize(
    ("script", "arguments", "message"),
    [
        (run_benchmark, [*BENCHMARK, "--dataset", "folder"], "no dataset file folder"),
        (run_benchmark, [*BENCHMARK, "--dataset", "x" * 300], "no dataset file xxx"),
        (run_benchmark, [*BENCHMARK[:-1], "--model-id", "file"], "no model folder file"),
        (run_benchmark, [*BENCHMARK[:-1], "--model-id", "folder"], "folder is not a model's folder"),
        (run_benchmark, [*BENCHMARK[:-1], "--model-id", ""], ". is not a model's folder"),
        (run_benchmark, [*BENCHMARK[:-1], "--results-dir", "file"], "nothing can be saved in file"),
        (run_benchmark, [*BENCHMARK[:-1], "--model-id", "a/taken"], "nothing can be saved in results/taken"),
        (run_benchmark, [*BENCHMARK[:-1], "--model-id", "a/model"], "can't be read: Is a directory"),
        (run_benchmark, [*BENCHMARK, "--resume", "--model-id", "a/model"], "can't be read: Is a directory"),
        (export_onnx, ["file", "--no-upload"], "no model folder file"),
        (export_onnx, ["MODEL", "--no-upload", "--dataset", "folder"], "no dataset file folder"),
        (export_onnx, ["MODEL", "--no-upload", "--save-dir", "file"], "file exists"),
        (export_onnx, ["MODEL", "--no-upload", "--save-dir", "file", "--overwrite"], "file exists"),
        (export_onnx, ["MODEL", "--no-upload", "--save-dir", "file/in"], "nothing can be saved in"),
        (plot_results, ["--results-dir", "file"], "no results in file"),
        (plot_results, ["--results-dir", "folder"], "no results in folder"),
    ],
)
def test_a_folder_where_a_file_is_expected_and_the_reverse(script, arguments, message, call, tiny_model):
    Path("folder").mkdir()
    Path("file").touch()
    Path("results").mkdir()
    Path("results/taken").touch()
    machine = utils.slug(utils.cpu_name())
    Path(f"results/model/{machine}_torch_synthetic-normal.tsv").mkdir(parents=True)
    Path(f"results/model/{machine}_torch_normal.tsv").mkdir(parents=True)
    code, out, err = call(script, *(str(tiny_model) if word == "MODEL" else word for word in arguments))
    assert (code, out) == (2, "")
    assert err.splitlines()[-1].startswith(f"{script.__name__}.py: ") and message in err.splitlines()[-1]


# ---------------------------------------------------------------------------------------------------------- datasets

PACKED = gzip.compress(b"id,body\n" + b"".join(b"%d,word %d\n" % (i, i * 7919) for i in range(9999)), mtime=0)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.csv", b"", "can't be read"),
        ("a.csv", b"id,body", "has no text in column 'body'"),
        ("a.csv", b'id,body\n1," \t"\n2,"\n\n"\n3,\xc2\xa0\n', "has no text in column 'body'"),
        ("a.csv", b"id;body\n1;x\n", "has no column 'body'; its columns: id;body"),
        ("a.csv", b"body\ncaf\xe9\n", "can't be read: 'utf-8' codec"),
        ("a.csv", b"body\n\xed\xa0\xbd half a pair\n", "can't be read: 'utf-8' codec"),
        ("a.csv", "body\nx\n".encode("utf-16"), "can't be read: 'utf-8' codec"),
        ("a.csv", b'body\n"never closed\nx\n', "can't be read"),
        ("a.csv", b"id,body\n1,fine\n2,a comma, not quoted\n", "Expected 2 fields in line 3, saw 3"),
        ("a.csv", b"id,body\n1,always,one\n2,field,more\n", "its rows have more fields than its header"),
        ("a.csv", PACKED, "can't be read"),
        ("a.csv.gz", b"body\nnot packed\n", "can't be read"),
        ("a.csv.gz", PACKED[:5], "can't be read"),
        ("a.csv.gz", PACKED[: len(PACKED) // 2], "can't be read"),
        ("a.csv.gz", PACKED[:3000] + b"\0\1\2\3" + PACKED[3004:], "can't be read"),
        ("a.csv.gz", PACKED[:-8] + bytes(4) + PACKED[-4:], "can't be read"),
        ("a.csv.gz", PACKED + b"something", "can't be read"),
        ("a.csv.xz", b"something", "can't be read"),
        ("a.csv.zst", b"something", "can't be read"),
        ("a.csv.zip", b"something", "can't be read"),
        ("a.parquet", b"", "can't be read"),
        ("a.parquet", b"PAR1" + bytes(20) + b"PAR1", "can't be read"),
    ],
)
def test_a_bad_file_is_one_line(name, content, message, tmp_path):
    (tmp_path / name).write_bytes(content)
    assert message in refused(utils.load_dataset, str(tmp_path / name))


def test_a_parquet_file_without_text_or_with_broken_text_is_one_line(tmp_path):
    import pyarrow
    from pyarrow import parquet

    file = tmp_path / "a.parquet"
    for values, message in (([1, 2], "no text"), ([b"a"], "no text"), ([["a"]], "no text"), ([None], "no text")):
        pd.DataFrame({"body": values}).to_parquet(file)
        assert message in refused(utils.load_dataset, str(file))
    offsets, content = pyarrow.py_buffer(struct.pack("<iii", 0, 2, 6)), pyarrow.py_buffer(b"ab\xff\xfecd")
    parquet.write_table(pyarrow.table({"body": pyarrow.StringArray.from_buffers(2, offsets, content)}), file)
    assert "can't be read" in refused(utils.load_dataset, str(file))


def test_names_in_any_script_stay_apart():
    assert utils.slug("Комментарии_2024 (1)") == "Комментарии-2024-1"
    assert utils.slug("評論") != utils.slug("レビュー")


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


@pytest.fixture(scope="module")
def strange(tmp_path_factory) -> Path:
    """A dataset of strange texts, and of rows that have none."""
    file = tmp_path_factory.mktemp("strange") / "strange.csv.gz"
    pd.DataFrame({"body": [*STRANGE, None, "", " \n\t "]}).to_csv(file, index=False, quoting=1)
    return file


def test_strange_texts_come_back_as_they_were_written(strange):
    dataset = utils.load_dataset(str(strange))
    assert dataset.texts == STRANGE
    assert dataset.notes == ["dataset strange: 3 of 11 rows have no text and are left out"]


def test_strange_texts_are_measured(tiny_model):
    sweep = real_sweep(tiny_model, STRANGE)
    inputs = sweep.inputs
    assert inputs.lengths.min() >= 3 and inputs.lengths.max() == 128
    steps = run_benchmark.Steps(variants.load("torch", tiny_model, CPU), CPU, inputs)
    steps.prepare(utils.make_batches(inputs.lengths, 3, "length"))
    steps.run()
    max_diff, flips = run_benchmark.parity(sweep, steps.report()["kept"])
    assert max_diff < 1e-5 and flips == 0


def test_strange_texts_are_exported_and_shown(strange, tiny_model, call):
    options = ["--no-upload", "--device", "cpu", "--dataset", strange, "--tolerance", 1, "--precision", "fp32"]
    code, out, err = call(export_onnx, tiny_model, *options)
    assert code == 0 and out.endswith("tiny-onnx: good\n")
    assert "3 of 11 rows have no text" in err
    report = json.loads(Path("tiny-onnx/parity.json").read_text())
    assert report["messages"] == len(STRANGE) and report["non_finite_texts"] == 0
    assert max(len(text["excerpt"]) for text in report["worst"]) <= export_onnx.EXCERPT + 1


@pytest.mark.parametrize("script", [run_benchmark, export_onnx])
def test_one_text_is_enough(script, tiny_model, call, monkeypatch):
    Path("one.csv").write_text("body\nhello\n")
    options = ["--device", "cpu", "--dataset", "one.csv"]
    if script is export_onnx:
        code, out, _ = call(script, tiny_model, *options, "--no-upload", "--precision", "fp32")
        assert code == 0 and "over 1 texts" in out
    else:
        monkeypatch.setattr(run_benchmark, "run_cells", lambda sweep, cells, rows: ((cell, ROW) for cell in cells))
        code, out, err = call(script, *options, "--model", "torch", "--model-id", tiny_model, "--no-save")
        assert code == 0 and [line.split()[3] for line in out.splitlines()[1:]] == ["1", "1", "1024", "4096", "16384"]
        assert "sizes 2,4,8,16,32 are left out: there are only 1 messages" in err


FIGURES = utils.COLUMNS[utils.COLUMNS.index("messages/s") : utils.COLUMNS.index("status")]
ROW = dict.fromkeys(FIGURES, "1") | {"throttled": "", "status": "ok"}


class Watched:
    """A fast tokenizer that notes the longest text that it is given."""

    is_fast, truncation_side = True, "right"

    def __init__(self, tokenizer):
        self.tokenizer, self.backend_tokenizer, self.longest = tokenizer.backend_tokenizer, self, 0

    def __getattr__(self, name: str):
        return getattr(self.tokenizer, name)

    def encode_batch_fast(self, texts: list[str]):
        self.longest = max(self.longest, *map(len, texts))
        return self.tokenizer.encode_batch_fast(texts)


@pytest.fixture(scope="module")
def tokenizers(tmp_path_factory, tiny_model, texts) -> dict:
    """Byte-level BPE, WordPiece and SentencePiece, all of them fast."""
    folder = tmp_path_factory.mktemp("tokenizers")
    models = [tiny_model, make_tiny_bert(folder / "bert", texts), make_tiny_xlm_roberta(folder / "xlm", texts)]
    return {model.name: utils.load_tokenizer(model) for model in models}


@pytest.mark.parametrize("name", ["tiny", "bert", "xlm"])
def test_only_the_beginning_of_a_long_text_is_tokenized_and_gives_the_same_tokens(name, tokenizers, texts, monkeypatch):
    monkeypatch.setattr(utils, "LONG_TEXT", 8_000)
    letters = "".join(np.random.default_rng(0).choice(list("abcdefghijklmnopqrstuvwxyz"), 20_000))
    long = [" ".join(texts), " ".join(letters[i : i + 5] for i in range(0, 20_000, 5)), "é😀 ß" * 5_000]
    needs_all = [" " * 9_000 + "behind white space", "x" + "\0" * 9_000 + "y"]
    one_word = [letters, "a" * 20_000]  # one token of a WordPiece tokenizer
    (needs_all if name == "bert" else long).extend(one_word)
    watched = Watched(tokenizers[name])
    given = ["short", *long, "short too"]
    ids = utils.tokenize(watched, given, 128)
    assert watched.longest == utils.LONG_TEXT
    mixed = utils.tokenize(watched, [*given, *needs_all], 128)
    monkeypatch.setattr(utils, "LONG_TEXT", 10**9)
    assert ids == utils.tokenize(tokenizers[name], given, 128)
    assert mixed == utils.tokenize(tokenizers[name], [*given, *needs_all], 128)


@pytest.mark.parametrize("name", ["tiny", "bert", "xlm"])
@pytest.mark.parametrize("side", ["right", "left"])
def test_tokens_are_those_of_transformers(name, side, tokenizers, texts, monkeypatch):
    tokenizer = tokenizers[name]
    monkeypatch.setattr(tokenizer, "truncation_side", side)
    tokenizer.backend_tokenizer.enable_padding(length=99)  # as in the files of some tokenizers
    given = [*STRANGE[:-1], *texts]  # the last is of 10 MB
    ids = utils.tokenize(tokenizer, given, 24)
    assert ids == tokenizer(given, truncation=True, max_length=24)["input_ids"]
    assert {len(row) for row in ids} > {23, 24}


# ------------------------------------------------------------------------------------------------------------ models


@pytest.fixture
def model(tiny_model, tmp_path) -> Path:
    """A copy of the tiny model, to be damaged."""
    return shutil.copytree(tiny_model, tmp_path / "model")


def configure(model: Path, **changes) -> None:
    """Changes fields of a model's config; None removes one."""
    config = json.loads((model / "config.json").read_text()) | changes
    config = {key: value for key, value in config.items() if value is not None or key not in changes}
    (model / "config.json").write_text(json.dumps(config))


def unlink(*names: str):
    return lambda model: [(model / name).unlink() for name in names]


def write(name: str, content: bytes):
    return lambda model: (model / name).write_bytes(content)


def cut(name: str, size: int):
    return lambda model: (model / name).write_bytes((model / name).read_bytes()[:size])


def set_config(**changes):
    return lambda model: configure(model, **changes)


def pickled(model: Path) -> None:
    """Its weights as a pickle instead of safetensors."""
    import torch
    from safetensors.torch import load_file

    torch.save(load_file(model / "model.safetensors"), model / "pytorch_model.bin")
    (model / "model.safetensors").unlink()


def without_head(model: Path) -> None:
    from safetensors.torch import load_file, save_file

    weights = load_file(model / "model.safetensors")
    weights = {name: weight for name, weight in weights.items() if not name.startswith("classifier")}
    save_file(weights, model / "model.safetensors", metadata={"format": "pt"})


def all_of(*steps):
    return lambda model: [step(model) for step in steps]


TOKENIZER = ("merges.txt", "vocab.json", "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json")
BROKEN_MODELS = {
    "no tokenizer": (unlink(*TOKENIZER), "has no tokenizer that can be loaded: no tokenizer.json"),
    "tokenizer.json cut": (cut("tokenizer.json", 999), "has no tokenizer that can be loaded: EOF while parsing"),
    "tokenizer.json a list": (write("tokenizer.json", b"[]"), "has no tokenizer that can be loaded"),
    "tokenizer_config cut": (write("tokenizer_config.json", b"{"), "tokenizer_config.json can't be read"),
    "no weights": (unlink("model.safetensors"), "can't be loaded: Error no file named"),
    "weights cut": (cut("model.safetensors", 99_999), "can't be loaded: Error while deserializing header"),
    "weights cut in their header": (cut("model.safetensors", 20), "can't be loaded: Error while deserializing header"),
    "weights empty": (cut("model.safetensors", 0), "can't be loaded: Error while deserializing header"),
    "weights of noise": (write("model.safetensors", b"\1\2\3" * 999), "can't be loaded: Error while deserializing"),
    "pickle cut": (all_of(pickled, cut("pytorch_model.bin", 99_999)), "can't be loaded: Unable to load weights"),
    "pickle empty": (all_of(pickled, cut("pytorch_model.bin", 0)), "can't be loaded: Unable to load weights"),
    "pickle of noise": (all_of(pickled, write("pytorch_model.bin", b"\1" * 999)), "can't be loaded: Unable to load"),
    "another type": (set_config(model_type="bert"), "lacks weights: bert."),
    "more layers": (set_config(num_hidden_layers=3), "lacks weights: roberta.encoder.layer.2."),
    "fewer layers": (set_config(num_hidden_layers=1), "has layers that its config.json doesn't count"),
    "another width": (set_config(hidden_size=64), "can't be loaded: Error(s) in loading state_dict"),
    "more labels": (set_config(id2label={i: "x" for i in range(7)}), "can't be loaded: Error(s) in loading state_dict"),
    "smaller vocabulary": (set_config(vocab_size=100), "the model has 100: they don't belong together"),
    "no heads of attention": (set_config(num_attention_heads=0), "can't be loaded: "),
    "width in words": (set_config(hidden_size="many"), "can't be loaded: "),
    "padding outside": (set_config(pad_token_id=10**6), "can't be loaded: Padding_idx must be within"),
    "a vocabulary that fills the memory": (set_config(vocab_size=10**12), "can't be loaded: "),
    "unknown type of numbers": (set_config(dtype="float12"), "config.json can't be used: "),
    "quantized with what is not installed": (
        set_config(quantization_config={"quant_method": "bitsandbytes", "load_in_8bit": True}),
        "can't be loaded: ",
    ),
    "no head": (without_head, "lacks weights: classifier."),
    "no head, and no word of one": (all_of(without_head, set_config(architectures=None)), "lacks weights: classifier."),
    "another head": (set_config(architectures=["RobertaForMaskedLM"]), "no sequence-classification head, it is a Robe"),
    "heads of numbers": (set_config(architectures=[5]), "no sequence-classification head, it is a 5"),
    "a head that is no list": (set_config(architectures="RobertaForMaskedLM"), "its architectures are not a list"),
    "a number of heads": (set_config(architectures=5), "its architectures are not a list"),
    "no type": (set_config(model_type=None), "config.json has no model_type"),
    "a number as type": (set_config(model_type=5), "config.json has no model_type"),
    "unknown type": (set_config(model_type="newest"), "config.json can't be used: "),
    "a type that is no encoder": (set_config(model_type="t5"), ""),
    "unknown kind of problem": (set_config(problem_type="ranking"), "config.json can't be used: "),
    "labels without numbers": (set_config(id2label={"x": "a"}), "config.json can't be used: "),
    "config empty": (write("config.json", b""), "config.json can't be read"),
    "config cut": (cut("config.json", 99), "config.json can't be read"),
    "config a list": (write("config.json", b"[]"), "config.json can't be read: it holds a list"),
    "config null": (write("config.json", b"null"), "config.json can't be read: it holds a NoneType"),
    "config of noise": (write("config.json", b"\xff\xfe\0"), "config.json can't be read"),
    "config without bottom": (write("config.json", b"[" * 99_999), "config.json can't be read: maximum recursion"),
    "no config": (unlink("config.json"), "is not a model's folder: it has no config.json"),
    "code for the config": (set_config(model_type="mine", auto_map={"AutoConfig": "mine.Config"}), "code of its own"),
    "code for the model": (
        set_config(auto_map={"AutoModelForSequenceClassification": "mine.Model"}),
        "needs code of its own (auto_map in config.json), which is never run here",
    ),
    "code elsewhere": (set_config(auto_map={"AutoConfig": "ann/evil--mine.Config"}), "code of its own"),
    "code for the tokenizer": (
        write("tokenizer_config.json", b'{"auto_map": {"AutoTokenizer": ["mine.Tokenizer", null]}}'),
        "needs code of its own (auto_map in tokenizer_config.json), which is never run here",
    ),
}


@pytest.mark.parametrize("name", BROKEN_MODELS)
def test_a_broken_model_is_refused_in_one_line_by_the_benchmark_and_before_the_export(name, model, texts):
    damage, message = BROKEN_MODELS[name]
    damage(model)
    marker = model / "was run"
    (model / "mine.py").write_text(f"open({str(marker)!r}, 'w')\nclass Config: pass\nclass Model: pass\n")
    assert message in refused(lambda: run_benchmark.prepare_inputs(variants.find_model(str(model)), texts[:3], CPU))
    refused(lambda: variants.check_exportable(variants.find_model(str(model)), "fp32"))
    assert not marker.exists()
    runpy.run_path(str(model / "mine.py"))
    assert marker.exists(), "code that leaves no trace proves nothing"


class Evil:
    def __init__(self, marker: Path):
        self.marker = marker

    def __reduce__(self):
        return open, (str(self.marker), "w")


@pytest.mark.parametrize("form", ["plain", "zip"])
def test_a_pickle_is_never_run(form, model, texts):
    import torch

    marker, file = model / "was run", model / "pytorch_model.bin"
    evil = {"classifier.dense.bias": Evil(marker)}
    file.write_bytes(pickle.dumps(evil, protocol=2)) if form == "plain" else torch.save(evil, file)
    runner = variants.load("torch", model, CPU)  # from the safetensors beside it
    assert runner.forward(runner.prepare(*utils.pad_batch([[0, 5, 2]], 1))).shape == (1, 5)
    (model / "model.safetensors").unlink()
    assert "can't be loaded" in refused(run_benchmark.prepare_inputs, model, texts[:3], CPU)
    assert "can't be loaded" in refused(variants.check_exportable, model, "fp32")
    assert not marker.exists()
    with contextlib.suppress(RuntimeError):  # once it has run what it finds, torch sees that it is none of its files
        torch.load(file, weights_only=False)
    assert marker.exists(), "a pickle that leaves no trace proves nothing"


def test_weights_in_a_pickle_are_loaded_where_there_are_no_others(model, texts):
    pickled(model)
    assert run_benchmark.prepare_inputs(model, texts[:3], CPU)["reference"].shape == (3, 5)


def test_a_tokenizer_of_another_model_is_refused(model, texts, tokenizers):
    last = tokenizers["bert"].convert_ids_to_tokens(len(tokenizers["bert"]) - 1)
    unlink(*TOKENIZER)(model)
    tokenizers["bert"].save_pretrained(model)
    configure(model, vocab_size=3000)
    assert len(tokenizers["bert"]) > 3000
    resize(model, 3000)
    for check in (
        lambda: run_benchmark.prepare_inputs(model, [last], CPU),
        lambda: export_onnx.compare(model, model / "no.onnx", export_onnx.Check([last], 1, "length"), CPU),
    ):
        assert "the model has 3000: they don't belong together" in refused(check)


def resize(model: Path, vocabulary: int) -> None:
    """Cuts a model's embeddings to those of its first tokens."""
    from safetensors.torch import load_file, save_file

    weights = load_file(model / "model.safetensors")
    name = "roberta.embeddings.word_embeddings.weight"
    weights[name] = weights[name][:vocabulary].clone()
    save_file(weights, model / "model.safetensors", metadata={"format": "pt"})


def test_labels_without_names_are_numbered(model, texts, tiny_exports):
    configure(model, id2label={str(i): f"L{i}" for i in (0, 1, 2, 3, 9)})
    check = export_onnx.Check(texts[:3], 1, "length")
    labels = export_onnx.compare(model, tiny_exports / "tiny-onnx" / "model.onnx", check, CPU).labels
    assert labels == ["L0", "L1", "L2", "L3", "LABEL_4"]


CARDS = {
    b"": ["onnx"],
    b"---\ntags: [one, 5, one]\n---\n": ["one", "5", "onnx"],
    b"---\ntags: [\n---\n": ["onnx"],
    b"---\n- a list\n---\n": ["onnx"],
    b"---\nmodel-index: 5\n---\n": ["onnx"],
    b"\xff\xfe": ["onnx"],
    b'---\ntags: !!python/object/apply:os.system ["touch was-run"]\n---\n': ["onnx"],
}


@pytest.mark.parametrize("card", CARDS)
def test_a_broken_card_of_the_source_costs_no_export(card, tmp_path, tiny_exports, monkeypatch):
    from huggingface_hub import ModelCard

    monkeypatch.chdir(tmp_path)
    (tmp_path / "source").mkdir()
    (tmp_path / "source" / "README.md").write_bytes(card)
    figures = dict.fromkeys(("mean", "std", "min", "p25", "median", "p75", "p90", "p95", "p99", "max"), 0.0)
    report = {"model": "ann/tiny", "repo": "ann/tiny-onnx", "precision": "fp32", "problem": "regression", "gate": ""}
    report |= {"largest_difference": figures, "speed": {"original": 1.0, "export": 1.0}, "worst": [], "findings": []}
    report |= dict.fromkeys(("mean_over_labels", "changed_decisions", "tolerance"), 0.0) | {"non_finite_texts": 0}
    export_onnx.write_card(tmp_path, tmp_path / "source", report)
    assert ModelCard.load(tmp_path / "README.md").data.tags == [*CARDS[card], "text-classification", "fp32"]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["README.md", "source"]


@pytest.mark.parametrize("content", [b"{", b"[]", b"\xff"])
def test_a_broken_report_beside_an_export_is_one_line(content, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("tiny-onnx").mkdir()
    Path("tiny-onnx/model.onnx").touch()
    Path("tiny-onnx/parity.json").write_bytes(content)
    message = refused(variants.find_onnx, variants.VARIANTS["onnx"], "tiny", tmp_path)
    assert "tiny-onnx/parity.json can't be read" in message


@pytest.mark.parametrize(
    "damage", [lambda good: b"", lambda good: good[:99], lambda good: good[:-9], lambda _: b"x" * 99]
)
def test_damaged_inputs_in_the_cache_are_made_anew(damage, model, monkeypatch, tmp_path):
    ready = {"tokenizer": "fast", "lengths": np.arange(9999), "limit": 512}
    made = []
    monkeypatch.setattr(utils, "CACHE", tmp_path / "cache")
    monkeypatch.setattr(variants, "in_fresh_process", lambda *_: made.append(1) or ready)
    run_benchmark.prepared_before(model, ["text"], None)
    run_benchmark.prepared_before(model, ["text"], None)
    assert len(made) == 1
    [file] = (tmp_path / "cache").rglob("*.npz")
    file.write_bytes(damage(file.read_bytes()))
    assert (run_benchmark.prepared_before(model, ["text"], None)["lengths"] == ready["lengths"]).all()
    assert len(made) == 2


# ----------------------------------------------------------------------------------------------------------- results


def result_row(**columns) -> dict:
    row = dict.fromkeys(utils.COLUMNS, "x") | dict.fromkeys(("workers", "threads", "size", "messages"), 1)
    row |= dict.fromkeys((*plot_results.FLOATS, *plot_results.LATER_FLOATS), "0.5") | {"order": "length"}
    return row | {"status": "ok"} | columns


@pytest.mark.parametrize(
    "columns",
    [
        {"size": 10**400},
        {"workers": 10**13},
        {"threads": 0},
        {"messages": -1},
        {"messages/s": "1e300", "max": "1e300"},
        {"messages/s": "1e-320", "min": "0"},
        {"min": "-1"},
        {"max_diff": "1e300"},
        {"max_diff": "-1"},
        {"flips": "-1"},
        {"device": "$\\frac$"},
        {"variant": "$\\frac$"},
    ],
)
def test_a_row_that_can_not_be_drawn_is_skipped_and_named(columns, tmp_path, capsys):
    path = tmp_path / "model" / "a_b_c.tsv"
    utils.save_row(path, result_row())
    utils.save_row(path, result_row(order="dataset") | columns)
    assert [row["order"] for row in plot_results.read_results(tmp_path)] == ["length"]
    said = capsys.readouterr().err
    assert f"{path}:3: " in said and "can't be; the row is skipped" in said


@pytest.mark.parametrize("column", utils.COLUMNS)
def test_a_stray_quote_costs_at_most_its_own_row(column, tmp_path):
    path = tmp_path / "model" / "a_b_c.tsv"
    for size in range(1, 6):
        utils.save_row(path, result_row(size=size, status="died\nof it" if size == 4 else "ok"))
    lines = path.read_text().split("\n")
    fields = lines[2].split("\t")
    fields[utils.COLUMNS.index(column)] = '"' + fields[utils.COLUMNS.index(column)]
    path.write_text("\n".join([*lines[:2], "\t".join(fields), *lines[3:]]))
    assert {1, 3, 5} <= {row["size"] for row in plot_results.read_results(tmp_path)}
    assert "move it away" in refused(utils.read_rows, path)


def test_a_broken_byte_costs_no_row(tmp_path):
    path = tmp_path / "model" / "a_b_c.tsv"
    utils.save_row(path, result_row())
    path.write_bytes(path.read_bytes()[:-1] + b"\xff\n")
    assert len(plot_results.read_results(tmp_path)) == 1
    assert "move it away" in refused(utils.read_rows, path)
