"""What the rest of the code needs to know about a variant: how to load it, and how its files are made."""

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from bench.files import digest
from bench.machine import cpu_features
from bench.model_files import export_files

REPORT, CARD, THRESHOLDS = "parity.json", "README.md", "thresholds.json"  # written beside an export by export_onnx.py
REPORTS = "parity*.json"  # of checks at several thresholds


@dataclass(frozen=True)
class Device:
    """Where a variant runs."""

    gpu: int | None  # its id; None for the CPU
    threads: int  # of the CPU
    exclusive: bool = True  # no other worker runs on it

    @property
    def kind(self) -> str:
        return "cpu" if self.gpu is None else "gpu"

    @property
    def torch_name(self) -> str:
        return "cpu" if self.gpu is None else f"cuda:{self.gpu}"


@dataclass(frozen=True)
class TokenRunner:
    """Functions that run a loaded variant on padded token ids. Only `forward` is timed as the forward pass."""

    prepare: Callable  # (name -> int64 [texts, tokens] in numpy) -> inputs on the device
    forward: Callable  # (inputs) -> outputs on the device, perhaps not computed yet
    warm_up: Callable  # (inputs): what forward does only for a new shape; called for the largest shape first
    synchronize: Callable = lambda: None  # wait until all outputs are computed
    to_host: Callable = lambda outputs: outputs  # -> logits, float32 [texts, labels] in numpy


@dataclass(frozen=True)
class TextRunner:
    """A loaded variant that takes the texts themselves."""

    # (items, batch_size, on_progress) -> answers, float64 [items, labels]; calls on_progress(items done)
    answer: Callable
    sorts: bool  # the items by length, before it makes batches


@dataclass(frozen=True)
class ExportKind:
    """How the files of a precision are made and checked. Each export has its own folder."""

    precision: str  # as in `export_onnx.py --precision`
    variant: str  # loads the export, and checks it
    suffix: str  # of the folder's name
    description: str  # for the model card
    # name -> make(model, folder, trimmed), which writes model.onnx and returns how. They are tried in turn;
    # the first correct file is used, or with `fused` the correct one with the most fused attention.
    backends: dict[str, Callable]
    max_deviation: float  # of a probability on a few texts; of a regression's value, relative to the largest
    fused: bool = False
    trimmed: bool = True  # the last layer computes only what the head reads; False: as the exporter makes the file
    # (model, file, folder, description) -> (description, manifest fields): makes the final files from model.onnx
    convert: Callable | None = None
    batches_matter: bool = False  # answers depend on the other texts of a batch
    caveat: Callable[[dict], str] = lambda manifest: ""  # a reason not to use such a file on this machine


def digest_export(folder: Path) -> str:
    """Return 16 hexadecimal digits for all files of an export except its report and card."""
    return digest(file for file in export_files(folder) if file.is_file())


@dataclass(frozen=True)
class Variant:
    """A way to run a model: a runtime with a precision, compiled or not."""

    load: Callable  # (model, folder of the `export`, device) -> TokenRunner, or TextRunner of a baseline
    precision: str  # of large matrix products
    packages: tuple[str, ...]  # alternatives; the installed one is the runtime, and result rows have its version
    further_packages: tuple[str, ...] = ()  # also needed, and in result rows
    export: ExportKind | None = None  # the export that it loads
    cpu_precision: str | None = None  # of large matrix products on a CPU, if different
    environment: dict[str, str] = field(default_factory=dict)  # set before imports, so its process starts fresh
    default_on: tuple[str, ...] = ("gpu", "cpu")  # devices whose `--variant all`, or `baselines`, includes it
    required_cpu_feature: str | None = None  # to be fast on a CPU, see machine.CPU_FEATURES
    unsupported: dict[str, str] = field(default_factory=dict)  # device -> reason
    library: str = ""  # of a baseline: what it measures, see Task.libraries
    compiles: bool = False  # starting it takes as long as a quick benchmark
    new_shapes_are_costly: Callable = lambda gpu: False  # (gpu): each new shape costs set-up, by cuDNN or oneDNN

    @property
    def takes_texts(self) -> bool:
        """True for a baseline."""
        return bool(self.library)

    def computes_in(self, gpu: int | None) -> str:
        """Return the precision of its large matrix products on this GPU, or on the CPU."""
        return (self.cpu_precision if gpu is None else None) or self.precision

    def is_native_on(self, device: str) -> bool:
        """True if a `gpu` or `cpu` computes in the variant's precision itself instead of emulating it."""
        return device == "gpu" or self.required_cpu_feature in {None, *cpu_features()}
