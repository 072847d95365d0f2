"""Draws every figure from results/ and writes the README's results, so that no number there is typed by hand.

    python plot_results.py
    python plot_results.py --devices RTX-4090,H200 --variants torch,onnx --format svg,pdf --output figures
    python plot_results.py --check

For each model and dataset, into results/<model>/ or --output:

    comparison_<model>_<dataset>         each variant at its best on each device, in each order, and its factor
    scaling_<model>_<device>_<dataset>   messages/s over batch size and over workers
    parity_<model>_<dataset>             messages/s against the largest deviation from eager FP32 torch

The README beside the results directory gets figures, table, hardware, versions, commits and commands between its two
markers; a run that draws only a part of it (a filter, --output, no png) leaves it alone. --check writes nothing: it
compares the README's text, and the digest of its data that each figure carries, whichever matplotlib drew it.

Read are the rows of run_benchmark.py, and the older tables `size messages/s` and `workers size messages/s`, named
<device>_<variant>_<dataset>.tsv: their model is the folder's name, their `torch-base` is torch, their `torch` is
torch-compile. Of a device and dataset measured on several numbers of messages, only the rows on the most are used.
Malformed rows and failed cells are counted on standard error and left out.

Exit code: 0, 1 if --check finds something out of date, 2 for wrong usage or input.
"""

import csv
import hashlib
import io
import itertools
import json
import math
import os
import re
import shlex
import textwrap
from argparse import ArgumentTypeError, Namespace, RawDescriptionHelpFormatter
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import quote

import utils
import variants
from utils import UserError, say

BEGIN, END = "<!-- results:begin -->", "<!-- results:end -->"
MESSAGE = f"a message is one comment, truncated to {utils.MAX_TOKENS} tokens"
FACTOR = "factor: over eager FP32 torch at its best in dataset order"
MAX_DIFF = "max_diff: the largest difference of any label's probability from eager FP32 torch"
FLIPS = "flips: the share of changed decisions"
MFU = "of the peak: the real tokens' FLOP/s over those of large matrix products on the device"
END_TO_END = "end to end: messages/s from the texts themselves, tokenized while the model runs"
COMMANDS = "The commands are put together from the rows: they lack `--min-time`, `--rounds`, `--column` and `--gpu`."
LEAST_DIFF = 1e-8  # where a figure draws this and less, which a log axis has no place for
MOST = 10**12  # of anything that is measured; more is no figure but damage, and no axis has a place for it
FORMATS = ("png", "svg", "pdf")
PLACE = ("model", "device", "dataset")  # what factors and numbers of messages are compared within
FILTERS = {"model": "--model", "dataset": "--dataset", "device": "--devices", "variant": "--variants"}

# what is read of a row: every row has these, and can have more
INTEGERS = ("workers", "threads", "size", "messages")
FLOATS = ("messages/s", "min", "max", "max_diff", "flips")
LATER_FLOATS = ("mfu", "end_to_end")  # columns that a row may lack, or have empty
READ = (*INTEGERS, *FLOATS, "order", "status", *FILTERS)
OLDER_HEADERS = (["size", "messages/s"], ["workers", "size", "messages/s"])
OLDER_VARIANTS = {"torch-base": "torch", "torch": "torch-compile"}
OLDER_ROW = dict.fromkeys(FLOATS, "nan")
OLDER_ROW |= {"workers": "1", "threads": "1", "messages": "0", "order": "dataset", "status": "ok"}  # 0: not known

# Paul Tol's "muted" colours for the colour-blind (https://sronpersonalpages.nl/~pault), in the order of
# variants.VARIANTS and such that neighbours differ in lightness; markers, names and hatches say the same in grey.
COLORS = ("#332288", "#88CCEE", "#44AA99", "#DDCC77", "#882255", "#AA4499", "#CC6677", "#117733", "#999933")
COLORS += ("#661100", "#6699CC", "#222222", "#EE8866")  # of his too, for more than nine
MARKERS = "osD^vPX*h<>p8"
STYLE = {
    **{"font.size": 9, "axes.titlesize": 10, "axes.titlelocation": "left", "savefig.dpi": 150, "hatch.linewidth": 0.7},
    **{"axes.spines.top": False, "axes.spines.right": False, "axes.axisbelow": True},
    **{"axes.grid": True, "grid.color": "#dddddd", "grid.linewidth": 0.6, "svg.hashsalt": "plot_results"},
}


