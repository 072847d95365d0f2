"""Rows -> the verdict: which variant to take, and what to do next."""

import shlex
import textwrap
from argparse import Namespace

import numpy as np

from bench.parity import TOLERANCE, decisions_needed, is_wrong, judge_row
from bench.table import batches, number

WIDTH = 80
NEAR = 1e-3  # of the probabilities: a change of decisions would be chance
ONE_PASS = 0.05  # how far the speed of one pass is taken to be off, either way


def rank(rows):
    """Ranks variants from texts to logits, each at its best: a DataFrame with the columns `rank` and `right` besides.

    `rows`: good rows of one model, device and dataset, one for each cell. Those that are not known to change more than
    TOLERANCE of the decisions are right, and come first. Variants whose spread overlaps that of the fastest of a rank
    share the rank, the closest to the original first. One that was not timed from texts counts by its forward passes,
    behind those that were.
    """
    right = [not is_wrong(row) for row in rows.to_dict("records")]
    rows = rows.assign(right=np.array(right, dtype=bool), from_texts=rows["timed"] == "texts")
    keys = ["right", "from_texts", "messages/s"]
    best = rows.sort_values(keys, ascending=False, kind="stable").drop_duplicates("variant")
    margin = best["messages/s"].where(~(best["passes"] > 1), 0) * ONE_PASS
    best = best.assign(low=best["min"] - margin, high=best["max"] + margin, rank=0)
    leader, ranks = None, []
    for i, row in enumerate(best.itertuples()):
        tied = leader is not None and (row.right, row.from_texts) == (leader.right, leader.from_texts)
        leader = leader if tied and row.high >= leader.low else row
        ranks.append(ranks[-1] if leader is not row else i + 1)
    best = best.assign(rank=ranks, off=best["max_diff"].round(4))  # what is closer than that is rounding
    return best.sort_values(["rank", "off"], kind="stable").drop(columns=["low", "high", "off"])


def verdict(rows, command: str) -> list[str]:
    """Returns the verdict as lines of at most 80 columns, the command to copy at the end.

    `rows`: as for rank(); `command`: what to do next, with {variant} for the winner and {candidates} for a comma list
    of it and those behind it.
    """
    ranked = rank(rows)
    right, wrong = ranked[ranked["right"]], ranked[~ranked["right"]]
    torch = rows[(rows["variant"] == "torch") & (rows["order"] == "dataset") & (rows["timed"] == "forward")]
    base = torch["messages/s"].max()

    def line(row, before: str, after: str) -> str:
        factor = f"{row['messages/s'] / base:.1f}x" if len(torch) else ""
        how = batches(row | {"timed": ""})
        words = f"{before:<4}{row['variant']:<19}{number(row['messages/s']):>8} messages/s {factor:>6}  "
        return f"{words}{row['workers']} x {row['threads']}, {how}{after}".rstrip()

    lines = ["", "From texts to logits, each variant at its best (workers x threads, batches):"]
    for row in right.to_dict("records"):
        tied = " (tie)" if list(right["rank"]).count(row["rank"]) > 1 else ""
        lines.append(line(row, f"{row['rank']}.", ("" if row["from_texts"] else " (forward)") + tied))
    if len(wrong):
        lines.append(f"Not right, since they change more than {TOLERANCE:.1%} of the decisions:")
    for row in wrong.to_dict("records"):
        lines.append(line(row, "-", f"; {flips_of(row)}"))
    lines += doubts(right)
    if len(torch):
        lines.append(f"1.0x is eager FP32 torch in dataset order, its forward passes: {number(base)} messages/s.")
    if right.empty:
        return [*lines, "None of them is right."]
    winner, first = right.iloc[0], right[right["rank"] == 1]
    words = f"Take {winner['variant']}"
    words += f", the closest to the original of {len(first)} that tie." if len(first) > 1 else "."
    words += "" if (right["passes"] > 1).all() else f" (Measured once, a speed counts as +-{ONE_PASS:.0%}.)"
    candidates = ",".join(dict.fromkeys(["torch", *right["variant"][:3]]))
    command = command.format(variant=winner["variant"], candidates=candidates)
    return [*lines, f"{words} Next:", *fold(command)]


def flips_of(row) -> str:
    """Returns the changed decisions as a count; as a share where older rows have no count."""
    if np.isfinite(row["decisions"]):
        return f"{round(row['flips'] * row['decisions'])} of {row['decisions']:,.0f}"
    return f"{row['flips']:.2%}"


def doubts(rows) -> list[str]:
    """Names the variants of which too few texts were checked; none within NEAR of the original."""
    names, needed = [], []
    for row in rows[rows["decisions"].notna() & (rows["max_diff"] > NEAR)].to_dict("records"):
        if judge_row(row) is None:
            names.append(f"{row['variant']} ({flips_of(row)})")
            decisions = int(row["decisions"])
            needed.append((decisions_needed(round(row["flips"] * decisions), decisions) or 0) / decisions)
    if not names:
        return []
    enough = f"about {max(needed):.1f} times as many would do" if all(needed) else "more would hardly tell"
    words = f"Too few texts to tell whether they change more than {TOLERANCE:.1%}: {', '.join(names)}; {enough}"
    return textwrap.wrap(f"{words} (export_onnx.py checks more).", WIDTH)


def fold(command: str) -> list[str]:
    """Folds a command before its options, so that it can be copied from lines of at most 80 columns."""
    first, *options = command.split(" --")
    lines = [f"  {first}"]
    for option in options:
        if len(lines[-1]) + len(option) + 5 > WIDTH:
            lines[-1] += " \\"
            lines.append("   ")
        lines[-1] += f" --{option}"
    return lines


def next_command(args: Namespace) -> str:
    """Returns the command that follows a run, for verdict(): after a first look a longer one, else the labelling."""
    given = args.model_id, args.dataset, args.column
    model, dataset, column = (shlex.quote(text).replace("{", "{{").replace("}", "}}") for text in given)
    if not args.quick:
        return f"python classify_texts.py {model} FILE --output labels --device {args.device}"
    words = f"python run_benchmark.py --model {{candidates}} --device {args.device} --model-id {model}"
    words += f" --dataset {dataset}" * (args.dataset != "normal") + f" --column {column}" * (args.column != "body")
    sizes = "8 --batch-tokens 512,1024,2048" if args.device == "cpu" else "1,32,128"
    return f"{words} --threads {args.threads} --limit 500 --order dataset,length,tokens --batches {sizes}"
