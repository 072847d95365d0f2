"""The last layer runs for the first token only, with the same answers, if the head reads no other token."""

import pytest
import torch
from model_types import as_parameters
from tiny import tiny_config
from torch.utils.flop_counter import FlopCounterMode
from transformers import AutoModelForSequenceClassification

from bench.model.first_token import first_token_only

SUPPORTED = "bert", "camembert", "data2vec-text", "deberta-v2", "distilbert", "electra", "ernie", "megatron-bert"
SUPPORTED += "modernbert", "mpnet", "rembert", "roberta", "xlm-roberta"
WHOLE = "albert", "flaubert", "squeezebert", "xlnet"


@pytest.fixture
def ask():
    """Return a network's logits for padded texts, texts of one length, and a single text."""
    ids = torch.randint(10, 90, (4, 30), generator=torch.Generator().manual_seed(1))
    mask = (torch.arange(30) < torch.tensor([[30], [9], [3], [1]])).long()

    @torch.inference_mode()
    def ask(network):
        batches = (ids, mask), (ids, torch.ones_like(mask)), (ids[:1], mask[:1])
        return torch.cat([network(input_ids=rows, attention_mask=masks).logits for rows, masks in batches])

    return ask


@pytest.mark.parametrize("implementation", ["eager", "sdpa"])
@pytest.mark.parametrize("kind", as_parameters(SUPPORTED))
def test_the_answers_stay_the_same(kind, implementation, ask):
    config = tiny_config(kind)
    try:
        network = AutoModelForSequenceClassification.from_config(config, attn_implementation=implementation).eval()
    except ValueError:
        pytest.skip(f"transformers has no {implementation} for {kind}")
    before, work = ask(network), count(ask, network)
    assert first_token_only(network)
    assert (ask(network) - before).abs().max() < 1e-5 and before.std() > 1e-3
    if implementation == "eager":  # one of two layers costs almost nothing, or lacks its feed-forward part
        assert count(ask, network) < 0.9 * work


@pytest.mark.parametrize("kind", as_parameters(SUPPORTED))
def test_a_decoders_first_token_still_sees_no_later_tokens(kind, ask):
    """Without padding, attention is causal only if there are several queries: a single one would see all tokens."""
    config = tiny_config(kind)
    config.is_decoder = True
    network = AutoModelForSequenceClassification.from_config(config).eval()
    before = ask(network)
    first_token_only(network)
    assert (ask(network) - before).abs().max() < 1e-5


def count(ask, network) -> int:
    """Return the FLOPs; torch doesn't count those of SDPA on a CPU."""
    with FlopCounterMode(display=False) as counter:
        ask(network)
    return counter.get_total_flops()


@pytest.mark.parametrize("kind", as_parameters(WHOLE))
def test_other_types_run_the_whole_layer(kind, ask):
    network = AutoModelForSequenceClassification.from_config(tiny_config(kind)).eval()
    before, parts = ask(network), dict(network.named_modules())
    assert not first_token_only(network)
    assert torch.equal(ask(network), before) and dict(network.named_modules()) == parts


class Mean(torch.nn.Module):
    """A head that reads all tokens."""

    def __init__(self, head):
        super().__init__()
        self.head = head

    def forward(self, hidden):
        return self.head(hidden.mean(dim=1, keepdim=True))


def test_a_head_that_reads_other_tokens_gets_them(ask):
    network = AutoModelForSequenceClassification.from_config(tiny_config("roberta")).eval()
    network.classifier = Mean(network.classifier)
    before = ask(network)
    assert not first_token_only(network) and torch.equal(ask(network), before)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_lower_precisions_do_it_too(dtype, ask):
    network = AutoModelForSequenceClassification.from_config(tiny_config("bert")).eval().to(dtype)
    before = ask(network)
    assert first_token_only(network) and (ask(network) - before).abs().max() < 0.05
