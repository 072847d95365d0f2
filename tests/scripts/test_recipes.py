"""The examples of docs/recipes.md run as printed."""

import os
import re
import subprocess
import sys

import pandas as pd
import pytest
from conftest import ROOT
from tiny import make_sentence_model, make_tiny_bert, make_tiny_encoder

import embed_texts


@pytest.mark.all_types
def test_the_python_of_the_recipes_runs(tiny_model, texts, call, tmp_path, monkeypatch):
    from sentence_transformers.models import Pooling

    monkeypatch.chdir(tmp_path)
    labels = {0: "contradiction", 1: "entailment", 2: "neutral"}
    ids = {name: i for i, name in labels.items()}
    make_tiny_bert(tmp_path / "nli", texts, num_labels=3, problem_type=None, id2label=labels, label2id=ids)
    make_tiny_bert(tmp_path / "rerank", texts, num_labels=1, problem_type=None, id2label={0: "LABEL_0"})
    encoder = make_tiny_encoder(tmp_path / "encoder", texts)
    make_sentence_model(tmp_path / "sentence", encoder, [Pooling(32)])
    pd.DataFrame({"body": [*texts[:20], None]}).to_csv("texts.csv", index=False)
    code, _, err = call(embed_texts, "sentence", "texts.csv", "--output", "vectors", "--device", "cpu")
    assert code == 0, err
    os.mkdir("labelled")
    pd.DataFrame({"joy": [0.5]}).to_parquet("labelled/part.parquet")
    blocks = re.findall(r"```python\n(.*?)```", (ROOT / "docs/recipes.md").read_text(), re.DOTALL)
    blocks = [block for block in blocks if "faiss" not in block]  # no requirement
    assert len(blocks) == 4
    models = f"MODEL, NLI_MODEL, RERANKER, EMBEDDING_MODEL = {str(tiny_model)!r}, 'nli', 'rerank', 'sentence'\n"
    models += f"texts, labels = {texts[:20]!r}, [0, 1] * 10\n"
    results = "print(vectors.shape, head.predict_proba(embed(EMBEDDING_MODEL, texts)).shape)\n"
    results += "print(classify(NLI_MODEL, ['a'], candidate_labels=['cooking', 'politics']).columns.tolist())"
    script = "\n".join([models, *blocks, results])
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run([sys.executable, "-c", script], env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == ["(20, 32) (20, 2)", "['cooking', 'politics']"]
