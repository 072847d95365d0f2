"""export_onnx.py: exports, checks, cards, uploads, wrong usage and interruptions."""

import base64
import contextlib
import io
import json
import os
import re
import shutil
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import yaml
from conftest import ROOT
from tiny import (
    make_tiny,
    make_tiny_albert,
    make_tiny_bert,
    make_tiny_distilbert,
    make_tiny_roberta,
    make_tiny_xlm_roberta,
    tiny_config,
    with_a_wrong_head,
    word_level_tokenizer,
)
from transformers import AutoTokenizer

import export_onnx
from bench.export.ensure import ensure_export
from bench.export.publish import find_repository, upload
from bench.export.select import EXPORT_KINDS, set_padding_token
from bench.judge import NOT_WITHIN, TOLERANCE, UNPROVEN, WITHIN
from bench.machine import cpu_features
from bench.model import task
from bench.model.model import Model
from bench.model.parity import EXCERPT_CHARACTERS
from bench.model.reference import Reference
from bench.model.tasks import TASKS as TASK_CLASSES
from bench.options import PRECISIONS, TASKS
from bench.variants import digest_export
from runtimes import VARIANTS
from utils import RunError, UserError

SCRIPT = ROOT / "export_onnx.py"


MODELS = {
    "bert": (make_tiny_bert, {"problem_type": "multi_label_classification", "num_labels": 3}),
    "distilbert": (make_tiny_distilbert, {"problem_type": None, "num_labels": 3}),
    "xlm-roberta": (make_tiny_xlm_roberta, {"problem_type": "single_label_classification", "num_labels": 4}),
    "roberta": (make_tiny_roberta, {"problem_type": None, "num_labels": 1, "id2label": {0: "toxic"}}),
}


@pytest.fixture
def here(monkeypatch, tmp_path):
    """An empty working directory."""
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    monkeypatch.setattr(export_onnx, "RESULTS", tmp_path / "results")
    return tmp_path / "here"


@pytest.fixture
def export(call):
    """Run export_onnx.py in this process over 40 texts; return its exit code, standard output and standard error."""
    options = ["--limit", 40, "--batch-size", 8, "--device", "cpu"]
    return lambda model, *arguments: call(export_onnx, model, *options, *arguments)


@pytest.fixture(scope="session")
def models(tmp_path_factory, texts) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("kinds")
    return {name: make(folder / f"my-{name}", texts, **config) for name, (make, config) in MODELS.items()}


def read_report(folder: Path) -> dict:
    return json.loads((folder / "parity.json").read_text())


def usage_example(folder: Path) -> dict:
    """Run the example in the card of an export as printed, in this folder; return its global names."""
    card = (folder / "README.md").read_text()
    [example] = re.findall(r"```python\n(.*?)```", card, re.DOTALL)
    names, printed = {}, io.StringIO()
    with contextlib.redirect_stdout(printed), contextlib.chdir(folder):
        exec(example, names)
    assert all(printed.getvalue().count(f"'{label}'") == 2 for label in names["labels"])
    return names


@pytest.mark.parametrize("name", MODELS)
def test_an_export_is_correct_and_the_example_in_its_card_runs(name, models, here, export):
    code, out, _ = export(models[name], "--no-upload", "--tolerance", 0.1)
    folder = here / f"my-{name}-onnx-fp16"
    assert code == 0 and folder.name in out.splitlines()[-1] and WITHIN in out.splitlines()[-1]
    assert list(here.iterdir()) == [folder]
    report = read_report(folder)
    assert (report["verdict"], report["changed"], report["fp16_exercised"]) == (WITHIN, 0, False)
    assert re.search(r"\bCPU\b.*\bFP16\b", out), "a CPU computes in FP32"
    assert 0 < report["largest_difference"]["max"] < 5e-3
    assert report["findings"] == []
    assert re.search("[12] Attention", report["nodes"]) and re.search("2 (Fast|Bias)Gelu", report["nodes"])

    card = (folder / "README.md").read_text()
    _, metadata, body = card.split("---\n", 2)
    assert yaml.safe_load(metadata)["pipeline_tag"] == "text-classification"
    assert not re.search(r"{{|{%|None|Undefined", card)
    assert re.search(r"\bCPU\b.*\bFP16\b", body)
    classify = usage_example(folder)["classify"]
    texts = ["a long one with many words in it", "short", "of medium length"]
    expected = Reference.load(Model.from_folder(models[name], name)).of_items(texts)
    assert classify(texts, batch_size=2) == pytest.approx(expected, abs=5e-3)
    assert classify(pd.Series(texts, index=[5, 6, 7])) == pytest.approx(expected, abs=5e-3)
    assert classify([]).shape == (0, expected.shape[1])
    with_none = classify([texts[0], None])
    assert with_none[0] == pytest.approx(expected[0], abs=5e-3) and np.isnan(with_none[1]).all()


