"""Draws every figure from results/ and writes the README's results, so that no number there is typed by hand.

    python plot_results.py
    python plot_results.py --devices RTX-4090,H200 --variants torch,onnx --format svg,pdf --output figures
    python plot_results.py --check

Into results/, or --output:

    overview                             the fastest variant of each model and device that is within tolerance,
                                         against what people use
    comparison_<model>_<dataset>         each variant at its best on each device, the fastest first
    scaling_<model>_<device>_<dataset>   messages/s over the texts in a batch
    parity_<model>_<dataset>             messages/s against changed decisions

README.md gets the headline, results/README.md tables and provenance, unless only a part is drawn. --check writes
nothing: it compares both texts, and the hash of its data that each figure carries. Of a device and dataset measured on
several sets of texts or weights, the one with most cells is used. What is left out is counted on standard error.

Exit code: 0, 1 if --check finds something out of date, 2 for wrong usage or input.
"""

import hashlib
from argparse import ArgumentTypeError, Namespace
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from bench.files import new_file
from bench.naming import file_name, slug
from bench.report import figures
from bench.report.figures import device_title
from bench.report.judged import judge_variants
from bench.report.readmes import (
    VERDICT,
    headline_block,
    headlines,
    model_names,
    provenance_block,
    results_block,
    verdict_block,
    with_block,
)
from bench.report.rows import fastest_per, latest_per_cell, read_results
from utils import Parser, RunError, UserError, first_line, list_of, run, say

FORMATS = ("png", "svg", "pdf")
PLACE = ["model", "device", "dataset"]  # what factors are compared within
SET = ["texts", "texts_id", "weights_id", "threshold"]  # of several in a place only one is shown
FILTERS = {"model": "--model", "dataset": "--dataset", "device": "--devices", "variant": "--variants"}
# what a figure's digest covers
SHOWN = [*PLACE, *SET, "variant", "workers", "threads", "batching", "batch_size", "batch_tokens", "stage"]
SHOWN += ["messages/s", "min", "max", "tokens/s", "max_diff", "flips", "verdict", "factor"]


@dataclass(frozen=True)
class Chart:
    """A figure to be: its path without suffix, the function that draws it, of which rows, and what they show."""

    path: Path
    draw: Callable
    rows: object  # a DataFrame
    what: str

    def digest(self) -> str:
        """Returns the hash of the drawn data, which each figure file carries in its metadata."""
        data = self.draw.__name__ + self.rows[SHOWN].to_csv(index=False, float_format="%.6g")
        return "data sha256 " + hashlib.sha256(data.encode()).hexdigest()


# ------------------------------------------------------------------------------------------------- results to rows


def load_rows(results_dirs: list[Path]):
    """Returns one row for each cell of the files below the folders, with `base` and `factor`: a DataFrame.

    What is left out is counted on standard error. Raises UserError if nothing is left.
    """
    rows, failed, skipped = read_results([file for folder in results_dirs for file in sorted(folder.rglob("*.tsv"))])
    for path, lines in skipped.items():
        say(f"{path}: {lines} lines can't be read and are left out")
    if failed:
        say(f"{failed} failed cells are left out")
    if rows.empty:
        raise UserError(f"no results in {', '.join(map(str, results_dirs))}; run_benchmark.py makes them")
    rows = judge_variants(keep_fullest(latest_per_cell(rows)))
    forward = rows[rows["stage"] == "forward"]
    bases = forward[(forward["variant"] == "torch") & (forward["batching"] == "in-order")]
    rows = rows.join(bases.groupby(PLACE)["messages/s"].max().rename("base"), on=PLACE)
    return rows.assign(factor=rows["messages/s"] / rows["base"])


def keep_fullest(rows):
    """Keeps the rows of the texts and weights that have the most cells of their model, device and dataset."""
    cells = rows.groupby([*PLACE, *SET]).size().reset_index(name="cells")
    chosen = cells.sort_values(["cells", "texts"]).drop_duplicates(PLACE, keep="last")
    for _, row in cells.drop(chosen.index).iterrows():
        place = ", ".join(row[PLACE])
        texts = f"{row['texts']} texts {row['texts_id']}".strip()
        say(f"{place}: {row['cells']} cell(s) on {texts} are left out, since there are more on others")
    return rows.merge(chosen[[*PLACE, *SET]])


def select(rows, column: str, words: list[str]):
    """Keeps the rows whose `column` is one of the words, or contains one if no name equals it.

    No words select everything. Raises UserError for a word that is nowhere.
    """
    names = {name: slug(name).lower() for name in rows[column].unique()}
    chosen = set()
    for word in words:
        whole = {name for name, known in names.items() if word == known}
        found = whole or {name for name, known in names.items() if word in known}
        if not found:
            raise UserError(f"no {column} {word!r} among {', '.join(sorted(names))}")
        chosen |= found
    return rows[rows[column].isin(chosen)] if words else rows


# ------------------------------------------------------------------------------------------------ rows to figures


