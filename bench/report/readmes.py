"""Rows -> what README.md and results/README.md say of them."""

import math
import os
import shlex
from pathlib import Path
from urllib.parse import quote

from bench.judge import NOT_WITHIN, UNPROVEN, WITHIN
from bench.model.random_model import RANDOM_MODEL
from bench.naming import markdown
from bench.report import figures
from bench.report.figures import baseline, batching_words, device_name, device_title
from bench.report.rows import PUBLISHED, fastest_per, latest_per_cell, read_results
from bench.report.table import shown, speed
from bench.report.verdict import flips_words, verdict
from bench.tables.datasets import DATASETS
from utils import UserError

RESULTS = "<!-- results:begin -->", "<!-- results:end -->"  # the lines around a block of a README
VERDICT = "<!-- verdict:begin -->", "<!-- verdict:end -->"
WORDS = (
    "A message is one text, truncated to what the model takes. messages/s: of the forward passes alone; factor: over "
    "eager FP32 torch at its best in the file's order; end to end: messages/s from the texts themselves, tokenized "
    "while the model runs;\nof the peak: the real tokens' FLOP/s over those of large matrix products on the device; "
    "max_diff: the largest difference of any label's probability from eager FP32 torch; flips: the share of changed "
    "decisions, in the batching that changed most or over the texts that were checked behind the sweep; verdict: "
    "whether the variant is proven to change at most 0.1% of the decisions."
)
SOURCE = (
    "tables of the repository joaopn/encoder-optimization-guide, measured as this project no longer would: in the "
    "file's order, one pass, each cell in a fresh process, without parity"
)
WRITTEN = "Written by `python plot_results.py`, not by hand."
SIZE_OPTIONS = {"--batches": "batch_size", "--batch-tokens": "batch_tokens"}
COMMANDS = "The commands are put together from the rows: they lack `--min-time`, `--repeats`, `--column` and `--gpu`."

TABLE = {
    "device": lambda row: device_name(row["device"]),
    "variant": lambda row: row["variant"],
    "messages/s": lambda row: speed(row["messages/s"]),
    "factor": lambda row: shown(row["factor"], "{:.2f}"),
    "batches": batching_words,
    "workers x threads": lambda row: f"{row['workers']} x {row['threads']}",
    "end to end": lambda row: speed(row["end to end"]),
    "of the peak": lambda row: shown(row["mfu"], "{:.0%}"),
    "max_diff": lambda row: shown(row["max_diff"], "{:.2g}"),
    "flips": lambda row: shown(row["flips"], "{:.3%}"),
    "verdict": lambda row: "-" if math.isnan(row["flips"]) else row["verdict"].lower(),
}


def model_names(rows) -> dict[str, str]:
    """Returns a name for each model: the last part of its id, or more of its parts where others share it."""
    parts = {model: Path(model).absolute().parts for model in rows["model"].unique()}
    names = {}
    for model, own in parts.items():
        length = next(n for n in range(1, 99) if [other[-n:] for other in parts.values()].count(own[-n:]) == 1)
        names[model] = "/".join(own[-length:])
    return names


# --------------------------------------------------------------------------------------------------- the first screen


def headlines(rows):
    """Returns the fastest row of each model and device, with `base` and `factor` over what people use there.

    It is within tolerance; where nothing is proven to be, it may be not proven. People use transformers' pipeline, with
    its own model or optimum's, end to end: the better one at its best batch size counts (`base_variant`, `base_size`);
    where none was measured, eager FP32 torch in the file's order, its forward passes. On dataset normal, if it is
    there. The largest factor comes first. What was published elsewhere makes no headline.
    """
    import pandas as pd

    rows = rows[rows["commit"] != PUBLISHED]
    rows = rows[rows["dataset"] == "normal"] if "normal" in set(rows["dataset"]) else rows
    found = []
    for _, group in rows.groupby(["model", "device", "dataset"]):
        is_rival = group["variant"].isin(figures.BASELINES)
        rivals = group[is_rival]
        best = fastest_per(rivals, "model").iloc[0].to_dict() if len(rivals) else {}
        base = {"base": best.get("messages/s", group["base"].iloc[0]), "base_variant": best.get("variant")}
        base["base_size"] = best.get("batch_size")
        stage = "end-to-end" if len(rivals) else "forward"
        others = group[~is_rival & (group["stage"] == stage)]
        within = others[others["verdict"] == WITHIN]
        within = others[others["verdict"] != NOT_WITHIN] if within.empty else within
        if len(within) and base["base"] > 0:
            winner = fastest_per(within, "model").iloc[0].to_dict()
            found.append(winner | base | {"factor": winner["messages/s"] / base["base"]})
    columns = [*rows.columns, "base_variant", "base_size"]
    return pd.DataFrame(sorted(found, key=lambda row: -row["factor"]), columns=columns)


def headline_block(rows, charts: list, folder: Path) -> str:
    """Returns what belongs between the README's markers: the overview, and a sentence for each of its bars."""
    names, lines = model_names(rows), []
    for chart in [chart for chart in charts if chart.draw is figures.draw_overview]:
        lines += [f"![{chart.what}]({link_to(chart, folder)})", ""]
        for row in chart.rows.to_dict("records"):
            checked = f"{flips_words(row)} decisions changed"
            checked += ", not proven to be within tolerance" * (row["verdict"] == UNPROVEN)
            checked = "outputs not compared" if math.isnan(row["flips"]) else checked
            place = f"{device_name(row['device'])}, {markdown(names[row['model']])}"
            line = f"- {place}: **{row['factor']:.1f} times {baseline(row)}**: {row['variant']}, "
            line += f"{speed(row['messages/s'])} messages/s against {speed(row['base'])}; {checked}"
            lines.append(line)
    return "\n".join([*lines, "", WRITTEN])