def test_each_precision_has_its_own_folder(tiny_model, here, export):
    assert export(tiny_model, "--no-upload", "--precision", "fp32", "--tolerance", 0)[0] == 0
    assert export(tiny_model, "--no-upload", "--precision", "int8", "--tolerance", 0.05)[0] == 0
    assert sorted(folder.name for folder in here.iterdir()) == ["tiny-onnx", "tiny-onnx-int8"]
    fp32, int8 = (read_report(here / name) for name in ("tiny-onnx", "tiny-onnx-int8"))
    assert fp32["largest_difference"]["max"] < 1e-5 < int8["largest_difference"]["max"]
    assert "MatMulInteger" in int8["nodes"]
    bits = 8 if "vnni" in cpu_features() else 7
    assert re.search(rf"\b{bits}\b", int8["options"])
    assert json.loads((here / "tiny-onnx-int8" / "export.json").read_text())["bits"] == bits
    card = (here / "tiny-onnx-int8" / "README.md").read_text()
    assert int8["options"] in card
    plain_card = (here / "tiny-onnx" / "README.md").read_text()
    assert card.count("1024 tokens") > plain_card.count("8 sorted"), "answers depend on the batches"
    assert (fp32["batches"], int8["batches"]) == ("8 sorted", "1024 tokens"), "as each labels"


def test_a_fault_in_our_tokenizing_is_found(tiny_model, here, export, monkeypatch):
    """The original is called as transformers documents it, with neither our tokens nor our padding."""
    tokenize = task.tokenize

    def cut(*arguments):
        rows = tokenize(*arguments)
        return rows | {"input_ids": [ids[:-3] or ids for ids in rows["input_ids"]]}

    monkeypatch.setattr(task, "tokenize", cut)
    code, out, _ = export(tiny_model, "--no-upload", "--precision", "fp32")
    assert code == 1 and NOT_WITHIN in out.upper()


def test_int8_with_shared_layer_weights(tmp_path, texts, here, export):
    model = make_tiny_albert(tmp_path / "albert", texts)
    assert export(model, "--no-upload", "--precision", "int8", "--tolerance", 1)[0] == 0
    assert read_report(here / "albert-onnx-int8")["largest_difference"]["max"] < 0.05


