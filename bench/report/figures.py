"""Rows -> figures: each variant at its best, speed over batch size, and speed against changed decisions."""

import math
import re
from pathlib import Path

from bench.judge import NOT_WITHIN, TOLERANCE, UNPROVEN, WITHIN
from bench.naming import figure_text
from bench.report.rows import PUBLISHED
from bench.report.table import speed
from bench.tables.datasets import DATASETS

BLUE, PALE_BLUE, LIGHT_GREY, ORANGE = "#0072B2", "#8FB6CE", "#DDDDDD", "#D55E00"  # mostly Okabe and Ito's palette
BATCHING_STYLES = {
    "in-order": {"color": "#777777", "linestyle": "--", "marker": "o", "markerfacecolor": "white"},
    "sorted": {"color": BLUE, "linestyle": "-", "marker": "s"},
    "token-budget": {"color": ORANGE, "linestyle": "-", "marker": "^"},
}
MAX_LINES = 12  # of panels; an image viewer opens no picture of sixty thousand pixels
STYLE = {
    **{"font.size": 9, "axes.titlesize": 10, "axes.titlelocation": "left", "savefig.dpi": 150, "hatch.linewidth": 0.6},
    **{"axes.spines.top": False, "axes.spines.right": False, "axes.axisbelow": True},
    **{"axes.grid": True, "grid.color": "#dddddd", "grid.linewidth": 0.6, "svg.hashsalt": "plot_results"},
    "text.parse_math": False,  # names may contain dollar signs
}


BASELINES = {  # variant -> description
    "pipeline": "transformers' pipeline",
    "optimum-pipeline": "transformers' pipeline on optimum's ONNX model",
}


def device_name(device: str) -> str:
    """Return a device's name for figures and tables: `RTX 4090`, `Intel Xeon Platinum 8481C, 4 cores`."""
    name = re.sub(r"^(NVIDIA )?(GeForce )?", "", figure_text(device).replace("-", " "))
    return re.sub(r" (\d+ cores)$", r", \1", name)


def device_title(row) -> str:
    source = ", published elsewhere" if row["commit"] == PUBLISHED else ""
    return f"{device_name(row['device'])} ({row['texts']:,} texts{source})"


def batching_words(row) -> str:
    if row["batching"] == "token-budget":
        return f"{row['batch_tokens']:,} tokens"
    return f"{row['batching']}, {row['batch_size']} text{'' if row['batch_size'] == 1 else 's'}"


def is_cpu(device):
    """True for the name of a CPU; a column of names gives a column of booleans."""
    return device.endswith("-cores") if isinstance(device, str) else device.str.endswith("-cores")


def baseline(row) -> str:
    """Return what the factor of a row of readmes.headlines compares with."""
    if row["stage"] == "forward":
        return "eager FP32 torch (texts in file order)"
    return f"{BASELINES[row['base_variant']]} (batches of {row['base_size']:.0f})"


def draw_comparison(rows):
    """Draw a bar for each variant at its best, the fastest first, in a panel for each device.

    All GPUs share a scale and all CPUs another, whose bars would be invisible on the GPUs' scale. `rows`: the best row
    of each device and variant, with its verdict. The fastest within tolerance is highlighted.
    """
    devices = list(rows.groupby("device", sort=False))
    longest = rows.groupby(is_cpu(rows["device"]))["max"].max()
    heights = [len(group) for _, group in devices]
    columns = math.ceil(len(devices) / MAX_LINES)
    figure, axes = panels(len(devices), columns, (8.5, 0.42 * sum(heights) / len(heights) + 0.75), heights)
    for ax, (device, group) in zip(axes, devices, strict=True):
        top = longest[is_cpu(device)]
        bars = group.sort_values("messages/s", ascending=False)
        within = list(bars["verdict"] == WITHIN)
        for i, (_, row) in enumerate(bars.iterrows()):
            winner = any(within) and i == within.index(True)
            wrong = row["verdict"] == NOT_WITHIN
            fill = {"color": LIGHT_GREY, "hatch": "///"} if wrong else {"color": BLUE if winner else PALE_BLUE}
            ax.barh(i, row["messages/s"], 0.7, edgecolor="white", **fill)
            if row["passes"] > 1:
                spread = [[row["messages/s"] - row["min"]], [row["max"] - row["messages/s"]]]
                ax.errorbar(row["messages/s"], i, xerr=spread, color="black", capsize=2, elinewidth=0.8)
            factor = "" if math.isnan(row["factor"]) else f" = {row['factor']:.1f}x"
            text = f"{speed(row['messages/s'])}{factor}  {batching_words(row)}, {row['workers']} x {row['threads']}"
            if wrong:
                text += f"; flips {row['flips']:.2%}"
            if row["verdict"] == UNPROVEN and row["decisions"] > 0:
                text += "; not proven"
            weight = "bold" if winner else "normal"
            bar_end = (max(row["messages/s"], row["max"]), i)
            ax.annotate(text, bar_end, (5, 0), textcoords="offset points", va="center", fontsize=8, weight=weight)
        ax.set(xlim=(0, 2.1 * top), ylim=(len(bars) - 0.4, -0.6), title=device_title(bars.iloc[0]))
        ax.set_yticks(range(len(bars)), bars["variant"].map(figure_text))
        ax.set_xticks([tick for tick in ax.get_xticks() if tick <= top])
        ax.xaxis.set_major_formatter("{x:,g}")
        ax.tick_params(axis="y", length=0)
        ax.grid(visible=False, axis="y")
        ax.spines["bottom"].set_visible(False)
    for ax in axes[-columns:]:
        ax.set_xlabel("messages/s", loc="left")
    return figure


