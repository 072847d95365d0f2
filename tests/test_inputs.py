"""What the cells of a sweep share, and its cache."""

import shutil

import numpy as np
import pytest
from tiny import make_tiny_distilbert

from bench import inputs as room
from bench.batches import pad
from bench.inputs import prepare_inputs
from bench.machine import count_flops
from bench.parity import probabilities
from bench.texts import load_tokenizer, tokenize
from runtimes.pytorch import load
from runtimes.runner import Place

pytestmark = pytest.mark.usefixtures("in_this_process")


def test_inputs_are_what_the_tokenizer_and_the_model_say(tiny_model, texts):
    inputs = prepare_inputs(tiny_model, texts, None)
    ids = tokenize(load_tokenizer(tiny_model), texts, 128)
    assert [row.tolist() for row in inputs.rows(range(len(texts)))] == ids
    assert inputs.texts() == texts
    about = inputs.about
    assert (about["problem"], about["limit"], len(about["labels"])) == ("multi_label_classification", 128, 5)
    assert len(inputs.checked) == 256 and inputs.reference.shape == (256, 5)
    runner = load(tiny_model, Place(None, 1))
    last = int(inputs.checked[-1])
    alone = runner.fetch(runner.forward(runner.prepare(pad([ids[last]], 1))))
    assert np.allclose(inputs.reference[-1], probabilities(alone, about["problem"]), atol=1e-6)
    assert inputs.flops == count_flops(tiny_model, inputs.lengths)
    everything = prepare_inputs(tiny_model, texts, None, with_reference=False)
    assert len(everything.checked) == 300 and everything.reference.size == 0


@pytest.mark.parametrize("damage", [lambda _: b"", lambda good: good[:99], lambda good: good[:-9], lambda _: b"x" * 99])
def test_damaged_inputs_in_the_cache_are_made_anew(damage, tiny_model, monkeypatch, tmp_path):
    made, make = [], room.make_inputs
    monkeypatch.setattr(room, "CACHE", tmp_path)
    monkeypatch.setattr(room, "make_inputs", lambda *arguments: made.append(1) or make(*arguments))
    first, again = (prepare_inputs(tiny_model, ["text"], None) for _ in range(2))
    assert len(made) == 1
    file = first.folder / "arrays.npz"
    file.write_bytes(damage(file.read_bytes()))
    again = prepare_inputs(tiny_model, ["text"], None)
    assert (again.token_ids == first.token_ids).all() and len(made) == 2


def test_other_texts_and_another_model_have_inputs_of_their_own(tiny_model, texts, tmp_path):
    folders = {prepare_inputs(tiny_model, some, None, with_reference=False).folder for some in (texts[:3], texts[:4])}
    other = shutil.copytree(tiny_model, tmp_path / "other")
    folders.add(prepare_inputs(other, texts[:3], None, with_reference=False).folder)
    folders.add(prepare_inputs(make_tiny_distilbert(tmp_path / "d", texts), texts[:3], None, False).folder)
    assert len(folders) == 4
