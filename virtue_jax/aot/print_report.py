"""A compile report for people: tables of memory, arithmetic, exchange and time."""

from rich.console import Console
from rich.table import Table

GIB = 2**30
MOST_LINES = 12  # of collectives, and of what is slow


def print_report(report: dict, console: Console) -> None:
    """report: of `virtue_jax/aot/report.py`."""
    mesh = " x ".join(f"{name} {size}" for name, size in report["mesh"].items())
    pairs = "" if report["pairs"] is None else f" ({report['pairs']:.0f} packed on published lengths)"
    console.print(f"{report['chips']} {report['chip']} chips, mesh {mesh}; batch {report['batch']}{pairs}")
    _print_memory(report, console)
    if report["prediction"] is None:
        for stage, message in report["failures"].items():
            console.print(f"{stage}: the compiler: {message}")
    else:
        _print_flops(report, console)
        _print_collectives(report, console)
        _print_slowest(report, console)
        _print_time(report, console)
    seconds = ", ".join(f"{name} {value:.0f} s" for name, value in report["compile_seconds"].items())
    console.print(f"compiled: {seconds}; remat {report['numerics']['remat']!r}")
    console.print("fits" if report["fits"] else "DOES NOT FIT")


def _print_memory(report: dict, console: Console) -> None:
    memory = report["memory"]
    table = Table("one chip, GiB", "arguments", "outputs", "temporaries", "peak with what stays", "headroom")
    for name, stage in report["memory"]["stages"].items():
        failed = name in report["failures"]
        sizes = [stage[key] / GIB for key in ("arguments", "outputs", "temporaries", "peak")]
        left = (memory["size"] - stage["peak"]) / GIB
        table.add_row(name, *(["does not fit"] + [""] * 4 if failed else [f"{size:.2f}" for size in (*sizes, left)]))
    console.print(table)
    stays = ", ".join(f"{name} {size / GIB:.2f}" for name, size in memory["resident"].items())
    console.print(f"stays on a chip of {memory['size'] / GIB:.2f} GiB: {stays}")
    if not report["fits"]:
        split = report["mesh"]["fsdp"] * report["mesh"]["tensor"] > 1
        what = "largest arrays of one chip" + (", intermediate ones before fsdp and tensor split them" if split else "")
        largest = Table("GiB", what, "parameter or source")
        for array in memory["largest"]:
            largest.add_row(f"{array['bytes'] / GIB:.2f}", array["what"], array["source"])
        console.print(largest)


def _print_flops(report: dict, console: Console) -> None:
    flops, chips = report["flops"], report["chips"]
    named = ("useful", "capacity", "executed", "compiled")
    counts = ", ".join(f"{name} {flops[name] / chips / 1e12:.1f}" for name in named if flops[name])
    console.print(
        f"TFLOP a step and chip: {counts} (useful: real tokens; capacity: full rows; executed: by the cost model; "
        f"compiled: counted in the program); wasted {report['waste']:.0%}"
    )


def _print_collectives(report: dict, console: Console) -> None:
    table = Table("stage", "exchange", "axes", "network", "times", "MB sent by a chip", "ms", "overlapped", "for")
    for line in report["collectives"][:MOST_LINES]:
        names = (line["stage"], line["kind"], line["axis"], line["network"], f"{line['count']:.0f}")
        hidden = "yes" if line["asynchronous"] and line["network"] == "ici" else "no"
        table.add_row(*names, f"{line['bytes'] / 1e6:.2f}", f"{line['seconds'] * 1e3:.2f}", hidden, line["what"][-50:])
    rest = report["collectives"][MOST_LINES:]
    if rest:
        table.add_row(f"{len(rest)} more", *[""] * 4, f"{sum(line['bytes'] for line in rest) / 1e6:.2f}")
    console.print(table)


def _print_slowest(report: dict, console: Console) -> None:
    columns = {"ms": "seconds", "of it HBM": "memory"}
    if report["prediction"]["cycles"]:  # what low effort estimates means nothing
        columns["ms by cycles"] = "cycles"
    table = Table("stage", "slowest lines and kernels", *columns, "GB", "TFLOP")
    for line in report["slowest"][:MOST_LINES]:
        times = (f"{line[name] * 1e3:.1f}" for name in columns.values())
        amounts = (f"{line['bytes'] / 1e9:.1f}", f"{line['flops'] / 1e12:.1f}")
        table.add_row(line["stage"], line["source"], *times, *amounts)
    console.print(table)


def _print_time(report: dict, console: Console) -> None:
    terms = ", ".join(f"{name} {seconds:.3f}" for name, seconds in report["terms"].items())
    console.print(f"roofline, seconds a step: {terms}")
    table = Table("predicted by", "seconds", "MFU", "pairs/s")
    accounts = {**report["prediction"], "calibrated": report["calibrated"]}
    for name, account in accounts.items():
        if account:
            table.add_row(
                name, f"{account['seconds']:.3f}", f"{account['mfu']:.3f}", f"{account['pairs_per_second']:.0f}"
            )
    console.print(table)
