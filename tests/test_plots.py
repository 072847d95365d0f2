"""plot_results.py: what it reads, what it draws, what it writes into the README, and what it refuses.

All figures here are invented, and drawn under pytest's temporary folder.
"""

import itertools
import re
import shlex
import shutil
import subprocess
import sys
from argparse import Namespace
from dataclasses import replace
from pathlib import Path

import matplotlib
import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg

import plot_results
import run_benchmark
import utils
import variants

README = f"# Title\nabove\n{plot_results.BEGIN}\n{plot_results.END}\nbelow\n"
GPU, CPU = "NVIDIA-GeForce-RTX-4090", "Intel-Xeon-Platinum-8481C-4-cores"
MODEL = "owner/some_model"
FILTERED = {"model": [], "dataset": [], "device": [], "variant": []}


def make_row(variant: str = "torch", speed: float = 100.0, **columns) -> dict:
    """A good row; what is not given is the same in all."""
    row = dict.fromkeys(utils.COLUMNS, "") | {"workers": 1, "threads": 1, "size": 8, "order": "dataset"}
    row |= {"messages/s": f"{speed:.6g}", "min": f"{speed * 0.9:.6g}", "max": f"{speed * 1.05:.6g}", "passes": 3}
    row |= {"max_diff": "0.001", "flips": "0.0025", "status": "ok", "variant": variant, "model": MODEL, "device": GPU}
    row |= {
        "dataset": "normal",
        "messages": 10000,
        "torch": "2.13.0",
        "transformers": "4.57.6",
        "onnxruntime": "1.31.1",
    }
    return row | {"commit": "0123456789", "date": "2026-11-22T10:00:00Z"} | columns


def save(results: Path, *rows: dict) -> None:
    for row in rows:
        utils.save_row(utils.results_path(results, row), row)


def edit(path: Path, old: str, new: str) -> None:
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new))


@pytest.fixture
def project(tmp_path, monkeypatch) -> Path:
    """A folder with a README and a few results, which is the working directory."""
    monkeypatch.chdir(tmp_path)
    Path("README.md").write_text(README)
    rows = [make_row(speed=100), make_row(speed=80, size=16), make_row(speed=250, order="length", size=32)]
    rows += [make_row("onnx-fp16", 300, workers=2), make_row("onnx-fp16", 1234, order="length", size=64, workers=2)]
    rows += [make_row(speed=5, device=CPU, threads=4, messages=512), make_row("onnx", 12, device=CPU, messages=512)]
    save(Path("results"), *rows)
    return tmp_path


@pytest.fixture
def plot(monkeypatch, capsys):
    """Runs plot_results.py with these arguments; returns its exit code, its standard output and its standard error."""

    def run(*arguments: str) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["plot_results.py", *arguments])
        with pytest.raises(SystemExit) as end:
            utils.run(plot_results.main)
        return end.value.code, *capsys.readouterr()

    return run


def charts(rows: list[dict]) -> dict[str, plot_results.Chart]:
    """The charts of text rows, by kind; of several scalings the first."""
    rows = plot_results.add_factors([plot_results.parse_row(row) for row in rows])
    plan = plot_results.plan(rows, Namespace(output=Path("out"), **FILTERED))
    return {chart.path.name.split("_")[0]: chart for chart in reversed(plan)}


def draw(chart: plot_results.Chart):
    with matplotlib.rc_context(plot_results.STYLE):
        figure = chart.draw(chart, plot_results.variant_styles(chart.rows), None)
        FigureCanvasAgg(figure).draw()
    return figure


# ------------------------------------------------------------------------------------------------- the whole script


def test_help_is_instant_because_nothing_heavy_is_imported():
    code = "import sys, plot_results; print(*{'matplotlib', 'pandas', 'torch', 'transformers'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], cwd=utils.ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == ""


