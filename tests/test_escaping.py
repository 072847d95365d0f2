"""Names from outside in everything that is written or printed: Markdown, Python source, commands, lines, figures."""

import ast
import html
import json
import re
import shlex
from argparse import ArgumentParser
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import yaml
from conftest import ROOT
from hypothesis import example, given
from hypothesis import strategies as st
from tiny import make_report

import classify_texts
import export_onnx
import plot_results
import run_benchmark
from bench.export.ensure import say_caveats
from bench.export.reports import print_report, public_command, write_card
from bench.naming import code_span, markdown, python_string
from bench.options import command
from bench.report.readmes import RESULTS, VERDICT
from bench.report.rows import COLUMNS
from bench.tables import storage
from bench.tables.folders import find_files
from bench.tables.storage import locate
from utils import UserError, first_line, say

NAMES = [
    '<img src="x" onerror="y">',
    "</code></p><script>",
    "<!-- results:end -->",
    "![x](http://evil.example)",
    "[x](http://evil.example)",
    "see https://evil.example or www.evil.example",
    "# heading",
    "- item",
    "1. item",
    "---",
    "a | b",
    "*a* __b__ ~~c~~",
    "$x$ and $$",
    "$\\frac{1$",
    "`a` ``` b",
    '"; import os; os.abort() #',
    'it\'s "both" \\',
    "\\",
    "{{ 7 * 7 }} {% raw %}",
    "\x1b[31mred\x1b]0;title\x07",
    "\u202egnp.exe\u2066",
    "名前 имя 😀",
    "two\n# lines\r\n",
]
CONTROL = re.compile(r"[^\n -~\xa0-\u2027\u202f-\u2065\u206a-\ud7ff\ue000-\U0010ffff]")  # with RTL overrides


def rendered(text: str) -> tuple[str, list[str]]:
    """Return the plain text of Markdown as CommonMark reads it, without code; and its spans of code."""
    spans = []

    def take(match) -> str:
        if match[1]:
            return match[1]
        spans.append(match[3][1:-1] if match[3].startswith(" ") and match[3].endswith(" ") else match[3])
        return ""

    return re.sub(r"(\\[!-/:-@\[-`{-~])|(?<!`)(`+)(?!`)(.+?)(?<!`)\2(?!`)", take, text), spans


def check_markdown(text: str) -> None:
    """Fail if a line of Markdown has other markup than code, emphasis by `**`, and links to this project's files."""
    plain, _ = rendered(text)
    plain = re.sub(r"\\[!-/:-@\[-`{-~]", "", plain)
    plain = re.sub(r"\]\((?:https://huggingface\.co/|[\w.-])[\w./%-]*\)", "]()", plain)  # of our own
    assert not re.search(r"<(?!!-- (?:results|verdict):)|://|\bwww\.|\$|~|(?<!\w)_|`|\]\((?!\))", plain), plain


@pytest.mark.parametrize("name", NAMES)
def test_markdown_has_no_markup_and_keeps_the_text(name):
    line = markdown(name)
    check_markdown(line)
    assert not re.search(r"<|^(#|>|[-+]\s|\d+[.)]\s|---)", line) and not CONTROL.search(line) and "\n" not in line
    text = html.unescape(re.sub(r"\\([!-/:-@\[-`{-~])", r"\1", line))
    assert text.split() == re.sub(r"[\x00-\x1f\u202e\u2066]", " ", name).split()
    code = code_span(name)
    assert rendered(code) == ("", [re.sub(r"[\x00-\x1f\u202e\u2066]", " ", name)])


@given(st.text() | st.sampled_from(NAMES))
@example('\\"')
def test_python_source_names_the_text(name):
    source = python_string(name)
    assert ast.literal_eval(source) == name
    assert source.isascii() and source.isprintable()


