"""The verdict: ranks, ties, variants that are not within tolerance, and the next command."""

import re
import shlex
import sys
from argparse import Namespace
from pathlib import Path
from types import SimpleNamespace

from conftest import make_sweep

import classify_texts
import run_benchmark
from bench.judge import WITHIN
from bench.model.task import Task
from bench.options import TASK_OPTIONS
from bench.report.evidence import KEYS, ROW_KEYS, Evidence, EvidenceFile
from bench.report.rows import COLUMNS, completed_rows, latest_per_cell
from bench.report.verdict import rank, verdict
from run_benchmark import follow_ups
from runtimes import VARIANTS


def row(variant: str, speed: float, spread: float = 0, **columns) -> dict:
    made = dict.fromkeys(COLUMNS, "") | {
        "variant": variant,
        "workers": 1,
        "threads": 2,
        "batch_size": 8,
        "batching": "sorted",
    }
    made |= {"stage": "end-to-end", "messages/s": speed, "min": speed - spread, "max": speed + spread, "passes": 3}
    made |= {
        "max_diff": 1e-6,
        "flips": 0,
        "decisions": 256,
        "status": "ok",
        "model": "m",
        "device": "d",
        "dataset": "x",
        "texts": 256,
    }
    return made | columns


BASE = row("torch", 10, stage="forward", batching="in-order")


def asked(**options) -> Namespace:
    same = {"model_id": "ann/a model", "device": "cpu", "gpu": 0, "threshold": None, "tolerance": 0.001}
    texts = {"dataset": "normal", "column": "body", "task": None, "original": None, "results_dir": Path("results")}
    csv = {"delimiter": None, "encoding": "utf-8", "quoting": None, "escape": None}
    return Namespace(**dict.fromkeys(TASK_OPTIONS) | same | texts | csv | options)


def commands(texts: int = 0, **options) -> tuple:
    """Return follow_ups() for a dataset with this many texts, of which a second of FP32 compares 100."""
    tokens = SimpleNamespace(texts=["x"] * 10)
    sweep = make_sweep(
        model=None, tokens=tokens, exports={}, reference_speed=100, more_texts=[f"text {i}" for i in range(texts)]
    )
    return follow_ups(asked(**options), sweep, "x", Task.script)


def table(*rows):
    return latest_per_cell(completed_rows(list(rows))[0])


def verdict_lines(*rows, tolerance: float = 0.001, **options) -> list[str]:
    lines = verdict(table(BASE, *rows), None, tolerance, *commands(**options, tolerance=tolerance))
    assert max(map(len, lines)) <= 80
    return lines


def unfold(lines: list[str]) -> str:
    return " ".join(" ".join(lines).split())


def listed(lines: list[str]) -> dict[str, str]:
    """Return variant -> its mark: its rank, `?` if it is not proven, `-` if it is not within tolerance."""
    entries = [line.split()[:2] for line in lines if line.split()[1:2] and line.split()[1] in VARIANTS]
    return {variant: mark for mark, variant in entries if re.fullmatch(r"\d\.|\?|-", mark)}


def advice(lines: list[str]) -> str:
    """Return the sentences between the table, whose last line has the speed of 1.0x, and the commands."""
    last = max(i for i, line in enumerate(lines) if "messages/s" in line)
    return unfold(lines[last + 1 :]).partition("python ")[0]


def recommended(lines: list[str]) -> str | None:
    """Return the first variant that the advice names."""
    return next((word for word in re.findall(r"[\w-]+", advice(lines)) if word in VARIANTS), None)


def numbers(line: str) -> list[str]:
    return re.findall(r"\d[\d.,]*\b", line)


def ranks(*rows) -> list[tuple[int, str]]:
    ranked = rank(table(*rows))
    return list(zip(ranked["rank"], ranked["variant"], strict=True))


def test_variants_are_ranked_at_their_best_end_to_end():
    rows = [row("onnx", 30), row("onnx", 20, batch_size=16), row("onnx", 99, stage="forward"), row("torch", 50)]
    assert ranks(*rows) == [(1, "torch"), (2, "onnx")]
    forward = row("openvino-bf16", 999, stage="forward")
    assert ranks(*rows, forward)[2:] == [(3, "openvino-bf16")]
    assert "openvino-bf16" not in listed(verdict_lines(*rows, forward)), "what is listed was timed end to end"