def test_all_is_drawn_and_the_readme_written_between_its_markers(project, plot):
    code, out, err = plot()
    assert (code, err) == (0, "")
    folder, end = Path("results/some-model"), "owner-some-model"
    names = [f"comparison_{end}_normal", f"parity_{end}_normal"]
    names += [f"scaling_{end}_{device}_normal" for device in (GPU, CPU)]
    assert sorted(folder.glob("*.png")) == sorted(folder / f"{name}.png" for name in names)
    assert all(str(folder / f"{name}.png") in out for name in names)

    readme = Path("README.md").read_text()
    assert readme.startswith(f"# Title\nabove\n{plot_results.BEGIN}\n")
    assert readme.endswith(f"\n{plot_results.END}\nbelow\n")
    table = [line for line in readme.splitlines() if line.startswith("|")][2:]
    cpu = "Intel Xeon Platinum 8481C, 4 cores"
    assert table == [  # the fastest device first, and its variants; 1234 / 100 = 12.34
        "| RTX 4090 | onnx-fp16 | 1,234 | 12.34 | length order, size 64 | 2 x 1 | - | - | 0.001 | 0.250% |",
        "| RTX 4090 | torch | 250 | 2.50 | length order, size 32 | 1 x 1 | - | - | 0.001 | 0.250% |",
        f"| {cpu} | onnx | 12 | 2.40 | dataset order, size 8 | 1 x 1 | - | - | 0.001 | 0.250% |",
        f"| {cpu} | torch | 5 | 1.00 | dataset order, size 8 | 1 x 4 | - | - | 0.001 | 0.250% |",
    ]
    assert all((project / link).is_file() for link in re.findall(r"\]\((.+?)\)", readme))
    assert "torch 2.13.0, transformers 4.57.6, onnxruntime 1.31.1, commit 0123456789, date 2026-11-22" in readme


def test_commands_in_the_readme_are_run_benchmarks(project, plot, monkeypatch):
    monkeypatch.setattr(plot_results, "save", lambda *_: None)
    assert plot()[0] == 0
    asked = []
    for command in re.findall(r"`python (run_benchmark\.py .+?)`", Path("README.md").read_text()):
        monkeypatch.setattr(sys, "argv", shlex.split(command))
        args = run_benchmark.parse_arguments()
        assert (args.model_id, args.dataset) == (MODEL, "normal")
        asked.append((args.device, args.model, args.batches, args.workers, args.threads, args.order, args.limit))
    assert asked == [
        ("gpu", ["onnx-fp16", "torch"], [8, 16, 32, 64], [1, 2], 1, ["dataset", "length"], 10000),
        ("cpu", ["onnx"], [8], [1], 1, ["dataset"], 512),
        ("cpu", ["torch"], [8], [1], 4, ["dataset"], 512),
    ]


def test_check_finds_what_is_out_of_date_and_writes_nothing(project, plot):
    assert plot("--check")[0] == 1
    assert not list(project.rglob("*.png"))
    plot()
    assert plot("--check") == (0, "", "")

    edit(Path("README.md"), "1,234", "9,999")
    code, _, err = plot("--check")
    assert (code, err) == (1, f"{project / 'README.md'} is out of date\n")
    edit(Path("README.md"), "9,999", "1,234")

    save(Path("results"), make_row("onnx-fp16", 2000, order="length", size=64, workers=2))
    before = {path: path.read_bytes() for path in project.rglob("*") if path.is_file()}
    code, _, err = plot("--check")
    stale = [Path(line.removesuffix(" is out of date")).name.split("_")[0] for line in err.splitlines()]
    assert (code, stale) == (1, ["comparison", "scaling", "parity", "README.md"])
    assert {path: path.read_bytes() for path in project.rglob("*") if path.is_file()} == before


def test_check_compares_data_and_not_pixels(tmp_path):
    chart = charts([make_row(), make_row("onnx", 200)])["comparison"]
    chart, formats = replace(chart, path=tmp_path / "figure"), list(plot_results.FORMATS)
    files = [tmp_path / f"figure.{suffix}" for suffix in formats]
    assert plot_results.out_of_date([chart], formats) == files
    drawn = []
    for figsize in (None, (9, 7)):
        styles = plot_results.variant_styles(chart.rows)
        plot_results.save([chart], styles, Namespace(format=formats, figsize=figsize))
        assert plot_results.out_of_date([chart], formats) == []
        drawn.append([file.read_bytes() for file in files])
    assert all(one != other for one, other in zip(*drawn, strict=True))
    other = replace(chart, rows=[chart.rows[0], chart.rows[1] | {"max": 107.0}])
    assert plot_results.out_of_date([other], formats) == files


