"""Rows -> figures: all machines on one axis, each variant at its best, and speed over batch size."""

import math
import textwrap

from bench.naming import figure_text
from bench.report.rows import PUBLISHED
from bench.report.summary import BASELINE, FASTEST, OPEN, PROVEN, REFUSED, STATES
from bench.report.table import batches, is_cpu, speed
from bench.report.verdict import changed_words

BLUE, PALE_BLUE, GREY, ORANGE = "#0072B2", "#8FB6CE", "#999999", "#D55E00"  # mostly Okabe and Ito's palette
COLORS = {  # state -> fill and edge
    FASTEST: (BLUE, BLUE),
    PROVEN: (PALE_BLUE, PALE_BLUE),
    OPEN: ("white", BLUE),
    REFUSED: ("white", ORANGE),
    BASELINE: (GREY, GREY),
}
BATCHING_STYLES = {
    "in-order": {"color": "#777777", "linestyle": "--", "marker": "o", "markerfacecolor": "white"},
    "sorted": {"color": BLUE, "linestyle": "-", "marker": "s"},
    "token-budget": {"color": ORANGE, "linestyle": "-", "marker": "^"},
}
POINTS = 3  # of a line, at least, to show how speed depends on the batch size
MAX_LINES = 12  # of panels; an image viewer opens no picture of sixty thousand pixels
WIDTH = 9.0  # inches
STYLE = {
    **{"font.size": 9, "axes.titlesize": 10, "axes.titlelocation": "left", "savefig.dpi": 150, "hatch.linewidth": 0.6},
    **{"axes.spines.top": False, "axes.spines.right": False, "axes.axisbelow": True},
    **{"axes.grid": True, "grid.color": "#dddddd", "grid.linewidth": 0.6, "svg.hashsalt": "plot_results"},
    "xtick.labelsize": 8,
    "text.parse_math": False,  # names may contain dollar signs
}


def draw_overview(rows):
    """Draw all variants of each model and machine on an axis of messages/s, a panel for GPUs and one for CPUs.

    The axis is logarithmic, so the length of a line is the factor from the baseline to the fastest proven variant.
    `rows`: of summary.headlines, all variants.
    """
    from matplotlib.ticker import LogLocator, NullLocator

    kinds = [group.groupby(["name", "machine"], sort=False) for _, group in rows.groupby(rows["device"].map(is_cpu))]
    labels = [[place_label(machine, name) for (name, machine), _ in places] for places in kinds]
    heights = [len(names) * max(3, *(name.count("\n") + 1 for name in names)) for names in labels]  # lines of text
    figure, axes = panels(len(kinds), 1, (WIDTH, 0.17 * sum(heights) / len(heights) + 0.5), heights)
    for ax, places, names in zip(axes, kinds, labels, strict=True):
        for i, (_, group) in enumerate(places):
            winner = group[group["state"] == FASTEST].iloc[0]
            ax.plot([winner["base"], winner["messages/s"]], [i, i], color=PALE_BLUE, linewidth=3, zorder=1)
            for state, points in group.groupby("state"):
                fill, edge = COLORS[state]
                style = {"marker": "X" if state == REFUSED else "o", "markersize": 7, "linestyle": "none"}
                style |= {"markerfacecolor": fill, "markeredgecolor": edge, "zorder": 3 if state == FASTEST else 2}
                ax.plot(points["messages/s"], [i] * len(points), label=state, **style)
            side_text(ax, i, place_text(winner, group))
        ax.set_yticks(range(len(names)), names, fontsize=8)
        title = "CPUs" if is_cpu(places["device"].first().iloc[0]) else "GPUs"
        ax.set(ylim=(len(names) - 0.5, -0.5), xscale="log", title=title)
        ax.margins(x=0.08)
        low, high = ax.get_xlim()
        steps = (1, 2, 5) if high < 50 * low else (1, 3)
        ax.xaxis.set(major_locator=LogLocator(subs=steps), minor_locator=NullLocator(), major_formatter="{x:,g}")
        ax.tick_params(axis="y", length=0)
    axes[-1].set_xlabel("messages/s, end to end", loc="left")
    add_legend(figure, axes)
    return figure


