"""The verdict: ranks, ties, what is not right, and the next command."""

from argparse import Namespace

import pytest

from bench.report.rows import COLUMNS, completed_rows, latest_per_cell
from bench.report.verdict import rank, verdict
from run_benchmark import next_command


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
    same = {"quick": quick, "model_id": "ann/a model", "device": "cpu", "threads": 2}
    return Namespace(**same | {"dataset": "normal", "column": "body"} | options)


def table(*rows):
    return latest_per_cell(completed_rows(list(rows))[0])


def told(*rows, quick: bool = False) -> list[str]:
    lines = verdict(table(BASE, *rows), next_command(asked(quick)))
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
    fast, slow = row("onnx-int8", 31, 1, max_diff=0.01), row("onnx", 29.5, 0.6)
    assert ranks(fast, slow) == [(1, "onnx"), (1, "onnx-int8")]
    assert ranks(fast, slow | {"max": 29.9}) == [(1, "onnx-int8"), (2, "onnx")]
    assert ranks(fast | {"min": 31, "passes": 1}, slow | {"max": 29.5, "passes": 1})[0] == (1, "onnx")
    lines = told(fast, slow)
    assert lines[2].split() == ["1.", "onnx", "29.5", "messages/s", "3.0x", "1", "x", "2,", "8", "sorted", "(tie)"]
    assert any(line.startswith("Take onnx, the closest to the original of 2 that tie") for line in lines)


def test_what_is_not_within_tolerance_stands_apart_with_its_count():
    lines = told(row("onnx-int8", 90, flips=3 / 256), row("onnx", 30), row("torch", 12))
    assert [line.split()[1] for line in lines[2:4]] == ["onnx", "torch"]
    assert lines[4].startswith("Not within tolerance") and lines[5].startswith("-   onnx-int8")
    assert lines[5].endswith("; 3 of 256")
    assert told(row("onnx-int8", 90, flips=3 / 256), BASE | {"flips": 1})[-1] == "None of them is within tolerance."


def test_too_few_texts_to_tell_are_said():
    lines = told(row("torch-bf16", 90, max_diff=0.02), row("onnx", 30), row("torch", 12))
    assert [line.split()[1] for line in lines[2:5]] == ["torch-bf16", "onnx", "torch"]
    words = " ".join(lines)
    assert "Too few texts to tell whether they change more than 0.1%: torch-bf16 (0 of 256)" in words
    assert "onnx (0" not in words, "as close as rounding"
    assert "Too few" not in " ".join(told(row("torch-bf16", 90, max_diff=0.02, decisions=7000)))


def test_the_factor_is_over_eager_torch_at_its_best_in_order():
    lines = told(row("onnx", 30), BASE | {"messages/s": 6, "min": 6, "max": 6, "batch_size": 16})
    assert " 3.0x " in lines[2] and any("10 messages/s" in line for line in lines[3:])
    alone = verdict(table(row("onnx", 30)), "next")
    assert not any("x " in line.split("messages/s")[1].split("1 x")[0] for line in alone[2:3])


@pytest.mark.parametrize("quick", [True, False])
def test_the_next_command_can_be_copied(quick):
    lines = told(row("onnx", 30), row("torch-bf16", 9), quick=quick)
    at = next(i for i, line in enumerate(lines) if line.endswith("Next:")) + 1
    command = " ".join(line.rstrip("\\").strip() for line in lines[at:])
    if quick:
        assert command.startswith("python run_benchmark.py --model torch,onnx,torch-bf16 --device cpu")
    else:
        assert command == "python classify_texts.py 'ann/a model' FILE --output labels --device cpu"
    assert "'ann/a model'" in command


def test_the_next_command_keeps_the_users_texts():
    command = next_command(asked(True, dataset="my file.csv", column="text"))
    assert " --dataset 'my file.csv' --column text --threads 2" in command
    assert "--dataset" not in next_command(asked(True)) and "--column" not in next_command(asked(True))
