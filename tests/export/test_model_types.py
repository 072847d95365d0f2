"""The table of model types in results/README.md: what it says is what an export of each family gives here and now."""

import model_types
import pandas as pd
import pytest
from conftest import ROOT
from tiny import make_tiny, tiny_config, word_level_tokenizer

FAMILIES = ("bert", "deberta-v2", "modernbert", "xlm")  # each by other exporters, or otherwise fused


@pytest.fixture(scope="module")
def rows():
    return pd.read_csv(model_types.FILE, sep="\t")


def test_the_results_have_the_table_of_what_was_measured(rows):
    assert model_types.write_readme(model_types.table(rows)) == (ROOT / "results" / "README.md").read_text(
        encoding="utf-8"
    )


def test_every_type_is_right_or_refused_with_a_reason(rows):
    assert rows.groupby("transformers")["type"].agg(set).tolist() == [set(model_types.KINDS)] * 2
    exported = rows[rows["refused"].isna()]
    assert (exported[exported["precision"] == "fp32"]["max_diff"] < 1e-4).all() and exported["exporter"].notna().all()
    assert rows[rows["refused"].notna()]["refused"].str.len().between(20, 400).all()


@pytest.mark.parametrize("precision", ["fp32", "fp16"])
@pytest.mark.parametrize("kind", FAMILIES)
def test_a_family_is_exported_as_the_table_says(kind, precision, rows, tmp_path):
    import transformers

    (tmp_path / "source").mkdir()
    make_tiny(tmp_path / "source", word_level_tokenizer(kind), tiny_config(kind))
    found = model_types.cover(kind, precision, tmp_path)
    not_fused = precision == "fp16" and found["attention"] == 0
    assert any(finding.startswith("0 of 2 Attention/MultiHead") for finding in found["findings"]) == not_fused
    same = (rows["type"] == kind) & (rows["precision"] == precision)
    [known] = rows[same & (rows["transformers"] == transformers.__version__)].to_dict("records")
    assert (found["exporter"], found["attention"]) == (known["exporter"], known["attention"])
    assert found["max_diff"] == pytest.approx(known["max_diff"], rel=1, abs=1e-4)
