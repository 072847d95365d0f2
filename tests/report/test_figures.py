"""The figures: positions of what is drawn, and texts that don't overlap. All rows here are invented."""

import itertools
import re

import matplotlib
import pandas as pd
import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg

from bench.judge import WITHIN
from bench.report import figures
from bench.report.figures import add_title, draw_comparison, draw_overview, draw_scaling, with_lines
from bench.report.summary import BASELINE, FASTEST, OPEN, PROVEN, REFUSED, STATES
from bench.report.table import device_names
from runtimes import VARIANTS

VERDICTS = {state: verdict for verdict, state in STATES.items()}
HOW_RIGHT = [
    {"flips": 0.0, "state": FASTEST},
    {"flips": 0.0, "state": OPEN, "decisions": 512, "idle": False},
    {"flips": 4e-4, "state": PROVEN, "decisions": 30_000},
    {"flips": 2e-2, "state": REFUSED, "decisions": 5000},
    {"flips": 0.0, "state": BASELINE},
]
GPU, CPU = "NVIDIA-GeForce-RTX-4090", "Intel-Xeon-Platinum-8481C-4-cores"


def make_row(variant: str = "torch", speed: float = 100.0, **columns) -> dict:
    """A row as plot_results reads it; `columns` replace its defaults."""
    row = {"model": "owner/some_model", "device": GPU, "dataset": "normal", "variant": variant, "texts": 10000}
    row |= {
        "workers": 1,
        "threads": 1,
        "batch_size": 8,
        "batch_tokens": 0,
        "batching": "in-order",
        "passes": 3,
        "max_diff": 1e-3,
        "flips": 0.0,
    }
    row |= {"decisions": float("nan"), "commit": "0123456789", "state": PROVEN, "idle": True, "end_to_end": True}
    row |= {"messages/s": speed, "min": 0.9 * speed, "max": 1.05 * speed, "tokens/s": 50 * speed}
    row |= {"verdict": VERDICTS.get(columns.get("state"), WITHIN)}
    row |= {"factor": speed / 100, "base": 100.0, "base_name": "transformers' pipeline, batches of 8"} | columns
    return {"machine": device_names([row["device"]])[row["device"]], "name": row["model"].split("/")[-1]} | row


def draw(function, rows: list[dict]):
    with matplotlib.rc_context(figures.STYLE):
        table = pd.DataFrame(rows)
        figure = function(table)
        add_title(figure, table, "what is shown")
        FigureCanvasAgg(figure).draw()
    return figure


def overlaps(figure) -> list[tuple[str, str]]:
    """Return the pairs of drawn texts that overlap; a text outside the figure is paired with ""."""
    texts = [figure._suptitle, *(text for legend in figure.legends for text in legend.get_texts())]
    for ax in figure.axes:
        texts += [*ax.texts, ax._left_title, ax.xaxis.label, ax.yaxis.label]
        for axis, (low, high) in ((ax.xaxis, ax.get_xlim()), (ax.yaxis, sorted(ax.get_ylim()))):
            shown = [tick for tick in axis.get_major_ticks() if low <= tick.get_loc() <= high]
            texts += [tick.label1 for tick in shown if tick.label1.get_visible()]
    boxes = [(text.get_text(), text.get_window_extent()) for text in texts if text.get_text() and text.get_visible()]
    width, height = figure.bbox.size
    outside = [(text, "") for text, box in boxes if box.x0 < 0 or box.y0 < 0 or box.x1 > width or box.y1 > height]
    return outside + [(a, b) for (a, x), (b, y) in itertools.combinations(boxes, 2) if x.overlaps(y)]


