"""plot_results.py: its figures, the blocks of the READMEs, and refused input. All rows here are invented."""

import errno
import os
import re
import resource
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from conftest import ROOT

import plot_results
from bench.report.evidence import EvidenceFile
from bench.report.readmes import RESULTS
from bench.report.rows import COLUMNS, append_row, results_path
from bench.report.summary import summarize

BEGIN, END = RESULTS
README = f"# Title\nabove\n{BEGIN}\n{END}\nbelow\n"
GPU, CPU = "NVIDIA-GeForce-RTX-4090", "Intel-Xeon-Platinum-8481C-4-cores"
MODEL = "owner/some_model"
OLDER, WRONG = "2026-11-20T10:00:00Z", {"flips": "0.2", "within": "no"}
END_TO_END = {"stage": "end-to-end"}


def make_row(variant: str = "torch", speed: float = 100.0, **columns) -> dict:
    """Return a valid row; `columns` replace its defaults."""
    row = dict.fromkeys(COLUMNS, "") | {
        "workers": 1,
        "threads": 1,
        "batch_size": 8,
        "batching": "in-order",
        "stage": "forward",
    }
    row |= {"messages/s": speed, "min": speed * 0.9, "max": speed * 1.05, "passes": 3, "tokens/s": 50 * speed}
    row |= {
        "max_diff": "0.001",
        "flips": "0.0005",
        "within": "yes",
        "status": "ok",
        "variant": variant,
        "model": MODEL,
        "device": GPU,
    }
    row |= {"dataset": "normal", "texts": 10000, "versions": "torch 2.13.0, onnxruntime 1.31.1"}
    return row | {"commit": "0123456789", "date": "2026-11-22T10:00:00Z"} | columns


def save(results: Path, *rows: dict) -> None:
    for row in rows:
        append_row(results_path(results, row), row)


def lines_with(text: str, *names: str) -> list[str]:
    """Return the lines that contain all of these names and numbers."""
    return [line for line in text.splitlines() if all(name in line for name in names)]


def table_rows(text: str) -> list[list[str]]:
    """Return the rows of results/README.md's tables without headers."""
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in lines_with(text, "| ")]
    return [row for row in rows if row[0] != "variant" and set(row) != {"---"}]


@pytest.fixture
def project(tmp_path, monkeypatch) -> Path:
    """The working directory, with a README and a few results."""
    monkeypatch.chdir(tmp_path)
    Path("results").mkdir()
    for readme in ("README.md", "results/README.md"):
        Path(readme).write_text(README)
    rows = [make_row(speed=speed, batch_size=size) for size, speed in ((8, 100), (16, 80), (32, 70))]
    rows += [make_row(speed=250, batching="sorted", batch_size=32), make_row("onnx-fp16", 300, workers=2)]
    fast = {"batching": "sorted", "batch_size": 64, "workers": 2}
    rows += [make_row("onnx-fp16", 1234, **fast), make_row("onnx-fp16", 1111, **fast, **END_TO_END)]
    rows += [
        make_row(speed=240, batching="sorted", batch_size=32, **END_TO_END),
        make_row("pipeline", 90, **END_TO_END),
    ]
    rows += [make_row(speed=5, device=CPU, threads=4, texts=512), make_row("onnx", 12, device=CPU, texts=512)]
    save(Path("results"), *rows)
    return tmp_path


@pytest.fixture
def plot(call):
    return lambda *arguments: call(plot_results, *arguments)


@pytest.fixture
def drawn(monkeypatch) -> list:
    """The charts that would be drawn."""
    charts = []
    monkeypatch.setattr(plot_results, "save", lambda planned, *_: charts.extend(planned))
    return charts


