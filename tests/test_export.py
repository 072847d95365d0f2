"""Exports of tiny classifiers: their graphs, the check and its gate, the card, the upload."""

import base64
import json
import os
import re
import shutil
import signal
import subprocess
import sys
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import yaml
from conftest import make_tiny_albert, make_tiny_bert, make_tiny_distilbert, make_tiny_roberta, make_tiny_xlm_roberta
from fake_hub import fake_hub

import export_onnx
import utils
import variants

SCRIPT = utils.ROOT / "export_onnx.py"
MODELS = {
    "bert": (make_tiny_bert, {"problem_type": "multi_label_classification", "num_labels": 3}),
    "distilbert": (make_tiny_distilbert, {"problem_type": None, "num_labels": 3}),
    "xlm-roberta": (make_tiny_xlm_roberta, {"problem_type": "single_label_classification", "num_labels": 4}),
    "roberta": (make_tiny_roberta, {"problem_type": None, "num_labels": 1}),
}


@pytest.fixture
def here(monkeypatch, tmp_path):
    """An empty working directory, and everything in this process: torch is imported once."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(variants, "in_fresh_process", lambda function, *arguments: function(*arguments))
    return tmp_path


def export(model: Path, *arguments) -> int:
    """Runs export_onnx.py in this process; its exit code."""
    sys.argv = ["export_onnx.py", str(model), "--limit", "40", "--batch-size", "8", "--device", "cpu"]
    sys.argv += [str(argument) for argument in arguments]
    with pytest.raises(SystemExit) as stopped:
        utils.run(export_onnx.main)
    return stopped.value.code


@pytest.fixture(scope="session")
def models(tmp_path_factory, texts) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("kinds")
    return {name: make(folder / f"my-{name}", texts, **config) for name, (make, config) in MODELS.items()}


def usage_example(card: str) -> dict:
    """Runs the card's example, and returns its names."""
    [example] = re.findall(r"```python\n(.*?)```", card, re.DOTALL)
    names = {}
    exec(example, names)
    return names


@pytest.mark.parametrize("name", MODELS)
def test_an_export_is_right_and_its_card_says_how_to_use_it(name, models, here, capsys):
    assert export(models[name], "--no-upload", "--tolerance", 0.01) == 0
    out = capsys.readouterr().out
    assert out.splitlines()[-1] == f"my-{name}-onnx-fp16: good"
    assert "FP16 arithmetic was not exercised" in out
    folder = here / f"my-{name}-onnx-fp16"
    assert list(here.iterdir()) == [folder]
    report = json.loads((folder / "parity.json").read_text())
    assert 0 < report["largest_difference"]["max"] < 5e-3
    assert report["findings"] == []
    assert "2 Attention" in report["nodes"] and "2 FastGelu" in report["nodes"]

    card = (folder / "README.md").read_text()
    _, metadata, body = card.split("---\n", 2)
    assert yaml.safe_load(metadata)["pipeline_tag"] == "text-classification"
    assert not re.search(r"{{|{%|None|Undefined", card)
    assert "not FP16 arithmetic" in body
    classify = usage_example(card)["classify"]
    tokenizer = utils.load_tokenizer(models[name])
    texts = ["a long one with many words in it", "short", "of medium length"]
    runner = variants.load("torch", models[name], variants.Place(None, 1))
    logits = [
        runner.fetch(runner.forward(runner.prepare(*utils.pad_batch([ids], tokenizer.pad_token_id))))
        for ids in utils.tokenize(tokenizer, texts, 100)
    ]
    expected = utils.probabilities(np.concatenate(logits), report["problem"])
    assert classify(texts, batch_size=2) == pytest.approx(expected, abs=5e-3)


def test_the_precisions_have_their_own_folders(tiny_model, here):
    assert export(tiny_model, "--no-upload", "--precision", "fp32", "--tolerance", 0) == 0
    assert export(tiny_model, "--no-upload", "--precision", "int8", "--tolerance", 0.05) == 0
    assert sorted(folder.name for folder in here.iterdir()) == ["tiny-onnx", "tiny-onnx-int8"]
    fp32, int8 = (json.loads((here / f"tiny-onnx{s}" / "parity.json").read_text()) for s in ("", "-int8"))
    assert fp32["largest_difference"]["max"] < 1e-5 < int8["largest_difference"]["max"]
    assert "MatMulInteger" in int8["nodes"]