@dataclass(frozen=True)
class Chart:
    """A figure to be: its path without suffix, the function that draws it, of which rows, and what they show."""

    path: Path
    draw: Callable
    rows: list[dict]
    what: str

    def digest(self) -> str:
        """What a file of it carries in its metadata, to tell which data it shows."""
        data = [[row[key] for key in (*READ, *LATER_FLOATS, "factor")] for row in self.rows]
        return "data sha256 " + hashlib.sha256(json.dumps([self.draw.__name__, data]).encode()).hexdigest()


# ------------------------------------------------------------------------------------------------- results to rows


def read_results(results_dir: Path) -> list[dict]:
    """The good rows of all files below `results_dir`, numbers as numbers; of two rows of one cell the later.

    What is malformed is named, what is left out is counted. Raises UserError if nothing is left.
    """
    rows, skipped = {}, 0
    for path in sorted(results_dir.rglob("*.tsv")):
        try:
            for line, fields in read_table(path):
                try:
                    row = parse_row(fields)
                except ValueError as error:
                    say(f"{path}:{line}: {error}; the row is skipped")
                    skipped += 1
                    continue
                rows[tuple(row[key] for key in (*utils.CELL, "variant", "device", "dataset"))] = row
        except (ValueError, OSError, csv.Error) as error:
            say(f"{path}: {utils.first_line(error)}; the file is skipped")
            skipped += 1
    if skipped:
        say(f"{skipped} malformed rows or files are skipped")
    good = [row for row in rows.values() if row["status"] == "ok"]
    if len(good) < len(rows):
        say(f"{len(rows) - len(good)} failed cells are left out")
    if not good:
        raise UserError(f"no results in {results_dir}; run_benchmark.py makes them")
    return good


def read_table(path: Path):
    """Yields (line number, row as text by column) of a file of ours or of an older table, whose empty fields don't
    count. Raises ValueError if it is neither. A row of another length than the header has its fields under None.
    """
    lines = io.StringIO(path.read_bytes().decode("utf-8-sig", errors="replace"), newline="").readlines()
    header, known = next(csv.reader(lines[:1], delimiter="\t"), []), dict.fromkeys(utils.COLUMNS, "")
    older = [name for name in header if name] in OLDER_HEADERS
    if older:
        if path.stem.count("_") < 2:
            raise ValueError("an older table, but not named <device>_<variant>_<dataset>.tsv")
        header = [name for name in header if name]
        device, variant, dataset = path.stem.split("_", 2)
        known |= OLDER_ROW | {"model": path.resolve().parent.name, "device": device, "dataset": dataset}
        known["variant"] = OLDER_VARIANTS.get(variant, variant)
    elif not set(READ) <= set(header):
        raise ValueError("neither a results file nor an older table")
    for number, record in read_records(lines, len(header)):
        fields = [field for field in record if field or not older]
        if fields and number > 1:
            misfit = {None: fields} if len(fields) != len(header) else {}
            yield number, known | dict(zip(header, fields, strict=False)) | misfit


def read_records(lines: list[str], width: int):
    """Yields (number of its last line, fields) of each record. Where one over several lines hasn't `width` fields, a
    stray quote began it: its first line stands for itself then, so that the next ones are not lost with it.
    """
    end = 0
    while end < len(lines):
        reader = csv.reader(itertools.islice(lines, end, None), delimiter="\t", strict=True)
        try:
            fields = next(reader)
            stray = reader.line_num > 1 and len(fields) != width
        except csv.Error:
            stray = True
        if stray:
            fields = lines[end].rstrip("\r\n").split("\t")
        end += 1 if stray else reader.line_num
        yield end, fields


