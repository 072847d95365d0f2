"""The figures: positions of what is drawn, and texts that don't overlap. All rows here are invented."""

import itertools
import re

import matplotlib
import pandas as pd
import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg

from bench.judge import NOT_WITHIN, UNPROVEN, WITHIN
from bench.report import figures
from bench.report.figures import add_title, device_name, draw_comparison, draw_overview, draw_parity, draw_scaling
from runtimes import VARIANTS

HOW_RIGHT = [
    {"flips": 0.0, "verdict": WITHIN},
    {"flips": 0.0, "verdict": UNPROVEN, "decisions": 512},
    {"flips": 4e-4, "verdict": WITHIN, "decisions": 30_000},
    {"flips": 2e-2, "verdict": NOT_WITHIN, "decisions": 5000},
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
    row |= {"decisions": float("nan"), "commit": "0123456789", "verdict": WITHIN}
    row |= {"messages/s": speed, "min": 0.9 * speed, "max": 1.05 * speed, "tokens/s": 50 * speed}
    return row | {"factor": speed / 100} | columns


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


def bests(devices: int, names: list[str]) -> list[dict]:
    """Return the best row of each device and variant; some have the same speed, or change many decisions."""
    places = [GPU, CPU, "NVIDIA-RTX-PRO-6000-Blackwell-Server-Edition"][:devices]
    return [
        make_row(name, (9 if device == CPU else 3000) * (i // 2 + 1), device=device, **HOW_RIGHT[i % 4])
        for device in places
        for i, name in enumerate(names)
    ]


@pytest.mark.parametrize("devices", [1, 3])
@pytest.mark.parametrize("names", [["torch", "onnx-fp16"], list(VARIANTS)], ids=["few", "all"])
@pytest.mark.parametrize("function", [draw_comparison, draw_parity])
def test_no_labels_overlap(function, devices, names):
    assert overlaps(draw(function, bests(devices, names))) == []


@pytest.mark.parametrize("count", [1, 6])
def test_no_labels_of_the_overview_overlap(count):
    rows = [
        make_row("openvino-bf16", 1000 * 3**i, device=GPU if i % 2 else CPU, model=f"owner/a-model-{i}", factor=i + 0.7)
        | {
            "base": 500.0,
            "base_variant": "pipeline",
            "base_size": 8,
            "stage": "end-to-end" if i % 2 else "forward",
        }
        for i in range(count)
    ]
    assert overlaps(draw(draw_overview, rows)) == []


@pytest.mark.parametrize("workers", [(1,), (1, 10)])
def test_no_labels_of_scaling_overlap(workers):
    cells = itertools.product(enumerate(VARIANTS, 1), (1, 8, 64), workers, ("in-order", "sorted"))
    rows = [
        make_row(name, 90 * i * size**0.2 * n, batch_size=size, workers=n, batching=how)
        for (i, name), size, n, how in cells
    ]
    assert overlaps(draw(draw_scaling, rows)) == []


def test_comparison_is_sorted_marks_the_winner_and_shows_the_spread_of_several_passes():
    rows = [
        make_row(),
        make_row("onnx-int8", 400, flips=0.02, verdict=NOT_WITHIN),
        make_row("onnx", 250, batching="sorted", batch_size=32, workers=3),
    ]
    rows += [make_row("torch-bf16", 60, passes=1, verdict=UNPROVEN, decisions=800)]
    [ax] = draw(draw_comparison, rows).axes
    assert [label.get_text() for label in ax.get_yticklabels()] == ["onnx-int8", "onnx", "torch", "torch-bf16"]
    assert [bar.get_width() for bar in ax.patches] == [400, 250, 100, 60]
    colors = [matplotlib.colors.to_hex(bar.get_facecolor()).upper() for bar in ax.patches]
    assert colors == [figures.LIGHT_GREY, figures.BLUE, figures.PALE_BLUE, figures.PALE_BLUE]
    shown = [text.get_text() for text in ax.texts]
    numbers = [re.findall(r"[\d.]+", text) for text in shown]
    assert numbers[:2] == [["400", "4.0", "8", "1", "1", "2.00"], ["250", "2.5", "32", "3", "1"]]
    assert numbers[2:] == [["100", "1.0", "8", "1", "1"], ["60", "0.6", "8", "1", "1"]]
    assert ["sorted" in text for text in shown] == [False, True, False, False]
    words = [re.sub(r"[\d.]+", "", text) for text in shown]
    assert len(words[3]) > len(words[2]), "a variant that is not proven is marked"
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
    [fastest_onnx], [fastest_torch] = onnx.texts, torch.texts
    assert re.findall(r"\d+", fastest_onnx.get_text()) == ["99", "1"], "messages/s, workers"
    assert re.findall(r"\d+", fastest_torch.get_text()) == ["4", "1"]


def test_parity_draws_zero_at_the_left_and_a_line_at_the_tolerance():
    rows = [make_row(), make_row("onnx-int8", 200, flips=0.02, max_diff=0.5, verdict=NOT_WITHIN)]
    [ax] = draw(draw_parity, rows).axes
    line, points = ax.lines[0], [line for line in ax.lines if line.get_marker() == "o"]
    assert list(line.get_xdata()) == [0.001, 0.001]
    assert [(point.get_xdata()[0], point.get_ydata()[0]) for point in points] == [(1e-5, 100), (0.02, 200)]
    _, torch, int8 = [text.get_text() for text in ax.texts]  # the first belongs to the line
    assert "torch" in torch and "1e-03" in torch and "onnx-int8" in int8 and "5e-01" in int8


def test_device_names():
    assert device_name(GPU) == "RTX 4090"
    assert device_name(CPU) == "Intel Xeon Platinum 8481C, 4 cores"
