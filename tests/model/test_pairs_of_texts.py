"""Pairs of texts and zero-shot classification answer as transformers' own calls do, item by item."""

import itertools
import json
from types import SimpleNamespace

import numpy as np
import pytest
from conftest import refused
from sentence_transformers import CrossEncoder
from tiny import make_tiny_bert, make_tiny_roberta
from torch import float32, nn, tensor
from transformers import AutoModelForSequenceClassification, AutoTokenizer, pipeline

from bench.export.gold import score
from bench.judge import NOT_WITHIN, WITHIN
from bench.model.batches import Batching
from bench.model.config import check_takes_pairs
from bench.model.model import Model
from bench.model.pairs import Pairs, has_sigmoid, order_changes
from bench.model.parity import ParityCounter
from bench.model.reference import Reference
from bench.model.tokenizing import tokenize
from bench.task_options import zero_shot_options
from bench.variants import Device
from runtimes.classifier import Classifier, ClassifierSpec

ORDERS = (
    ("contradiction", "ENTAILMENT", "neutral"),
    ("entailment", "neutral", "contradiction"),
    ("entailment", "not_entailment"),
)
TEMPLATE = "the text is of {}"
BATCHING = Batching("token-budget", batch_tokens=512)


def nli(folder, texts, names=ORDERS[0]):
    numbered = dict(enumerate(names))
    label2id = {name: i for i, name in numbered.items()}
    return make_tiny_bert(folder, texts, num_labels=len(names), problem_type=None, id2label=numbered, label2id=label2id)


@pytest.fixture(scope="module")
def folder(tmp_path_factory, texts):
    return nli(tmp_path_factory.mktemp("nli") / "nli", texts)


@pytest.fixture(scope="module")
def given(texts):
    return [*texts[:5], " ".join(texts[:40]), "of [SEP] the [PAD] [CLS]", "שלום עליכם", "x"]


def zero_shot(folder, labels, template=TEMPLATE, multi_label=False) -> Model:
    return Model.from_folder(folder, "nli", "zero-shot", zero_shot_options(labels, template, multi_label))


def answer(model: Model, items: list, batching=BATCHING) -> np.ndarray:
    return Classifier(ClassifierSpec(model, "torch", None, Device(None, 1))).predict(items, batching).answers


def pipeline_scores(folder, given, labels, multi_label) -> np.ndarray:
    tokenizer = AutoTokenizer.from_pretrained(folder)
    network = AutoModelForSequenceClassification.from_pretrained(folder)
    pipe = pipeline("zero-shot-classification", model=network, tokenizer=tokenizer, device="cpu")
    found = [pipe(text, labels, hypothesis_template=TEMPLATE, multi_label=multi_label) for text in given]
    scores = [dict(zip(one["labels"], one["scores"], strict=True)) for one in found]
    return np.array([[one[label] for label in labels] for one in scores])


@pytest.mark.parametrize("names", ORDERS)
def test_zero_shot_is_that_of_the_pipeline(names, given, texts, tmp_path):
    folder = nli(tmp_path / "nli", texts, names)
    for labels, multi_label in itertools.product((["if", "his whole, in", "a"], ["if"]), (False, True)):
        model = zero_shot(folder, labels, multi_label=multi_label)
        expected = pipeline_scores(folder, given, labels, multi_label)
        assert len({*expected.round(3).ravel()}) > 5, "a test of equal scores proves nothing"
        for batching in (BATCHING, Batching("in-order", 4)):
            assert answer(model, given, batching) == pytest.approx(expected, abs=1e-5)
        assert Reference.load(model).of_items(given) == pytest.approx(expected, abs=1e-6)


def test_gold_labels_are_scored_at_each_threshold_once(folder):
    task = zero_shot(folder, ["if", "a"], multi_label=True).task
    answers = np.random.default_rng(0).random((30, 2))
    found = score([["if"], ["a"], []] * 10, answers, answers, task)
    assert {row["rule"] for row in found["scores"]} == {"default", "best", "cross-validated"}