def parse_row(fields: dict) -> dict:
    """The row with its numbers as numbers; a failed cell has no figures. Raises ValueError if it is malformed."""
    if None in fields:
        raise ValueError(f"{len(fields[None])} fields, not as many as in the header")
    row = fields | {key: int(fields[key]) for key in INTEGERS}
    counts = [row[key] for key in INTEGERS]
    if fields["order"] not in utils.ORDERS or min(*counts[:3], row["messages"] + 1) < 1 or max(counts) > MOST:
        raise ValueError("workers, threads, size, messages or order can't be")
    if "$" in fields["variant"] + fields["device"]:
        raise ValueError("a variant or a device with a $, which begins a formula in figures, can't be")
    if fields["status"] == "ok":
        value, least, most, *_ = figures = [float(fields[key]) for key in FLOATS]
        possible = all(math.isnan(figure) or 0 <= figure <= MOST for figure in figures)
        if not possible or not value > 1 / MOST or least > value or most < value:
            raise ValueError("messages/s, min, max, max_diff or flips can't be")
        row |= dict(zip(FLOATS, figures, strict=True))
        row |= {key: float(fields[key] or "nan") for key in LATER_FLOATS}
    return row


def keep_most_messages(rows: list[dict]) -> list[dict]:
    """The rows measured on the most messages that their model, device and dataset was measured on."""
    kept = []
    for place, group in grouped(rows, *PLACE).items():
        most = max(row["messages"] for row in group)
        kept += [row for row in group if row["messages"] == most]
        if fewer := sum(row["messages"] < most for row in group):
            say(f"{', '.join(place)}: {fewer} rows are left out, measured on fewer than {most} messages")
    return kept


def add_factors(rows: list[dict]) -> list[dict]:
    """The rows with `factor`: over the fastest eager FP32 torch in dataset order in its place, or nan without one."""
    bases = best([row for row in rows if (row["variant"], row["order"]) == ("torch", "dataset")], *PLACE)
    bases = {place: row["messages/s"] for place, row in bases.items()}
    return [row | {"factor": row["messages/s"] / bases.get(tuple(row[key] for key in PLACE), math.nan)} for row in rows]


def select(rows: list[dict], column: str, words: list[str]) -> list[dict]:
    """The rows in whose column one of the words is: the whole name if there is such a name, else a part of it.

    No words select everything. Raises UserError for a word that is nowhere.
    """
    names = {row[column]: utils.slug(row[column]).lower() for row in rows}
    chosen = set()
    for word in words:
        whole = {name for name, known in names.items() if word == known}
        found = whole or {name for name, known in names.items() if word in known}
        if not found:
            raise UserError(f"no {column} {word!r} among {', '.join(sorted(names))}")
        chosen |= found
    return [row for row in rows if not words or row[column] in chosen]


def grouped(rows: list[dict], *keys: str) -> dict[tuple, list[dict]]:
    """The rows by their values of the keys."""
    groups = {}
    for row in rows:
        groups.setdefault(tuple(row[key] for key in keys), []).append(row)
    return groups


def best(rows: list[dict], *keys: str) -> dict[tuple, dict]:
    """The fastest row for each combination of values of the keys, the fastest of them first."""
    fastest_first = sorted(rows, key=lambda row: -row["messages/s"])
    return {key: group[0] for key, group in grouped(fastest_first, *keys).items()}


def present(rows: list[dict], column: str, among: Iterable[str]) -> list[str]:
    """Those of `among`, in its order, that the rows have in that column."""
    found = {row[column] for row in rows}
    return [name for name in among if name in found]


# ------------------------------------------------------------------------------------------------ rows to figures


