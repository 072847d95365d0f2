"""Rows -> the generated blocks of README.md and results/README.md."""

import math
import os
from pathlib import Path
from urllib.parse import quote

from bench.judge import NOT_WITHIN, UNPROVEN, WITHIN
from bench.model.random_model import RANDOM_MODEL
from bench.naming import code_span, fence, markdown
from bench.options import command
from bench.report import figures
from bench.report.figures import baseline, batching_words, device_name, device_title, is_cpu
from bench.report.rows import PUBLISHED, fastest_per, latest_per_cell, read_results
from bench.report.table import shown, speed
from bench.report.verdict import flips_words, verdict
from bench.tables.datasets import DATASETS
from utils import UserError

# the lines around a generated block
RESULTS = "<!-- results:begin -->", "<!-- results:end -->"
VERDICT = "<!-- verdict:begin -->", "<!-- verdict:end -->"
COLUMNS = """\
The columns are explained above, except:

- **factor**: speed over the best of eager FP32 torch in the file's order, in forward passes.
- **end to end**: messages/s from texts to answers, tokenizing while the model runs.
- **of the peak**: FLOP/s without padding, over those of large matrix products on the device.
- **verdict**: whether the variant is proven to change at most 0.1% of the decisions."""
SOURCE = "tables of joaopn/encoder-optimization-guide: file order, one pass, no parity"
WRITTEN = "Written by `python plot_results.py`, not by hand."
COMMANDS = "The commands are reconstructed from the rows, without `--min-time`, `--repeats`, `--column` and `--gpu`."

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
    """Return a unique short name for each model: the last part of its id, or as many parts as needed."""
    paths = {model: Path(model).absolute().parts for model in rows["model"].unique()}
    names = {}
    for model, parts in paths.items():
        length = next(n for n in range(1, 99) if [other[-n:] for other in paths.values()].count(parts[-n:]) == 1)
        names[model] = "/".join(parts[-length:])
    return names


def headlines(rows):
    """Return the fastest row of each model and device, with `base` and `factor`: its baseline and the speed over it.

    The row is within tolerance; if no variant is proven, one that is not proven counts. The baseline is the faster of
    the BASELINES at its best batch size, end to end (`base_variant`, `base_size`); if none was measured, the forward
    passes of eager FP32 torch in the file's order. Dataset normal is used if present. The largest factor comes first.
    Published rows are left out.
    """
    import pandas as pd

    rows = rows[rows["commit"] != PUBLISHED]
    if "normal" in set(rows["dataset"]):
        rows = rows[rows["dataset"] == "normal"]
    found = []
    for _, group in rows.groupby(["model", "device", "dataset"]):
        is_baseline = group["variant"].isin(figures.BASELINES)
        baselines = fastest_per(group[is_baseline], "model").to_dict("records")
        base = baselines[0] if baselines else {"messages/s": group["base"].iloc[0]}
        stage = "end-to-end" if baselines else "forward"
        candidates = group[~is_baseline & (group["stage"] == stage)]
        usable = candidates[candidates["verdict"] == WITHIN]
        if usable.empty:
            usable = candidates[candidates["verdict"] != NOT_WITHIN]
        if len(usable) and base["messages/s"] > 0:
            winner = fastest_per(usable, "model").iloc[0].to_dict()
            compared = {"base": base["messages/s"], "factor": winner["messages/s"] / base["messages/s"]}
            compared |= {"base_variant": base.get("variant"), "base_size": base.get("batch_size")}
            found.append(winner | compared)
    columns = [*rows.columns, "base_variant", "base_size"]
    return pd.DataFrame(sorted(found, key=lambda row: -row["factor"]), columns=columns)


def headline_block(rows, charts: list, folder: Path) -> str:
    """Return the README's results: the overview figure and a sentence for each of its bars."""
    names, lines = model_names(rows), []
    for chart in [chart for chart in charts if chart.draw is figures.draw_overview]:
        lines += [f"![{chart.what}]({link_to(chart, folder)})", ""]
        for row in chart.rows.to_dict("records"):
            parity = f"{flips_words(row)} decisions changed"
            if row["verdict"] == UNPROVEN:
                parity += ", not proven to be within tolerance"
            if math.isnan(row["flips"]):
                parity = "outputs not compared"
            place = markdown(f"{device_name(row['device'])}, {names[row['model']]}")
            line = f"- {place}: **{row['factor']:.1f} times {baseline(row)}**: {markdown(row['variant'])}, "
            line += f"{speed(row['messages/s'])} messages/s against {speed(row['base'])}; {parity}"
            lines.append(line)
    return "\n".join([*lines, "", WRITTEN])