def test_all_figures_are_drawn_and_the_readme_changes_between_its_markers(project, plot):
    code, out, err = plot()
    assert (code, err) == (0, "")
    folder = Path("results/some_model")
    names = [f"comparison_some_model_{kind}_normal" for kind in ("gpu", "cpu")]
    names += [f"scaling_some_model_{GPU}_normal"]  # no variant has three batch sizes on the CPU
    assert sorted(folder.glob("*.png")) == sorted(folder / f"{name}.png" for name in names)
    assert all(str(folder / f"{name}.png") in out for name in names) and "results/overview.png" in out

    readme = Path("README.md").read_text()
    assert readme.startswith(f"# Title\nabove\n{BEGIN}\n")
    assert readme.endswith(f"\n{END}\nbelow\n")
    steps = [re.findall(r"[\d,.]+x?|pipeline|onnx-fp16|torch", line) for line in lines_with(readme, "| ", "`")]
    assert [step[0] for step in steps] == ["pipeline", "torch", "onnx-fp16"]
    assert {"240", "2.7x"} <= set(steps[1]) and {"1,111", "4.6x", "12.3x"} <= set(steps[2]), "1111 / 240, 1111 / 90"
    results = Path("results/README.md").read_text()
    cells = table_rows(results)
    places = [results.index(text) for text in ("**RTX 4090", "**Intel Xeon Platinum 8481C, 4 cores")]
    assert places == sorted(places), "the fastest device first"
    assert [row[:3] for row in cells[:3]] == [
        ["onnx-fp16", "1,111", "12.3x"],
        ["torch", "240", "2.7x"],
        ["pipeline", "90", "1.0x"],
    ]
    assert [row[:4] for row in cells[3:]] == [["onnx", "-", "2.4x", "12"], ["torch", "-", "1.0x", "5"]]
    assert cells[0][3:] == ["1,234", "-", "64 sorted", "2 x 1", "0.001", "0.05% of the", "within tolerance", "-"]
    assert all((project / link).is_file() for link in re.findall(r"\]\((.+?)\)", readme))
    assert all((project / "results" / link).is_file() for link in re.findall(r"\]\((.+?)\)", results))
    origin = ["RTX 4090", "10,000 texts", "onnxruntime 1.31.1", "torch 2.13.0", "0123456789"]
    assert lines_with(results, *origin)


def test_the_readme_compares_with_the_best_baseline_and_names_a_refused_variant(project, plot, drawn):
    texts = {"device": CPU, "texts": 512}
    save(Path("results"), *(make_row("pipeline", n, batch_size=8 * n, **END_TO_END | texts) for n in (4, 6)))
    save(Path("results"), make_row("optimum-pipeline", 99, busy="0.5", **END_TO_END | texts | {"date": OLDER}))
    save(
        Path("results"),
        make_row("onnx", 15, **END_TO_END | texts),
        make_row("onnx-int8", 60, **END_TO_END | WRONG | texts),
    )
    save(Path("results"), make_row("onnx", 9, model="embedder", **END_TO_END | texts))
    assert plot()[0] == 0
    readme = Path("README.md").read_text().replace("\n  ", " ")
    assert lines_with(readme, "| ", "pipeline", "48", "| 6 |", "1.0x") and lines_with(
        readme, "| ", "onnx", "15", "2.5x"
    )
    assert re.search(r"- GPU\b.*\b12\.3x\b.*pipeline.*\b90 to 1,111 messages/s.*\bonnx-fp16\b.*\b0\.05%", readme)
    assert re.search(r"\b4\.0 times\b.*onnx-int8 changed", readme) and "20.00%" in readme
    rows = table_rows(Path("results/README.md").read_text())
    assert [row[:3] for row in rows if row[0] == "pipeline"][1:] == [["pipeline", "6", "1.0x"]]


def test_check_reports_outdated_files_and_writes_nothing(project, plot):
    assert plot("--check")[0] == 1
    assert not list(project.rglob("*.png"))
    plot()
    assert plot("--check") == (0, "", "")

    readme = Path("README.md").read_text()
    Path("README.md").write_text(readme.replace("1,111", "9,999"))
    code, _, err = plot("--check")
    assert (code, err.count("\n")) == (1, 1) and str(project / "README.md") in err
    Path("README.md").write_text(readme)

    save(Path("results"), make_row("onnx-fp16", 2000, **END_TO_END, workers=3, date="2026-11-23T10:00Z"))
    before = {path: path.read_bytes() for path in project.rglob("*") if path.is_file()}
    code, _, err = plot("--check")
    stale = [re.search(r"[^/\s]+\.(png|md)\b", line)[0].split("_")[0] for line in err.splitlines()]
    assert (code, stale) == (1, ["overview.png", "comparison", "README.md", "README.md"])
    assert {path: path.read_bytes() for path in project.rglob("*") if path.is_file()} == before


