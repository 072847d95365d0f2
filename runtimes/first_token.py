"""The last layer for the first token alone, where the classifier's head reads no other.

Such a head needs of the last layer only that token's query, its output and its feed-forward part, and keys and values
of all tokens. That saves nearly a layer's work, of six or of twelve, and the answers stay the same.
"""

import inspect

import torch

TEXTS, TOKENS = 3, 12  # of the padded batch on which a model is tried
TOLERANCE = {torch.float32: 1e-4, torch.float16: 1e-2, torch.bfloat16: 5e-2}  # of the largest value: rounding
OTHERS = "encoder_hidden_states", "query_states"  # what attention may be given beside the tokens themselves


class AttentionOfFirst(torch.nn.Module):
    """Attention with a query of the first token alone: in BERT's relatives as if it looked at another sequence."""

    def __init__(self, attention: torch.nn.Module, other: str):
        super().__init__()
        self.attention, self.other = attention, other

    def forward(self, hidden, *arguments, **options):
        first = hidden[:, :1]
        query, other = (first, hidden) if self.other == OTHERS[0] else (hidden, first)
        options = {name: of_first_query(value) for name, value in options.items()} | {self.other: other}
        return self.attention(query, *map(of_first_query, arguments), **options)


class NamedAttentionOfFirst(torch.nn.Module):
    """DistilBERT's attention, which is given query, key and value, with a query of the first token alone."""

    def __init__(self, attention: torch.nn.Module):
        super().__init__()
        self.attention = attention

    def forward(self, query, key, value, **options):
        options = {name: of_first_query(one) for name, one in options.items()}
        return self.attention(query=query[:, :1], key=key, value=value, **options)


class FirstAlone(torch.nn.Module):
    """A module that gets of each text the first token alone."""

    def __init__(self, module: torch.nn.Module):
        super().__init__()
        self.module = module

    def forward(self, *hidden):
        return self.module(*(one[:, :1] for one in hidden))


def of_first_query(value):
    """Returns of a mask, or of relative positions, [..., queries, keys] the first query's; anything else as it is."""
    is_square = torch.is_tensor(value) and value.dim() > 2 and value.shape[-1] == value.shape[-2]
    return value[..., :1, :] if is_square else value


def first_token_only(network) -> bool:
    """Has a classifier's last layer computed for the first token alone; says whether that could be done.

    It is done if the head reads no other token, so that the logits are the same, bit for bit, when the others are nan;
    and if the layer then gives for the first token what it gives when it is computed for all.
    """
    layer = last_layer(network)
    wrapped = wrap(layer) if layer else []
    if not wrapped:
        return False
    try:
        logits, whole = run(network, layer)
        if torch.equal(run(network, layer, spoilt=True)[0], logits):
            for owner, name, _, new in wrapped:
                setattr(owner, name, new)
            _, first = run(network, layer)
            off = (first - whole[:, :1]).abs().max() / whole[:, :1].abs().max()
            if first.shape[1] == 1 and off <= TOLERANCE[whole.dtype]:
                return True
    except (RuntimeError, TypeError, ValueError, LookupError, AttributeError):
        pass  # this type, or this version of transformers, does it otherwise
    for owner, name, old, _ in wrapped:
        setattr(owner, name, old)
    return False


def last_layer(network) -> torch.nn.Module | None:
    """Returns the last of a network's layers; None if it is not known which these are."""
    stacks = [module for module in network.modules() if isinstance(module, torch.nn.ModuleList)]
    stacks = [stack for stack in stacks if len(stack) == getattr(network.config, "num_hidden_layers", 0)]
    return stacks[0][-1] if len(stacks) == 1 else None


def wrap(layer: torch.nn.Module) -> list[tuple]:
    """Returns what takes another's place in a layer: (owner, name, old, new); nothing for a layer of another kind."""
    attention = getattr(layer, "attention", None)
    inner = getattr(attention, "self", None)
    if inner is not None and hasattr(attention, "output"):
        known = [name for name in OTHERS if name in inspect.signature(inner.forward).parameters]
        new = {"self": AttentionOfFirst(inner, known[0]), "output": FirstAlone(attention.output)} if known else {}
        return [(attention, name, getattr(attention, name), module) for name, module in new.items()]
    if attention is not None and hasattr(layer, "sa_layer_norm"):
        new = {"attention": NamedAttentionOfFirst(attention), "sa_layer_norm": FirstAlone(layer.sa_layer_norm)}
        return [(layer, name, getattr(layer, name), module) for name, module in new.items()]
    return []


@torch.inference_mode()
def run(network, layer: torch.nn.Module, spoilt: bool = False) -> tuple[torch.Tensor, torch.Tensor]:
    """Runs a small padded batch; returns the logits and the layer's output, behind the first token perhaps `spoilt`."""
    seen, place = [], next(network.parameters()).device

    def keep(_, __, output):
        hidden = output[0] if isinstance(output, tuple) else output
        if spoilt:
            hidden = torch.cat([hidden[:, :1], torch.full_like(hidden[:, 1:], torch.nan)], dim=1)
        seen.append(hidden)
        return (hidden, *output[1:]) if isinstance(output, tuple) else hidden

    random = torch.Generator().manual_seed(0)
    ids = torch.randint(min(network.config.vocab_size, 10_000), (TEXTS, TOKENS), generator=random)
    mask = (torch.arange(TOKENS) < torch.tensor([[TOKENS], [TOKENS // 2], [1]])).long()
    handle = layer.register_forward_hook(keep)
    try:
        logits = network(input_ids=ids.to(place), attention_mask=mask.to(place), return_dict=True).logits
    finally:
        handle.remove()
    return logits, seen[0]