def plan(rows: list[dict], args: Namespace) -> list[Chart]:
    """The figures that the rows give."""
    charts = []
    for (model, dataset), group in grouped(rows, "model", "dataset").items():
        folder = args.output or args.results_dir / utils.slug(Path(model).name)
        start, end = utils.slug(model), utils.slug(dataset)
        bars = list(best(group, "device", "variant", "order").values())
        charts.append(Chart(folder / f"comparison_{start}_{end}", draw_comparison, bars, "each variant at its best"))
        for (device,), points in grouped(group, "device").items():
            path, what = folder / f"scaling_{start}_{utils.slug(device)}_{end}", f"scaling on {device_title(points[0])}"
            charts.append(Chart(path, draw_scaling, points, what))
        checked = [row for row in best(group, "device", "variant").values() if not math.isnan(row["max_diff"])]
        if checked:
            charts.append(Chart(folder / f"parity_{start}_{end}", draw_parity, checked, "speed and parity"))
    return charts


def variant_styles(rows: list[dict]) -> dict[str, tuple[str, str]]:
    """Colour and marker of each variant: a known one always has the same, strangers follow."""
    names = dict.fromkeys([*variants.VARIANTS, *sorted(row["variant"] for row in rows)])
    return {name: (COLORS[i % len(COLORS)], MARKERS[i % len(MARKERS)]) for i, name in enumerate(names)}


def device_name(row: dict) -> str:
    """How figures and the table call the device: `RTX 4090`, `Intel Xeon Platinum 8481C, 4 cores`."""
    name = re.sub(r"^(NVIDIA )?(GeForce )?", "", row["device"].replace("-", " "))
    return re.sub(r" (\d+ cores)$", r", \1", name)


def device_title(row: dict) -> str:
    return device_name(row) + (f" ({row['messages']:,} messages)" if row["messages"] else "")


def speed(row: dict, column: str = "messages/s") -> str:
    return shown(row[column], "{:,.0f}" if row[column] >= 100 else "{:.3g}")


def batching(row: dict) -> str:
    """How a row's batches were made, in words."""
    size = row["size"]
    return f"batches of {size:,} tokens" if row["order"] == "tokens" else f"{row['order']} order, size {size}"


def order_label(order: str) -> str:
    return "batches by tokens" if order == "tokens" else f"{order} order"


def shown(value: float, form: str) -> str:
    return "-" if math.isnan(value) else form.format(value)


def panels(titles: list[str], columns: int, size: tuple[float, float], figsize: tuple | None, **options):
    """A figure with a panel for each title, `columns` side by side, each of `size` in inches but for a figsize."""
    from matplotlib.figure import Figure

    lines = math.ceil(len(titles) / columns)
    figure = Figure(figsize or (size[0] * columns, size[1] * lines + 1.2), layout="constrained")
    axes = figure.subplots(lines, columns, squeeze=False, **options).flatten()
    for ax in axes[len(titles) :]:
        ax.remove()
    for ax, title in zip(axes, titles, strict=False):
        ax.set_title(title)
        ax.tick_params(labelbottom=True)
    return figure, axes[: len(titles)]


def annotate(figure, chart: Chart, note: str, handles: list) -> None:
    """The title above, the note and the legend below everything, wrapped to the figure's width."""
    width = figure.get_figwidth()
    title = f"{chart.rows[0]['model']}, dataset {chart.rows[0]['dataset']}: {chart.what}".replace("$", r"\$")
    lines = [textwrap.fill(line, int(12 * width)) for line in (title, MESSAGE)]
    figure.suptitle("\n".join(lines), fontsize=10)
    options = {"ncols": min(len(handles), int(width / 1.9)), "handlelength": 3, "frameon": False}
    options |= {"title": textwrap.fill(note, int(14 * width)), "title_fontsize": 8}
    legend = figure.legend(handles=handles, loc="outside lower center", **options)
    legend.get_title().set_multialignment("center")