def test_check_compares_data_instead_of_pixels(project, tmp_path, monkeypatch):
    cells = plot_results.load_cells([Path("results")])
    chart, *_ = plot_results.plan_charts(cells, summarize(cells, EvidenceFile()), tmp_path)
    files = {suffix: plot_results.figure_file(chart, suffix) for suffix in ("png", "svg", "pdf")}
    pictures = []
    for size in (9, 12):
        monkeypatch.setitem(plot_results.figures.STYLE, "font.size", size)
        for suffix in files:
            plot_results.save([chart], suffix)
            assert plot_results.out_of_date([chart], suffix) == []
        pictures.append([file.read_bytes() for file in files.values()])
    assert all(one != other for one, other in zip(*pictures, strict=True))
    other = replace(chart, rows=chart.rows.assign(max=107.0))
    assert [plot_results.out_of_date([other], suffix) for suffix in files] == [[file] for file in files.values()]


def test_the_published_tables_of_three_devices(tmp_path, plot):
    source, figures = ROOT / "results" / "roberta-base-go_emotions", shutil.ignore_patterns("*.png")
    shutil.copytree(source, tmp_path / "results" / source.name, ignore=figures)
    for readme in (tmp_path, tmp_path / "results"):
        (readme / "README.md").write_text(README)
    code, _, err = plot("--results-dir", str(tmp_path / "results"))
    assert (code, err) == (0, "")
    kinds = sorted(path.name.split("_")[0] for path in tmp_path.rglob("*.png"))
    assert kinds == ["comparison"] * 2 + ["scaling"] * 6
    assert "H200" not in (tmp_path / "README.md").read_text()  # published rows make no headline
    readme = (tmp_path / "results" / "README.md").read_text()
    first = ["onnx-fp16", "-", "4.0x", "4,037", "-", "8 in-order", "10 x 1", "-", "-", "-", "-"]
    assert first in table_rows(readme)
    assert lines_with(readme, "RTX 5060 Ti", "10,000 texts")


def test_skipped_rows_are_counted(project, plot, drawn):
    good = results_path(Path("results"), make_row())
    with good.open("a") as file:
        file.write("torn\n<<<<<<< HEAD\n")
    failed = dict.fromkeys(("messages/s", "min", "max", "max_diff", "flips"), "") | {"status": "out of memory"}
    save(Path("results"), make_row("onnx-fp16", batch_size=128) | failed, make_row(batch_size=8) | failed)
    save(Path("results"), make_row("onnx", 99999, texts=256), make_row("onnx", 88888, texts=20000, batch_size=1))
    code, _, err = plot()
    assert code == 0
    unreadable, failed, *others = err.splitlines()
    assert str(good) in unreadable and re.search(r"\b2\b", unreadable.replace(str(good), ""))
    assert re.search(r"\b1\b", failed) and len(others) == 2
    for texts in (256, 20000):
        [line] = lines_with(err, MODEL, GPU, "normal", str(texts))
        assert re.search(r"\b1\b", line)
    readme = Path("results/README.md").read_text()
    figures = [row[:4] for row in table_rows(readme)]
    assert ["onnx-fp16", "1,111", "12.3x", "1,234"] in figures, "a failed cell does not replace a good one"
    assert "99,999" not in readme and "88,888" not in readme


def test_models_and_datasets_that_share_a_name_are_kept_apart(project, plot, drawn):
    models = ["m_x", "m-x", "m x", "/x/run_1/model", "/x/run-1/model", "<!-- results:end -->"]
    save(Path("results"), *(make_row(model=model) for model in models))
    assert plot()[0] == 0
    paths = [chart.path for chart in drawn]
    assert len(set(paths)) == len(paths)
    readme = Path("results/README.md").read_text()
    assert len(lines_with(readme, "## ", "run\\_1/model")) == len(lines_with(readme, "## ", "run-1/model")) == 1
    assert plot()[0] == 0
    assert Path("results/README.md").read_text() == readme, "it does not grow"
    assert len(readme.splitlines()) < 160