def test_an_item_that_cannot_be_answered_has_no_scores(folder, given):
    model = zero_shot(folder, ["if", "a"])
    items = [given[0], "half \ud83d a pair", given[1]]
    for found in (answer(model, items), Reference.load(model).of_items(items)):
        assert np.isnan(found).all(axis=1).tolist() == [False, True, False]


@pytest.mark.parametrize("long", ["windows", "windows-mean"])
@pytest.mark.parametrize("multi_label", [False, True])
def test_windows_combine_with_hypotheses(long, multi_label, folder, given):
    model = zero_shot(folder, ["if", "his whole in a", "a"], multi_label=multi_label)
    network = AutoModelForSequenceClassification.from_pretrained(folder)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    combine, scores = np.max if long == "windows" else np.mean, []
    for label in model.labels:
        options = {"return_overflowing_tokens": True, "stride": 32, "return_tensors": "pt", "padding": True}
        inputs = tokenizer(given[5], TEMPLATE.format(label), truncation="only_first", max_length=128, **options)
        inputs.pop("overflow_to_sample_mapping")
        logits = network(**inputs).logits.detach().numpy()
        exponents = np.exp(logits[:, [0, 1]])
        scores.append(combine(exponents[:, 1] / exponents.sum(axis=1) if multi_label else logits[:, 1]))
    assert len(logits) > 3
    expected = np.array(scores) if multi_label else np.exp(scores) / np.exp(scores).sum()
    batching = Batching("token-budget", batch_tokens=512, long=long)
    assert answer(model, given, batching)[5] == pytest.approx(expected, abs=1e-5)
    assert Reference.load(model, long=long).of_items(given[5:6])[0] == pytest.approx(expected, abs=1e-6)
    cut = answer(model, given)
    assert answer(model, given, batching)[0] == pytest.approx(cut[0], abs=1e-5), "a short text has one window"


def test_many_labels_are_tokenized_in_small_chunks(folder, given, monkeypatch):
    """As many rows at once as for single texts, so memory does not grow with the number of labels."""
    model, sizes = zero_shot(folder, [f"label {i}" for i in range(100)]), []
    monkeypatch.setattr("bench.model.stream.CHUNK_TEXTS", 256)
    make = Model.tokenize
    monkeypatch.setattr(
        Model, "tokenize", lambda *args, **options: sizes.append(len(args[1])) or make(*args, **options)
    )
    assert answer(model, given).shape == (len(given), 100)
    assert max(sizes) * 100 <= 256 and sum(sizes) == len(given)


def test_lost_tokens_of_a_text_count_once(folder, given, monkeypatch):
    monkeypatch.setattr("bench.model.tokenizing.CHARACTERS_PER_TOKEN", 10**9)  # otherwise the number is estimated
    model = zero_shot(folder, ["if", "his whole in a", "a"])
    rows = model.tokenize([given[5], given[0]])
    tokenizer = AutoTokenizer.from_pretrained(folder)
    whole = len(tokenizer(given[5], TEMPLATE.format("if"))["input_ids"])
    assert rows["lost"] == [whole - 128, 0, 0, 0, 0, 0] and rows["part"] == [0, 1, 2] * 2


WORDS = " ".join(f"the design {i}" for i in range(200))
AWKWARD = [("", ""), ("a", ""), ("", "a"), (WORDS, "a"), ("a", WORDS), (WORDS, WORDS[:300]), (WORDS[:400], WORDS)]
AWKWARD += [("of [SEP] the", "[PAD] [CLS] a"), ("שלום", "a 😀"), (WORDS, WORDS), ("half \ud83d", "a"), ("a", "\udc00")]