@pytest.mark.parametrize("name", [*NAMES, "-x", "-1"])
def test_a_command_can_be_copied_and_prints_no_escape_codes(name, capsys):
    line = command("python", "x.py", column=name, labels=[name, "b"])
    say(line)
    [printed] = capsys.readouterr().err.splitlines()
    shown = "..." if CONTROL.search(name) or "\n" in name else name
    both = "..." if shown == "..." else f"{name},b"
    words = shlex.split(printed)
    assert words[:2] == ["python", "x.py"]
    if shown == name:
        parser = ArgumentParser(allow_abbrev=False)
        parser.add_argument("--column")
        parser.add_argument("--labels")
        assert vars(parser.parse_args(words[2:])) == {"column": shown, "labels": both}
    else:
        assert words[2:] == ["--column", shown, "--labels", both]


def card_of(folder: Path, **report) -> str:
    write_card(folder, folder, make_report() | report)
    return (folder / "README.md").read_text()


@pytest.mark.parametrize("name", NAMES)
def test_a_card_has_no_markup_of_names_and_its_example_names_the_repository(name, tmp_path, capsys):
    names = dict.fromkeys(("model", "repo", "dataset", "column", "machine", "reason", "options", "versions"), name)
    names |= {"nodes": name, "provider": name, "findings": [name], "command": command("python", name)}
    label = {"label": name, "original": 0.5, "export": 0.5, "difference": 0.0}
    names |= {"labels": [name, name], "thresholds": (0.5, 0.4), "threshold": name, "task_options": {"task": name}}
    report = names | {"worst": [{"excerpt": name, "labels": [label]}]}
    card = card_of(tmp_path, **report)
    _, metadata, body = card.split("---\n", 2) if name != "---" else ["", *card[4:].split("\n---\n", 1)]
    assert yaml.safe_load(metadata)["pipeline_tag"] == "text-classification"
    text, source, after, shell, _ = re.split(r"^```(?:python|sh)?\n", body, flags=re.MULTILINE)
    for line in [*text.splitlines(), *after.splitlines()]:
        check_markdown(line)
    assert not CONTROL.search(card)
    assert len(re.findall(r"^ *(?:[-*>] )?#", text, re.MULTILINE)) == 6, "the template's headings"
    tables = [line for line in text.splitlines() if line.startswith("|")]
    assert {len(re.findall(r"(?<!\\)\|", line)) for line in tables} == {11, 5, 3}
    [folder] = [
        ast.literal_eval(node.value)
        for node in ast.parse(source).body
        if isinstance(node, ast.Assign) and node.targets[0].id == "folder" and isinstance(node.value, ast.Constant)
    ]
    model = name if "/" in name else "."  # a repository, or the folder of the card
    assert folder == model
    [_, given] = re.findall(r"^printf '%s\\n' (.*) > .*$", shell, re.MULTILINE)
    assert json.loads(shlex.split(given)[0]) == {name: 0.4}
    shown = "..." if CONTROL.search(model) or "\n" in model else model
    assert shlex.split(shell.splitlines()[-1])[:3] == ["python", "swiftsure/classify_texts.py", shown]
    print_report(make_report() | report)
    assert not CONTROL.search(capsys.readouterr().out)


def test_an_export_that_another_program_wrote_prints_no_escape_codes(tmp_path, capsys):
    (tmp_path / "parity.json").write_text(json.dumps({"verdict": "NOT within tolerance", "reason": "\x1b[31m\nx"}))
    (tmp_path / "export.json").write_text("{}")
    say_caveats(tmp_path, "fp32", "")
    assert capsys.readouterr().err.count("\n") <= 2
    assert not CONTROL.search(capsys.readouterr().err)


def test_only_say_prints():
    """The table of a benchmark has names of ours, and rows that are cleaned."""
    printing = {}
    for file in [*ROOT.glob("*.py"), *ROOT.glob("bench/**/*.py"), *ROOT.glob("runtimes/*.py")]:
        calls = [node.func for node in ast.walk(ast.parse(file.read_text())) if isinstance(node, ast.Call)]
        if count := sum(isinstance(function, ast.Name) and function.id == "print" for function in calls):
            printing[file.name] = count
    assert printing == {"utils.py": 1, "run_benchmark.py": 3, "recorder.py": 1}


