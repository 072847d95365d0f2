"""The verdict: ranks, ties, what is not right, and the next command."""

from argparse import Namespace

import pytest

from bench.report.rows import COLUMNS, completed_rows, latest_per_cell
from bench.report.verdict import rank, verdict
from run_benchmark import next_commands


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
    same = {"quick": quick, "model_id": "ann/a model", "device": "cpu", "threads": 2, "threshold": None}
    return Namespace(**same | {"dataset": "normal", "column": "body"} | options)


def table(*rows):
    return latest_per_cell(completed_rows(list(rows))[0])


def told(*rows, quick: bool = False) -> list[str]:
    lines = verdict(table(BASE, *rows), *next_commands(asked(quick)))
    assert max(map(len, lines)) <= 80
    return lines


def ranks(*rows) -> list[tuple[int, str]]:
    ranked = rank(table(*rows))
    return list(zip(ranked["rank"], ranked["variant"], strict=True))


def test_variants_are_ranked_at_their_best_end_to_end():
    rows = [row("onnx", 30), row("onnx", 20, batch_size=16), row("onnx", 99, stage="forward"), row("torch", 50)]
    assert ranks(*rows) == [(1, "torch"), (2, "onnx")]
    assert ranks(*rows, row("openvino-bf16", 999, stage="forward"))[2:] == [(3, "openvino-bf16")]


def test_variants_whose_spread_overlaps_tie_and_the_closest_to_the_original_is_taken():
    fast, slow = row("onnx-int8", 31, 1, max_diff=0.01, decisions=3000), row("onnx", 29.5, 0.6)
    assert ranks(fast, slow) == [(1, "onnx"), (1, "onnx-int8")]
    assert ranks(fast, slow | {"max": 29.9}) == [(1, "onnx-int8"), (2, "onnx")]
    assert ranks(fast | {"min": 31, "passes": 1}, slow | {"max": 29.5, "passes": 1})[0] == (1, "onnx")
    lines = told(fast, slow)
    assert lines[2].split() == ["1.", "onnx", "29.5", "messages/s", "3.0x", "1", "x", "2,", "8", "sorted", "(tie)"]
    assert any(line.startswith("Take onnx, the closest to the original of 2 that tie") for line in lines)


def test_what_is_not_within_tolerance_stands_apart_with_its_count():
    wrong = row("onnx-int8", 90, flips=3 / 256, max_diff=0.1)
    lines = told(wrong, row("onnx", 30), row("torch", 12))
    assert [line.split()[1] for line in lines[2:4]] == ["onnx", "torch"]
    assert lines[4].startswith("Not within tolerance") and lines[5].startswith("-   onnx-int8")
    assert lines[5].endswith("; 3 of 256")
    assert told(wrong, BASE | {"flips": 1})[-1] == "None of them is proven to be within tolerance."


def test_what_is_not_proven_is_not_recommended_and_says_what_it_would_be_worth():
    lines = told(row("torch-bf16", 90, max_diff=0.02), row("onnx", 30), row("torch", 12))
    assert [line.split()[1] for line in lines[2:4]] == ["onnx", "torch"], "as close as rounding"
    assert lines[4].startswith("Not proven yet") and lines[5].split()[:2] == ["?", "torch-bf16"]
    words = " ".join(" ".join(lines).split())
    assert "0 of 256 changed: 0.00% to 1.43% of the decisions change" in words
    assert "about 4,124 more texts would tell" in words
    assert "Take onnx. What is not proven would be 3.0 times as fast." in words
    assert "To check more texts: python run_benchmark.py --model torch,torch-bf16" in words
    assert "Not proven" not in " ".join(told(row("torch-bf16", 90, max_diff=0.02, decisions=7000)))


def test_near_the_tolerance_the_interval_is_the_answer():
    """19 of 21,600 decisions on 2,700 comments: no number of texts that anybody would check decides."""
    words = " ".join(" ".join(told(row("onnx-int8", 90, flips=19 / 21_600, decisions=21_600, max_diff=0.1))).split())
    assert "0.05% to 0.14% of the decisions change (95% confidence), your tolerance is 0.10%" in words
    assert "times as many texts would hardly tell" in words and "To check more texts" not in words
    assert "Take torch. What is not proven would be 9.0 times as fast." in words, "the price in speed"


def test_a_variant_is_judged_by_its_worst_batching_and_timed_by_its_fastest():
    """The two verdicts that took the luckiest row, with their counts."""
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
    lines = told(*rows, row("onnx", 12))
    [line] = [line for line in lines if "onnx-int8" in line]
    assert line.startswith("-   ") and "15.9 messages/s" in line and line.endswith("; 6 of 1,792")
    assert "Take onnx." in lines