@pytest.mark.parametrize("truncation", ["longest_first", "only_first"])
@pytest.mark.parametrize("side", ["right", "left"])
def test_tokens_of_pairs_are_those_of_transformers(truncation, side, folder, monkeypatch):
    """Also where a text is so long that it is shortened before it is tokenized."""
    monkeypatch.setattr("bench.model.tokenizing.CHARACTERS_PER_TOKEN", 12)
    tokenizer, truth = (AutoTokenizer.from_pretrained(folder, truncation_side=side) for _ in range(2))
    very_long = [("a", WORDS * 3), (WORDS * 3, "a"), (WORDS * 2, WORDS), (WORDS, WORDS * 2)]
    very_long += [("the " * 200, WORDS), (WORDS, "the " * 200), ("the " * 900, "designs " * 300)]
    for max_length in (30, 41):
        items = [*AWKWARD, *very_long]
        found = tokenize(tokenizer, items, max_length, ["input_ids", "token_type_ids", "lost"], truncation)
        for i, item in enumerate(items):
            try:
                rows = truth([item[0]], [item[1]], truncation=truncation, max_length=max_length)
                expected = {name: values[0] for name, values in rows.items()}
            except Exception:  # not Unicode, or no room for the first text
                assert found["input_ids"][i] == [] and found["lost"][i] == 0, item
                continue
            assert {name: found[name][i] for name in ("input_ids", "token_type_ids")} == {
                name: expected[name] for name in ("input_ids", "token_type_ids")
            }, item
            if max(map(len, item)) <= 12 * 2 * max_length:  # otherwise it is estimated
                assert found["lost"][i] == len(truth([item[0]], [item[1]])["input_ids"][0]) - len(expected["input_ids"])


def test_pairs_in_the_baselines(folder, given):
    pairs = list(itertools.pairwise(given))
    model = Model.from_folder(folder, "nli", "pairs")
    expected = Reference.load(model).of_items(pairs)
    for name in ("pipeline", "crossencoder"):
        variant = Classifier(ClassifierSpec(model, name, None, Device(None, 1)))
        assert variant.predict(pairs, Batching("in-order", 3)).answers == pytest.approx(expected, abs=1e-5)
    labels = zero_shot(folder, ["if", "a"], multi_label=True)
    variant = Classifier(ClassifierSpec(labels, "pipeline", None, Device(None, 1)))
    found = variant.predict(given, Batching("in-order", 3)).answers
    assert found == pytest.approx(answer(labels, given), abs=1e-5)


SIGMOID, IDENTITY = "torch.nn.modules.activation.Sigmoid", "torch.nn.modules.linear.Identity"


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        ({}, True),
        ({"problem_type": "regression"}, False),
        ({"sentence_transformers": {"activation_fn": IDENTITY}}, False),
        ({"sentence_transformers": {"activation_fn": SIGMOID}, "problem_type": "regression"}, True),
        ({"sbert_ce_default_activation_function": IDENTITY}, False),
        ({"sbert_ce_default_activation_function": IDENTITY, "sentence_transformers": {"activation_fn": SIGMOID}}, True),
        ({"sentence_transformers": {"version": "5.0"}, "sbert_ce_default_activation_function": SIGMOID}, True),
    ],
)
def test_the_activation_of_a_score_follows_the_config(config, expected):
    assert has_sigmoid(SimpleNamespace(**{"problem_type": None} | config), {}) is expected


def test_an_unknown_activation_is_refused():
    config = SimpleNamespace(problem_type=None, sbert_ce_default_activation_function="torch.nn.Tanh")
    assert "torch.nn.Tanh" in refused(has_sigmoid, config, {})


@pytest.mark.parametrize(
    ("settings", "refusal"),
    [
        ({"activation_fn": nn.Identity()}, None),
        ({"activation_fn": nn.Sigmoid()}, None),
        ({"activation_fn": nn.Tanh()}, "Tanh"),
        ({"prompts": {"query": "the "}, "default_prompt_name": "query"}, "query"),
    ],
)
def test_scores_are_those_of_a_cross_encoder_that_was_saved(settings, refusal, texts, tmp_path):
    """As sentence-transformers 5.7 saves it, without a word in config.json."""
    plain = make_tiny_bert(tmp_path / "plain", texts, num_labels=1, problem_type="regression", id2label={0: "fits"})
    CrossEncoder(str(plain), device="cpu", **settings).save_pretrained(str(tmp_path / "saved"))
    message = refused(Model.from_folder, tmp_path / "saved", "saved")
    assert "config_sentence_transformers.json" in message and "--pair-column" in message
    if refusal:
        assert refusal in refused(Model.from_folder, tmp_path / "saved", "saved", "pairs")
        return
    model = Model.from_folder(tmp_path / "saved", "saved", "pairs")
    pairs = list(zip(texts[:9], texts[9:18], strict=True))
    expected = CrossEncoder(str(tmp_path / "saved"), device="cpu").predict(pairs, show_progress_bar=False)
    assert answer(model, pairs)[:, 0] == pytest.approx(expected, abs=1e-5)
    (tmp_path / "export").mkdir()
    model.task.save_files(model, tmp_path / "export")
    assert type(model.task).from_config(model.config, tmp_path / "export") == model.task


