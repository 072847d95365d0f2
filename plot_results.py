"""Draw all figures from results/, and write the results into the READMEs.

    python plot_results.py
    python plot_results.py --results-dir results,theirs --output figures --format svg

The figures:

    overview                             models and machines with a baseline, on the dataset normal if it was measured:
                                         baselines, and variants by verdict
    comparison_<model>_<kind>_<dataset>  each variant at its best on each GPU or CPU (the kind), end to end
    scaling_<model>_<device>_<dataset>   forward passes by batch size, if a variant has three sizes or more

README.md gets the headline results, the overview and a verdict, results/README.md all tables, unless --output or
--format is given. For figures of some results, copy their files, which are named after device, variant and dataset,
into a folder. If a model, device and dataset has results for several sets of texts or weights, the set with the most
cells is used. Skipped rows are reported on standard error.

Exit code: 0, 1 if --check finds something out of date, 2 for wrong usage or input.
"""

import hashlib
import logging
import os
import sys
import warnings
from argparse import Namespace
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from bench.naming import file_name
from bench.options import Parser, list_of
from utils import UserError, before_imports, first_line, run, say


def parse_arguments() -> Namespace:
    parser = Parser(__doc__)
    parser.usage = "%(prog)s [options]"
    add = parser.add_argument_group("what to show").add_argument
    folders = "comma-separated folders to compare; the first one gets the figures (default: results)"
    add("--results-dir", type=list_of(Path), default=[Path("results")], metavar="LIST", help=folders)
    add = parser.add_argument_group("output").add_argument
    output = "folder for the figures, with a folder for each model (default: --results-dir)"
    add("--output", type=Path, metavar="DIR", help=output)
    add("--format", choices=("png", "svg", "pdf"), default="png", help="format of the figures (default: png)")
    add("--check", action="store_true", help="write nothing; exit with code 1 if a figure or README is out of date")
    return parser.parse_args()


if __name__ == "__main__":
    before_imports(parse_arguments)

from bench.files import new_file
from bench.report import figures, readmes
from bench.report.evidence import EvidenceFile
from bench.report.rows import latest_per_cell, read_results
from bench.report.summary import COMPARED, SET, headlines, keep_fullest, summarize
from bench.report.table import device_names, is_cpu, model_names

# the columns that a figure's digest covers
SHOWN = [*COMPARED, *SET, "variant", "workers", "threads", "batching", "batch_size", "batch_tokens", "stage"]
SHOWN += ["messages/s", "min", "max", "passes", "tokens/s", "flips", "decisions", "state", "idle", "base", "base_name"]
SHOWN += ["machine", "name"]


@dataclass(frozen=True)
class Chart:
    """A figure to draw."""

    path: Path  # without suffix
    draw: Callable
    rows: object  # a DataFrame
    what: str  # it shows, in a few words

    def digest(self) -> str:
        """Return the hash of the drawn data, which is stored in the metadata of the figure's files."""
        data = self.draw.__name__ + self.rows.reindex(columns=SHOWN).to_csv(index=False, float_format="%.6g")
        return "data sha256 " + hashlib.sha256(data.encode()).hexdigest()


def load_cells(results_dirs: list[Path]):
    """Return one row for each cell of the files below the folders as a DataFrame.

    The columns `machine` and `name` are added: readable, unique names of the device and the model. Skipped rows are
    reported on standard error. Raises UserError if no rows are left.
    """
    rows, failed, skipped = read_results([file for folder in results_dirs for file in sorted(folder.rglob("*.tsv"))])
    for path, lines in skipped.items():
        say(f"{path}: skipped {lines} unreadable lines")
    if failed:
        say(f"skipped {failed} failed cells")
    if rows.empty:
        folders = ", ".join(map(str, results_dirs))
        raise UserError(f"no results in {folders}: choose another --results-dir, or run run_benchmark.py first")
    cells = keep_fullest(latest_per_cell(rows))
    machines, names = device_names(cells["device"].unique()), model_names(cells["model"].unique())
    return cells.assign(machine=cells["device"].map(machines), name=cells["model"].map(names))