def test_texts_that_were_checked_behind_the_sweep_decide():
    """0 of 256 prove nothing; 0 of 4,000 do, and a row says so itself."""
    of_now = {"date": "2026-11-26T00:00:00Z", "commit": "c"}
    cells = [row("torch-bf16", 90, max_diff=0.02, **of_now), row("onnx", 30, **of_now)]
    check = row("torch-bf16", 80, stage="check", max_diff=0.03, decisions=4000, within="yes", **of_now)
    assert ranks(*cells)[0] == (1, "onnx") and ranks(*cells, check)[0] == (1, "torch-bf16")
    assert ranks(*cells, check | {"within": "not proven"})[0] == (1, "onnx")
    assert ranks(*cells, check | {"commit": "older", "date": "2020-01-01T00:00:00Z"})[0] == (1, "onnx")


def test_what_another_commit_measured_is_not_right_because_this_one_is():
    old = row("onnx-int8", 100, batch_size=32, flips=0.02, decisions=4000, commit="a", date="2026-11-25T00:00:00Z")
    new = row("onnx-int8", 50, decisions=4000, commit="b", date="2026-11-26T00:00:00Z", max_diff=0.1)
    found = rank(table(old | {"max_diff": 0.1}, new))
    assert found[["messages/s", "verdict"]].to_numpy().tolist() == [[50, "within tolerance"]]
    check = row(
        "torch-bf16", 80, stage="check", decisions=4000, within="yes", date="2026-11-25T00:00:00Z", max_diff=0.1
    )
    later = row("torch-bf16", 90, batch_size=32, flips=12 / 7168, decisions=7168, date="2026-11-26T00:00:00Z")
    assert rank(table(check, later | {"max_diff": 0.1}))["verdict"].tolist() != ["within tolerance"]


def test_what_was_measured_on_a_busy_device_is_not_ranked_beside_the_rest():
    lines = told(row("onnx", 90, busy="1.00"), row("torch", 12, busy="0.02"))
    assert [line.split()[:2] for line in lines[2:4]] == [["1.", "torch"], ["2.", "onnx"]]
    assert "busy device" in lines[3] and "Take torch." in lines
    words = " ".join(" ".join(verdict(table(row("onnx", 90, busy="1.00")), "settle", "next")).split())
    assert "Others kept the device busy: measure again when it is idle, with --resume." in words


def test_of_batchings_that_tie_one_with_a_token_budget_is_taken():
    budget = {"batching": "token-budget", "batch_size": "", "batch_tokens": 512}
    assert ranks(row("onnx", 30, 1, max_diff=1e-6), row("torch", 29.5, 1, max_diff=2e-6, **budget))[0] == (1, "torch")


def test_the_factor_is_over_eager_torch_at_its_best_in_order():
    lines = told(row("onnx", 30), BASE | {"messages/s": 6, "min": 6, "max": 6, "batch_size": 16})
    assert " 3.0x " in lines[2] and any("10 messages/s" in line for line in lines[3:])
    alone = verdict(table(row("onnx", 30)), "settle", "next")
    assert not any("x " in line.split("messages/s")[1].split("1 x")[0] for line in alone[2:3])


@pytest.mark.parametrize("quick", [True, False])
def test_the_next_command_can_be_copied(quick):
    lines = told(row("onnx", 30), row("torch-bf16", 9, decisions=3000), quick=quick)
    at = next(i for i, line in enumerate(lines) if line.endswith("Next:")) + 1
    command = " ".join(line.rstrip("\\").strip() for line in lines[at:])
    if quick:
        assert command.startswith("python run_benchmark.py --model torch,onnx,torch-bf16 --device cpu")
        assert "--batches 8,32" in command, "with what won"
    else:
        assert command == "python classify_texts.py 'ann/a model' FILE --output labels --device cpu"
    assert "'ann/a model'" in command


def test_the_next_command_keeps_the_users_texts():
    for command in next_commands(asked(True, dataset="my {file}.csv", column="text", threshold="0.3")):
        assert " --dataset 'my {{file}}.csv' --column text --threshold 0.3 --threads 2" in command
    assert not {"--dataset", "--column", "--threshold"} & set(" ".join(next_commands(asked(True))).split())
    assert next_commands(asked(False, threshold="0.3"))[1].endswith(" --device cpu --threshold 0.3")