def test_a_wrong_export_fails_its_check_and_is_not_uploaded(tiny_model, here, hub, export, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", "good")
    kind = EXPORT_KINDS["fp16"]
    wrong = {name: with_a_wrong_head(make) for name, make in kind.backends.items()}
    monkeypatch.setitem(EXPORT_KINDS, "fp16", replace(kind, backends=wrong, max_deviation=1))
    code, out, _ = export(tiny_model, "--upload")
    assert code == 1 and NOT_WITHIN in out.upper()
    assert not hub.commits and not hub.repos
    folder = here / "tiny-onnx-fp16"
    assert read_report(folder)["verdict"] == NOT_WITHIN
    top = (folder / "README.md").read_text().split("\n## ")[0]
    assert f"{read_report(folder)['changed']:,} of {read_report(folder)['decisions']:,}" in top, "it warns at the top"


def test_upload_makes_one_commit_with_all_files_and_without_texts(tiny_model, here, hub, export, monkeypatch, texts):
    monkeypatch.setenv("HF_TOKEN", "good")
    pd.DataFrame({"body": texts[:40]}).to_csv(here / "mine.csv")
    options = ["--upload", "--repo-id", "team/tiny", "--private", "--tolerance", 0.1, "--dataset", "mine.csv"]
    code, *printed = export(tiny_model, *options)
    assert code == 0
    [repo] = hub.repos
    assert (repo["name"], repo["organization"], repo["private"]) == ("tiny", "team", True)
    [(_, lines)] = hub.commits
    files = {line["value"]["path"]: line["value"] for line in lines if line["key"] in ("file", "lfsFile")}
    folder = here / "tiny-onnx-fp16"
    assert set(files) == {file.name for file in folder.iterdir()}
    assert hub.stored[files["model.onnx"]["oid"]] == (folder / "model.onnx").read_bytes()
    card = base64.b64decode(files["README.md"]["content"]).decode()
    assert 'folder = "team/tiny"' in card
    assert not any(" ".join(text.split())[:50] in card for text in texts[:40])
    assert f"{hub.url}/team/tiny/commit/1" in "".join(printed)
    assert "good" not in card and "HF_TOKEN" not in card


@pytest.fixture
def api(hub):
    from huggingface_hub import HfApi

    return HfApi(token="good")


def test_an_upload_that_breaks_keeps_the_folder_and_prints_the_command_to_retry(tiny_exports, hub, api):
    hub.broken = True
    folder = tiny_exports / "tiny-onnx"
    with pytest.raises(RunError, match=f"hf upload ann/tiny {folder} [.]"):
        upload(api, "ann/tiny", folder / "parity.json", private=False, create_pr=False)
    assert (folder / "model.onnx").exists()


def test_a_private_upload_to_a_public_repository_is_refused_without_a_command_that_publishes_it(tiny_exports, hub, api):
    hub.public = True
    with pytest.raises(UserError, match="ann/tiny") as caught:
        upload(api, "ann/tiny", tiny_exports / "tiny-onnx" / "parity.json", private=True, create_pr=False)
    assert caught.value.code == 2 and "hf upload" not in str(caught.value) and not hub.commits


def test_only_the_files_of_an_export_are_uploaded(tiny_exports, tmp_path, hub, monkeypatch):
    from huggingface_hub import HfApi

    folder = shutil.copytree(tiny_exports / "tiny-onnx", tmp_path / "[tiny]")
    files = {file.name for file in folder.iterdir()}
    (folder / "texts").mkdir()
    (tmp_path / "elsewhere.json").write_text("a secret")
    for name in (".env", "notes.txt", "texts/comments.csv", "model.onnx.bak"):
        (folder / name).write_text("a secret")
    (folder / "link.json").symlink_to(tmp_path / "elsewhere.json")
    (folder / "parity.json").write_text("an earlier check, with texts")
    (folder / "parity-0.4.json").write_text("{}")
    (folder / "thresholds.json").write_text("{}")
    (folder / "README.md").write_text("a card")
    hub.repos.append({"name": "tiny", "private": False})
    monkeypatch.setenv("HF_TOKEN", "one")
    api, repo = find_repository("ann/tiny", "x", create_pr=False)
    upload(api, repo, folder / "parity-0.4.json", private=False, create_pr=False)
    [(_, lines)] = hub.commits
    sent = {line["value"]["path"] for line in lines if line["key"] in ("file", "lfsFile")}
    assert sent == files | {"parity-0.4.json", "thresholds.json", "README.md"}
    hub.broken = True
    with pytest.raises(RunError) as caught:
        upload(HfApi(token="good"), "ann/tiny", folder / "parity-0.4.json", private=False, create_pr=False)
    assert "hf upload" not in str(caught.value) and "--check-only" in str(caught.value)


@pytest.mark.parametrize("name", ["../elsewhere.json", "link.json", "ABSOLUTE", "sub/../../elsewhere.json", 5])
def test_an_export_never_takes_a_file_from_elsewhere(name, tiny_exports, tiny_model, here, hub, export, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", "good")
    folder = shutil.copytree(tiny_exports / "tiny-onnx", here / "tiny-onnx")
    (here / "elsewhere.json").write_text("a secret")
    (folder / "link.json").symlink_to(here / "elsewhere.json")
    manifest = json.loads((folder / "export.json").read_text())
    manifest["files"].append(name if name != "ABSOLUTE" else str(here / "elsewhere.json"))
    (folder / "export.json").write_text(json.dumps(manifest))
    code, _, err = export(tiny_model, "--precision", "fp32", "--check-only", "--upload")
    assert code == 2 and "tiny-onnx" in err.splitlines()[-1] and not hub.commits


@pytest.mark.parametrize("exporter", ["../../outside", "/ABSOLUTE", "unknown"])
def test_an_exporter_in_a_manifest_is_no_path(exporter, tiny_exports, tiny_model, here, in_this_process):
    shutil.copytree(tiny_exports / "tiny-onnx", here / "tiny-onnx")
    manifest = json.loads((here / "tiny-onnx" / "export.json").read_text())
    outside = str(here / "outside") if exporter == "/ABSOLUTE" else exporter
    (here / "tiny-onnx" / "export.json").write_text(json.dumps(manifest | {"exporter": outside}))
    model = Model.from_folder(tiny_model, "tiny")
    made, _ = ensure_export(model, "int8")
    assert sorted(path.name for path in here.iterdir()) == ["tiny-onnx", "tiny-onnx-int8"]
    assert json.loads((made / "export.json").read_text())["exporter"] in EXPORT_KINDS["fp32"].backends


def test_another_file_beside_an_export_does_not_change_its_id(tiny_exports, tmp_path):
    folder = shutil.copytree(tiny_exports / "tiny-onnx", tmp_path / "tiny-onnx")
    before = digest_export(folder)
    (folder / "log.txt").write_text("a line")
    assert digest_export(folder) == before
    (folder / "model.onnx").write_bytes(b"another")
    assert digest_export(folder) != before


def test_the_saved_tokenizer_pads_as_the_config_says(tmp_path, texts, here, export):
    """Some models find the end of a text by the token (GPT-2), others have none in the tokenizer."""
    for name, padding in (("other", "</s>"), ("none", None)):
        model = tmp_path / name
        model.mkdir()
        make_tiny(model, word_level_tokenizer("gpt2"), tiny_config("gpt2"))
        for file in ("tokenizer_config.json", "special_tokens_map.json"):
            if (model / file).exists():
                (model / file).write_text(json.dumps(json.loads((model / file).read_text()) | {"pad_token": padding}))
        assert export(model, "--no-upload", "--precision", "fp32", "--tolerance", 1)[0] == 0
        classify = usage_example(here / f"{name}-onnx")["classify"]
        some = ["w1 w2 w3 w4 w5 w6 w7", "w8", "w9 w10"]
        expected = Reference.load(Model.from_folder(model, name)).of_items(some)
        assert classify(some, batch_size=3) == pytest.approx(expected, abs=1e-4)


def test_a_word_never_becomes_the_padding_token(tmp_path):
    """A special token is cut out of every text in which it occurs."""
    tokenizer = word_level_tokenizer("gpt2")
    set_padding_token(tokenizer, 7)
    tokenizer.save_pretrained(tmp_path)
    loaded = AutoTokenizer.from_pretrained(tmp_path)
    assert loaded("w3 w3x").input_ids == word_level_tokenizer("gpt2")("w3 w3x").input_ids


def test_the_card_of_a_revision_names_the_model_on_the_hub(tiny_model, here, hub, export):
    hub.models["ann/tiny@v2"] = tiny_model
    assert export("ann/tiny@v2", "--no-upload", "--precision", "fp32")[0] == 0
    card = (here / "tiny-v2-onnx" / "README.md").read_text()
    assert yaml.safe_load(card.split("---\n", 2)[1])["base_model"] == "ann/tiny"
    assert "(https://huggingface.co/ann/tiny/tree/v2)" in card
    assert read_report(here / "tiny-v2-onnx")["model"] == "ann/tiny@v2"


def test_upload_as_a_pull_request(tiny_exports, hub, api, capsys):
    upload(api, "other/tiny", tiny_exports / "tiny-onnx" / "parity.json", private=False, create_pr=True)
    assert f"{hub.url}/other/tiny/discussions/7" in capsys.readouterr().err
    assert not hub.repos


@pytest.mark.parametrize(
    ("token", "options", "names"),
    [
        (None, "", ["HF_TOKEN"]),
        ("bad", "", ["token"]),
        ("reader", "", ["https://huggingface.co/settings/tokens"]),
        ("good", "--repo-id elsewhere/tiny", ["elsewhere", "ann", "--repo-id"]),
        ("good", "--repo-id club/tiny", ["club", "ann", "--repo-id"]),
        ("fine", "--repo-id team/tiny", ["team", "ann", "--repo-id"]),
        ("one", "--repo-id ann/other", ["ann", "--repo-id"]),
        ("good", "--repo-id ann/-tiny--x", ["ann/-tiny--x", "--repo-id"]),
        ("good", "--save-dir with(brackets)", ["ann/with(brackets)", "--repo-id"]),
    ],
)
def test_a_token_without_write_access_is_refused_before_the_export(
    token, options, names, tiny_model, here, hub, export, monkeypatch
):
    monkeypatch.setattr("huggingface_hub.get_token", lambda: token)
    code, _, err = export(tiny_model, "--upload", *options.split())
    assert code == 2 and all(name in err.splitlines()[-1] for name in names), err
    assert list(here.iterdir()) == []


def test_the_choices_agree_with_the_modules_that_define_them():
    """The script has copies, since these modules import numpy."""
    ours = {variant.export.precision for variant in VARIANTS.values() if variant.export and not variant.takes_texts}
    assert set(PRECISIONS) == ours <= set(EXPORT_KINDS)
    assert [*TASKS, "pairs", "zero-shot"] == list(TASK_CLASSES), "other options choose the last two"
    assert export_onnx.argument_parser().get_default("tolerance") == TOLERANCE


def test_help_is_printed_before_anything_heavy_is_imported():
    script = "import sys; import export_onnx; print({'numpy', 'onnx', 'pandas', 'pyarrow', 'torch'} & {*sys.modules})"
    printed = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, check=True)
    assert printed.stdout == "set()\n"


WRONG_VALUES = [("--batch-size", "0"), ("--limit", "1,,2"), ("--threads", "1000000000"), ("--gpu", "-1")]
WRONG_VALUES += [("--tolerance", value) for value in ("-1", "abc", "", "nan", "inf")]


@pytest.mark.parametrize(
    ("options", "names"),
    [
        ("--tolerance 2", "--tolerance '2'"),
        ("--precision fp64", "--precision 'fp64'"),
        ("--upload --no-upload", "--upload --no-upload"),
        ("--precision int8 --device gpu", "int8 gpu"),
        ("--batch-size 1000000000", "--batch-size 1000000000 40"),
        *((f"{option}={value}", option) for option, value in WRONG_VALUES),
        ("--dataset nowhere.csv", "nowhere.csv"),
        ("--save-dir taken", "taken --overwrite --check-only"),
        ("--save-dir " + "x" * 300, "xxx"),
        ("--save-dir foreign --overwrite", "foreign notes.txt"),
    ],
)
def test_wrong_usage_is_one_line_and_code_2(options, names, tiny_model, here, export):
    (here / "taken").mkdir()
    (here / "taken" / "model.onnx").touch()
    (here / "foreign").mkdir()
    (here / "foreign" / "notes.txt").touch()
    code, out, err = export(tiny_model, "--no-upload" if "upload" not in options else "--private", *options.split())
    assert (code, out) == (2, "") and all(name in err.splitlines()[-1] for name in names.split()), err
    assert sorted(path.name for path in here.iterdir()) == ["foreign", "taken"]


@pytest.mark.parametrize("where", ["", "..", "inside", "link"])
def test_the_models_own_folder_is_never_overwritten(where, tiny_model, here, export):
    """Neither are its parents and subfolders, even if it also contains an export."""
    source = shutil.copytree(tiny_model, here / "all" / "source")
    (source / "model.onnx").touch()
    (source / "notes.txt").touch()
    (here / "link").symlink_to(source)
    before = sorted(path.name for path in here.rglob("*"))
    target = here / "link" if where == "link" else source / where
    code, _, err = export(source, "--no-upload", "--overwrite", "--save-dir", target)
    assert code == 2 and str(source) in err and "--overwrite" not in err, "it doesn't help here"
    assert sorted(path.name for path in here.rglob("*")) == before


def test_overwrite_replaces_nothing_but_an_export(tiny_model, here, export):
    options = ["--no-upload", "--precision", "fp32", "--overwrite"]
    assert export(tiny_model, *options)[0] == 0
    assert export(tiny_model, *options)[0] == 0
    (here / "tiny-onnx" / "thesis.txt").write_text("years of work")
    code, _, err = export(tiny_model, *options)
    assert code == 2 and "thesis.txt" in err
    assert (here / "tiny-onnx" / "thesis.txt").read_text() == "years of work"


LABEL = "half \ud83d <b>|</b>\n![x](http://evil)"


def test_strange_label_names_are_escaped(tiny_model, here, export):
    model = shutil.copytree(tiny_model, here / "odd")
    config = json.loads((model / "config.json").read_text())
    config["id2label"] = {str(i): f"{LABEL} {i}" for i in range(5)}
    (model / "config.json").write_text(json.dumps(config))
    code, out, _ = export(model, "--no-upload", "--precision", "fp32", "--excerpts")
    assert code == 0 and "half   <b>|</b> ![x](http://evil) 3" in out
    card = (here / "odd-onnx" / "README.md").read_text()
    assert "<b>" not in card and "![" not in card and "half   &lt;b&gt;\\|&lt;/b&gt;" in card


def test_a_card_is_safe_to_publish(tiny_model, here, export, texts):
    """It has no path of this machine, and no text without --excerpts."""
    pd.DataFrame({"body": texts[:40]}).to_csv(here / "mine.csv")
    code, out, _ = export(tiny_model, "--no-upload", "--save-dir", here / "ex", "--dataset", here / "mine.csv")
    assert code == 0
    written = "".join((here / "ex" / name).read_text() for name in ("README.md", "parity.json"))
    assert str(here) not in written and str(tiny_model) not in written and "--dataset mine.csv" in written
    assert not any(" ".join(text.split())[:50] in written + out for text in texts[:40])
    assert read_report(here / "ex")["worst"] == []


def test_a_full_disk_is_reported_before_the_export(tiny_model, here, monkeypatch, export):
    monkeypatch.setattr(shutil, "disk_usage", lambda _: shutil._ntuple_diskusage(100, 99, 1))
    code, _, err = export(tiny_model, "--no-upload")
    assert code == 2 and "tiny-onnx-fp16" in err and "GiB" in err and list(here.iterdir()) == []


def test_an_interrupted_export_leaves_no_files_behind(tmp_path, tiny_model):
    sent = {signal.SIGINT: 130, signal.SIGHUP: 129}
    for sign in sent:
        (tmp_path / sign.name).mkdir()
    processes = [
        subprocess.Popen(
            [sys.executable, SCRIPT, tiny_model, "--no-upload", "--device", "cpu"],
            cwd=tmp_path / sign.name,
            env=os.environ | {"PYTHONUNBUFFERED": "1"},
            stderr=subprocess.PIPE,
            text=True,
        )
        for sign in sent
    ]
    for process, (sign, code) in zip(processes, sent.items(), strict=True):
        assert any("tiny" in line and "fp16" in line.lower() for line in process.stderr)
        process.send_signal(sign)
        _, errors = process.communicate(timeout=20)
        assert process.returncode == code
        assert "Traceback" not in errors
        assert list((tmp_path / sign.name).iterdir()) == []


STRANGE = ['quotes "", commas,\nand\r\nlines', "😀 " * 20, "NUL \0 inside", "\u200b", "text without end " * 60_000]


def test_strange_texts_are_checked_and_shown(tiny_model, here, call):
    pd.DataFrame({"body": [*STRANGE, None, " \n\t "]}).to_csv(here / "strange.csv.gz", index=False, quoting=1)
    options = ["--no-upload", "--device", "cpu", "--dataset", "strange.csv.gz", "--tolerance", 1, "--precision", "fp32"]
    options += ["--excerpts"]
    code, _, err = call(export_onnx, tiny_model, *options)
    assert code == 0 and re.search(r"\b2\b.*\b7\b", err), "rows without text"
    report = read_report(here / "tiny-onnx")
    assert (report["verdict"], report["changed"], report["decisions"]) == (WITHIN, 0, 25)
    assert report["texts"] == len(STRANGE) and report["non_finite_texts"] == 0
    assert max(len(text["excerpt"]) for text in report["worst"]) <= EXCERPT_CHARACTERS + 1
    assert len(report["worst"][0]["labels"]) == 5


def test_one_text_is_enough(tiny_model, here, export):
    Path("one.csv").write_text("body\nhello\n")
    options = ["--no-upload", "--dataset", "one.csv", "--precision", "fp32", "--batch-size", 1]
    assert export(tiny_model, *options)[0] == 0 and read_report(here / "tiny-onnx")["texts"] == 1


def test_a_check_of_too_few_texts_is_not_proven_and_no_failure(tiny_model, tiny_exports, here, export):
    shutil.copytree(tiny_exports / "tiny-onnx-fp16", here / "tiny-onnx-fp16")
    code, out, err = export(tiny_model, "--check-only", "--no-upload")
    assert code == 0 and UNPROVEN in out.splitlines()[-1] and "0.1%" in out.splitlines()[-1]
    assert "--limit" in err and "--dataset" in err


def test_checks_on_other_texts_add_up(tiny_model, tiny_exports, here, export, texts):
    """The first half of the texts alone proves nothing."""
    shutil.copytree(tiny_exports / "tiny-onnx-int8", here / "tiny-onnx-int8")
    options = ["--precision", "int8", "--check-only", "--no-upload", "--tolerance", 0.05]
    reports = []
    for part in (texts[:30], texts[30:], texts[30:]):
        pd.DataFrame({"body": part}).to_csv("some.csv")
        assert export(tiny_model, *options, "--dataset", "some.csv", "--limit", 300)[0] == 0
        reports.append(read_report(here / "tiny-onnx-int8"))
    assert "fp16_exercised" not in reports[0]
    assert [report["evidence"]["texts"] for report in reports] == [30, len(set(texts)), len(set(texts))]
    assert reports[1]["evidence"]["decisions"] == 5 * len(set(texts)) and reports[1]["verdict"] == WITHIN
    assert reports[2]["evidence"] == reports[1]["evidence"], "each text counts once"


def test_check_only_checks_an_existing_export_with_gold_labels(tiny_model, tiny_exports, here, export, texts):
    """It writes the report and the card, and no other file."""
    shutil.copytree(tiny_exports / "tiny-onnx", here / "tiny-onnx")
    before = {path.name: path.read_bytes() for path in (here / "tiny-onnx").iterdir()}
    gold = [f"LABEL_{i % 5}" if i % 7 else "" for i in range(40)]
    pd.DataFrame({"body": texts[:40], "gold": gold}).to_parquet("mine.parquet")
    options = ["--check-only", "--no-upload", "--dataset", "mine.parquet", "--label-column", "gold"]
    code, out, _ = export(tiny_model, *options, "--precision", "fp32", "--threshold", "0.4")
    assert code == 0, out
    after = {path.name: path.read_bytes() for path in (here / "tiny-onnx").iterdir()}
    assert after.keys() - before.keys() == {"parity-0.4.json", "thresholds.json", "README.md"}
    assert {name: after[name] for name in before} == before
    report = json.loads(after["parity-0.4.json"])
    model = Model.from_folder(tiny_model, "tiny").with_thresholds("0.4")
    held = model.task.decide(Reference.load(model).of_items(texts[:40]))
    truth = np.array([[name == label for label in model.labels] for name in gold])
    expected = 2 * (held & truth).sum() / (held.sum() + truth.sum())
    scores = {(entry["label"], entry["rule"]): entry for entry in report["gold"]["scores"]}
    assert scores["all decisions", "in use"]["F1"] == pytest.approx(expected)
    thresholds = json.loads(after["thresholds.json"])
    assert list(thresholds) == model.labels and set(thresholds.values()) == {0.5}, "fewer than ten texts of each"
    assert "0.4" in report["decision_words"] and report["decision_words"] in out
    for text in (out, after["README.md"].decode()):
        [line] = [line for line in text.splitlines() if "all decisions" in line and "in use" in line]
        assert f"{expected:.3f}" in line
    far = [*options[:4], "--save-dir", "tiny-onnx", "--threshold", "0.99"]  # its precision is in its manifest
    code, out, _ = export(tiny_model, *far)
    assert code == 0 and "0 of 200" in out and "0 of 200" in Path("tiny-onnx/README.md").read_text()
    assert not report["weak_test"] and Path("tiny-onnx/parity-0.4.json").read_bytes() == after["parity-0.4.json"]
    code, _, err = export(tiny_model, *options)
    assert code == 2 and "tiny-onnx-fp16" in err and "--save-dir" in err
    (here / "tiny-onnx" / "model.onnx").unlink()
    code, _, err = export(tiny_model, *options, "--precision", "fp32")
    assert code == 2 and "model.onnx" in err
    code, _, err = export(tiny_model, *options[:-1], "nowhere", "--precision", "fp32")
    assert code == 2 and "nowhere" in err