def plan_charts(cells, bests, folder: Path) -> list[Chart]:
    """Return the figures to put into a folder, the overview first. `bests`: of summary.summarize."""
    charts = []
    found = [row["index"] for headline in headlines(bests) for row in headline.variants.values()]
    if found:
        what = "baselines and recommended variants"
        overview = bests[bests["index"].isin(found)].sort_values("name", kind="stable")
        charts.append(Chart(folder / "overview", figures.draw_overview, overview, what))
    for (model, dataset), group in bests.groupby(["model", "dataset"]):
        start, end = file_name(group["name"].iloc[0]), file_name(dataset)
        for on_cpu, rows in group.groupby(group["device"].map(is_cpu)):
            kind = "cpu" if on_cpu else "gpu"
            path = folder / start / f"comparison_{start}_{kind}_{end}"
            charts.append(Chart(path, figures.draw_comparison, rows, f"variants on each {kind.upper()}"))
        measured = cells[(cells["model"] == model) & (cells["dataset"] == dataset) & (cells["stage"] == "forward")]
        for device, points in figures.with_lines(measured).groupby("device", sort=False):
            path = folder / start / f"scaling_{start}_{file_name(device).replace('_', '%5F')}_{end}"
            what = f"batch size on {figures.device_title(points.iloc[0])}"
            charts.append(Chart(path, figures.draw_scaling, points, what))
    return charts


def figure_file(chart: Chart, suffix: str) -> Path:
    return chart.path.with_name(f"{chart.path.name}.{suffix}")


def save(charts: list[Chart], suffix: str) -> None:
    """Draw the figures and write them. Neither a matplotlibrc nor the backend of a notebook has an effect."""
    os.environ["MPLBACKEND"] = "agg"
    logging.getLogger("matplotlib").setLevel(logging.ERROR)  # it reads a matplotlibrc anyway, and warns of its faults
    import matplotlib

    with matplotlib.rc_context(), warnings.catch_warnings(record=True) as caught:
        matplotlib.rcdefaults()
        matplotlib.rcParams.update(figures.STYLE)
        for chart in charts:
            figure = chart.draw(chart.rows)
            figures.add_title(figure, chart.rows, chart.what)
            file = figure_file(chart, suffix)
            with new_file(file) as whole:
                figure.savefig(whole, format=suffix, metadata={"Keywords": chart.digest()})
            say(file, sys.stdout)
    if caught:
        say(f"matplotlib has {len(caught)} warnings, such as: {first_line(caught[0].message)}")


def out_of_date(charts: list[Chart], suffix: str) -> list[Path]:
    digests = {figure_file(chart, suffix): chart.digest().encode() for chart in charts}
    return [file for file, digest in digests.items() if not file.exists() or digest not in file.read_bytes()]


def updated_readmes(cells, bests, charts: list[Chart], evidence: EvidenceFile, results_dir: Path) -> dict[Path, str]:
    """Return the READMEs whose generated blocks are out of date, with their new text."""
    readme, results_readme = results_dir.absolute().parent / "README.md", results_dir / "README.md"
    missing = [str(file) for file in (readme, results_readme) if not file.exists()]
    if missing:
        say(f"drawing the figures only, because there is no {' and no '.join(missing)}")
        return {}
    blocks = {
        readme: readmes.headline_block(bests, charts, readme.parent),
        results_readme: readmes.results_block(cells, bests, charts, results_dir),
    }
    old = {file: file.read_bytes().decode(errors="surrogateescape") for file in blocks}  # with its line ends
    new = {file: readmes.with_block(old[file], block) for file, block in blocks.items()}
    if readmes.VERDICT[0] in old[readme]:
        new[readme] = readmes.with_block(new[readme], readmes.verdict_block(cells, bests, evidence), readmes.VERDICT)
    return {file: text for file, text in new.items() if text != old[file]}


def main() -> int:
    args = parse_arguments()
    cells = load_cells(args.results_dir)
    evidence = EvidenceFile(*args.results_dir)
    bests = summarize(cells, evidence)
    charts = plan_charts(cells, bests, args.output or args.results_dir[0])
    changed = {}
    if args.output or args.format != "png":
        say("README.md and results/README.md stay unchanged, because of --output or --format")
    else:
        changed = updated_readmes(cells, bests, charts, evidence, args.results_dir[0])
    if args.check:
        stale = [*out_of_date(charts, args.format), *changed]
        for file in stale:
            say(f"{file} is out of date: run plot_results.py")
        return int(bool(stale))
    save(charts, args.format)
    for file, text in changed.items():
        with new_file(file) as whole:
            whole.write(text.encode(errors="surrogateescape"))
        say(file, sys.stdout)
    return 0


if __name__ == "__main__":
    run(main)