# ------------------------------------------------------------------------------------------------------ what is read


def test_older_tables_of_three_devices(tmp_path, plot):
    folder = tmp_path / "old-model"
    folder.mkdir()
    devices = {"NVIDIA-GeForce-RTX-4090": 2, "NVIDIA-H200": 1, "NVIDIA-GeForce-RTX-5060-Ti": 3}
    for device, by in devices.items():
        base = f"size\tmessages/s\n1\t{600 / by}\n2\t{1200 / by}\t\n"
        (folder / f"{device}_torch-base_normal.tsv").write_text(base)
        for variant, speed in {"torch": 2400, "onnx": 1800, "onnx-fp16": 4800}.items():
            table = f"workers\tsize\tmessages/s\n1\t8\t{speed / by}\n4\t\t8\t{speed * 1.5 / by}\n"
            (folder / f"{device}_{variant}_normal.tsv").write_text(table)
    rows = plot_results.add_factors(plot_results.read_results(tmp_path))
    assert {row["model"] for row in rows} == {"old-model"}
    assert {row["order"] for row in rows} == {"dataset"}
    factors = {key: row["factor"] for key, row in plot_results.best(rows, "device", "variant").items()}
    for device in devices:
        expected = {"torch": 1.0, "torch-compile": 3.0, "onnx": 2.25, "onnx-fp16": 6.0}
        assert {variant: factors[device, variant] for variant in expected} == pytest.approx(expected)

    (tmp_path / "README.md").write_text(README)
    code, _, err = plot("--results-dir", str(folder))
    assert (code, err) == (0, "")
    kinds = sorted(path.name.split("_")[0] for path in tmp_path.rglob("*.png"))
    assert kinds == ["comparison", "scaling", "scaling", "scaling"]  # they say nothing about parity
    readme = (tmp_path / "README.md").read_text()
    assert "| H200 | onnx-fp16 | 7,200 | 6.00 | dataset order, size 8 | 4 x 1 | - | - | - | - |" in readme
    assert "- RTX 5060 Ti: an older table, without versions, commit and command" in readme
    assert "run_benchmark.py" not in readme.split(plot_results.BEGIN)[1]


def test_malformed_files_and_rows_are_named_counted_and_skipped(project, plot, monkeypatch):
    drawn = []
    monkeypatch.setattr(plot_results, "save", lambda charts, *_: drawn.extend(charts))
    good = utils.results_path(Path("results"), make_row())
    lines = good.read_text().splitlines()
    torn = "\t".join(lines[1].split("\t")[:5])
    wrong = [lines[1].replace("\t100\t", f"\t{figure}\t", 1) for figure in ("fast", "", "-3", "nan", "inf", "95\t96")]
    wrong += ["<<<<<<< HEAD", torn, lines[1].replace("dataset", "random", 1), lines[1].replace("1\t8", "1\t8.5", 1)]
    wrong += [lines[1].replace("\t90\t", "\t101\t")]  # slower than its slowest pass
    good.write_text("\n".join([*lines, *wrong]) + "\n")
    folder = good.parent
    (folder / "notes.tsv").write_text("one\ttwo\n1\t2\n")
    (folder / "empty.tsv").write_text("")
    (folder / "binary.tsv").write_bytes(b"\xff\xfe\x00")
    (folder / "name.tsv").write_text("size\tmessages/s\n1\t2\n")
    (folder / "A_torch_x.tsv").write_text("size\tmessages/s\n1\t\n2\t20\n1\t2\t3\n")

    code, _, err = plot()
    assert code == 0
    for number in range(len(lines) + 1, len(lines) + 1 + len(wrong)):
        assert err.count(f"{good}:{number}: ") == 1
    for name in ("notes.tsv", "empty.tsv", "binary.tsv", "name.tsv", "A_torch_x.tsv:2", "A_torch_x.tsv:4"):
        assert err.count(f"{name}: ") == 1
    assert f"{len(wrong) + 6} malformed rows or files are skipped" in err
    comparisons = [chart for chart in drawn if chart.draw is plot_results.draw_comparison]
    assert [{row["messages/s"] for row in chart.rows} for chart in comparisons] == [{20}, {100, 250, 300, 1234, 12, 5}]