def verdict_block(results_dirs: list[Path]) -> str:
    """Return the verdict of run_benchmark.py for random-roberta-base on the CPU that was measured last."""
    rows, _, _ = read_results([file for folder in results_dirs for file in sorted(folder.rglob("*.tsv"))])
    is_random = (rows["model"] == RANDOM_MODEL) & rows["dataset"].str.endswith("normal")
    on_cpus = rows[is_random & is_cpu(rows["device"])]
    if on_cpus.empty:
        return ""
    run = ["device", "dataset", "texts_id", "weights_id"]
    newest = on_cpus[(on_cpus[run] == on_cpus.sort_values("date").iloc[-1][run]).all(axis=1)]
    device = markdown(device_title(newest.iloc[0]))
    source = f"({device}, {newest['date'].max()[:10]}; written by `python plot_results.py`)"
    text = "\n".join(verdict(latest_per_cell(newest))[1:])
    marks = max("```", fence(text), key=len)
    return "\n".join([marks, text, marks, "", source])


def link_to(chart, folder: Path) -> str:
    return quote(Path(os.path.relpath(chart.path, folder)).as_posix()) + ".png"


def results_block(rows, charts: list, folder: Path) -> str:
    """Return all figures and tables. `charts`: of plot_results.plan_charts; links are relative to `folder`."""
    lines, names = [WRITTEN, ""], model_names(rows)
    drawn = [chart for chart in charts if chart.draw is not figures.draw_overview]
    for (model, dataset), group in rows.groupby(["model", "dataset"]):
        of_group = [chart for chart in drawn if tuple(chart.rows.iloc[0][["model", "dataset"]]) == (model, dataset)]
        links = [f"[{markdown(chart.what)}]({link_to(chart, folder)})" for chart in of_group]
        lines += [f"## {markdown(names[model])}, dataset {markdown(dataset)}", ""]
        lines += [*(f"!{link}\n" for link in links[:1]), *(f"- {link}" for link in links[1:]), ""]
        lines += [f"| {' | '.join(TABLE)} |", "|" + " --- |" * len(TABLE)]
        for _, device_rows in best_rows(group).groupby("device", sort=False):
            for _, row in device_rows.iterrows():
                lines.append(f"| {' | '.join(markdown(cell(row)) for cell in TABLE.values())} |")
        lines.append("")
    return "\n".join([*lines, COLUMNS])


def best_rows(rows):
    """Return the fastest forward row of each device and variant, with its speed `end to end`, the fastest first.

    A variant that is measured end to end only has nan as messages/s.
    """
    import pandas as pd

    keys = ["device", "variant"]
    forward, whole = (fastest_per(rows[rows["stage"] == stage], *keys) for stage in ("forward", "end-to-end"))
    end_to_end_only = whole.assign(**dict.fromkeys(("messages/s", "factor", "mfu"), math.nan))
    best = pd.concat([forward, end_to_end_only]).drop_duplicates(keys)
    best = best.join(whole.set_index(keys)["messages/s"].rename("end to end"), on=keys)
    best["speed"] = best["messages/s"].fillna(best["end to end"])
    return best.sort_values(["speed", "variant"], ascending=[False, True], kind="stable")


def provenance_block(rows) -> str:
    """Return where all rows come from."""
    lines, names = [], model_names(rows)
    for (model, dataset), group in rows.groupby(["model", "dataset"]):
        origins = [line for _, device_rows in group.groupby("device") for line in provenance(device_rows)]
        lines += [f"**{markdown(names[model])}, {markdown(dataset)}**", "", *origins, ""]
    return "\n".join([*lines, COMMANDS])


def provenance(rows) -> list[str]:
    """Return the origin of one device's rows: versions, commits, days, and commands that reproduce them."""

    def values(column: str, group=rows) -> list:
        return sorted({*group[column]} - {"", 0})

    first = rows.iloc[0]
    if first["commit"] == PUBLISHED:
        return [f"- {markdown(device_title(first))}: {SOURCE}"]
    origin = [f"driver {first['driver']}"] if first["driver"] else []
    origin += sorted({part for versions in rows["versions"] for part in versions.split(", ")} - {""})
    days = sorted({date[:10] for date in rows["date"]})
    origin += [f"commit {' and '.join(values('commit'))}", " and ".join(days)]
    lines = [f"- {markdown(device_title(first))}: {markdown(', '.join(origin))}"]
    dataset = first["dataset"].removeprefix("synthetic-")
    for threads, group in rows.groupby("threads"):
        line = command(
            "python",
            "run_benchmark.py",
            model=values("variant", group),
            device="cpu" if is_cpu(first["device"]) else "gpu",
            dataset=dataset if dataset in DATASETS else "FILE",
            model_id=first["model"],
            workers=values("workers", group),
            threads=int(threads),
            batching=values("batching", group),
            batches=values("batch_size", group),
            batch_tokens=values("batch_tokens", group),
            limit=int(first["texts"]),
        )
        lines.append(f"  {code_span(line)}")
    return lines


def with_block(readme: str, block: str, marks: tuple[str, str] = RESULTS) -> str:
    """Return a README's text with the block between its markers. Raises UserError if it has none."""
    before, _, rest = readme.partition(marks[0])
    _, end, after = rest.rpartition(marks[1])  # a model's name may contain the marker
    if not end:
        lines = " and ".join(marks)
        raise UserError(f"a README.md has no lines {lines} for the results: add them, or choose another --output")
    newline = "\r\n" if "\r\n" in readme else "\n"
    return before + f"{marks[0]}\n{block}\n{marks[1]}".replace("\n", newline) + after