def plan(rows, args: Namespace) -> list[Chart]:
    """Returns the figures that the rows give, the overview first."""
    names, what = model_names(rows), "the fastest variant within tolerance, against what people use"
    best, folder = headlines(rows), args.output or args.results_dir[0]
    charts = [Chart(folder / "overview", figures.draw_overview, best, what)] if len(best) else []
    forward = rows[rows["stage"] == "forward"]
    for (model, dataset), group in forward.groupby(["model", "dataset"]):
        folder = args.output or args.results_dir[0] / file_name(names[model])
        start, end = file_name(names[model]), file_name(dataset)
        bars, path = fastest_per(group, "device", "variant"), folder / f"comparison_{start}_{end}"
        charts.append(Chart(path, figures.draw_comparison, bars, "each variant at its best"))
        for device, points in group.groupby("device", sort=False):
            path = folder / f"scaling_{start}_{file_name(device)}_{end}"
            what = f"batch size on {device_title(points.iloc[0])}"
            charts.append(Chart(path, figures.draw_scaling, points, what))
        checked, path = bars[bars["flips"].notna()], folder / f"parity_{start}_{end}"
        charts.append(Chart(path, figures.draw_parity, checked, "speed and parity"))
    return [chart for chart in charts if len(chart.rows)]


def figure_files(chart: Chart, formats: list[str]) -> list[Path]:
    return [chart.path.with_name(f"{chart.path.name}.{suffix}") for suffix in formats]


def save(charts: list[Chart], args: Namespace) -> None:
    import matplotlib

    with matplotlib.rc_context(figures.STYLE):
        for chart in charts:
            chart.path.parent.mkdir(parents=True, exist_ok=True)
            figure = chart.draw(chart.rows, args.figsize)
            figures.add_title(figure, chart.rows, chart.what)
            for file in figure_files(chart, args.format):
                with new_file(file) as whole:
                    figure.savefig(whole, format=file.suffix[1:], metadata={"Keywords": chart.digest()})
                print(file)


def out_of_date(charts: list[Chart], formats: list[str]) -> list[Path]:
    """Returns the figures that are missing, or that were drawn from other data."""
    digests = {file: chart.digest().encode() for chart in charts for file in figure_files(chart, formats)}
    return [file for file, digest in digests.items() if not file.exists() or digest not in file.read_bytes()]


# ------------------------------------------------------------------------------------------------------------ main


def parse_arguments() -> Namespace:
    parser = Parser(__doc__)
    add = parser.add_argument
    several = "comma list of folders, whose machines are compared; the first gets the figures (default: results)"
    add("--results-dir", type=list_of(Path), default=[Path("results")], metavar="LIST", help=several)
    for column, option in FILTERS.items():
        add(option, dest=column, type=list_of(word), default=[], metavar="LIST", help="a part of a name is enough")
    add("--figsize", type=inches, metavar="W,H", help="size of each figure in inches (default: what it needs)")
    add("--output", type=Path, metavar="DIR", help="where the figures go (default: the first <results-dir>/<model>)")
    format_help = f"of {', '.join(FORMATS)} (default: png)"
    add("--format", type=list_of(image_format), default=["png"], metavar="LIST", help=format_help)
    add("--check", action="store_true", help="write nothing; exit code 1 if a figure or the README is out of date")
    return parser.parse_args()


def word(text: str) -> str:
    """Parses a part of a name, as select() compares it."""
    found = slug(text).lower()
    if not found:
        raise ArgumentTypeError(f"{text!r} is not a name")
    return found


def image_format(text: str) -> str:
    if text not in FORMATS:
        raise ArgumentTypeError(f"{text!r} is not one of {', '.join(FORMATS)}")
    return text


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
    rows = load_rows(args.results_dir)
    for column in FILTERS:
        rows = select(rows, column, getattr(args, column))
    charts, results_dir = plan(rows, args), args.results_dir[0]
    readme, results_readme = (folder / "README.md" for folder in (results_dir.absolute().parent, results_dir))
    blocks = {}
    try:
        if any(getattr(args, column) for column in FILTERS) or args.output or "png" not in args.format:
            say("README.md is left alone, since only a part of what it shows is drawn")
        elif not (readme.exists() and results_readme.exists()):
            missing = results_readme if readme.exists() else readme
            say(f"no {missing}, so the figures go without their tables")
        else:
            blocks[readme] = headline_block(rows, charts, readme.parent)
            blocks[results_readme] = f"{results_block(rows, charts, results_dir)}\n\n{provenance_block(rows)}"
        old = {file: file.read_text(encoding="utf-8") for file in blocks}
        new = {file: with_block(old[file], block) for file, block in blocks.items()}
        if VERDICT[0] in old.get(readme, ""):
            new[readme] = with_block(new[readme], verdict_block(args.results_dir), VERDICT)
        changed = [file for file in new if new[file] != old[file]]
        if args.check:
            stale = out_of_date(charts, args.format) + changed
            for file in stale:
                say(f"{file} is out of date")
            return int(bool(stale))
        save(charts, args)
        for file in changed:
            with new_file(file) as whole:
                whole.write(new[file].encode())
            print(file)
    except (OSError, UnicodeDecodeError) as error:
        raise RunError(first_line(error)) from error
    return 0


if __name__ == "__main__":
    run(main)