def test_variants_with_overlapping_spreads_tie_and_the_closest_to_the_original_is_recommended():
    fast, slow = row("onnx-int8", 31, 1, max_diff=0.01, decisions=4000), row("onnx", 29.5, 0.6)
    assert ranks(fast, slow) == [(1, "onnx"), (1, "onnx-int8")]
    assert ranks(fast, slow | {"max": 29.9}) == [(1, "onnx-int8"), (2, "onnx")]
    assert ranks(fast | {"min": 31, "passes": 1}, slow | {"max": 29.5, "passes": 1})[0] == (1, "onnx")
    lines = verdict_lines(fast, slow)
    assert lines[2].split()[:10] == ["1.", "onnx", "29.5", "messages/s", "3.0x", "1", "x", "2,", "8", "sorted"]
    assert listed(lines) == {"onnx": "1.", "onnx-int8": "1."}
    assert recommended(lines) == "onnx" and "2" in numbers(advice(lines))


def test_variants_not_within_tolerance_come_last_with_their_count():
    wrong = row("onnx-int8", 90, flips=9 / 256, max_diff=0.1)
    lines = verdict_lines(wrong, row("onnx", 30), row("torch", 12))
    assert list(listed(lines).items()) == [("onnx", "1."), ("torch", "2."), ("onnx-int8", "-")]
    assert {"9", "256"} <= set(numbers(unfold(lines))) and recommended(lines) == "onnx"
    lines = verdict_lines(wrong)
    assert set(listed(lines).values()) == {"-"} and recommended(lines) is None
    assert "python classify_texts.py" in unfold(lines), "which then uses FP32 PyTorch"


def test_an_unproven_variant_is_not_recommended_and_one_command_follows():
    rows = row("torch-bf16", 90, max_diff=0.02), row("onnx", 30), row("torch", 12)
    lines = verdict_lines(*rows)
    assert list(listed(lines).items()) == [("onnx", "1."), ("torch", "2."), ("torch-bf16", "?")]
    assert {"0", "256", "0.1", "3.0"} <= set(numbers(advice(lines))) and "2,880" in numbers(unfold(lines))
    assert recommended(lines) == "onnx" and unfold(lines).count("python ") == 1, "there are too few texts for a check"
    lines = verdict_lines(*rows, texts=2900)
    assert unfold(lines).count("python ") == 2 and "2,880" in numbers(unfold(lines))
    assert "python run_benchmark.py --variant torch-bf16 --quick --check-time 180 " in unfold(lines)
    proven = row("torch-bf16", 90, max_diff=0.02, decisions=7000)
    assert listed(verdict_lines(proven))["torch-bf16"] == "1."


def test_near_the_tolerance_a_looser_one_is_the_remedy():
    """19 of 21,600 decisions on 2,700 comments: a feasible number of texts decides nothing."""
    rows = row("onnx-int8", 90, flips=19 / 21_600, decisions=21_600, max_diff=0.1), row("onnx", 30)
    lines = verdict_lines(*rows, texts=9000)
    assert listed(lines)["onnx-int8"] == "?" and recommended(lines) == "onnx" and "3.0" in numbers(advice(lines))
    text = unfold(lines)
    assert text.count("python ") == 1 and "--tolerance" in text and {"19", "21,600"} <= set(numbers(text))
    lines = verdict_lines(*rows, tolerance=0.002)
    assert listed(lines)["onnx-int8"] == "1."
    assert "--variant onnx-int8 --no-check" in unfold(lines), "labelling itself has the default tolerance"