def draw_overview(rows):
    """Draw the factor of the best variant over the usual baseline, a bar for each device and model.

    `rows`: see readmes.headlines.
    """
    figure, [ax] = panels(1, 1, (8.5, 0.55 * len(rows) + 0.3))
    for i, row in enumerate(rows.to_dict("records")):
        ax.barh(i, row["factor"], 0.62, color=BLUE)
        text = f"{figure_text(row['variant'])}: {speed(row['messages/s'])} messages/s\n"
        text += f"{baseline(row)}: {speed(row['base'])}"
        bar_end = (row["factor"], i)
        placement = {"textcoords": "offset points", "va": "center"}
        ax.annotate(f"{row['factor']:.1f}x", bar_end, (5, 0), fontsize=10, weight="bold", **placement)
        ax.annotate(text, bar_end, (42, 0), fontsize=8, **placement)
    models = [figure_text(Path(model).name) for model in rows["model"]]
    places = list(map("{}\n{}".format, map(device_name, rows["device"]), models))
    ax.set_yticks(range(len(rows)), places, fontsize=8)
    ax.set(xlim=(0, 2.3 * rows["factor"].max()), ylim=(len(rows) - 0.5, -0.5))
    ax.axvline(1, color="gray", linewidth=0.8)
    ax.tick_params(axis="both", length=0)
    ax.set_xticks([1], ["1x"])
    ax.grid(visible=False)
    ax.spines[["bottom", "left"]].set_visible(False)
    return figure


def draw_scaling(rows):
    """Draw messages/s over the texts in a batch, a panel for each variant. `rows`: of one device.

    Each point has its best worker count, and the fastest of a panel is labelled. With a token budget, the texts in a
    batch are its tokens divided by the mean tokens per text.
    """
    from matplotlib.ticker import LogLocator, NullLocator

    by_tokens = rows["batch_tokens"] * rows["messages/s"] / rows["tokens/s"]
    rows = rows.assign(per_batch=by_tokens.where(rows["batching"] == "token-budget", rows["batch_size"]))
    fastest = rows.groupby("variant")["messages/s"].max().sort_values(ascending=False)
    columns = min(len(fastest), 3)
    figure, axes = panels(len(fastest), columns, (3.4, 2.6), sharex=True, sharey=True)
    cell = ["variant", "batching", "batch_size", "batch_tokens"]
    best = rows.sort_values("messages/s", ascending=False).drop_duplicates(cell)
    several_counts = rows["workers"].nunique() > 1
    for ax, variant in zip(axes, fastest.index, strict=False):
        points = best[best["variant"] == variant]
        for batching, line in points.sort_values("per_batch").groupby("batching"):
            ax.plot(line["per_batch"], line["messages/s"], markersize=4, label=batching, **BATCHING_STYLES[batching])
        top = points.iloc[0]
        text = speed(top["messages/s"])
        if several_counts:
            text += f" with {top['workers']} worker{'' if top['workers'] == 1 else 's'}"
        position = (top["per_batch"], top["messages/s"])
        ax.annotate(text, position, (0, 5), textcoords="offset points", ha="center", fontsize=8)
        ax.set(title=figure_text(variant), xscale="log", yscale="log")
        ax.xaxis.set(major_locator=LogLocator(base=2), minor_locator=NullLocator(), major_formatter="{x:g}")
        ax.margins(x=0.15)
        ax.yaxis.set(major_locator=LogLocator(subs=(1, 2, 5)), minor_locator=NullLocator(), major_formatter="{x:,g}")
    low, high = best["messages/s"].min(), best["messages/s"].max()
    axes[0].set(ylim=(low / 1.3, high * 1.6))
    for ax in axes[::columns]:
        ax.set_ylabel("messages/s")
    for ax in axes[-columns:]:
        ax.set_xlabel("texts in a batch")
    handles = {label: line for ax in axes for line, label in zip(*ax.get_legend_handles_labels(), strict=True)}
    figure.legend(handles.values(), handles, loc="outside lower center", ncols=3, frameon=False)
    return figure