def test_int8_of_layers_that_share_their_weights(tmp_path, texts, here):
    model = make_tiny_albert(tmp_path / "albert", texts)
    assert export(model, "--no-upload", "--precision", "int8", "--tolerance", 1) == 0
    report = json.loads((here / "albert-onnx-int8" / "parity.json").read_text())
    assert report["largest_difference"]["max"] < 0.05


def test_statistics_of_hand_computed_arrays():
    reference = np.array([[0.1, 0.2], [0.4, 0.6], [0.5, 0.9], [0.3, 0.3]])
    probs = np.array([[0.1, 0.3], [0.6, 0.6], [0.5, 0.5], [np.nan, 0.3]])
    stats = export_onnx.statistics(probs, reference, "multi_label_classification")
    largest = stats["largest_difference"]
    assert largest["mean"] == pytest.approx((0.1 + 0.2 + 0.4) / 3)
    assert (largest["min"], largest["median"], largest["max"]) == pytest.approx((0.1, 0.2, 0.4))
    assert largest["p75"] == pytest.approx(0.3)
    assert stats["mean_over_labels"] == pytest.approx(0.7 / 6)
    assert stats["changed_decisions"] == 3 / 8  # 0.4 -> 0.6, 0.9 -> 0.5 and the nan
    assert stats["non_finite_texts"] == 1
    assert export_onnx.statistics(probs[:3], reference[:3], "regression")["changed_decisions"] == 3 / 6
    worst = export_onnx.worst_texts(probs, reference, list("abcd"), ["x", "y"])
    assert [text["excerpt"] for text in worst] == ["d", "c", "b"]
    assert [row["label"] for row in worst[1]["labels"]] == ["y", "x"]


def test_the_gate():
    good = {"non_finite_texts": 0, "changed_decisions": 0.001}
    assert export_onnx.failed_gate(good, 0.001) == ""
    assert "0.100% of the decisions changed" in export_onnx.failed_gate(good, 0.0009)
    assert "not finite" in export_onnx.failed_gate(good | {"non_finite_texts": 1}, 1)


def test_a_wrong_export_fails_the_gate_and_is_not_uploaded(tiny_model, here, monkeypatch, capsys):
    right = variants.export

    def wrong(folder, target, *arguments):
        import onnx
        from onnx import numpy_helper

        graph = right(folder, target, *arguments)
        model = onnx.load(target / "model.onnx")
        [head] = [weight for weight in model.graph.initializer if weight.name == "classifier.out_proj.weight"]
        head.CopyFrom(numpy_helper.from_array(-numpy_helper.to_array(head), head.name))
        onnx.save(model, target / "model.onnx")
        return graph

    monkeypatch.setattr(variants, "export", wrong)
    with fake_hub() as hub:
        monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", hub.url)
        assert export(tiny_model, "--upload", "--hf-token", "good") == 1
    assert not hub.commits and not hub.repos
    assert "NOT GOOD" in capsys.readouterr().out
    assert "This export failed its check" in (here / "tiny-onnx-fp16" / "README.md").read_text()


def test_attention_that_does_not_fuse_is_said(tmp_path, texts):
    model = make_tiny_bert(tmp_path / "relative", texts, position_embedding_type="relative_key")
    (tmp_path / "out").mkdir()
    findings = variants.export(model, tmp_path / "out", "fp16")["findings"]
    assert any(finding.startswith("0 of 2 Attention/MultiHeadAttention/") for finding in findings)