def test_names_of_files_and_columns_print_no_escape_codes(tmp_path, capsys):
    (tmp_path / "a.csv").write_text("body\nx\n")
    (tmp_path / "\x1b[31m\n.xyz").touch()
    find_files(tmp_path)
    say("a column \x1b[31m\u202e\n\x9b of a file")
    err = capsys.readouterr().err
    assert err.count("\n") == 2 and not CONTROL.search(err)


ROW = dict.fromkeys(COLUMNS, "") | {"workers": 1, "threads": 1, "batching": "sorted", "batch_size": 8}
ROW |= {"messages/s": 9, "min": 9, "max": 9, "passes": 1, "tokens/s": 90, "max_diff": 0, "flips": 0, "status": "ok"}
ROW |= {"stage": "forward", "texts": 60, "date": "2026-11-22T10:00:00Z", "commit": "0123456789"}


@pytest.fixture
def results(tmp_path, monkeypatch):
    """Returns a function that saves rows as another program could, and returns the text of both READMEs."""
    monkeypatch.chdir(tmp_path)
    Path("results").mkdir()

    def save(*rows: dict, ends: str = "\n") -> None:
        lines = ["\t".join(COLUMNS), *("\t".join(str((ROW | row)[name]) for name in COLUMNS) for row in rows)]
        Path("results/foreign.tsv").write_bytes("\n".join(lines).encode())
        marks = [line for pair in (RESULTS, VERDICT) for line in pair]
        for readme in ("README.md", "results/README.md"):
            Path(readme).write_bytes(ends.join(["# Title", "above", *marks, "below", ""]).encode())

    return save


PROVEN = {"stage": "end-to-end", "within": "yes"}
IN_ROWS = [name for name in NAMES if "\n" not in name]


def test_results_of_others_have_no_markup_in_the_readmes_and_are_drawn(results, call, monkeypatch):
    names = [{"model": f"m{name}", "device": f"{name}-2-cores", "dataset": name, "variant": name} for name in IN_ROWS]
    names += [{"model": "random-roberta-base", "device": f"{n}-2-cores", "dataset": "normal"} for n in IN_ROWS[-2:]]
    names += [{"model": "m", "device": name, "dataset": "d", "variant": name} for name in IN_ROWS[::3]]
    origin = [row | {"versions": row["device"], "driver": row["device"], "commit": row["device"]} for row in names]
    sizes = [
        row | {"variant": "torch", "batching": "in-order", "batch_size": n, "within": "yes"}
        for row in origin
        for n in (1, 2, 4)
    ]
    timed = [row | {"variant": name, **PROVEN} for row in origin for name in ("torch", "pipeline")]
    results(*(row | {"variant": row.get("variant", "x` ```")} for row in origin), *sizes, *timed)
    drawn, draw = [], plot_results.save
    monkeypatch.setattr(plot_results, "save", lambda charts, _: drawn.extend(charts))
    code, out, err = call(plot_results)
    assert code == 0 and not CONTROL.search(out + err)
    for readme in (Path("README.md"), Path("results/README.md")):
        text = re.sub(r"^(`{3,})\n.*?^\1$", "", readme.read_text(), flags=re.MULTILINE | re.DOTALL)
        for line in text.splitlines():
            check_markdown(line)
        assert not CONTROL.search(readme.read_text()) and readme.read_text().endswith("below\n")
        assert len(re.findall(r"^ *(?:[-*>] )?#{1,6} (?!Title)", text, re.MULTILINE)) in (0, len(IN_ROWS) + 2)
    before = Path("results/README.md").read_bytes()
    assert call(plot_results)[0] == 0 and Path("results/README.md").read_bytes() == before
    folder = Path("figures")
    largest = {chart.draw.__name__: chart for chart in sorted(drawn, key=lambda chart: len(chart.rows))}
    draw([replace(chart, path=folder / name) for name, chart in largest.items()], "png")
    assert sorted(path.stem[5:] for path in folder.iterdir()) == ["comparison", "overview", "scaling"]