def place_label(machine: str, name: str) -> str:
    return "\n".join(line for text in (machine, name) for line in textwrap.wrap(figure_text(text), 36))


def place_text(winner, group) -> str:
    """Return what stands beside a model and machine: the winner, the baseline, and what is faster but not proven."""
    lines = [f"{winner['factor']:.1f}x: {speed(winner['messages/s'])} messages/s, {figure_text(winner['variant'])}"]
    if not winner["idle"]:
        lines[0] += " (busy device)"
    lines.append(f"1.0x: {speed(winner['base'])}, {winner['base_name']}")
    faster = group[group["state"].isin([OPEN, REFUSED]) & (group["messages/s"] > winner["messages/s"])]
    for row in faster.head(1).to_dict("records"):
        lines.append(f"{row['state']}: {speed(row['messages/s'])}, {figure_text(row['variant'])}")
    return "\n".join(lines)


def draw_comparison(rows):
    """Draw a bar for each variant at its best, the fastest first, in a panel for each device; all share the axis.

    `rows`: of summary.summarize, one model and dataset, GPUs or CPUs.
    """
    devices = list(rows.groupby("device", sort=False))
    heights = [len(group) for _, group in devices]
    columns = math.ceil(len(devices) / MAX_LINES)
    figure, axes = panels(len(devices), columns, (WIDTH, 0.3 * sum(heights) / len(heights) + 0.6), heights)
    for ax, (_, group) in zip(axes, devices, strict=True):
        bars = group.sort_values("messages/s", ascending=False)
        for i, row in enumerate(bars.to_dict("records")):
            fill, edge = COLORS[row["state"]]
            fill = fill if STATES[row["verdict"]] == PROVEN else "white"
            hatch = "////" if row["state"] == REFUSED else ""
            ax.barh(i, row["messages/s"], 0.7, facecolor=fill, edgecolor=edge, hatch=hatch, label=row["state"])
            if row["passes"] > 1:
                spread = [[row["messages/s"] - row["min"]], [row["max"] - row["messages/s"]]]
                ax.errorbar(row["messages/s"], i, xerr=spread, color="black", capsize=2, elinewidth=0.8)
            side_text(ax, i, bar_text(row), "bold" if row["state"] == FASTEST else "normal")
        ax.set(xlim=(0, 1.02 * rows["max"].max()), ylim=(len(bars) - 0.4, -0.6))
        ax.set_title(device_title(bars.iloc[0]))
        ax.set_yticks(range(len(bars)), bars["variant"].map(figure_text))
        ax.xaxis.set_major_formatter("{x:,g}")
        ax.tick_params(axis="y", length=0)
        ax.grid(visible=False, axis="y")
    stage = "end to end" if rows["end_to_end"].any() else "forward passes only"
    for ax in axes[-columns:]:
        ax.set_xlabel(f"messages/s, {stage}", loc="left")
    add_legend(figure, axes)
    return figure


def bar_text(row: dict) -> str:
    """Return what stands beside a bar: the speed, its factor, its batches, and what limits its use."""
    factor = "" if math.isnan(row["factor"]) else f" = {row['factor']:.1f}x"
    parts = [f"{speed(row['messages/s'])}{factor}", f"{batches(row)}, {row['workers']} x {row['threads']}"]
    if (state := STATES[row["verdict"]]) != PROVEN:
        parts.append(changed_words(row) if math.isnan(row["flips"]) else f"{state}: {changed_words(row)}")
    if not row["end_to_end"] and row["commit"] != PUBLISHED:
        parts.append("forward only")
    if not row["idle"]:
        parts.append("busy device")
    return "; ".join(parts)


