"""What a runtime gives: variants, and runners of them."""

from collections.abc import Callable
from dataclasses import dataclass, field


@dataclass(frozen=True)
class Place:
    """Where a variant runs: `gpu` (its id, None for the CPU), CPU `threads`, and whether it is `alone` there."""

    gpu: int | None
    threads: int
    alone: bool = True


@dataclass(frozen=True)
class Runner:
    """Functions that run a loaded variant. A pass times `forward` alone; from texts, also `prepare` and `fetch`.

    prepare(inputs: name -> int64 [texts, tokens] in numpy) -> inputs on the device;
    forward(inputs) -> outputs on the device, perhaps not computed yet; synchronize() waits until they are;
    fetch(outputs) -> logits, float32 [texts, labels] in numpy;
    warm_up(inputs) does what forward does only the first time that it gets inputs of a shape. It is called for the
    largest shape first.
    answer(texts, size, limit, beat) -> logits is all that a variant has that takes `whole_texts`; it calls beat(number)
    now and then.
    """

    prepare: Callable
    forward: Callable
    synchronize: Callable
    fetch: Callable
    warm_up: Callable
    answer: Callable | None = None


def runs(gpu: int | None) -> None:
    """Checks nothing: it runs on every device that torch finds."""


@dataclass(frozen=True)
class Variant:
    """A way of running a model: a runtime with a precision, compiled or not.

    load(source, place) -> Runner; the source is a model's folder, or the file of the `export` that it asks for.
    precision: in which it multiplies large matrices; cpu_precision: the same on a CPU, if different.
    packages: the one of these that is installed is the runtime; its version is in the rows.
    all_on: the devices whose `--model all` includes it, where the CPU has what it `needs` (machine.CAPABILITIES) to be
    fast. refused, notes: device -> the reason, a plain line.
    check(gpu): raises UserError if the runtime can't use this GPU, or with None this CPU. Call it in a fresh process.
    whole_texts: whether it takes texts rather than tokens; then it is timed from texts alone, in dataset order.
    plans_shapes(gpu): whether each new shape costs set-up there (cuDNN plans it on a GPU, oneDNN on a CPU).
    """

    load: Callable
    precision: str
    packages: tuple[str, ...]
    export: str | None = None
    cpu_precision: str | None = None
    all_on: tuple[str, ...] = ("gpu", "cpu")
    needs: str | None = None
    refused: dict[str, str] = field(default_factory=dict)
    notes: dict[str, str] = field(default_factory=dict)
    check: Callable = runs
    whole_texts: bool = False
    plans_shapes: Callable = lambda gpu: False

    def computes_in(self, gpu: int | None) -> str:
        """Returns the precision of its matrix products on this GPU, or on the CPU."""
        return (self.cpu_precision if gpu is None else None) or self.precision
