"""Reports like `virtue compile --json` writes them, from a formula instead of a compiler."""

import json
import math
from pathlib import Path

GIB = 2**30
CHIPS = {"v4": (275e12, 30.75), "v5e": (197e12, 15.75), "v5p": (459e12, 95.74), "v6e": (918e12, 31.25)}
SIZES = {"2b": (2.0, 5.0), "7b": (7.0, 16.0)}


def fake_report(
    config: str,
    topology: str,
    batch: int,
    *,
    slices: int = 1,
    mesh: dict | None = None,
    overrides: dict | None = None,
    effort: str = "full",
) -> dict:
    """Costs in proportion to pairs a chip; a network that costs more the more chips there are."""
    asked = {"slices": slices, "batch": batch, "overrides": overrides, "effort": effort}
    chip, shape = topology.split(":")
    chips = slices * math.prod(int(side) for side in shape.split("x"))
    mesh = {"data": -1, "fsdp": 1, "tensor": 1} | (mesh or {})
    mesh["data"] = chips // (mesh["fsdp"] * mesh["tensor"]) if mesh["data"] == -1 else mesh["data"]
    billions, weights = SIZES["7b" if "7b" in config else "2b"]
    remat = (overrides or {}).get("numerics.remat", "layer")
    useful = 2e13 * billions * batch
    memory = fake_memory(weights / mesh["fsdp"] / mesh["tensor"], batch / chips, remat, CHIPS[chip][1])
    report = {
        "format": 1,
        "inputs": {"config": config, "topology": topology} | asked,
        "versions": {"jax": "0.0.fake", "libtpu": "0.0.fake"},
        "chip": chip,
        "chips": chips,
        "mesh": mesh | {"slices": slices},
        "batch": batch,
        "pairs": batch - 2.0,
        "numerics": {"remat": remat, "compute": "bfloat16"},
        "rows": {"images": {"rows": batch // 4, "micro_batches": 4, "slots": 1536, "patches": 2048, "vision_rows": 2}},
        "fits": memory["headroom"] >= 0,
        "memory": memory,
        "flops": {"useful": useful, "capacity": 1.1 * useful, "executed": 1.3 * useful, "compiled": 1.5 * useful},
        "waste": 1 - 1 / 1.5,
        **dict.fromkeys(("collectives", "terms", "prediction", "calibrated")),
        "compile_seconds": {"towers": 20.0, "gradients": 60.0, "update": 1.0},
    }
    if report["fits"]:
        matrix = useful / chips / CHIPS[chip][0] * (1.33 if remat == "layer" else 1.0)
        report |= fake_pace(report, matrix, billions)
        if effort == "low":
            report["prediction"]["cycles"] = None
    return report


def fake_memory(weights: float, share: float, remat: str, size: float) -> dict:
    """weights, size: GiB. share: pairs of a chip."""
    used = weights + 0.06 * share * (1 if remat == "layer" else 4)
    return {
        "size": size * GIB,
        "peak": used * GIB,
        "headroom": (size - used) * GIB,
        "resident": {"frozen parameters": weights * GIB, "batch": 0.01 * share * GIB},
        "stages": {"towers": {"arguments": 1, "outputs": 1, "temporaries": 1, "peak": used * GIB}},
        "largest": [{"bytes": 1, "what": "x", "source": "y"}],
    }


def fake_pace(report: dict, matrix: float, billions: float) -> dict:
    """Terms, bounds and collectives; matrix: seconds."""
    mesh, chips, batch = report["mesh"], report["chips"], report["batch"]
    network = 0.02 * math.log2(chips) + 0.3 * billions * (mesh["fsdp"] > 1) + 0.2 * (mesh["tensor"] > 1)
    dcn = 0.1 * (mesh["slices"] - 1)
    terms = {"matrix": matrix, "attention": 0.4 * matrix, "memory": 0.1 * matrix, "communication": network, "dcn": dcn}
    share = report["flops"]["useful"] / chips / CHIPS[report["chip"]][0]
    seconds = {"roofline": sum(terms.values()), "cycles": 1.35 * sum(terms.values())}
    alike = {"stage": "gradients", "axis": "data", "network": "ici"}
    gather = {"kind": "all-gather", "count": 3, "bytes": 4e6 * batch, "seconds": 0.01, "asynchronous": False}
    reduce = {"kind": "all-reduce", "count": 1, "bytes": 3e7, "asynchronous": True}
    return {
        "terms": terms,
        "prediction": {
            bound: {"seconds": each, "mfu": share / each, "pairs_per_second": report["pairs"] / each}
            for bound, each in seconds.items()
        },
        "collectives": [
            alike | gather | {"what": "slots of all chips"},
            alike | reduce | {"what": "adapter gradients"},
        ],
    }


def write_report(path: Path, report: dict) -> None:
    path.write_text(json.dumps(report))