def verdict_block(results_dirs: list[Path]) -> str:
    """Returns what run_benchmark.py says at the end of random-roberta-base, on the CPU that was measured last."""
    rows, _, _ = read_results([file for folder in results_dirs for file in sorted(folder.rglob("*.tsv"))])
    is_own = (rows["model"] == RANDOM_MODEL) & rows["dataset"].str.endswith("normal")
    own = rows[is_own & rows["device"].str.endswith("-cores")]
    if own.empty:
        return ""
    same = ["device", "dataset", "texts_id", "weights_id"]
    newest = own[(own[same] == own.sort_values("date").iloc[-1][same]).all(axis=1)]
    lines = verdict(latest_per_cell(newest), settle="", following="")
    end = next(i for i, line in enumerate(lines) if line.startswith(("To check", "Next:", "None of them")))
    words = f"({device_title(newest.iloc[0])}, {newest['date'].max()[:10]}; written by `python plot_results.py`)"
    return "\n".join(["```", *lines[1:end], "```", "", words])


# ------------------------------------------------------------------------------------------------------ all of them


def link_to(chart, folder: Path) -> str:
    return quote(Path(os.path.relpath(chart.path, folder)).as_posix()) + ".png"


def results_block(rows, charts: list, folder: Path) -> str:
    """Returns all figures and tables. `charts`: of plot_results.plan; links are relative to `folder`."""
    import pandas as pd

    lines, names = [WRITTEN, ""], model_names(rows)
    pair, drawn = ["device", "variant"], [chart for chart in charts if chart.draw is not figures.draw_overview]
    for (model, dataset), group in rows.groupby(["model", "dataset"]):
        own = [chart for chart in drawn if tuple(chart.rows.iloc[0][["model", "dataset"]]) == (model, dataset)]
        links = [f"[{markdown(chart.what)}]({link_to(chart, folder)})" for chart in own]
        lines += [f"## {markdown(names[model])}, dataset {markdown(dataset)}", "", f"!{links[0]}", ""]
        lines += [*(f"- {link}" for link in links[1:]), ""]
        lines += [f"| {' | '.join(TABLE)} |", "|" + " --- |" * len(TABLE)]
        forward, whole = (fastest_per(group[group["stage"] == stage], *pair) for stage in ("forward", "end-to-end"))
        alone = whole.assign(**dict.fromkeys(("messages/s", "factor", "mfu"), math.nan))
        bests = pd.concat([forward, alone]).drop_duplicates(pair)
        bests = bests.join(whole.set_index(pair)["messages/s"].rename("end to end"), on=pair)
        bests["speed"] = bests["messages/s"].fillna(bests["end to end"])
        bests = bests.sort_values(["speed", "variant"], ascending=[False, True], kind="stable")
        for row in [row for _, some in bests.groupby("device", sort=False) for _, row in some.iterrows()]:
            lines.append(f"| {' | '.join(markdown(cell(row)) for cell in TABLE.values())} |")
        lines.append("")
    return "\n".join([*lines, WORDS])


def provenance_block(rows) -> str:
    """Says where all rows come from."""
    lines, names = [], model_names(rows)
    for (model, dataset), group in rows.groupby(["model", "dataset"]):
        origins = [line for _, some in group.groupby("device") for line in provenance(some)]
        lines += [f"**{markdown(names[model])}, {markdown(dataset)}**", "", *origins, ""]
    return "\n".join([*lines, COMMANDS])


def provenance(rows) -> list[str]:
    """Says where the rows of one device come from: versions, commits, days, and commands that measure them."""

    def values(column: str, group=rows, between: str = ",") -> str:
        return between.join(str(value) for value in sorted({*group[column]} - {"", 0}))

    first = rows.iloc[0]
    if first["commit"] == PUBLISHED:
        return [f"- {device_title(first)}: {SOURCE}"]
    days = " and ".join(sorted({date[:10] for date in rows["date"]}))
    origin = [f"driver {first['driver']}"] * bool(first["driver"])
    origin += sorted({part for versions in rows["versions"] for part in versions.split(", ")} - {""})
    origin += [f"commit {values('commit', between=' and ')}", days]
    lines = [f"- {device_title(first)}: {', '.join(origin)}"]
    device = "cpu" if first["device"].endswith("-cores") else "gpu"
    dataset = first["dataset"].removeprefix("synthetic-")
    for threads, group in rows.groupby("threads"):
        sizes = {option: values(column, group) for option, column in SIZE_OPTIONS.items()}
        lines.append(
            f"  `python run_benchmark.py --model {values('variant', group)} --device {device}"
            f" --dataset {dataset if dataset in DATASETS else 'FILE'} --model-id {shlex.quote(first['model'])}"
            f" --workers {values('workers', group)} --threads {threads} --batching {values('batching', group)}"
            + "".join(f" {option} {some}" for option, some in sizes.items() if some)
            + f" --limit {first['texts']}`"
        )
    return lines


def with_block(readme: str, block: str, marks: tuple[str, str] = RESULTS) -> str:
    """Returns a README's text with the block between its markers. Raises UserError if it has none."""
    before, _, rest = readme.partition(marks[0])
    _, end, after = rest.rpartition(marks[1])  # a model may be called so
    if not end:
        lines = " and ".join(marks)
        raise UserError(f"a README.md lacks the lines {lines} for the results; --output goes without them")
    return f"{before}{marks[0]}\n{block}\n{marks[1]}{after}"