def test_a_score_is_judged_by_its_spread_not_by_a_threshold(texts, tmp_path):
    folder = make_tiny_bert(tmp_path / "score", texts, num_labels=1, problem_type=None, id2label={0: "LABEL_0"})
    model = Model.from_folder(folder, "score", "pairs")
    pairs = list(zip(texts[:9], texts[9:18], strict=True))
    tokenizer = AutoTokenizer.from_pretrained(folder)
    network = AutoModelForSequenceClassification.from_pretrained(folder)
    logits = [
        network(**tokenizer(*pair, return_tensors="pt", truncation=True, max_length=128)).logits for pair in pairs
    ]
    expected = np.array([logit.sigmoid().item() for logit in logits])[:, None]
    assert answer(model, pairs) == pytest.approx(expected, abs=1e-5)
    moved = expected + expected.std() * np.array([0, 0.05, 0.2] * 3)[:, None]
    assert model.task.flips(moved, expected).sum() == 3


@pytest.mark.parametrize("logits", [np.linspace(-14, -9.5, 21), np.linspace(9, 13, 21), np.linspace(-90, 10, 21)])
def test_scores_close_to_0_or_1_are_judged_by_their_order(logits):
    """FP32 rounding passes, also of the scores in a file; a ranking from worst to best does not."""
    task = Pairs(("LABEL_0",), "regression", (0.5,), sigmoid_score=True)
    reference = nn.functional.sigmoid(tensor(logits)).numpy()[:, None]
    rounded = nn.functional.sigmoid(tensor(logits + 2e-6, dtype=float32)).numpy()[:, None]
    for answers, verdict in ((rounded, WITHIN), (reference[::-1], NOT_WITHIN)):
        parity = ParityCounter(task, "fp32")
        parity.add(answers, reference)
        assert parity.verdict() == verdict
        moved, neighbours = order_changes(task.comparable(answers), task.comparable(reference), ["q"] * 21)
        assert neighbours == 20 and len(moved) == (0 if verdict == WITHIN else 20)


def test_the_order_of_a_query_changes_with_its_neighbours():
    reference = np.array([[0.9], [0.1], [0.5], [0.2], [0.20001], [0.3], [np.nan]])
    groups = ["q", "other", "q", "q", "q", "other", "q"]
    moved = np.array([[0.9], [0.3], [0.5], [0.6], [0.1], [0.2], [0.0]])
    tied = np.full((7, 1), 0.4)
    # 0.2 and 0.20001 are a tie; 0.1 and 0.3 change places
    for answers, expected in ((reference, []), (moved, [5]), (tied, [0, 2, 5])):
        items, neighbours = order_changes(answers, reference, groups)
        assert sorted(items) == expected and neighbours == 3
    assert order_changes(reference[:1], reference[:1], ["q"])[1] == 0


@pytest.mark.parametrize(
    ("names", "label2id", "words"),
    [
        (("yes", "no"), {"yes": 0, "no": 1}, ["yes", "no", "entail"]),
        (("entailment", "no"), {"entailment": 1, "no": 0}, ["label2id", "id2label"]),
    ],
)
def test_a_model_without_one_entailment_label_is_refused(names, label2id, words, texts, tmp_path):
    numbered = dict(enumerate(names))
    folder = make_tiny_bert(
        tmp_path / "m", texts, num_labels=2, problem_type=None, id2label=numbered, label2id=label2id
    )
    message = refused(zero_shot, folder, ["a"])
    assert all(word in message for word in words)


def test_a_hypothesis_without_room_for_the_text_is_refused(folder):
    message = refused(zero_shot, folder, ["a", "the " * 120])
    assert "--hypothesis-template" in message and "the the" in message


