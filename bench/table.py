"""Rows -> the printed table and the summary under it."""

# the columns of the printed table between variant and status, and how they are printed
PRINTED = {
    **dict.fromkeys(("workers", "threads", "size", "order", "timed"), ""),
    **{"messages/s": ".1f", "min": ".1f", "max": ".1f", "passes": "", "padding": ".3f", "tflops": ".3g"},
    **{"mfu": ".1%", "p50_ms": ".1f", "p99_ms": ".1f", "memory_mib": ".0f", "max_diff": ".2g", "flips": ".3%"},
}


def table_header() -> str:
    return " ".join(["variant".ljust(18), *(name.rjust(7) for name in PRINTED), " status"])


def table_line(row: dict) -> str:
    """Returns a row as a line of the printed table."""
    shown = [row["variant"].ljust(18)]
    for name, form in PRINTED.items():
        value = format(float(row[name]), form) if form and row[name] else row[name] or "-"
        shown.append(f"{value:>{max(len(name), 7)}}")
    throttled = f" (throttled: {row['throttled']})" if row["throttled"] not in ("", "no") else ""
    return "  ".join([" ".join(shown), row["status"] + throttled])


def summary(rows: list[dict], names: list[str]) -> list[str]:
    """Returns a line for each variant: its best row, and how many times as fast it is as the first variant's."""
    best = {}
    for row in rows:
        if row["status"] == "ok" and row["timed"] == "forward":
            best[row["variant"]] = max(best.get(row["variant"], row), row, key=lambda row: float(row["messages/s"]))
    lines = []
    for name in names:
        if name not in best:
            lines.append(f"{name:<18}         - no cell was measured")
            continue
        row, speed = best[name], float(best[name]["messages/s"])
        factor = speed / float(best[names[0]]["messages/s"]) if names[0] in best else float("nan")
        where = f"size {row['size']}, order {row['order']}, {row['workers']} worker(s) x {row['threads']} thread(s)"
        check = f"max_diff {float(row['max_diff']):.2g}, flips {float(row['flips']):.3%}"
        lines.append(f"{name:<18} {speed:>9.1f} messages/s {factor:>6.2f}x   {where}; {check}")
    return lines