def test_rows_may_have_more_columns_or_fewer_in_any_order(project, plot, monkeypatch):
    path = utils.results_path(Path("results"), make_row())
    before = plot_results.read_results(Path("results"))
    path.write_text(
        "".join("7.5\t" + line for line in path.read_text().splitlines(keepends=True)).replace("7.5", "kelvin", 1)
    )
    after = plot_results.read_results(Path("results"))
    assert [{key: str(row[key]) for key in utils.COLUMNS} for row in after] == [
        {key: str(value) for key, value in row.items()} for row in before
    ]
    assert {row.get("kelvin") for row in after} == {None, "7.5"}

    for other in path.parent.iterdir():
        other.unlink()
    only_read = {key: value for key, value in make_row().items() if key in plot_results.READ}
    path.write_text("\n".join("\t".join(map(str, line)) for line in (only_read, only_read.values())))
    monkeypatch.setattr(plot_results, "save", lambda *_: None)
    assert plot() == (0, str(project / "README.md") + "\n", "")
    assert "driver -, torch -, transformers -, onnxruntime -, commit -, date -" in Path("README.md").read_text()


def test_failed_cells_are_counted_and_stay_gaps(project, plot, monkeypatch):
    monkeypatch.setattr(plot_results, "save", lambda *_: None)
    failed = dict.fromkeys(("messages/s", "min", "max", "max_diff", "flips"), "") | {"status": "out of memory"}
    save(Path("results"), make_row("onnx-fp16", size=128) | failed, make_row(size=8) | failed)
    code, _, err = plot()
    assert (code, err) == (0, "2 failed cells are left out\n")
    assert "| 80 |" not in Path("README.md").read_text()  # torch in dataset order is at its best at size 16 now
    assert "| onnx-fp16 | 1,234 | 15.43 |" in Path("README.md").read_text()


def test_only_rows_on_the_most_messages_are_compared(project, plot, monkeypatch):
    monkeypatch.setattr(plot_results, "save", lambda *_: None)
    save(Path("results"), make_row("onnx", 99999, messages=256), make_row("onnx", 88888, messages=256, size=1))
    code, _, err = plot()
    assert code == 0
    assert err == f"{MODEL}, {GPU}, normal: 2 rows are left out, measured on fewer than 10000 messages\n"
    assert "99,999" not in Path("README.md").read_text()


# ----------------------------------------------------------------------------------------------------- what is drawn


def sweep(devices: int, names: list[str], orders=utils.ORDERS) -> list[dict]:
    """Rows of so many devices, these variants, four sizes and two worker counts."""
    places = [GPU, CPU, "NVIDIA-RTX-PRO-6000-Blackwell-Server-Edition", *(f"NVIDIA-H{i}00-SXM5-80GB" for i in range(9))]
    cells = itertools.product(places[:devices], enumerate(names, 1), (1, 8, 32, 64), (1, 10), orders)
    return [
        make_row(
            name,
            (90 if device == CPU else 3000) * i**1.1 * size**0.2 * workers**0.1 * (1 + (order == "length")),
            **{"device": device, "size": size, "workers": workers, "order": order},
            **{"max_diff": f"{3e-8 * 8**i:.3g}", "messages": 512 if device == CPU else 10000},
        )
        for device, (i, name), size, workers, order in cells
    ]


def overlaps(figure) -> list[tuple[str, str]]:
    """The pairs of drawn texts that cover each other, and those that leave the figure, with a blank beside them."""
    texts = [
        figure._suptitle,
        *(text for legend in figure.legends for text in (*legend.get_texts(), legend.get_title())),
    ]
    for ax in figure.axes:
        texts += [*ax.texts, ax._left_title, ax.xaxis.label, ax.yaxis.label]
        for axis, (low, high) in ((ax.xaxis, ax.get_xlim()), (ax.yaxis, sorted(ax.get_ylim()))):
            shown = [tick for tick in axis.get_major_ticks() if low <= tick.get_loc() <= high]
            texts += [tick.label1 for tick in shown if tick.label1.get_visible()]
    boxes = [(text.get_text(), text.get_window_extent()) for text in texts if text.get_text() and text.get_visible()]
    width, height = figure.bbox.size
    outside = [(text, "") for text, box in boxes if box.x0 < 0 or box.y0 < 0 or box.x1 > width or box.y1 > height]
    return outside + [(a, b) for (a, x), (b, y) in itertools.combinations(boxes, 2) if x.overlaps(y)]