def test_a_slow_tokenizer_without_pairs_is_refused():
    slow = SimpleNamespace(is_fast=False, num_special_tokens_to_add=lambda pair: 0)
    assert "SimpleNamespace" in refused(check_takes_pairs, None, slow, ())


def test_a_model_with_one_token_type_takes_pairs_if_its_tokenizer_gives_no_other(texts, tmp_path):
    """RoBERTa with a general fast tokenizer, which gives type 0 to both texts."""
    names = dict(enumerate(ORDERS[0]))
    folder = make_tiny_roberta(tmp_path / "roberta", texts, num_labels=3, problem_type=None, id2label=names)
    settings = json.loads((folder / "tokenizer_config.json").read_text())
    (folder / "tokenizer_config.json").write_text(json.dumps(settings | {"tokenizer_class": "PreTrainedTokenizerFast"}))
    tokenizer = AutoTokenizer.from_pretrained(folder)
    network = AutoModelForSequenceClassification.from_pretrained(folder).eval()
    pairs = list(zip(texts[:5], texts[5:10], strict=True))
    inputs = [tokenizer(*pair, return_tensors="pt", truncation=True, max_length=128) for pair in pairs]
    assert all("token_type_ids" in of_pair for of_pair in inputs)
    expected = np.concatenate([network(**of_pair).logits.softmax(1).detach().numpy() for of_pair in inputs])
    assert answer(Model.from_folder(folder, "roberta", "pairs"), pairs) == pytest.approx(expected, abs=1e-5)


def test_raw_values_of_one_unnamed_label_are_said(texts, tmp_path, capsys):
    """They are those of transformers' pipeline; CrossEncoder.predict gives their sigmoid."""
    folder = make_tiny_bert(tmp_path / "raw", texts, num_labels=1, problem_type="regression", id2label={0: "LABEL_0"})
    Model.from_folder(folder, "raw")
    note = capsys.readouterr().err
    assert "problem_type" in note and "--pair-column" in note
    model = Model.from_folder(folder, "raw", "pairs")
    note = capsys.readouterr().err
    assert "problem_type" in note and "CrossEncoder" in note
    found = answer(model, [(texts[0], texts[1])])[0]
    pipe = pipeline("text-classification", model=str(folder), device="cpu")
    assert found == pytest.approx([pipe({"text": texts[0], "text_pair": texts[1]})["score"]], abs=1e-5)
    score = CrossEncoder(str(folder), device="cpu").predict([(texts[0], texts[1])], show_progress_bar=False)
    assert 1 / (1 + np.exp(-found)) == pytest.approx(score, abs=1e-5)


def test_a_model_with_one_token_type_is_refused_if_its_tokenizer_gives_two(texts, tmp_path):
    folder = make_tiny_bert(tmp_path / "one", texts, num_labels=2, problem_type=None, type_vocab_size=1)
    assert "type_vocab_size" in refused(Model.from_folder, folder, "one", "pairs")


@pytest.mark.parametrize(
    ("labels", "template", "option"),
    [
        ("a,,b", None, "--candidate-labels"),
        ("", None, "--candidate-labels"),
        ([], None, "--candidate-labels"),
        ("a,b, a", None, "--candidate-labels"),
        ("a,b\u2028c", None, "--candidate-labels"),
        ("a,b", "about it", "--hypothesis-template"),
        ("a,b", "{{}}", "--hypothesis-template"),
        ("a,b", "{} {1}", "--hypothesis-template"),
        ("a,b", "{} {", "--hypothesis-template"),
    ],
)
def test_wrong_labels_and_templates_are_refused(labels, template, option):
    assert option in refused(zero_shot_options, labels, template, False)


def test_labels_of_a_file_are_taken_verbatim(tmp_path):
    file = tmp_path / "labels.txt"
    file.write_bytes("\ufeffsports, games\r\npolitics.\nécole\n".encode())
    assert zero_shot_options(str(file), None, False)["labels"] == ["sports, games", "politics.", "école"]
    assert zero_shot_options("sports, games", None, False)["labels"] == ["sports", "games"]
    file.write_bytes(b"\xff")
    assert str(file) in refused(zero_shot_options, str(file), None, False)
