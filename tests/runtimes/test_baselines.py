"""Baselines: which of them run, and what they load. Their answers are compared in measure/test_worker.py."""

import onnx
import pytest
from conftest import refused

import run_benchmark
from bench.export import ensure
from bench.export.ensure import runnable_variants
from bench.measure import quick
from bench.model.model import Model
from runtimes import VARIANTS, check_variant

CPU = {"pipeline", "optimum-pipeline"} | {
    f"{library}{backend}" for library in ("crossencoder", "sentence-transformers") for backend in ("", "-onnx")
}
OPENVINO = {"crossencoder-openvino", "sentence-transformers-openvino"}


@pytest.mark.parametrize(
    ("features", "missing", "expected"),
    [(set(), "optimum-intel", CPU), (set(), "", CPU | OPENVINO), ({"bf16"}, "optimum-intel", CPU)],
)
def test_baselines_are_those_whose_packages_are_installed(features, missing, expected, monkeypatch, capsys):
    monkeypatch.setattr("bench.variants.cpu_features", lambda: features)
    monkeypatch.setattr(quick, "missing_packages", lambda variant: {missing} & {*variant.further_packages})
    if features:
        expected = expected | {"crossencoder-bf16", "sentence-transformers-bf16"}
    chosen = run_benchmark.choose_variants(["torch", "baselines", "pipeline"], "cpu", quick=True)
    assert chosen[0] == "torch" and len(chosen) == len(set(chosen)) and set(chosen[1:]) == expected
    left_out = {name for name, variant in VARIANTS.items() if variant.takes_texts} - expected
    note = capsys.readouterr().err
    assert {name for name in left_out if f"{name}," in note.replace(":", ",")} == {
        name for name in left_out if not name.endswith("fp16")
    }
    both = run_benchmark.choose_variants(["all", "baselines"], "cpu", quick=False)
    assert {"onnx", "torch-compile"} | expected <= set(both)


def test_a_baseline_that_does_not_fit_the_task_is_refused(tiny_model, monkeypatch):
    model = Model.from_folder(tiny_model, "tiny")
    message = refused(runnable_variants, model, ["onnx", "sentence-transformers-onnx"])
    assert "sentence-transformers-onnx" in message and "crossencoder-onnx" in message
    names = ["onnx", "sentence-transformers-onnx", "crossencoder"]
    assert runnable_variants(model, names, ["onnx", "baselines"]) == ["onnx", "crossencoder"]
    monkeypatch.setattr(ensure, "missing_packages", lambda _: ["optimum-intel"])
    message = refused(runnable_variants, model, ["crossencoder-openvino"])
    assert "optimum-intel" in message and "requirements-baselines.txt" in message


@pytest.mark.needs("optimum")
def test_baselines_load_the_export_as_optimum_makes_it(tiny_model, tiny_exports):
    """Ours has the last layer for the first token only, which would make them faster than what people get."""
    from optimum.onnxruntime import ORTModelForSequenceClassification

    library = ORTModelForSequenceClassification.from_pretrained(tiny_model, export=True)
    exported, plain, ours = (
        [node.op_type for node in onnx.load(file, load_external_data=False).graph.node]
        for file in (library.path, tiny_exports / "tiny-onnx-plain/model.onnx", tiny_exports / "tiny-onnx/model.onnx")
    )
    assert plain == exported != ours


@pytest.mark.parametrize(
    ("name", "named", "absent"),
    [("onxx", "onnx", "torch"), ("int8", "onnx-int8", "torch"), ("./my/model", "--model-id", "crossencoder")],
)
def test_a_mistyped_variant_is_answered_by_the_one_that_was_meant(name, named, absent):
    message = refused(check_variant, name, "all")
    assert named in message and absent not in message
