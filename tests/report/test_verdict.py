"""The verdict: ranks, ties, variants that are not within tolerance, and the next command."""

import re
from argparse import Namespace

import pytest

from bench.judge import WITHIN
from bench.report.rows import COLUMNS, completed_rows, latest_per_cell
from bench.report.verdict import rank, verdict
from run_benchmark import follow_up_commands
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


def asked(quick: bool, **options) -> Namespace:
    same = {"quick": quick, "model_id": "ann/a model", "device": "cpu", "gpu": 0, "threads": 2, "threshold": None}
    texts = {"dataset": "normal", "column": "body", "task": None, "pooling": None}
    csv = {"delimiter": None, "encoding": "utf-8", "quoting": None, "escape": None}
    return Namespace(**same | texts | csv | options)


def table(*rows):
    return latest_per_cell(completed_rows(list(rows))[0])


def verdict_lines(*rows, quick: bool = False) -> list[str]:
    lines = verdict(table(BASE, *rows), *follow_up_commands(asked(quick)))
    assert max(map(len, lines)) <= 80
    return lines


def unfold(lines: list[str]) -> str:
    return " ".join(" ".join(lines).split())


def listed(lines: list[str]) -> dict[str, str]:
    """Return variant -> its mark: its rank, `?` if it is not proven, `-` if it is not within tolerance."""
    entries = [line.split()[:2] for line in lines if line.split()[1:2] and line.split()[1] in VARIANTS]
    return {variant: mark for mark, variant in entries}


def advice(lines: list[str]) -> str:
    """Return the sentences between the table, which ends with a speed, and the commands."""
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
    assert ranks(*rows, row("openvino-bf16", 999, stage="forward"))[2:] == [(3, "openvino-bf16")]


def test_variants_with_overlapping_spreads_tie_and_the_closest_to_the_original_is_recommended():
    fast, slow = row("onnx-int8", 31, 1, max_diff=0.01, decisions=3000), row("onnx", 29.5, 0.6)
    assert ranks(fast, slow) == [(1, "onnx"), (1, "onnx-int8")]
    assert ranks(fast, slow | {"max": 29.9}) == [(1, "onnx-int8"), (2, "onnx")]
    assert ranks(fast | {"min": 31, "passes": 1}, slow | {"max": 29.5, "passes": 1})[0] == (1, "onnx")
    lines = verdict_lines(fast, slow)
    assert lines[2].split()[:10] == ["1.", "onnx", "29.5", "messages/s", "3.0x", "1", "x", "2,", "8", "sorted"]
    assert listed(lines) == {"onnx": "1.", "onnx-int8": "1.", "torch": "3."}
    assert recommended(lines) == "onnx" and "2" in numbers(advice(lines))


def test_variants_not_within_tolerance_come_last_with_their_count():
    wrong = row("onnx-int8", 90, flips=3 / 256, max_diff=0.1)
    lines = verdict_lines(wrong, row("onnx", 30), row("torch", 12))
    assert list(listed(lines).items()) == [("onnx", "1."), ("torch", "2."), ("onnx-int8", "-")]
    [line] = [line for line in lines if "onnx-int8" in line]
    assert numbers(line)[-2:] == ["3", "256"] and recommended(lines) == "onnx"
    lines = verdict_lines(wrong, BASE | {"flips": 1})
    assert set(listed(lines).values()) == {"-"} and recommended(lines) is None and "python" not in unfold(lines)


def test_an_unproven_variant_is_not_recommended_and_its_possible_gain_is_printed():
    lines = verdict_lines(row("torch-bf16", 90, max_diff=0.02), row("onnx", 30), row("torch", 12))
    assert list(listed(lines).items()) == [("onnx", "1."), ("torch", "2."), ("torch-bf16", "?")]
    text = unfold(lines)
    assert all(number in numbers(text) for number in ("0", "256", "0.00", "1.43", "4,124"))
    assert recommended(lines) == "onnx" and "3.0" in numbers(advice(lines))
    assert "python run_benchmark.py --model torch,torch-bf16 " in text and "--check-time" in text
    assert listed(verdict_lines(row("torch-bf16", 90, max_diff=0.02, decisions=7000)))["torch-bf16"] == "1."


