"""What is said before a run starts: what makes its figures worse than they could be."""

import math
from argparse import Namespace

from bench import machine
from runtimes import VARIANTS
from runtimes.runner import Variant
from utils import clean, cpu_cores, say

MPS = "nvidia-cuda-mps-control -d  (stop it: echo quit | nvidia-cuda-mps-control)"


def note(text: str) -> None:
    """Prints a note about the run on standard error."""
    say(f"note       {clean(text)}")


def is_native(variant: Variant, device: str) -> bool:
    """Says whether the device computes in the variant's precision itself, rather than emulate it."""
    return device == "gpu" or variant.needs in {None, *machine.cpu_capabilities()}


def note_what_slows(args: Namespace, load: str) -> None:
    """Notes what makes figures worse than they could be. `load`: the share of the cores that others use."""
    if len(machine.versions("onnxruntime", "onnxruntime-gpu")) > 1:
        note("onnxruntime and onnxruntime-gpu are both installed and overwrite each other: remove one")
    for variant in args.model:
        if args.device in VARIANTS[variant].notes:
            note(f"{variant}: {VARIANTS[variant].notes[args.device]}")
        if not is_native(VARIANTS[variant], args.device):
            note(f"{variant}: this CPU has no {VARIANTS[variant].needs.upper()} units, so it is slow or can't run")
    if args.device == "gpu":
        if max(args.workers) > 1:
            note(f"several workers take turns on one GPU, unless MPS runs: {MPS}")
        return
    idle = cpu_cores() * (1 - float(load or 0))
    if max(args.workers) * args.threads > math.ceil(idle):
        note(f"more workers x threads than the {idle:.1f} idle cores: they will wait for each other and for others")
