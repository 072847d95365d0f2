"""The last layer for the first token alone, where the classifier's head reads no other.

Such a head needs of the last layer only that token's query, its output and its feed-forward part, and keys and values
of all tokens. That saves nearly a layer's work, of six or of twelve, and the answers stay the same.
"""

import inspect

import torch

TEXTS, TOKENS = 3, 12  # of the batches on which a model is tried
TOLERANCE = {torch.float32: 1e-4, torch.float16: 1e-2, torch.bfloat16: 5e-2}  # of the largest logit: rounding
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


def first_token_only(network, output: str = "logits") -> bool:
    """Has a classifier's last layer computed for the first token alone; says whether that could be done.

    It is done if the head reads no other token, so that the logits are the same, bit for bit, when the others are nan;
    and if they stay the same when the layer does less. Of the ways to have it do less the first that fits is taken.
    """
    layer = last_layer(network)
    if not layer:
        return False
    try:
        logits = run(network, layer, output)
        if not torch.equal(run(network, layer, output, others_nan=True), logits):
            return False
    except (RuntimeError, TypeError, ValueError, LookupError, AttributeError):
        return False  # it wants other inputs, or its layer gives something else
    for way in candidate_patches(layer):
        old = [(owner, name, getattr(owner, name)) for owner, name, _ in way]
        try:
            for owner, name, new in way:
                setattr(owner, name, new)
            if (run(network, layer, output) - logits).abs().max() <= TOLERANCE[logits.dtype] * logits.abs().max():
                return True
        except (RuntimeError, TypeError, ValueError, LookupError, AttributeError):
            pass  # this type, or this version of transformers, does it otherwise
        for owner, name, module in old:
            setattr(owner, name, module)
    return False


def last_layer(network) -> torch.nn.Module | None:
    """Returns the last of a network's layers; None if it is not known which these are."""
    stacks = [module for module in network.modules() if isinstance(module, torch.nn.ModuleList)]
    stacks = [stack for stack in stacks if len(stack) == getattr(network.config, "num_hidden_layers", 0)]
    return stacks[0][-1] if len(stacks) == 1 else None


def candidate_patches(layer: torch.nn.Module) -> list[list[tuple]]:
    """Returns what may take another's place in a layer: ways of (owner, name, new module), the most thorough first.

    From the query on, or where that can't be told to the attention, from what stands behind it on.
    """
    found, attention = [], getattr(layer, "attention", None)
    inner, output = getattr(attention, "self", None), getattr(attention, "output", None)
    if inner is not None and output is not None:
        known = [name for name in OTHERS if name in inspect.signature(inner.forward).parameters]
        behind = (attention, "output", FirstAlone(output))
        found += [[(attention, "self", AttentionOfFirst(inner, name)), behind] for name in known]
        found.append([behind])
    if hasattr(layer, "sa_layer_norm"):  # DistilBERT
        behind = (layer, "sa_layer_norm", FirstAlone(layer.sa_layer_norm))
        found += [[(layer, "attention", NamedAttentionOfFirst(attention)), behind], [behind]]
    for owner, name in ((attention, "LayerNorm"), (layer, "mlp_norm")):  # MPNet, ModernBERT
        if isinstance(getattr(owner, name, None), torch.nn.Module):
            found.append([(owner, name, FirstAlone(getattr(owner, name)))])
    return found


@torch.inference_mode()
def run(network, layer: torch.nn.Module, output: str, others_nan: bool = False) -> torch.Tensor:
    """Returns the logits of a small batch, padded and then as if nothing in it were padding.

    Attention takes another way where there is no padding. With `others_nan` a layer gives nan behind the first token.
    """
    place = next(network.parameters()).device

    def spoil(_, __, states):
        hidden = states[0] if isinstance(states, tuple) else states
        hidden = torch.cat([hidden[:, :1], torch.full_like(hidden[:, 1:], torch.nan)], dim=1)
        return (hidden, *states[1:]) if isinstance(states, tuple) else hidden

    random = torch.Generator().manual_seed(0)
    ids = torch.randint(min(network.config.vocab_size, 10_000), (TEXTS, TOKENS), generator=random)
    padded = (torch.arange(TOKENS) < torch.tensor([[TOKENS], [TOKENS // 2], [1]])).long()
    masks = [mask.to(place) for mask in (padded, torch.ones_like(padded))]
    handle = layer.register_forward_hook(spoil) if others_nan else None
    try:
        answers = [network(input_ids=ids.to(place), attention_mask=mask, return_dict=True) for mask in masks]
        return torch.cat([getattr(answer, output) for answer in answers])
    finally:
        if handle:
            handle.remove()
