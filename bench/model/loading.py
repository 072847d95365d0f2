"""Weights that torch has loaded, or can't load: what is wrong with them, and the precision of the head."""

import re
from pathlib import Path

from bench.model_files import weight_files
from utils import UserError, first_line

# the prefixes that torch.compile and DataParallel add to the names of weights
WRAPPER = re.compile(r"(^|\.)(_orig_mod|module)\.")


def explain_load_error(folder: Path, error: BaseException) -> str:
    """Return in one line why weights can't be loaded. For pickles, the libraries advise to run them."""
    messages, cause = [], error
    while cause:
        messages.append(str(cause))
        cause = cause.__cause__ or cause.__context__
    text, name = " ".join(messages), next((file.name for file in weight_files(folder)), "")
    if unknown := re.search(r"GLOBAL ([\w.]+)", text):
        return f"{name} contains Python objects ({unknown[1]}), which could run code; save the model as safetensors"
    if any(sign in text for sign in ("from_tf", "weights_only", "deserializing header")):
        return f"{name} is damaged or incomplete, or no file of weights for torch; download or copy it again"
    return first_line(error)


def check_loading(folder: Path, model, loading: dict) -> None:
    """Raise UserError if the weights and config.json don't fit; weights of an unused head are accepted."""
    unexpected = sorted(loading["unexpected_keys"])
    if wrapped := [key for key in unexpected if WRAPPER.search(key)]:
        raise UserError(
            f"{folder} was saved from torch.compile or DataParallel (it has {wrapped[0]}); "
            "save the model inside, model._orig_mod or model.module"
        )
    if mismatched := [key if isinstance(key, str) else key[0] for key in loading["mismatched_keys"]]:
        wanted = [*model.state_dict()[sorted(mismatched)[0]].shape]
        raise UserError(
            f"{folder} can't be loaded: {sorted(mismatched)[0]} does not have the shape {wanted}; "
            "correct id2label or the sizes in config.json"
        )
    if loading["missing_keys"]:
        names = ", ".join(sorted(loading["missing_keys"])[:3])
        advice = "It may be a base model without a trained head; choose a fine-tuned model"
        raise UserError(f"{folder} lacks weights: {names}. {advice}")
    if unused := [key for key in unexpected if re.match(rf"{model.base_model_prefix}\..*\.\d+\.", key)]:
        raise UserError(
            f"{folder} has layers that config.json or this version of transformers doesn't know: "
            f"{', '.join(unused[:3])}"
        )


def keep_head_in_fp32(model) -> None:
    """Make the head, that is everything after the encoder, compute in FP32."""

    def to_fp32(_, arguments):
        return tuple(value.float() if hasattr(value, "is_floating_point") else value for value in arguments)

    for module in model.children():
        if module is not model.base_model:
            module.float().register_forward_pre_hook(to_fp32)