def draw_comparison(chart: Chart, styles: dict, figsize: tuple | None):
    """Bars of the best row of each device (panels), variant and order. The devices have one scale, unless the best is
    ten times as fast on one as on another.
    """
    from matplotlib.patches import Patch
    from matplotlib.ticker import MaxNLocator

    rows, devices = chart.rows, list(best(chart.rows, "device").values())
    names, orders = present(rows, "variant", styles), present(rows, "order", utils.ORDERS)
    titles, size = [device_title(row) for row in devices], (7.5, 0.22 * len(names) * len(orders) + 0.8)
    alike = devices[0]["messages/s"] < 10 * devices[-1]["messages/s"]
    figure, axes = panels(titles, 1 if len(devices) <= 3 else 2, size, figsize, sharex=alike, sharey=True)
    for ax, device in zip(axes, devices, strict=True):
        bars = [row for row in rows if row["device"] == device["device"]]
        step = 0.8 / len(orders)
        for row in bars:
            lower = step * (orders.index(row["order"]) - (len(orders) - 1) / 2)
            draw_bar(ax, names.index(row["variant"]) + lower, 0.9 * step, row, styles[row["variant"]][0])
        for i, name in enumerate(names):
            if not present(bars, "variant", [name]):
                ax.annotate("not measured", (0, i), (4, 0), textcoords="offset points", va="center", color="#777777")
        ax.set(xlabel="messages/s", xlim=(0, None), ylim=(len(names) - 0.5, -0.5))
        ax.set_yticks(range(len(names)), names)
        ax.xaxis.set(major_locator=MaxNLocator(6), major_formatter="{x:,g}")
        ax.tick_params(axis="y", length=0)
        ax.grid(visible=False, axis="y")
    handles = [Patch(label=order_label(order), **bar_fill(order, "#888888")) for order in orders]
    annotate(figure, chart, FACTOR, handles)
    return figure


def draw_bar(ax, y: float, height: float, row: dict, color: str) -> None:
    """A row as a bar, with whiskers from its slowest to its fastest pass, and behind it its figures and its cell."""
    from matplotlib.patheffects import withStroke

    value, least, most = row["messages/s"], row["min"], row["max"]
    ax.barh(y, value, height, linewidth=0.6, **bar_fill(row["order"], color))
    whiskers = ax.errorbar(value, y, xerr=[[value - least], [most - value]], color="black", capsize=2, elinewidth=0.8)
    for artist in whiskers.get_children():
        artist.set_path_effects([withStroke(linewidth=2, foreground="white")])
    workers = f"{row['workers']} worker{'s' * (row['workers'] > 1)}"
    threads = f" of {row['threads']} threads" if row["threads"] > 1 else ""
    cell = f"{batching(row)}, {workers}{threads}"
    text = f"{speed(row)} ({shown(row['factor'], '{:.2f}x')})  {cell}"
    ax.annotate(text, (max(value, most), y), (4, 0), textcoords="offset points", va="center", fontsize=7)


def bar_fill(order: str, color: str) -> dict:
    """How bars of an order are filled: pale and hatched in dataset order, solid in length order, solid and dotted in
    batches by tokens.
    """
    fills = {"dataset": {"facecolor": (color, 0.3), "hatch": "////"}, "tokens": {"facecolor": color, "hatch": "...."}}
    return fills.get(order, {"facecolor": color}) | {"edgecolor": "#333333"}