@pytest.mark.parametrize(
    ("devices", "names", "orders"),
    [
        (2, ["torch", "onnx-fp16"], ["length"]),
        (8, list(variants.VARIANTS), utils.ORDERS),
    ],
    ids=["few", "all"],
)
def test_no_labels_overlap(devices, names, orders):
    for kind, chart in charts(sweep(devices, names, orders)).items():
        assert (kind, overlaps(draw(chart))) == (kind, [])


def test_a_variant_has_its_colour_and_marker_in_every_figure():
    assert len(variants.VARIANTS) <= len(plot_results.COLORS) == len(set(plot_results.COLORS))
    assert len(set(plot_results.MARKERS)) == len(plot_results.COLORS)
    few = plot_results.variant_styles([make_row("onnx-fp16")])
    many = plot_results.variant_styles([make_row(name) for name in ("openvino", "onnx-fp16", "torch")])
    assert few["onnx-fp16"] == many["onnx-fp16"]
    assert set(many) == {*variants.VARIANTS, "openvino"}


def test_neighbours_differ_in_grey():
    def lightness(color: str) -> float:
        red, green, blue = matplotlib.colors.to_rgb(color)
        return 0.2126 * red + 0.7152 * green + 0.0722 * blue

    greys = [lightness(color) for color in plot_results.COLORS]
    assert min(abs(a - b) for a, b in itertools.pairwise(greys)) > 0.05


def test_comparison_shows_best_rows_spread_factor_and_what_is_not_measured():
    rows = [make_row(speed=100), make_row(speed=70, size=1), make_row(speed=250, order="length", size=32, workers=3)]
    rows += [make_row("onnx", 60, device=CPU, threads=4)]
    figure = draw(charts(rows)["comparison"])
    gpu, cpu = figure.axes
    assert [bar.get_width() for bar in gpu.patches] == [250, 100]
    texts = [text.get_text() for text in gpu.texts]
    assert texts[0] == "250 (2.50x)  length order, size 32, 3 workers"
    assert texts[1:] == ["100 (1.00x)  dataset order, size 8, 1 worker", "not measured"]
    ends = [container.lines[2][0].get_segments()[0][:, 0].tolist() for container in gpu.containers[1::2]]
    assert ends == [[225, 262.5], [90, 105]]
    assert [text.get_text() for text in cpu.texts] == [
        "60 (-)  dataset order, size 8, 1 worker of 4 threads",
        "not measured",
    ]
    assert f"{MODEL}, dataset normal" in figure._suptitle.get_text()
    assert "one comment, truncated to 512 tokens" in figure._suptitle.get_text()
    assert cpu.get_title(loc="left") == "Intel Xeon Platinum 8481C, 4 cores (10,000 messages)"


def test_scaling_leaves_a_gap_where_a_size_is_missing():
    rows = [make_row(size=size, speed=size) for size in (1, 4)]
    rows += [
        make_row("onnx", size=size, workers=workers, speed=9 * workers) for size in (1, 2, 4) for workers in (1, 3)
    ]
    sizes, workers = draw(charts(rows)["scaling"]).axes
    lines = {line.get_color(): [str(value) for value in line.get_ydata()] for line in sizes.lines}
    assert lines == {plot_results.COLORS[0]: ["1.0", "nan", "4.0"], plot_results.COLORS[6]: ["27.0"] * 3}
    assert [list(line.get_xdata()) for line in workers.lines] == [[1, 3]] * 2
    assert {line.get_linestyle() for line in sizes.lines} == {"--"}  # dataset order
    assert len(draw(charts(rows[:2])["scaling"]).axes) == 1