def test_packing_removes_the_padding_around_all_layers(tiny_exports):
    """The packed graph can only run on CUDA; what can be seen here is its structure."""
    import onnx

    plain = onnx.load(tiny_exports / "tiny-onnx-fp16" / "model.onnx")
    packed = onnx.load(tiny_exports / "tiny-onnx-fp16-packed" / "model.onnx")
    before, after = (Counter(node.op_type for node in model.graph.node) for model in (plain, packed))
    assert after["RemovePadding"] == after["RestorePadding"] == 1
    assert after["PackedAttention"] == before["Attention"] == 2 and not after["Attention"]
    assert before["SkipLayerNormalization"] == after["SkipLayerNormalization"] == 4
    order = [node.op_type for node in packed.graph.node]
    assert order.index("RemovePadding") < order.index("PackedAttention")
    onnx.checker.check_model(packed, skip_opset_compatibility_check=True)
    assert not variants.describe_graph(tiny_exports / "tiny-onnx-fp16-packed" / "model.onnx", "fp16-packed", 2)[
        "findings"
    ]


@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_external_weights_are_found_under_the_name_that_loaders_expect(tiny_model, tmp_path, monkeypatch, precision):
    (tmp_path / "inside").mkdir()
    variants.export(tiny_model, tmp_path / "inside", precision)
    assert not (tmp_path / "inside" / "model.onnx_data").exists()
    monkeypatch.setattr(variants, "INSIDE_BYTES", 1000)
    (tmp_path / "outside").mkdir()
    variants.export(tiny_model, tmp_path / "outside", precision)
    fresh = tmp_path / "fresh"
    fresh.mkdir()
    for name in ("model.onnx", "model.onnx_data"):
        shutil.move(tmp_path / "outside" / name, fresh / name)
    assert not list((tmp_path / "outside").glob("*.data"))
    assert (fresh / "model.onnx").stat().st_size < (tmp_path / "inside" / "model.onnx").stat().st_size / 2
    logits = []
    for folder in ("inside", "fresh"):
        runner = variants.load_onnx(tmp_path / folder / "model.onnx", variants.Place(None, 1))
        logits.append(runner.forward(runner.prepare(*utils.pad_batch([[0, 5, 6, 2], [0, 7, 2]], 1))))
    assert (logits[0] == logits[1]).all()


# ------------------------------------------------------------------------------------------------------------- upload


@pytest.fixture
def hub(monkeypatch):
    with fake_hub() as hub:
        monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", hub.url)
        monkeypatch.delenv("HF_TOKEN", raising=False)
        yield hub


def test_upload_makes_one_commit_with_everything(tiny_model, here, hub, monkeypatch, capsys):
    monkeypatch.setenv("HF_TOKEN", "good")
    assert export(tiny_model, "--upload", "--repo-id", "team/tiny", "--private", "--tolerance", 0.01) == 0
    [repo] = hub.repos
    assert (repo["name"], repo["organization"], repo["private"]) == ("tiny", "team", True)
    [(_, lines)] = hub.commits
    files = {line["value"]["path"]: line["value"] for line in lines if line["key"] in ("file", "lfsFile")}
    folder = here / "tiny-onnx-fp16"
    assert set(files) == {file.name for file in folder.iterdir()}
    assert hub.stored[files["model.onnx"]["oid"]] == (folder / "model.onnx").read_bytes()
    card = base64.b64decode(files["README.md"]["content"]).decode()
    assert 'folder = "team/tiny"' in card
    printed = "".join(capsys.readouterr())
    assert f"uploaded: {hub.url}/team/tiny/commit/1" in printed
    assert "good" not in card.replace("go_emotions", "") and "HF_TOKEN" not in card


def test_a_token_on_the_command_line_is_written_nowhere(tiny_model, here, hub, capsys):
    assert export(tiny_model, "--upload", "--hf-token", "fine", "--create-pr", "--repo-id", "other/tiny") in (0, 1)
    written = "".join(file.read_text() for file in (here / "tiny-onnx-fp16").glob("*.[jm][sd]*"))
    assert "--hf-token ..." in written
    assert not re.search(r"hf-token[ =]fine", written + "".join(capsys.readouterr()))


@pytest.mark.parametrize(
    ("token", "options", "message"),
    [
        (None, "", "no token for the upload"),
        ("bad", "", "no upload with this token"),
        ("reader", "", "the token may only read"),
        ("good", "--repo-id elsewhere/tiny", "may not write to elsewhere"),
        ("good", "--repo-id club/tiny", "may not write to club"),
        ("fine", "--repo-id team/tiny", "may not write to team"),
    ],
)
def test_a_token_that_can_not_upload_is_one_line_before_the_export(
    token, options, message, tiny_model, here, hub, capsys, monkeypatch
):
    monkeypatch.setattr("huggingface_hub.get_token", lambda: token)
    assert export(tiny_model, "--upload", *options.split()) == 2
    assert message in capsys.readouterr().err.splitlines()[-1]
    assert list(here.iterdir()) == []


