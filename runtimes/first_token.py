"""Computes a network's last layer for the first token only, if the head reads no other token.

Such a head needs the query, the attention's output and the feed-forward part of that token, and keys and values of all
tokens. This saves most of one layer's work (of six or twelve layers); the answers stay the same.
"""

import inspect

import torch

TEXTS, TOKENS = 3, 12  # shape of the batches on which a patch is tried
TOLERANCE = {torch.float32: 1e-4, torch.float16: 1e-2, torch.bfloat16: 5e-2}  # share of the largest output: rounding
SECOND_INPUTS = "encoder_hidden_states", "query_states"  # a second input that attention may accept


class FirstQueryAttention(torch.nn.Module):
    """Attention with the query of the first token only: for BERT's relatives a case of cross-attention."""

    def __init__(self, attention: torch.nn.Module, second_input: str):
        super().__init__()
        self.attention, self.second_input = attention, second_input

    def forward(self, hidden, *arguments, **options):
        first = hidden[:, :1]
        query, second = (first, hidden) if self.second_input == SECOND_INPUTS[0] else (hidden, first)
        options = {name: slice_first_query(value) for name, value in options.items()} | {self.second_input: second}
        return self.attention(query, *map(slice_first_query, arguments), **options)


class DistilBertFirstQuery(torch.nn.Module):
    """DistilBERT's attention, which takes query, key and value, with the query of the first token only."""

    def __init__(self, attention: torch.nn.Module):
        super().__init__()
        self.attention = attention

    def forward(self, query, key, value, **options):
        options = {name: slice_first_query(option) for name, option in options.items()}
        return self.attention(query=query[:, :1], key=key, value=value, **options)


class FirstTokenOnly(torch.nn.Module):
    """A module that gets only the first token of each text."""

    def __init__(self, module: torch.nn.Module):
        super().__init__()
        self.module = module

    def forward(self, *hidden):
        return self.module(*(states[:, :1] for states in hidden))


def slice_first_query(value):
    """Slice a [..., queries, keys] mask or bias to the first query; return other values unchanged."""
    is_square = torch.is_tensor(value) and value.dim() > 2 and value.shape[-1] == value.shape[-2]
    return value[..., :1, :] if is_square else value


def first_token_only(network, output: str = "logits") -> bool:
    """Restrict the last layer to the first token. Return True on success.

    Two conditions: the head reads no other token (the outputs are the same, bit for bit, when the others are nan), and
    the outputs stay the same when the layer does less. The first of candidate_patches() that works is kept.
    """
    layer = last_layer(network)
    if not layer:
        return False
    try:
        logits = run(network, layer, output)
        if not torch.equal(run(network, layer, output, others_nan=True), logits):
            return False
    except (RuntimeError, TypeError, ValueError, LookupError, AttributeError):
        return False  # other inputs or outputs than those of BERT's relatives
    for patch in candidate_patches(layer):
        old = [(owner, name, getattr(owner, name)) for owner, name, _ in patch]
        try:
            for owner, name, new in patch:
                setattr(owner, name, new)
            if (run(network, layer, output) - logits).abs().max() <= TOLERANCE[logits.dtype] * logits.abs().max():
                return True
        except (RuntimeError, TypeError, ValueError, LookupError, AttributeError):
            pass  # this type or this version of transformers works differently
        for owner, name, module in old:
            setattr(owner, name, module)
    return False


def last_layer(network) -> torch.nn.Module | None:
    """Return the network's last layer; None if its layers can't be identified."""
    stacks = [module for module in network.modules() if isinstance(module, torch.nn.ModuleList)]
    stacks = [stack for stack in stacks if len(stack) == getattr(network.config, "num_hidden_layers", 0)]
    return stacks[0][-1] if len(stacks) == 1 else None


def candidate_patches(layer: torch.nn.Module) -> list[list[tuple]]:
    """Return lists of (owner, name, new module) to try, the most thorough first.

    They start at the query, or right after the attention if it accepts no separate query.
    """
    patches, attention = [], getattr(layer, "attention", None)
    inner, output = getattr(attention, "self", None), getattr(attention, "output", None)
    if inner is not None and output is not None:
        known = [name for name in SECOND_INPUTS if name in inspect.signature(inner.forward).parameters]
        output_patch = (attention, "output", FirstTokenOnly(output))
        patches += [[(attention, "self", FirstQueryAttention(inner, name)), output_patch] for name in known]
        patches.append([output_patch])
    if hasattr(layer, "sa_layer_norm"):  # DistilBERT
        norm_patch = (layer, "sa_layer_norm", FirstTokenOnly(layer.sa_layer_norm))
        patches += [[(layer, "attention", DistilBertFirstQuery(attention)), norm_patch], [norm_patch]]
    for owner, name in ((attention, "LayerNorm"), (layer, "mlp_norm")):  # MPNet, ModernBERT
        if isinstance(getattr(owner, name, None), torch.nn.Module):
            patches.append([(owner, name, FirstTokenOnly(getattr(owner, name)))])
    return patches


@torch.inference_mode()
def run(network, layer: torch.nn.Module, output: str, others_nan: bool = False) -> torch.Tensor:
    """Return the outputs for a small batch, first padded and then with all tokens valid.

    Attention takes another code path without padding. With `others_nan` the layer returns nan after the first token.
    """
    device = next(network.parameters()).device

    def spoil(_, __, states):
        hidden = states[0] if isinstance(states, tuple) else states
        hidden = torch.cat([hidden[:, :1], torch.full_like(hidden[:, 1:], torch.nan)], dim=1)
        return (hidden, *states[1:]) if isinstance(states, tuple) else hidden

    random = torch.Generator().manual_seed(0)
    ids = torch.randint(min(network.config.vocab_size, 10_000), (TEXTS, TOKENS), generator=random)
    padded = (torch.arange(TOKENS) < torch.tensor([[TOKENS], [TOKENS // 2], [1]])).long()
    masks = [mask.to(device) for mask in (padded, torch.ones_like(padded))]
    handle = layer.register_forward_hook(spoil) if others_nan else None
    try:
        answers = [network(input_ids=ids.to(device), attention_mask=mask, return_dict=True) for mask in masks]
        return torch.cat([getattr(answer, output) for answer in answers])
    finally:
        if handle:
            handle.remove()