def draw_scaling(chart: Chart, styles: dict, figsize: tuple | None):
    """Lines of messages/s over batch size, over the tokens of batches by tokens, and over workers if there are several
    counts; the rows of one device.
    """
    from matplotlib.lines import Line2D
    from matplotlib.ticker import FixedLocator, NullLocator

    rows, drawn = chart.rows, []
    sized, by_tokens = ([row for row in rows if (row["order"] == "tokens") == tokens] for tokens in (False, True))
    over = [
        ("each batch size at its best worker count", "batch size in messages", "size", sized),
        ("each batch size at its best worker count", "batch size in tokens", "size", by_tokens),
        ("each worker count at its best batch size", "workers", "workers", rows),
    ]
    over = [panel for panel in over if panel[-1] and (panel[2] == "size" or len({row["workers"] for row in rows}) > 1)]
    figure, axes = panels([title for title, *_ in over], len(over), (5.5, 4.5), figsize, sharey=True)
    for ax, (_, xlabel, key, points) in zip(axes, over, strict=True):
        ticks = sorted({row[key] for row in points})
        fastest = {at: row["messages/s"] for at, row in best(points, "variant", "order", key).items()}
        drawn += fastest.values()
        for name, order in grouped(points, "variant", "order"):
            line = [fastest.get((name, order, tick), math.nan) for tick in ticks]  # nan is a gap
            ax.plot(ticks, line, **line_style(order, *styles[name]))
        ax.set(xscale="log", xlabel=xlabel)
        labelled = FixedLocator(apart(ticks))
        ax.xaxis.set(major_locator=labelled, minor_locator=NullLocator(), major_formatter="{x:g}")
    set_speed_axis(axes[0], drawn)
    orders = present(rows, "order", utils.ORDERS)
    handles = [Line2D([], [], label=order_label(order), **line_style(order, "#444444", "")) for order in orders]
    annotate(figure, chart, "", variant_handles(rows, styles) + handles)
    return figure


def apart(ticks: list[int]) -> list[int]:
    """Those of ascending ticks whose labels don't touch on a log axis: a twentieth of it apart."""
    kept = ticks[:1]
    for tick in ticks:
        if math.log(tick / kept[-1]) > math.log(ticks[-1] / ticks[0]) / 20:
            kept.append(tick)
    return kept


def line_style(order: str, color: str, marker: str) -> dict:
    """How lines of an order are drawn: dashed with hollow markers in dataset order, solid in length order, dotted in
    batches by tokens.
    """
    styles = {"dataset": {"linestyle": "--", "markerfacecolor": "white"}, "tokens": {"linestyle": ":"}}
    return styles.get(order, {"linestyle": "-"}) | {"color": color, "marker": marker, "markersize": 5}


def set_speed_axis(ax, speeds: list[float]) -> None:
    """A log axis of messages/s, wide enough to have ticks however alike the speeds are."""
    from matplotlib.ticker import LogLocator, NullLocator

    ax.set(yscale="log", ylabel="messages/s", ylim=(min(speeds) / 1.3, max(speeds) * 1.3))
    ticks = LogLocator(subs=(1, 1.5, 2, 3, 5, 7))
    ax.yaxis.set(major_locator=ticks, minor_locator=NullLocator(), major_formatter="{x:,g}")


def variant_handles(rows: list[dict], styles: dict) -> list:
    """The legend's entries for the variants in the rows."""
    from matplotlib.lines import Line2D

    shown = {name: styles[name] for name in present(rows, "variant", styles)}
    return [Line2D([], [], linestyle="", color=c, marker=marker, label=name) for name, (c, marker) in shown.items()]


def draw_parity(chart: Chart, styles: dict, figsize: tuple | None):
    """Points of messages/s against deviation: the best row of each device (panels) and variant."""
    panel_rows = grouped(chart.rows, "device").values()
    figure, axes = panels([device_title(row) for row, *_ in panel_rows], min(len(panel_rows), 3), (4.5, 3.6), figsize)
    for ax, points in zip(axes, panel_rows, strict=True):
        for row in points:
            color, marker = styles[row["variant"]]
            ax.plot(max(row["max_diff"], LEAST_DIFF), row["messages/s"], marker, color=color, markersize=7)
        most = max(1, *(2 * row["max_diff"] for row in points))
        ax.set(xscale="log", xlabel="max_diff", xlim=(LEAST_DIFF / 2, most))
        set_speed_axis(ax, [row["messages/s"] for row in points])
    note = f"{MAX_DIFF} (less than {LEAST_DIFF:g} is drawn there)"
    annotate(figure, chart, note, variant_handles(chart.rows, styles))
    return figure


