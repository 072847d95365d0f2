"""ONNX graphs whose last layer runs for the first token only, with the same answers, if no other token is read."""

import numpy as np
import onnx
import pytest

from bench.exporters.first_token import FIRST, first_token_only
from bench.exporters.graph import cpu_session

CHANNELS = 8
TEXT = """
<ir_version: 8, opset_import: ["" : 18]>
classifier (int64[texts, tokens] input_ids) => (float[texts, labels] logits)
<int64 zero = {0}, int64 one = {1}, int64[1] two = {2}, int64[1] none = {0}, int64[1] four = {4},
 float[4] weight4 = {1.0, 2.0, 0.5, 3.0}>
{
    embedded = Gather <axis = 0> (words, input_ids)
    mixed = CumSum <reverse = 1> (embedded, one)
    BODY_LINES
    HEAD
}
"""
FEED_FORWARD = """wide = MatMul (mixed, inner)
    active = Tanh (wide)
    narrow = MatMul (active, outer)
    added = Add (narrow, mixed)"""
FIRST_TOKEN = "first = Gather <axis = 1> (BODY, zero)\n    logits = MatMul (first, labels8)"
BODIES = {
    "feed-forward": (FEED_FORWARD, "added", {"mixed"}),
    "the halves of a product": (
        FEED_FORWARD + "\n    left = Slice (added, none, four, two)\n    weighted = Mul (left, weight4)",
        "weighted",
        {"mixed"},
    ),
    "a size that is read": (
        "wide = MatMul (mixed, inner)\n    shape = Shape (wide)\n    size = Gather <axis = 0> (shape, two)\n"
        "    all = Slice (wide, none, size, two)",
        "all",
        {"mixed"},
    ),
    "a computed number for all": (
        FEED_FORWARD + "\n    ids = Cast <to = 1> (input_ids)\n    largest = ReduceMax <keepdims = 0> (ids)\n"
        "    scaled = Div (added, largest)\n    end = MatMul (scaled, outer)",
        "end",
        {"scaled"},
    ),
    "only after a mix": (
        FEED_FORWARD + "\n    again = CumSum <reverse = 1> (added, one)\n    end = MatMul (again, outer)",
        "end",
        {"again"},
    ),
}
WHOLE = {
    "a mean": (FEED_FORWARD, "first = ReduceMean <keepdims = 0> (added, middle)\n    logits = MatMul (first, labels8)"),
    "the last token": (
        FEED_FORWARD,
        "first = Gather <axis = 1> (added, last)\n    logits = MatMul (first, labels8)",
    ),
    "the first token and the sum": (
        FEED_FORWARD,
        "first = Gather <axis = 1> (added, zero)\n    all = ReduceSum <keepdims = 0> (added, middle)\n"
        "    both = Add (first, all)\n    logits = MatMul (both, labels8)",
    ),
    "a softmax over the tokens": (
        FEED_FORWARD + "\n    shares = Softmax <axis = 1> (added)",
        FIRST_TOKEN.replace("BODY", "shares"),
    ),
    "a number for each token": (
        FEED_FORWARD + "\n    moved = Mul (added, positions)",
        FIRST_TOKEN.replace("BODY", "moved"),
    ),
}


@pytest.fixture
def make(tmp_path):
    """Write a graph with random weights; return its file."""

    def make(body_lines, head):
        parsed = onnx.parser.parse_model(TEXT.replace("BODY_LINES", body_lines).replace("HEAD", head))
        rng = np.random.default_rng(0)
        shapes = {"words": (30, CHANNELS), "inner": (CHANNELS, CHANNELS), "outer": (CHANNELS, CHANNELS)}
        shapes |= {"labels8": (CHANNELS, 3), "positions": (1, TOKENS, 1)}
        weights = {name: rng.normal(size=shape).astype(np.float32) for name, shape in shapes.items()}
        weights |= {"middle": np.array([1]), "last": np.array(-1)}
        if "weight4)" in body_lines:
            weights["labels8"] = weights["labels8"][:4]
        parsed.graph.initializer.extend(onnx.numpy_helper.from_array(array, name) for name, array in weights.items())
        onnx.save(parsed, tmp_path / "model.onnx")
        return tmp_path / "model.onnx"

    return make


TOKENS = 6
BATCH = {"input_ids": np.random.default_rng(1).integers(0, 30, (4, TOKENS))}


def answers(file, batch=BATCH):
    return cpu_session(str(file)).run(None, batch)[0]


@pytest.mark.parametrize("body", BODIES)
def test_the_answers_stay_the_same(body, make):
    body_lines, output, above = BODIES[body]
    file = make(body_lines, FIRST_TOKEN.replace("BODY", output))
    before = [answers(file, {"input_ids": BATCH["input_ids"][:, :n]}) for n in (1, TOKENS)]
    assert first_token_only(file, BATCH)
    after = [answers(file, {"input_ids": BATCH["input_ids"][:, :n]}) for n in (1, TOKENS)]
    assert all(np.allclose(*pair, atol=1e-6) for pair in zip(before, after, strict=True))
    picks = [node.input[0] for node in onnx.load(file).graph.node if FIRST in node.input]
    assert set(picks) == above and [path.name for path in file.parent.iterdir()] == ["model.onnx"]


def test_a_graph_with_inner_graphs_is_left_alone(make):
    """The tensors that inner graphs read from outside are not among their node's inputs."""
    file = make(FEED_FORWARD, FIRST_TOKEN.replace("BODY", "added"))
    whole = onnx.load(file)
    inner = onnx.helper.make_node("ReduceSum", ["wide", "middle"], ["sum"], keepdims=0)
    last = onnx.helper.make_node("Gather", ["wide", "zero"], ["sum"], axis=1)
    value = onnx.helper.make_empty_tensor_value_info("sum")
    branches = {
        name: onnx.helper.make_graph([node], name, [], [value])
        for name, node in (("then_branch", inner), ("else_branch", last))
    }
    whole.graph.initializer.append(onnx.numpy_helper.from_array(np.array(False), "never"))
    whole.graph.node.extend([onnx.helper.make_node("If", ["never"], ["chosen"], **branches)])
    onnx.save(whole, file)
    before = file.read_bytes()
    assert not first_token_only(file, BATCH) and file.read_bytes() == before


@pytest.mark.parametrize("head", WHOLE)
def test_graphs_that_read_other_tokens_are_left_alone(head, make):
    file = make(*WHOLE[head])
    before = file.read_bytes()
    assert not first_token_only(file, BATCH) and file.read_bytes() == before