def test_figures_of_different_rows_have_different_files(project, plot, drawn):
    rows = {"model": "m_x", "dataset": "d"}, {"model": "m", "dataset": "x_d"}
    rows += {"model": "m", "dataset": "d", "device": "a_b"}, {"model": "m", "dataset": "b_d", "device": "a"}
    save(Path("results"), *(make_row(**row) for row in rows))
    assert plot("--output", "figures")[0] == 0
    assert len({chart.path for chart in drawn}) == len(drawn)


def test_rows_of_other_texts_or_weights_are_not_mixed(project, plot, drawn):
    other = {"model": "m", "texts_id": "b", "weights_id": "w"}
    save(Path("results"), make_row(model="m", texts_id="a", weights_id="w", speed=777))
    save(Path("results"), *(make_row(batch_size=size, speed=10 * size, **other) for size in (1, 2)))
    save(Path("results"), make_row(speed=999, **other | {"weights_id": "v"}))
    _, _, err = plot()
    [comparison, *_] = [chart for chart in drawn if chart.path.name == "comparison_m_gpu_normal"]
    assert comparison.rows["messages/s"].tolist() == [20]
    assert len(lines_with(err, "m, ", GPU, "10000")) == 2, "of the texts a, and of the weights v"


def test_anything_but_a_regular_file_is_skipped(project, plot, drawn):
    os.mkfifo("results/pipe.tsv")
    Path("results/folder.tsv").mkdir()
    code, _, err = plot()
    assert (code, err.count("\n")) == (0, 2)
    assert lines_with(err, "pipe.tsv", "1 ") and lines_with(err, "folder.tsv", "1 ")


def test_several_folders_are_compared(project, plot, drawn):
    for path in [*Path("results").rglob("*.tsv")]:
        if GPU in path.name:
            (Path("theirs") / path.parent.name).mkdir(parents=True, exist_ok=True)
            path.rename(Path("theirs") / path.parent.name / path.name)
    assert plot("--results-dir", "results,theirs")[0] == 0
    charts = [chart for chart in drawn if chart.path.name.startswith("comparison")]
    assert {device for chart in charts for device in chart.rows["device"]} == {GPU, CPU}
    assert all(chart.path.is_relative_to("results") for chart in charts)


def test_figures_of_a_folder_of_its_own_leave_the_readme_unchanged(project, plot, drawn):
    for options in (["--output", "part"], ["--format", "svg"]):
        code, _, err = plot(*options)
        assert (code, err.count("\n")) == (0, 1) and "README.md" in err
        assert Path("README.md").read_text() == README
    assert {chart.path.parts[0] for chart in drawn} == {"part", "results"}


@pytest.mark.parametrize(
    ("arguments", "names"),
    [
        (["--format", "gif"], ["--format", "'gif'", "png", "svg", "pdf"]),
        (["--results-dir", "nowhere"], ["nowhere"]),
        (["--results-dir", "README.md"], ["README.md"]),
        (["--chek"], ["--chek", "--check?"]),
    ],
)
def test_wrong_usage_is_one_line(project, plot, arguments, names):
    code, out, err = plot(*arguments)
    assert (code, out, err.count("\n")) == (2, "", 1)
    assert lines_with(err, *names), err


def test_a_figure_that_cannot_be_saved_is_one_line(project, plot):
    code, _, err = plot("--output", "README.md")
    assert (code, err.splitlines()[-1][:17]) == (1, "plot_results.py: ") and "README.md" in err.splitlines()[-1]


def test_a_full_disk_destroys_no_figure_and_no_readme(project, plot):
    assert plot()[0] == 0
    before = {path: path.read_bytes() for path in Path().rglob("*") if path.is_file()}
    Path("README.md").write_bytes(before[Path("README.md")].replace(b"1,111", b"9,999"))
    before[Path("README.md")] = Path("README.md").read_bytes()
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, hard))
    try:
        code, _, err = plot()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert code == 1 and os.strerror(errno.EFBIG) in err
    assert {path: path.read_bytes() for path in Path().rglob("*") if path.is_file()} == before