def figure_files(chart: Chart, formats: list[str]) -> list[Path]:
    return [chart.path.with_name(f"{chart.path.name}.{suffix}") for suffix in formats]


def save(charts: list[Chart], styles: dict, args: Namespace) -> None:
    import matplotlib

    with matplotlib.rc_context(STYLE):
        for chart in charts:
            chart.path.parent.mkdir(parents=True, exist_ok=True)
            figure = chart.draw(chart, styles, args.figsize)
            for file in figure_files(chart, args.format):
                figure.savefig(file, metadata={"Keywords": chart.digest()})
                print(file)


def out_of_date(charts: list[Chart], formats: list[str]) -> list[Path]:
    """The figures that are missing, or that were drawn from other data."""
    digests = {file: chart.digest().encode() for chart in charts for file in figure_files(chart, formats)}
    return [file for file, digest in digests.items() if not file.exists() or digest not in file.read_bytes()]


# -------------------------------------------------------------------------------------- rows to the README's results

TABLE = {
    "device": device_name,
    "variant": lambda row: row["variant"],
    "messages/s": speed,
    "factor": lambda row: shown(row["factor"], "{:.2f}"),
    "batches": batching,
    "workers x threads": lambda row: f"{row['workers']} x {row['threads']}",
    "of the peak": lambda row: shown(row["mfu"], "{:.0%}"),
    "end to end": lambda row: speed(row, "end_to_end"),
    "max_diff": lambda row: shown(row["max_diff"], "{:.2g}"),
    "flips": lambda row: shown(row["flips"], "{:.3%}"),
}


def results_block(rows: list[dict], charts: list[Chart], folder: Path) -> str:
    """What belongs between the README's markers: figures, table and provenance. Links are relative to `folder`."""
    lines = ["Written by `python plot_results.py`, not by hand.", ""]
    for (model, dataset), group in grouped(rows, "model", "dataset").items():
        links = [
            f"[{chart.what}]({quote(Path(os.path.relpath(chart.path, folder)).as_posix())}.png)"
            for chart in charts
            if (chart.rows[0]["model"], chart.rows[0]["dataset"]) == (model, dataset)
        ]
        lines += [f"### {model}, dataset {dataset}", "", f"!{links[0]}", "", f"More: {', '.join(links[1:])}", ""]
        lines += [f"| {' | '.join(TABLE)} |", "|" + " --- |" * len(TABLE)]
        devices = grouped(list(best(group, "device", "variant").values()), "device")
        for row in (row for bests in devices.values() for row in bests):
            lines.append(f"| {' | '.join(cell(row) for cell in TABLE.values())} |")
        lines += ["", f"{FACTOR}; {MFU}; {END_TO_END}; {MAX_DIFF}; {FLIPS}; {MESSAGE}.", ""]
        for (device,) in devices:
            lines += [*provenance([row for row in group if row["device"] == device]), ""]
    return "\n".join([*lines, COMMANDS])


def provenance(rows: list[dict]) -> list[str]:
    """Where the rows of one device come from: hardware, versions, commits, days, and commands that measure them."""

    def values(column: str, group: list[dict], between: str = ",") -> str:
        return between.join(str(value) for value in sorted({row[column] for row in group} - {""}))

    if not rows[0]["messages"]:
        return [f"- {device_title(rows[0])}: an older table, without versions, commit and command"]
    dated = [row | {"date": row["date"][:10]} for row in rows]
    columns = [
        name for name in ("driver", *utils.VERSIONS, "commit", "date") if name != "openvino" or values(name, rows)
    ]
    origin = [f"{name} {values(name, dated, ' and ') or '-'}" for name in columns]
    lines = [f"- {device_title(rows[0])}: {', '.join(origin)}"]
    device = "cpu" if rows[0]["device"].endswith("-cores") else "gpu"
    dataset = rows[0]["dataset"].removeprefix("synthetic-")
    dataset = dataset if dataset in utils.DATASETS else "FILE"
    for (threads,), group in grouped(rows, "threads").items():
        sized, by_tokens = ([row for row in group if (row["order"] == "tokens") == tokens] for tokens in (False, True))
        sizes = [("--batches", sized), ("--batch-tokens", by_tokens)]
        lines.append(
            f"  `python run_benchmark.py --model {values('variant', group)} --device {device} --dataset {dataset}"
            f" --model-id {shlex.quote(rows[0]['model'])} --workers {values('workers', group)} --threads {threads}"
            f" --order {values('order', group)}"
            + "".join(f" {option} {values('size', some)}" for option, some in sizes if some)
            + f" --limit {rows[0]['messages']}`"
        )
    return lines