@pytest.fixture
def arguments():
    return export_onnx.Namespace(create_pr=False, private=False, precision="fp16")


def test_an_upload_that_breaks_keeps_the_folder_and_says_how_to_go_on(tiny_exports, hub, arguments, capsys):
    from huggingface_hub import HfApi

    hub.broken = True
    folder = tiny_exports / "tiny-onnx"
    assert export_onnx.upload(HfApi(token="good"), "ann/tiny", folder, arguments) == 1
    said = capsys.readouterr().err
    assert f"hf upload ann/tiny {folder} ." in said
    assert "Traceback" not in said
    assert (folder / "model.onnx").exists()


def test_a_private_upload_to_a_public_repository_is_refused(tiny_exports, hub, arguments, capsys):
    from huggingface_hub import HfApi

    hub.public = arguments.private = True
    assert export_onnx.upload(HfApi(token="good"), "ann/tiny", tiny_exports / "tiny-onnx", arguments) == 1
    assert "ann/tiny exists and is public" in capsys.readouterr().err
    assert not hub.commits


def test_upload_as_a_pull_request(tiny_exports, hub, arguments, capsys):
    from huggingface_hub import HfApi

    arguments.create_pr = True
    assert export_onnx.upload(HfApi(token="good"), "other/tiny", tiny_exports / "tiny-onnx", arguments) == 0
    assert f"uploaded: {hub.url}/other/tiny/discussions/7" in capsys.readouterr().err
    assert not hub.repos


# ---------------------------------------------------------------------------------------------------------- bad input


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ("--tolerance 2", "argument --tolerance: invalid share value: '2'"),
        ("--precision fp64", "invalid choice: 'fp64'"),
        ("--upload --no-upload", "not allowed with"),
        ("--precision int8 --device gpu", "int8 has kernels for CPUs only"),
        ("--dataset nowhere.csv", "no dataset file"),
        ("--save-dir taken", "taken exists; --overwrite replaces it"),
        ("--save-dir foreign --overwrite", "it holds no model.onnx"),
    ],
)
def test_wrong_usage_is_one_line_and_code_2(options, message, tiny_model, here, capsys):
    (here / "taken").mkdir()
    (here / "taken" / "model.onnx").touch()
    (here / "foreign").mkdir()
    assert export(tiny_model, "--no-upload" if "upload" not in options else "--private", *options.split()) == 2
    assert message in capsys.readouterr().err.splitlines()[-1]
    assert sorted(path.name for path in here.iterdir()) == ["foreign", "taken"]


def test_too_little_room_is_said_before_the_export(tiny_model, here, monkeypatch, capsys):
    monkeypatch.setattr(shutil, "disk_usage", lambda _: shutil._ntuple_diskusage(100, 99, 1))
    assert export(tiny_model, "--no-upload") == 2
    assert "too little room" in capsys.readouterr().err


def test_a_type_that_can_not_be_optimized_is_refused(tmp_path, tiny_model, here, capsys):
    shutil.copytree(tiny_model, tmp_path / "odd")
    config = json.loads((tmp_path / "odd" / "config.json").read_text())
    config |= {"model_type": "fnet", "architectures": ["FNetForSequenceClassification"]}
    (tmp_path / "odd" / "config.json").write_text(json.dumps(config))
    assert export(tmp_path / "odd", "--no-upload") == 2
    assert "a classifier of type fnet can't be optimized" in capsys.readouterr().err


def test_an_interrupted_export_leaves_nothing_behind(tmp_path, tiny_model):
    sent = {signal.SIGINT: 130, signal.SIGTERM: 143}
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
        assert any(line.startswith("exporting") for line in process.stderr)
        process.send_signal(sign)
        _, errors = process.communicate(timeout=20)
        assert process.returncode == code
        assert "Traceback" not in errors
        assert list((tmp_path / sign.name).iterdir()) == []