def test_a_readme_without_markers_is_an_error_but_a_missing_readme_is_not(project, plot, drawn):
    Path("README.md").write_text(README.replace(END, ""))
    code, out, err = plot()
    assert (code, out, err.count("\n")) == (2, "", 1)
    assert lines_with(err, "README.md", BEGIN, END)
    Path("README.md").unlink()
    code, out, err = plot()
    assert (code, len(drawn), err.count("\n")) == (0, 4, 1)
    assert "README.md" in err


def test_the_committed_figures_and_tables_are_up_to_date(plot, monkeypatch, tmp_path):
    """Only committed files count, whatever else was measured in this folder."""
    listed = ["git", "ls-files", "README.md", "results"]
    files = subprocess.run(listed, cwd=ROOT, capture_output=True, text=True, check=True).stdout.splitlines()
    assert len(files) > 1
    for file in files:
        (tmp_path / file).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / file, tmp_path / file)
    monkeypatch.chdir(tmp_path)
    code, _, err = plot("--check")
    assert code == 0, err


@pytest.mark.parametrize(
    ("backend", "settings"),
    [
        ("module://nothing.like_it", "axes.facecolor: black\naxes.labelsize: 40\n"),
        ("inline", "text.usetex: True\nbackend: nonsense\nno such: key\n"),
    ],
)
def test_neither_a_notebook_nor_a_matplotlibrc_changes_the_figures(backend, settings, project):
    """Compared in processes of their own, since matplotlib reads both when it is imported."""
    pictures = []
    for environment in ({}, {"MPLBACKEND": backend}):
        if environment:
            Path("matplotlibrc").write_text(settings)
        script = [sys.executable, ROOT / "plot_results.py"]
        done = subprocess.run(script, env=os.environ | environment, capture_output=True, text=True, check=False)
        assert (done.returncode, done.stderr) == (0, "")
        pictures.append({path.name: path.read_bytes() for path in project.rglob("*.png")})
    assert pictures[0] == pictures[1] and len(pictures[0]) == 4


def test_names_that_the_font_lacks_are_one_line(project, plot):
    save(Path("results"), make_row(device="設備 一二三四五六七八九十"), make_row("onnx", dataset="資料"))
    code, _, err = plot()
    assert (code, err.count("\n")) == (0, 1)


def test_a_hundred_devices_are_drawn(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    devices = [{"device": f"Device-{i}", "speed": 10 * i} for i in range(1, 101)]
    save(
        Path("results"),
        *(make_row(**row, **END_TO_END) for row in devices),
        *(make_row("pipeline", **row, **END_TO_END) for row in devices),
    )
    cells = plot_results.load_cells([Path("results")])
    overview, comparison = plot_results.plan_charts(cells, summarize(cells, EvidenceFile()), tmp_path)
    for chart, panels in ((overview, 1), (comparison, 100)):
        figure = chart.draw(chart.rows)
        assert len(figure.axes) == panels and max(figure.get_size_inches()) < 110, "inches of 150 pixels"


def test_rows_that_are_only_end_to_end_get_their_tables(tmp_path, monkeypatch, plot):
    monkeypatch.chdir(tmp_path)
    rows = [make_row(name, 10, stage="end-to-end", model="m") for name in ("pipeline", "onnx")]
    save(Path("results"), *rows, make_row("onnx", 50, stage="end-to-end", model="other"))
    for readme in ("README.md", "results/README.md"):
        Path(readme).write_text(README)
    assert plot()[0] == 0
    shown = [[*row[:2], row[3]] for row in table_rows(Path("results/README.md").read_text())]
    assert shown == [["onnx", "10", "-"], ["pipeline", "10", "-"], ["onnx", "50", "-"]]
    assert plot("--check")[0] == 0


def test_line_ends_of_a_readme_stay_as_they_are(project, plot, drawn):
    for readme in ("README.md", "results/README.md"):
        Path(readme).write_bytes(b"\xef\xbb\xbf" + README.replace("\n", "\r\n").encode())
    assert plot()[0] == 0
    for readme in ("README.md", "results/README.md"):
        text = Path(readme).read_bytes()
        assert text.startswith(b"\xef\xbb\xbf# Title\r\nabove\r\n") and b"1,111" in text
        assert text.count(b"\n") == text.count(b"\r\n") == text.count(b"\r")
    before = Path("README.md").read_bytes()
    assert plot()[0] == 0 and Path("README.md").read_bytes() == before