def draw_parity(rows):
    """Draw messages/s over the share of changed decisions, a panel for each device; 0 is at the left.

    `rows`: the best checked row of each device and variant. All CPUs share a scale, and so do all GPUs.
    """
    from matplotlib.ticker import NullLocator

    devices = list(rows.groupby("device", sort=False))
    fastest = rows.groupby(is_cpu(rows["device"]))["messages/s"].max()
    figure, axes = panels(len(devices), max(min(len(devices), 2), math.ceil(len(devices) / MAX_LINES)), (5.5, 3.8))
    zero = 1e-5  # where a share of 0 is drawn
    for ax, (device, points) in zip(axes, devices, strict=False):
        top = fastest[is_cpu(device)]
        ax.axvline(TOLERANCE, color=ORANGE, linewidth=1)
        ax.annotate("tolerance", (TOLERANCE, 0), (3, 3), textcoords="offset points", color=ORANGE, fontsize=8)
        label_y = -math.inf
        for _, row in points.sort_values("messages/s").iterrows():
            x, y = max(row["flips"], zero), row["messages/s"]
            fill = "none" if row["verdict"] == UNPROVEN else "full"
            color = ORANGE if row["verdict"] == NOT_WITHIN else BLUE
            ax.plot(x, y, "o", color=color, markersize=5, fillstyle=fill)
            label_y = max(y, label_y + 0.05 * top)  # from the bottom up, so that labels don't overlap
            text = f"{figure_text(row['variant'])} ({row['max_diff']:.0e})"
            ax.plot([x, 1.2 * x], [y, label_y], color="gray", linewidth=0.6, zorder=1)
            ax.annotate(text, (1.25 * x, label_y), va="center", fontsize=8)
        ax.set(xscale="log", xlim=(zero / 1.5, max(0.3, 10 * points["flips"].max())), ylim=(0, 1.15 * top))
        xlabel = "changed decisions (largest difference); hollow: not proven"
        ax.set(title=device_title(points.iloc[0]), xlabel=xlabel, ylabel="messages/s")
        ax.set_xticks([zero, 1e-4, 1e-3, 1e-2, 1e-1], ["0", "0.01%", "0.1%", "1%", "10%"])
        ax.xaxis.set_minor_locator(NullLocator())
    return figure


def panels(count: int, columns: int, size: tuple[float, float], heights=None, **options):
    """Make a figure with `count` panels, `columns` side by side, each of `size` inches."""
    from matplotlib.figure import Figure

    lines = math.ceil(count / columns)
    if heights:
        heights = [max(heights[i : i + columns]) for i in range(0, count, columns)]
    figure = Figure((size[0] * columns, size[1] * lines + 1), layout="constrained")
    axes = figure.subplots(lines, columns, squeeze=False, height_ratios=heights, **options).flatten()
    for ax in axes[count:]:
        ax.remove()
    for ax in axes[:count]:
        ax.tick_params(labelbottom=True)
    return figure, axes[:count]


def add_title(figure, rows, what: str) -> None:
    """Title the figure with what is shown, the dataset, and the model if there is only one."""
    row = rows.iloc[0]
    dataset = figure_text(row["dataset"])
    is_bundled = dataset.removeprefix("synthetic-") in DATASETS
    texts = f"{dataset} comments" if is_bundled else f"the texts of {dataset}"
    title = f"{what[0].upper()}{what[1:]}, {texts}"
    if rows["model"].nunique() == 1:
        name = figure_text(Path(row["model"]).absolute().name)
        title = f"{name} on {texts}: {what}"
    figure.suptitle(title, fontsize=11, x=0.01, ha="left")