def test_parity_draws_no_deviation_at_all_at_its_least():
    rows = [
        make_row(max_diff="0"),
        make_row("onnx", 200, max_diff="0.02"),
        make_row("onnx", 100, size=1, max_diff="0.5"),
    ]
    [ax] = draw(charts(rows)["parity"]).axes
    assert [(line.get_xdata()[0], line.get_ydata()[0]) for line in ax.lines] == [(0.02, 200), (1e-8, 100)]


def test_tick_labels_stay_apart():
    assert plot_results.apart([1, 2, 4, 8, 10]) == [1, 2, 4, 8, 10]
    assert plot_results.apart(list(range(1, 17))) == [1, 2, 3, 4, 5, 6, 7, 9, 11, 13, 15]
    assert plot_results.apart([8]) == [8]


# -------------------------------------------------------------------------------------------------------- the options


def test_filters_take_names_and_parts_of_names():
    rows = [make_row(name, device=device) for name in ("torch", "torch-fp16", "onnx") for device in (GPU, CPU)]
    chosen = {
        words: {row["variant"] for row in plot_results.select(rows, "variant", plot_results.words(words))}
        for words in ("torch", "fp16,ONNX", "o")
    }
    assert chosen == {
        "torch": {"torch"},
        "fp16,ONNX": {"torch-fp16", "onnx"},
        "o": {"torch", "torch-fp16", "onnx"},
    }
    assert {row["device"] for row in plot_results.select(rows, "device", plot_results.words("RTX 4090"))} == {GPU}


def test_a_part_leaves_the_readme_alone_and_keeps_the_factor(project, plot, monkeypatch):
    drawn = []
    monkeypatch.setattr(plot_results, "save", lambda charts, *_: drawn.extend(charts))
    code, _, err = plot("--devices", "4090", "--variants", "onnx", "--output", "part", "--model", "some")
    assert (code, err.count("\n")) == (0, 1)
    assert err.startswith("README.md is left alone")
    assert Path("README.md").read_text() == README
    assert {chart.path.parent for chart in drawn} == {Path("part")}
    assert {(row["device"], row["variant"]) for chart in drawn for row in chart.rows} == {(GPU, "onnx-fp16")}
    assert max(row["factor"] for row in drawn[0].rows) == 12.34  # over torch, which is not drawn


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--devices", "M1"], "no device 'm1' among"),
        (["--variants", "torch,openvino"], "no variant 'openvino' among"),
        (["--dataset", ","], "not a comma list"),
        (["--figsize", "12"], "not a width and a height"),
        (["--figsize", "1e9,4"], "not a width and a height"),
        (["--figsize", "nan,4"], "not a width and a height"),
        (["--format", "png,gif"], "not a comma list of png, svg, pdf"),
        (["--results-dir", "nowhere"], "no results in nowhere"),
        (["--output", "README.md"], "README.md"),
        (["--chek"], "unrecognized arguments"),
    ],
)
def test_wrong_usage_is_one_line(project, plot, arguments, message):
    code, out, err = plot(*arguments)
    lines = [line for line in err.splitlines() if not line.startswith("README.md is left alone")]
    assert (code, out, len(lines)) == (2, "", 1)
    assert message in lines[0]


def test_a_readme_without_markers_is_an_error_and_without_a_readme_figures_are_drawn(project, plot, monkeypatch):
    monkeypatch.setattr(plot_results, "save", lambda charts, *_: print(len(charts), "charts"))
    Path("README.md").write_text(README.replace(plot_results.END, ""))
    code, out, err = plot()
    assert (code, out, err.count("\n")) == (2, "", 1)
    assert "README.md lacks the lines" in err
    Path("README.md").unlink()
    code, out, err = plot()
    assert (code, out, err.count("\n")) == (0, "4 charts\n", 1)
    assert "without their table" in err


def test_the_committed_figures_and_table_are_up_to_date(plot, monkeypatch, tmp_path):
    """Whatever else was measured in this folder meanwhile."""
    listed = ["git", "ls-files", "README.md", "results"]
    files = subprocess.run(listed, cwd=utils.ROOT, capture_output=True, text=True, check=True).stdout.splitlines()
    assert len(files) > 1
    for file in files:
        (tmp_path / file).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(utils.ROOT / file, tmp_path / file)
    monkeypatch.chdir(tmp_path)
    code, _, err = plot("--check")
    assert code == 0, err