def test_a_variant_is_judged_by_its_worst_batching_and_timed_by_its_fastest():
    """Both sets of rows once got a verdict from their luckiest row."""
    lucky = [
        row("onnx-int8", 90 - i, flips=n / 512, decisions=512, batch_size=i + 1, max_diff=0.1)
        for i, n in enumerate((1, 2, 0, 0))
    ]
    assert ranks(*lucky, row("onnx", 60)) == [(1, "onnx"), (2, "onnx-int8")]
    several = [(15.6, "forward", 3), (15.9, "end-to-end", 4), (14.0, "forward", 16)]
    rows = [
        row("onnx-int8", speed, stage=stage, flips=n / 1792, decisions=1792, max_diff=0.1, batch_size=n)
        for speed, stage, n in several
    ]
    lines = verdict_lines(*rows, row("onnx", 12))
    assert listed(lines)["onnx-int8"] == "-" and {"15.9", "16", "1,792"} <= set(numbers(unfold(lines)))
    assert recommended(lines) == "onnx"


def test_a_check_on_more_texts_decides():
    """0 of 256 prove nothing; 0 of 4,000 do, and the row of the check has the verdict."""
    latest = {"date": "2026-11-26T00:00:00Z", "commit": "c"}
    cells = [row("torch-bf16", 90, max_diff=0.02, **latest), row("onnx", 30, **latest)]
    check = row("torch-bf16", 80, stage="check", max_diff=0.03, decisions=4000, within="yes", **latest)
    assert ranks(*cells)[0] == (1, "onnx") and ranks(*cells, check)[0] == (1, "torch-bf16")
    assert ranks(*cells, check | {"within": "not proven"})[0] == (1, "onnx")
    assert ranks(*cells, check | {"commit": "older", "date": "2020-01-01T00:00:00Z"})[0] == (1, "onnx")


def test_rows_of_another_commit_are_judged_separately():
    old = row("onnx-int8", 100, batch_size=32, flips=0.02, decisions=4000, commit="a", date="2026-11-25T00:00:00Z")
    new = row("onnx-int8", 50, decisions=4000, commit="b", date="2026-11-26T00:00:00Z", max_diff=0.1)
    ranked = rank(table(old | {"max_diff": 0.1}, new))
    assert ranked[["messages/s", "verdict"]].to_numpy().tolist() == [[50, WITHIN]]
    check = row(
        "torch-bf16", 80, stage="check", decisions=4000, within="yes", date="2026-11-25T00:00:00Z", max_diff=0.1
    )
    later = row("torch-bf16", 90, batch_size=32, flips=12 / 7168, decisions=7168, date="2026-11-26T00:00:00Z")
    assert rank(table(check, later | {"max_diff": 0.1}))["verdict"].tolist() != [WITHIN]


def test_a_busy_device_neither_hides_a_fast_variant_nor_gives_factors():
    lines = verdict_lines(row("onnx", 90, busy="1.00"), row("torch", 12, busy="0.02"))
    assert list(listed(lines).items()) == [("onnx", "1."), ("torch", "2.")], "a speed on a busy device is too low"
    busy, idle = (verdict(table(row("onnx", 90, busy=share))) for share in ("1.00", "0.02"))
    assert len(busy[2].split()) > len(idle[2].split()), "its line is marked"
    busy_base = verdict(table(BASE | {"busy": "0.9"}, row("onnx", 30)))
    assert not re.search(r"\dx ", unfold(busy_base))
    later = {"date": "2026-11-26T00:00:00Z", "busy": "0.9"}
    ranked = rank(table(row("onnx", 30, date="2026-11-25T00:00:00Z", busy="0"), row("onnx", 3, **later)))
    assert ranked["messages/s"].tolist() == [30], "the latest idle row"


def test_a_token_budget_wins_a_tie():
    budget = {"batching": "token-budget", "batch_size": "", "batch_tokens": 512}
    assert ranks(row("onnx", 30, 1, max_diff=1e-6), row("torch", 29.5, 1, max_diff=2e-6, **budget))[0] == (1, "torch")


