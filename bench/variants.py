"""What a variant says of itself: how it is loaded, what its process needs, and how the files that it loads are made."""

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from bench.files import digest
from bench.machine import cpu_features

REPORT, CARD = "parity.json", "README.md"  # beside an export, if export_onnx.py has checked it


@dataclass(frozen=True)
class Device:
    """Where a variant runs: `gpu` (its id, None for the CPU), CPU `threads`, and whether no other worker runs there."""

    gpu: int | None
    threads: int
    exclusive: bool = True

    @property
    def kind(self) -> str:
        return "cpu" if self.gpu is None else "gpu"


@dataclass(frozen=True)
class TokenRunner:
    """Functions that run a loaded variant on padded token ids. A forward pass is timed over `forward` alone.

    prepare(inputs: name -> int64 [texts, tokens] in numpy) -> inputs on the device;
    forward(inputs) -> outputs on the device, perhaps not computed yet; synchronize() waits until they are;
    to_host(outputs) -> logits, float32 [texts, labels] in numpy;
    warm_up(inputs) does what forward does only the first time that it gets inputs of a shape. It is called for the
    largest shape first.
    """

    prepare: Callable
    forward: Callable
    warm_up: Callable
    synchronize: Callable = lambda: None
    to_host: Callable = lambda outputs: outputs


@dataclass(frozen=True)
class TextRunner:
    """A loaded variant that takes the texts themselves.

    answer(texts, batch_size, max_length, on_progress) -> answers, float64 [texts, labels], see Task.answers; it calls
    on_progress(number of texts done) now and then.
    """

    answer: Callable


@dataclass(frozen=True)
class ExportKind:
    """How the files of a precision are made and checked. They lie in a folder of their own, as model.onnx or otherwise.

    precision: what `export_onnx.py --precision` calls it; variant: the one that it is checked with, and that loads it;
    suffix: how its folder's name ends; description: for the model card;
    backends: name -> make(model, folder, shape_inference) writes model.onnx and says how. They are tried in turn, and
    the first file that is right is taken, or with `fused` the one of which most of the attention is fused;
    max_deviation: how far any probability of a right file may be from the original's on a few texts, or a regression's
    value, as a share of the largest;
    convert(model, file, folder, words) -> (words, more for the manifest): makes the final files in a folder, of the one
    that was taken; batches_matter: whether answers depend on the other texts of a batch;
    caveat(manifest) -> what speaks against such a file on this machine, or nothing.
    """

    precision: str
    variant: str
    suffix: str
    description: str
    backends: dict[str, Callable]
    max_deviation: float
    fused: bool = False
    convert: Callable | None = None
    batches_matter: bool = False
    caveat: Callable[[dict], str] = lambda manifest: ""


def digest_export(folder: Path) -> str:
    """Returns 16 hexadecimal digits for all files of an export, but for what was written about it."""
    files = (path for path in sorted(folder.iterdir()) if path.is_file() and path.name not in (REPORT, CARD))
    return digest(files)


def no_check(gpu: int | None) -> None:
    """Checks nothing: the variant runs on every device that torch finds."""


@dataclass(frozen=True)
class Variant:
    """A way of running a model: a runtime with a precision, compiled or not.

    load(model, exported, device) -> TokenRunner, or a TextRunner where it `takes_texts`; `exported`: the folder of the
    `export` that it asks for, if it does;
    precision: in which it multiplies large matrices; cpu_precision: the same on a CPU, if different;
    packages: the one of these that is installed is the runtime; its version is in the rows;
    environment: variables that must be set before its process imports anything: it is measured in a fresh one;
    default_on: the devices whose `--model all` includes it, where the CPU has the `required_cpu_feature` (see
    machine.CPU_FEATURES) to be fast; unsupported, caveats: device -> the reason, a plain line;
    check_device(gpu): raises UserError if the runtime can't use this GPU, or with None this CPU. For a GPU, call it in
    a process of its own;
    compiles: whether starting it takes as long as a first look;
    new_shapes_are_costly(gpu): whether each new shape costs set-up there (by cuDNN on a GPU, by oneDNN on a CPU).
    """

    load: Callable
    precision: str
    packages: tuple[str, ...]
    export: ExportKind | None = None
    cpu_precision: str | None = None
    environment: dict[str, str] = field(default_factory=dict)
    default_on: tuple[str, ...] = ("gpu", "cpu")
    required_cpu_feature: str | None = None
    unsupported: dict[str, str] = field(default_factory=dict)
    caveats: dict[str, str] = field(default_factory=dict)
    check_device: Callable = no_check
    takes_texts: bool = False
    compiles: bool = False
    new_shapes_are_costly: Callable = lambda gpu: False

    def computes_in(self, gpu: int | None) -> str:
        """Returns the precision of its matrix products on this GPU, or on the CPU."""
        return (self.cpu_precision if gpu is None else None) or self.precision

    def is_native_on(self, device: str) -> bool:
        """Says whether a `gpu` or `cpu` computes in the variant's precision itself, rather than emulate it."""
        return device == "gpu" or self.required_cpu_feature in {None, *cpu_features()}
