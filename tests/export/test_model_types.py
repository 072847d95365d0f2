"""The table of model types in results/README.md agrees with what an export of each family gives now."""

import re

import model_types
import pandas as pd
import pytest
from conftest import ROOT
from tiny import make_tiny, tiny_config, word_level_tokenizer

# each is exported by other exporters, or fused otherwise
FAMILIES = [("fp32", kind) for kind in ("bert", "deberta-v2", "modernbert", "xlm")]
FAMILIES += [("fp16", kind) for kind in ("bert", "xlm")]
# optimizing these graphs takes up to a minute
FAMILIES += [pytest.param("fp16", kind, marks=pytest.mark.all_types) for kind in ("deberta-v2", "modernbert")]


@pytest.fixture(scope="module")
def rows():
    return pd.read_csv(model_types.FILE, sep="\t")


def test_the_readme_has_the_table_of_these_results(rows):
    assert model_types.write_readme(model_types.table(rows)) == (ROOT / "results" / "README.md").read_text(
        encoding="utf-8"
    )


def test_every_type_is_correct_or_refused_with_a_reason(rows):
    assert rows.groupby("transformers")["type"].agg(set).tolist() == [set(model_types.KINDS)] * 2
    exported = rows[rows["refused"].isna()]
    assert (exported[exported["precision"] == "fp32"]["max_diff"] < 1e-4).all() and exported["exporter"].notna().all()
    assert rows[rows["refused"].notna()]["refused"].str.len().between(20, 400).all()


@pytest.mark.parametrize(("precision", "kind"), FAMILIES)
def test_a_family_is_exported_as_the_table_says(kind, precision, rows, tmp_path):
    import transformers

    (tmp_path / "source").mkdir()
    make_tiny(tmp_path / "source", word_level_tokenizer(kind), tiny_config(kind))
    found = model_types.cover(kind, precision, tmp_path)
    not_fused = precision == "fp16" and found["attention"] == 0
    about_attention = [finding for finding in found["findings"] if "Attention" in finding]
    assert any(re.match(r"0\b", finding) for finding in about_attention) == not_fused
    same = (rows["type"] == kind) & (rows["precision"] == precision)
    [known] = rows[same & (rows["transformers"] == transformers.__version__)].to_dict("records")
    assert (found["exporter"], found["attention"]) == (known["exporter"], known["attention"])
    assert found["max_diff"] == pytest.approx(known["max_diff"], rel=1, abs=1e-4)