def test_a_name_that_is_a_marker_takes_no_text_of_the_readme(results, call):
    marks = ["<!-- results:end -->", "<!-- verdict:begin -->", "<!-- verdict:end -->"]
    names = [
        row for n, mark in enumerate(marks) for row in both_stages(variant=mark, **{"messages/s": n + 2, "min": 1})
    ]
    results(*names, *both_stages(variant="torch", batching="in-order"), ends="\n## My chapter\n")
    for _ in range(3):
        assert call(plot_results)[0] == 0
        for readme, chapters in {"README.md": 5, "results/README.md": 6}.items():
            lines = Path(readme).read_text().splitlines()
            assert lines.count("## My chapter") == chapters and lines[-2] == "below"
            assert [lines.count(mark) for pair in (RESULTS, VERDICT) for mark in pair] == [1] * 4


def both_stages(**columns) -> list[dict]:
    same = {"model": "random-roberta-base", "dataset": "normal", "device": "x-2-cores", "within": "yes", **columns}
    return [same | {"stage": stage} for stage in ("forward", "end-to-end")]


def test_models_with_several_names_for_one_folder_are_drawn(results, call, tmp_path):
    results(
        *({"model": name, "dataset": "d", "device": "x-2-cores"} for name in ("m", "./m", "m/", str(tmp_path / "m")))
    )
    assert call(plot_results)[0] == 0
    assert Path("results/README.md").read_text().count("\n## m") == 2


SECRETS = [
    "s3://KEY:SECRET@bucket/x.csv",
    "s3://KEY:SEC/RET+SECRET=@bucket/x.csv",
    "s3://KEY:SECRET@/x?region=x",
    "s3a://KEY:SECRET@bucket/x y.csv",
    "s3://bucket/x.csv?access_key=KEY&secret_key=SECRET",
    "nothing://bucket/a b.csv?X-Amz-Credential=KEY&X-Amz-Signature=SECRET",
    "https://KEY@host/x.csv?sig=SECRET",
    "s3://KEY:7/SECRET@bucket/x.csv",
    "https://host/x.csv?SECRET",
    "nothing://bucket/x.csv?a='SECRET' KEY",
]


@pytest.mark.parametrize("address", SECRETS)
def test_secrets_in_addresses_are_not_shown(address, call, monkeypatch, tmp_path, tiny_model):
    monkeypatch.chdir(tmp_path)
    shown = [
        command("x", address, dataset=address),
        public_command(["m", "--dataset", address, f"--dataset={address}"]),
    ]
    shown += [first_line(OSError(f"{'x' * 280} {address}")), card_of(tmp_path, command=shown[1], reason=address)]
    try:
        shown.append(str(locate(address)))
    except UserError as error:
        shown.append(str(error))

    def fail(uri):
        raise OSError(f"cannot parse URI: '{uri}'")

    monkeypatch.setattr(storage, "FileSystem", SimpleNamespace(from_uri=fail))
    runs = {export_onnx: [tiny_model, "--dataset", address]}
    runs |= {run_benchmark: ["--model", "torch", "--device", "cpu", "--dataset", address]}
    runs |= {classify_texts: [tiny_model, address, "--output", "out"]}
    for script, options in runs.items():
        code, out, err = call(script, *options)
        assert code == 2 and err.count("\n") == 1 and "..." in err
        shown += [out, err]
    assert not any(re.search("KEY|SEC|RET", text) for text in shown), shown


def test_addresses_without_secrets_stay_as_they_are():
    harmless = "s3://bucket/a@b.csv", "hf://datasets/o/n@main/x.csv", "hdfs://host:8020/user/x", "a?b=c", "a:b@c"
    for address in harmless:
        assert shlex.split(command("x", address)) == ["x", address]
    assert public_command(["m", "--dataset=/home/ann/a=b.csv"]) == "python export_onnx.py m --dataset=a=b.csv"