def with_block(readme: str, block: str) -> str:
    """The README's text with the block between its markers. Raises UserError if it has none."""
    before, _, rest = readme.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not end:
        raise UserError(f"README.md lacks the lines {BEGIN} and {END} for the results; --output goes without them")
    return f"{before}{BEGIN}\n{block}\n{END}{after}"


# ------------------------------------------------------------------------------------------------------------ main


def parse_arguments() -> Namespace:
    parser = utils.Parser(description=__doc__, formatter_class=RawDescriptionHelpFormatter, allow_abbrev=False)
    add = parser.add_argument
    add("--results-dir", type=Path, default=Path("results"), help="default: results")
    for column, option in FILTERS.items():
        add(option, dest=column, type=words, default=[], metavar="LIST", help="comma list; a part of a name is enough")
    add("--figsize", type=inches, metavar="W,H", help="size of each figure in inches (default: what it needs)")
    add("--output", type=Path, metavar="DIR", help="where the figures go (default: <results-dir>/<model>)")
    add("--format", type=formats, default=["png"], metavar="LIST", help=f"of {', '.join(FORMATS)} (default: png)")
    add("--check", action="store_true", help="write nothing; exit code 1 if a figure or the README is out of date")
    return parser.parse_args()


def words(text: str) -> list[str]:
    """The words of a comma list, as select() compares them."""
    found = [utils.slug(word).lower() for word in text.split(",")]
    if not all(found):
        raise ArgumentTypeError(f"{text!r} is not a comma list of names")
    return found


def formats(text: str) -> list[str]:
    names = list(dict.fromkeys(text.split(",")))
    if not set(names) <= set(FORMATS):
        raise ArgumentTypeError(f"{text!r} is not a comma list of {', '.join(FORMATS)}")
    return names


def inches(text: str) -> tuple[float, float]:
    try:
        width, height = (float(number) for number in text.split(","))
    except ValueError:
        width = height = 0.0
    if not (3 <= width <= 60 and 3 <= height <= 60):
        raise ArgumentTypeError(f"{text!r} is not a width and a height from 3 to 60 inches, as in 12,8")
    return width, height


def main() -> int:
    args = parse_arguments()
    rows = add_factors(keep_most_messages(read_results(args.results_dir)))
    styles = variant_styles(rows)
    for column in FILTERS:
        rows = select(rows, column, getattr(args, column))
    charts = plan(rows, args)
    readme = args.results_dir.absolute().parent / "README.md"
    filtered = any(getattr(args, column) for column in FILTERS)
    old = new = None
    try:
        if filtered or args.output or "png" not in args.format:
            say("README.md is left alone, since only a part of what it shows is drawn")
        elif not readme.exists():
            say(f"no {readme}, so the figures go without their table")
        else:
            old = readme.read_text(encoding="utf-8")
            new = with_block(old, results_block(rows, charts, readme.parent))
        if args.check:
            stale = out_of_date(charts, args.format) + [readme] * (new != old)
            for file in stale:
                say(f"{file} is out of date")
            return int(bool(stale))
        save(charts, styles, args)
        if new != old:
            readme.write_text(new, encoding="utf-8")
            print(readme)
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(utils.first_line(error)) from error
    return 0


if __name__ == "__main__":
    utils.run(main)
