"""Computes a network's last layer for the first token only, if the head reads no other token.

Such a head needs the query, the attention's output and the feed-forward part of that token, and keys and values of all
tokens. This saves most of one layer's work (of six or twelve layers); the answers stay the same.
"""

import contextlib
import inspect
from functools import partial

import torch

TEXTS, TOKENS = 3, 12  # shape of the batches on which a patch is tried
TOLERANCE = {torch.float32: 1e-4, torch.float16: 1e-2, torch.bfloat16: 5e-2}  # share of the largest output: rounding
SECOND_INPUTS = "encoder_hidden_states", "query_states"  # a second input that attention may accept
# raised by other types of models, or by other versions of transformers, than a patch is made for
PATCH_ERRORS = RuntimeError, TypeError, ValueError, LookupError, AttributeError


def keep_first_token(_, arguments, options):
    return tuple(states[:, :1] for states in arguments), options


def keep_first_query(second_input: str, _, arguments, options):
    """Give attention the query of the first token only: for BERT's relatives a case of cross-attention."""
    hidden, *others = arguments
    first = hidden[:, :1]
    query, second = (first, hidden) if second_input == SECOND_INPUTS[0] else (hidden, first)
    options = {name: slice_first_query(value) for name, value in options.items()} | {second_input: second}
    return (query, *map(slice_first_query, others)), options


def keep_first_distilbert_query(_, arguments, options):
    """Give DistilBERT's attention, which takes query, key and value, the query of the first token only."""
    states = {"query": options["query"][:, :1], "key": options["key"], "value": options["value"]}
    return arguments, {name: slice_first_query(option) for name, option in options.items()} | states


def slice_first_query(value):
    """Slice a [..., queries, keys] mask or bias to the first query; return other values unchanged."""
    is_square = torch.is_tensor(value) and value.dim() > 2 and value.shape[-1] == value.shape[-2]
    return value[..., :1, :] if is_square else value


def first_token_only(network, output: str = "logits") -> bool:
    """Restrict the last layer to the first token. Return True on success.

    Two conditions: the head reads no other token (the outputs are the same, bit for bit, when the others are nan), and
    the outputs stay the same when the layer does less. The first of candidate_patches() that works is kept.
    """
    layers = stack_of_layers(network)
    if not layers:
        return False
    layer = layers[-1]
    try:
        logits = run(network, layer, output)
        if not torch.equal(run(network, layer, output, others_nan=True), logits):
            return False
    except PATCH_ERRORS:
        return False  # other inputs or outputs than those of BERT's relatives
    for patch in candidate_patches(layer):
        handles = [module.register_forward_pre_hook(hook, with_kwargs=True) for module, hook in patch]
        with contextlib.suppress(*PATCH_ERRORS):  # this type or this version of transformers works differently
            if (run(network, layer, output) - logits).abs().max() <= TOLERANCE[logits.dtype] * logits.abs().max():
                return True
        for handle in handles:
            handle.remove()
    return False


def stack_of_layers(network) -> torch.nn.ModuleList | None:
    """Return the network's layers; None if they can't be identified."""
    stacks = [module for module in network.modules() if isinstance(module, torch.nn.ModuleList)]
    stacks = [stack for stack in stacks if len(stack) == getattr(network.config, "num_hidden_layers", 0)]
    return stacks[0] if len(stacks) == 1 else None


def candidate_patches(layer: torch.nn.Module) -> list[list[tuple]]:
    """Return lists of (module, hook that changes its inputs) to try, the most thorough first.

    They start at the query, or right after the attention if it accepts no separate query.
    """
    patches, attention = [], getattr(layer, "attention", None)
    inner, output = getattr(attention, "self", None), getattr(attention, "output", None)
    if inner is not None and output is not None:
        known = [name for name in SECOND_INPUTS if name in inspect.signature(inner.forward).parameters]
        patches += [[(inner, partial(keep_first_query, name)), (output, keep_first_token)] for name in known]
        patches.append([(output, keep_first_token)])
    if hasattr(layer, "sa_layer_norm"):  # DistilBERT
        norm_patch = (layer.sa_layer_norm, keep_first_token)
        patches += [[(attention, keep_first_distilbert_query), norm_patch], [norm_patch]]
    for norm in (getattr(attention, "LayerNorm", None), getattr(layer, "mlp_norm", None)):  # MPNet, ModernBERT
        if isinstance(norm, torch.nn.Module):
            patches.append([(norm, keep_first_token)])
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