def bests(devices: list[str], names: list[str], **columns) -> list[dict]:
    """Return the best row of each device and variant; some have the same speed, or change many decisions."""
    return [
        make_row(name, (9 if "cores" in device else 3000) * (i // 2 + 1), device=device, **HOW_RIGHT[i % 5], **columns)
        for device in devices
        for i, name in enumerate(names)
    ]


GPUS = [GPU, "NVIDIA-RTX-PRO-6000-Blackwell-Server-Edition", "a-device-of-some-company-" * 9]
CPUS = [CPU, "AMD-EPYC-25-17-avx512-bf16-vnni-192-cores"]
FEW = ["torch", "onnx-fp16"]


@pytest.mark.parametrize("devices", [[CPU], GPUS], ids=["CPU", "GPUs"])
@pytest.mark.parametrize("names", [FEW, list(VARIANTS)], ids=["few", "all"])
def test_no_labels_of_a_comparison_overlap(devices, names):
    assert overlaps(draw(draw_comparison, bests(devices, names))) == []


@pytest.mark.parametrize("devices", [[CPU], GPUS, GPUS + CPUS], ids=["CPU", "GPUs", "both"])
@pytest.mark.parametrize("model", ["m", "a-model-" * 20])
def test_no_labels_of_the_overview_overlap(devices, model):
    assert overlaps(draw(draw_overview, bests(devices, list(VARIANTS)[:5], model=model))) == []


def test_the_overview_has_one_axis_per_kind_of_device():
    gpus, cpus = draw(draw_overview, bests(GPUS + CPUS, list(VARIANTS)[:5])).axes
    assert len(gpus.get_yticks()) == 3 and len(cpus.get_yticks()) == 2
    markers = {line.get_label(): line for line in cpus.lines if not line.get_label().startswith("_")}
    assert set(markers) == {FASTEST, OPEN, PROVEN, REFUSED, BASELINE}
    assert markers[REFUSED].get_marker() != markers[PROVEN].get_marker()
    assert [*cpus.lines[0].get_xdata()] == [100, 9], "from the baseline to the fastest proven"
    assert all("9 messages/s" in text.get_text() and "18" in text.get_text() for text in cpus.texts), "the refused one"


@pytest.mark.parametrize("workers", [(1,), (1, 10)])
def test_no_labels_of_scaling_overlap(workers):
    cells = itertools.product(enumerate(VARIANTS, 1), (1, 8, 64), workers, ("in-order", "sorted"))
    rows = [
        make_row(name, 90 * i * size**0.2 * n, batch_size=size, workers=n, batching=how)
        for (i, name), size, n, how in cells
    ]
    assert overlaps(draw(draw_scaling, rows)) == []


def test_comparison_is_sorted_and_shows_states_spread_and_load():
    rows = [
        make_row("onnx-int8", 400, flips=0.02, decisions=1000, state=REFUSED),
        make_row("onnx", 250, batching="sorted", batch_size=32, workers=3, state=FASTEST),
        make_row(idle=False),
        make_row("torch-bf16", 60, passes=1, flips=0, decisions=800, state=OPEN, end_to_end=False),
    ]
    figure = draw(draw_comparison, rows[::-1])
    [ax] = figure.axes
    assert [label.get_text() for label in ax.get_yticklabels()] == ["onnx-int8", "onnx", "torch", "torch-bf16"]
    assert [bar.get_width() for bar in ax.patches] == [400, 250, 100, 60]
    assert [bool(bar.get_hatch()) for bar in ax.patches] == [True, False, False, False]
    colors = [matplotlib.colors.to_hex(bar.get_facecolor()).upper() for bar in ax.patches]
    assert colors[1:3] == [figures.BLUE, figures.PALE_BLUE] and colors[0] == colors[3] == "#FFFFFF"
    numbers = [re.findall(r"[\d.,]*\d", text.get_text()) for text in ax.texts]
    assert numbers[0] == ["400", "4.0", "8", "1", "1", "20", "1,000"], "the changed decisions"
    assert numbers[1:] == [
        ["250", "2.5", "32", "3", "1"],
        ["100", "1.0", "8", "1", "1"],
        ["60", "0.6", "8", "1", "1", "0", "800"],
    ]
    assert ["busy" in text.get_text() for text in ax.texts] == [False, False, True, False]
    assert ["forward" in text.get_text() for text in ax.texts] == [False, False, False, True]
    legend = [text.get_text() for text in figure.legends[0].get_texts()]
    assert sorted(legend) == sorted([REFUSED, FASTEST, PROVEN, OPEN])
    whiskers = [line.get_segments()[0][:, 0].tolist() for line in ax.collections]
    assert whiskers == [[360, 420], [225, 262.5], [90, 105]], "a single pass has none"
    assert "RTX 4090" in ax.get_title(loc="left") and "10,000" in ax.get_title(loc="left")


def test_scaling_has_a_panel_per_variant_and_shows_token_budgets_at_their_mean_size():
    rows = [make_row(batch_size=size, speed=size) for size in (1, 4)]
    rows += [make_row("onnx", 9 * n, batch_size=size, workers=n) for size in (1, 2, 4) for n in (1, 3)]
    rows += [make_row("onnx", 99, batch_size=0, batch_tokens=1000, batching="token-budget")]
    onnx, torch = draw(draw_scaling, rows).axes
    assert [ax.get_title(loc="left") for ax in (onnx, torch)] == ["onnx", "torch"]
    assert [line.get_xydata().tolist() for line in torch.lines] == [[[1, 1], [4, 4]]]
    assert [line.get_xydata().tolist() for line in onnx.lines] == [[[1, 27], [2, 27], [4, 27]], [[20, 99]]]
    assert [ax.texts[0].get_text() for ax in (onnx, torch)] == ["99", "4"], "the fastest"
    assert set(with_lines(pd.DataFrame(rows))["variant"]) == {"onnx"}, "the other one has two batch sizes"


def test_device_names_are_readable_and_unique():
    names = {GPU: "RTX 4090", CPU: "Intel Xeon Platinum 8481C, 4 cores", "NVIDIA-H100-80GB-HBM3": "H100 80GB"}
    names["AMD-EPYC-25-17-avx512-bf16-vnni-2-cores"] = "AMD EPYC (AVX-512, BF16), 2 cores"
    names["Intel-Xeon-6-167-amx-bf16-vnni-2-cores"] = "Intel Xeon (AMX), 2 cores"
    names["AMD-Ryzen-9-7950X-16-cores"] = "AMD Ryzen 9 7950X, 16 cores"
    assert device_names(names) == names
    twins = device_names(["AMD-EPYC-25-1-avx2-2-cores", "AMD-EPYC-23-49-avx2-2-cores"])
    assert list(twins.values()) == ["AMD EPYC 25-1 (AVX2), 2 cores", "AMD EPYC 23-49 (AVX2), 2 cores"]