def draw_scaling(rows):
    """Draw messages/s over the texts in a batch, a panel for each variant with at least one line.

    `rows`: forward passes of one device, see with_lines(). Each point has its best worker count, and the fastest of a
    panel is labelled. With a token budget, the texts in a batch are its tokens divided by the mean tokens per text.
    """
    from matplotlib.ticker import LogLocator, NullLocator

    by_tokens = rows["batch_tokens"] * rows["messages/s"] / rows["tokens/s"]
    rows = rows.assign(per_batch=by_tokens.where(rows["batching"] == "token-budget", rows["batch_size"]))
    fastest = rows.groupby("variant")["messages/s"].max().sort_values(ascending=False)
    columns = min(len(fastest), 3)
    figure, axes = panels(len(fastest), columns, (WIDTH / columns, 2.6), sharex=True, sharey=True)
    best = rows.sort_values("messages/s", ascending=False).drop_duplicates(CELL)
    for ax, variant in zip(axes, fastest.index, strict=False):
        points = best[best["variant"] == variant]
        for batching, line in points.sort_values("per_batch").groupby("batching"):
            ax.plot(line["per_batch"], line["messages/s"], markersize=4, label=batching, **BATCHING_STYLES[batching])
        top = points.iloc[0]
        position = (top["per_batch"], top["messages/s"])
        placement = {"textcoords": "offset points", "ha": "center", "fontsize": 8}
        ax.annotate(speed(top["messages/s"]), position, (0, 5), **placement)
        ax.set(title=figure_text(variant), xscale="log", yscale="log")
        ax.xaxis.set(major_locator=LogLocator(base=2), minor_locator=NullLocator(), major_formatter="{x:g}")
        ax.margins(x=0.15)
        ax.yaxis.set(major_locator=LogLocator(subs=(1, 2, 5)), minor_locator=NullLocator(), major_formatter="{x:,g}")
    low, high = best["messages/s"].min(), best["messages/s"].max()
    axes[0].set(ylim=(low / 1.3, high * 1.6))
    for ax in axes[::columns]:
        ax.set_ylabel("messages/s, forward")
    for ax in axes[-columns:]:
        ax.set_xlabel("texts in a batch")
    add_legend(figure, axes)
    return figure


CELL = ["variant", "batching", "batch_size", "batch_tokens"]


def with_lines(rows):
    """Keep the rows of variants that have, on one device, POINTS batch sizes of one batching."""
    sizes = rows.drop_duplicates(["device", *CELL]).groupby(["device", "variant", "batching"]).size()
    lines = sizes[sizes >= POINTS].reset_index()[["device", "variant"]].drop_duplicates()
    return rows.merge(lines)


def device_title(row) -> str:
    source = ", published elsewhere" if row["commit"] == PUBLISHED else ""
    return f"{figure_text(row['machine'])} ({row['texts']:,} texts{source})"


def side_text(ax, y: float, text: str, weight: str = "normal") -> None:
    position = {"xycoords": ("axes fraction", "data"), "textcoords": "offset points", "va": "center"}
    ax.annotate(text, (1, y), (8, 0), fontsize=8, weight=weight, annotation_clip=False, **position)


def add_legend(figure, axes) -> None:
    handles = {label: line for ax in axes for line, label in zip(*ax.get_legend_handles_labels(), strict=True)}
    figure.legend(handles.values(), handles, loc="outside lower center", ncols=len(handles), frameon=False)


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
    datasets = figure_text(" and ".join(sorted(rows["dataset"].unique())))
    title = f"{what[0].upper()}{what[1:]}, dataset {datasets}"
    if rows["model"].nunique() == 1:
        title = f"{figure_text(rows['name'].iloc[0])}, dataset {datasets}: {what}"
    width = int(12 * figure.get_size_inches()[0])  # characters
    figure.suptitle("\n".join(textwrap.wrap(title, width)), fontsize=11, x=0.01, ha="left")