def test_near_the_tolerance_the_interval_is_the_answer():
    """19 of 21,600 decisions on 2,700 comments: a feasible number of texts decides nothing."""
    lines = verdict_lines(row("onnx-int8", 90, flips=19 / 21_600, decisions=21_600, max_diff=0.1))
    text = unfold(lines)
    assert all(number in numbers(text) for number in ("0.05", "0.14", "95", "0.10"))
    assert listed(lines)["onnx-int8"] == "?" and "--check-time" not in text
    assert recommended(lines) == "torch" and "9.0" in numbers(advice(lines)), "the price in speed"


def test_a_variant_is_judged_by_its_worst_batching_and_timed_by_its_fastest():
    """Both sets of rows once got a verdict from their luckiest row."""
    lucky = [
        row("onnx-int8", 90 - i, flips=n / 512, decisions=512, batch_size=i + 1, max_diff=0.1)
        for i, n in enumerate((1, 2, 0, 0))
    ]
    assert ranks(*lucky, row("onnx", 60)) == [(1, "onnx"), (2, "onnx-int8")]
    several = [(15.6, "forward", 3), (15.9, "end-to-end", 4), (14.0, "forward", 6)]
    rows = [
        row("onnx-int8", speed, stage=stage, flips=n / 1792, decisions=1792, max_diff=0.1, batch_size=n)
        for speed, stage, n in several
    ]
    lines = verdict_lines(*rows, row("onnx", 12))
    [line] = [line for line in lines if "onnx-int8" in line]
    assert listed(lines)["onnx-int8"] == "-" and "15.9" in line and numbers(line)[-2:] == ["6", "1,792"]
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


def test_measurements_on_a_busy_device_rank_after_the_others():
    lines = verdict_lines(row("onnx", 90, busy="1.00"), row("torch", 12, busy="0.02"))
    assert list(listed(lines).items()) == [("torch", "1."), ("onnx", "2.")] and recommended(lines) == "torch"
    busy, idle = (verdict(table(row("onnx", 90, busy=share))) for share in ("1.00", "0.02"))
    assert len(busy[2].split()) > len(idle[2].split()), "its line is marked"
    assert "--resume" in unfold(busy) and "--resume" not in unfold(idle)


def test_a_token_budget_wins_a_tie():
    budget = {"batching": "token-budget", "batch_size": "", "batch_tokens": 512}
    assert ranks(row("onnx", 30, 1, max_diff=1e-6), row("torch", 29.5, 1, max_diff=2e-6, **budget))[0] == (1, "torch")


def test_the_factor_is_over_eager_torch_at_its_best_in_order():
    lines = verdict_lines(row("onnx", 30), BASE | {"messages/s": 6, "min": 6, "max": 6, "batch_size": 16})
    assert " 3.0x " in lines[2] and any("10 messages/s" in line for line in lines[3:])
    without_base = verdict(table(row("onnx", 30)))
    assert "onnx" in without_base[2] and not re.search(r"\dx ", without_base[2])


@pytest.mark.parametrize("quick", [True, False])
def test_the_next_command_can_be_copied(quick):
    lines = verdict_lines(row("onnx", 30), row("torch-bf16", 9, decisions=3000), quick=quick)
    start = max(i for i, line in enumerate(lines) if line.strip().startswith("python "))
    command = " ".join(line.rstrip("\\").strip() for line in lines[start:])
    if quick:
        assert command.startswith("python run_benchmark.py --model torch,onnx,torch-bf16 --device cpu")
        assert "--batches 8,32" in command, "with the winner's batch size"
    else:
        assert command == "python classify_texts.py 'ann/a model' FILE --output labels --device cpu"
    assert "'ann/a model'" in command


def commands(args: Namespace) -> list[str]:
    check, following = follow_up_commands(args)
    return [check(["onnx"]), following({"batch_size": 0, "batch_tokens": 512}, ["torch", "onnx"])]


def test_the_next_command_keeps_the_users_texts():
    texts = {"dataset": "my {file}.csv", "column": "text", "delimiter": "\t", "encoding": "latin-1"}
    expected = " --dataset 'my {file}.csv' --column text --delimiter tab --encoding latin-1 --threshold 0.3 --threads 2"
    assert all(expected in command for command in commands(asked(True, threshold="0.3", **texts)))
    options = set(" ".join(commands(asked(True))).split())
    assert not {"--dataset", "--column", "--delimiter", "--encoding", "--threshold", "--gpu"} & options
    assert commands(asked(False, threshold="0.3"))[1].endswith(" --device cpu --threshold 0.3")