def test_a_factor_is_over_the_fastest_baseline_or_fp32_torch():
    quick = row("onnx", 30), row("torch", 12, batching="token-budget", batch_size="", batch_tokens=512)
    lines = verdict(table(*quick))
    assert " 2.5x " in lines[2] and " 1.0x " in lines[3], "no row is in file order"
    assert any("12 messages/s" in line and "512 tokens" in line for line in lines[4:])
    faster = BASE | {"messages/s": 20, "max": 20}
    assert " 2.5x " in verdict(table(faster, *quick))[2], "end to end, if there is such a row"
    assert " 2.0x " in verdict(table(*quick, row("pipeline", 9), row("optimum-pipeline", 15)))[2]
    assert " 3.0x " in verdict(table(BASE, BASE | {"messages/s": 6, "min": 6, "batch_size": 16}, row("onnx", 30)))[2]
    without_base = verdict(table(row("onnx", 30)))
    assert "onnx" in without_base[2] and not re.search(r"\dx ", "".join(without_base))


def last_command(lines: list[str]) -> list[str]:
    start = max(i for i, line in enumerate(lines) if line.strip().startswith("python "))
    return shlex.split(" ".join(line.rstrip("\\").strip() for line in lines[start:]))


def test_the_next_command_labels_the_users_file(monkeypatch):
    texts = {"dataset": "my {file}.csv", "column": "text", "delimiter": "\t", "encoding": "latin-1", "threshold": "0.3"}
    words = last_command(verdict_lines(row("onnx", 30), **texts, results_dir=Path("mine")))
    assert words[:4] == ["python", "classify_texts.py", "ann/a model", "my {file}.csv"]
    monkeypatch.setattr(sys, "argv", words[1:])
    args = classify_texts.parse_arguments()
    assert (args.column, args.delimiter, args.encoding, args.threshold) == ("text", "\t", "iso8859-1", "0.3")
    assert (args.device, args.results_dir, args.variant) == ("cpu", Path("mine"), None)
    assert "FILE" in last_command(verdict_lines(row("onnx", 30))), "the bundled texts are nobody's job"


def test_the_further_check_has_the_same_texts_and_enough_time(monkeypatch):
    texts = {"dataset": "my {file}.csv", "column": "text", "delimiter": "\t", "threshold": "0.3", "tolerance": 0.002}
    words = last_command(verdict_lines(row("onnx", 30), row("torch-bf16", 90, max_diff=0.02), texts=9000, **texts))
    monkeypatch.setattr(sys, "argv", words[1:])
    args = run_benchmark.parse_arguments()
    assert (args.variant, args.model_id, args.dataset) == (["torch-bf16"], "ann/a model", "my {file}.csv")
    assert (args.column, args.delimiter, args.threshold, args.tolerance) == ("text", "\t", "0.3", 0.002)
    assert args.quick and args.check_time >= 2 * 1300 / 100, "100 texts/s of the original model"


def found(changed: int, decisions: int) -> Evidence:
    texts = decisions // 8
    return Evidence(dict.fromkeys(range(texts), 0) | dict.fromkeys(range(changed), 1), decisions, 0.1)


def test_evidence_decides_whatever_the_rows_say():
    int8 = row("onnx-int8", 90, flips=1 / 256, max_diff=0.1, versions="v", commit="a")
    evidence = EvidenceFile()
    key = dict.fromkeys(KEYS, "x") | {name: int8[name] for name in ROW_KEYS} | {"long": "cut"}
    evidence.found[tuple(key.values())] = found(0, 8000)
    ranked = rank(table(int8, row("onnx", 60)), evidence)
    assert ranked[["variant", "verdict"]].to_numpy()[0].tolist() == ["onnx-int8", WITHIN]
    assert ranked[["flips", "decisions", "per_text"]].iloc[0].tolist() == [0, 8000, 8]
    other_commit = int8 | {"commit": "b", "date": "2026-11-26T00:00:00Z"}
    assert rank(table(int8, other_commit), evidence)["verdict"].tolist() == [WITHIN]
    evidence.found[tuple(key.values())] = found(9, 8000)
    assert rank(table(int8, row("onnx", 60)), evidence)["variant"].iloc[0] == "onnx"
    evidence.found[tuple((key | {"versions": "older"}).values())] = evidence.found.popitem()[1]
    assert rank(table(int8), evidence)["decisions"].tolist() == [256], "of other versions"
