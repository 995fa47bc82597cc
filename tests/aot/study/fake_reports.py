"""Reports like `virtue compile --json` writes them, from a formula instead of a compiler."""

import json
import math
from pathlib import Path

GIB = 2**30
CHIPS = {"v4": (275e12, 30.75), "v5e": (197e12, 15.75), "v5p": (459e12, 95.74), "v6e": (918e12, 31.25)}
SIZES = {"2b": (2.0, 5.0), "7b": (7.0, 16.0)}


def fake_report(
    config: str, topology: str, batch: int, *, slices: int = 1, mesh: dict | None = None, overrides: dict | None = None
) -> dict:
    """Costs in proportion to pairs a chip; a network that costs more the more chips there are."""
    chip = topology.split(":")[0]
    chips = slices * math.prod(int(side) for side in topology.split(":")[1].split("x"))
    mesh = {"data": -1, "fsdp": 1, "tensor": 1} | (mesh or {})
    mesh["data"] = chips // (mesh["fsdp"] * mesh["tensor"]) if mesh["data"] == -1 else mesh["data"]
    (peak, size), (billions, weights) = CHIPS[chip], SIZES["7b" if "7b" in config else "2b"]
    share = batch / chips
    useful = 2e13 * billions * batch
    remat = (overrides or {}).get("numerics.remat", "layer")
    matrix = useful / chips / peak * (1.33 if remat == "layer" else 1.0)
    terms = {
        "matrix": matrix,
        "attention": 0.4 * matrix,
        "memory": 0.1 * matrix,
        "communication": 0.02 * math.log2(chips) + 0.3 * billions * (mesh["fsdp"] > 1) + 0.2 * (mesh["tensor"] > 1),
        "dcn": 0.1 * (slices - 1),
    }
    used = weights / mesh["fsdp"] / mesh["tensor"] + 0.06 * share * (1 if remat == "layer" else 4)
    fits = used <= size
    roofline, cycles = sum(terms.values()), 1.35 * sum(terms.values())
    bounds = {"roofline": roofline, "cycles": cycles}
    gather = {"stage": "gradients", "kind": "all-gather", "axis": "data", "network": "ici", "count": 3}
    reduce = {"stage": "gradients", "kind": "all-reduce", "axis": "data", "network": "ici", "count": 1}
    return {
        "format": 1,
        "inputs": {"config": config, "topology": topology, "slices": slices, "batch": batch, "overrides": overrides},
        "versions": {"jax": "0.0.fake", "libtpu": "0.0.fake"},
        "chip": chip,
        "chips": chips,
        "mesh": mesh | {"slices": slices},
        "batch": batch,
        "pairs": batch - 2.0,
        "numerics": {"remat": remat, "compute": "bfloat16"},
        "rows": {"images": {"rows": batch // 4, "micro_batches": 4, "slots": 1536, "patches": 2048, "vision_rows": 2}},
        "fits": fits,
        "memory": {
            "size": size * GIB,
            "peak": used * GIB,
            "headroom": (size - used) * GIB,
            "resident": {
                "frozen parameters": weights / mesh["fsdp"] / mesh["tensor"] * GIB,
                "batch": 0.01 * share * GIB,
            },
            "stages": {"towers": {"arguments": 1, "outputs": 1, "temporaries": 1, "peak": used * GIB}},
            "largest": [{"bytes": 1, "what": "x", "source": "y"}],
        },
        "flops": {"useful": useful, "capacity": 1.1 * useful, "executed": 1.3 * useful, "compiled": 1.5 * useful},
        "waste": 1 - 1 / 1.5,
        "collectives": [
            gather | {"bytes": 4e6 * batch, "seconds": 0.01, "asynchronous": False, "what": "slots of all chips"},
            reduce | {"bytes": 3e7, "asynchronous": True, "what": "adapter gradients"},
        ]
        if fits
        else None,
        "terms": terms if fits else None,
        "prediction": {
            name: {
                "seconds": seconds,
                "mfu": useful / chips / peak / seconds,
                "pairs_per_second": (batch - 2.0) / seconds,
            }
            for name, seconds in bounds.items()
        }
        if fits
        else None,
        "calibrated": None,
        "compile_seconds": {"towers": 20.0, "gradients": 60.0, "update": 1.0},
    }


def write_report(path: Path, report: dict) -> None:
    path.write_text(json.dumps(report))
