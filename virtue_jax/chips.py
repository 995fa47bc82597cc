"""What a prediction needs to know of every TPU chip, in one table.

Peaks, memory bandwidth and networks: each chip's page of the Cloud TPU documentation, as of 2026; v4's links from the
all-reduce bandwidth of its pod. `hbm` is what the compiler of libtpu 0.0.42 says there is when a program does not fit.
Clock rates are not documented: they are peak / (FLOPs of all matrix units in a cycle, by the documented number and size
of them), at which the compiler's cycles for one large product come to 0.78 to 0.94 of the peak (v6e, v5p).
"""

import re
from dataclasses import dataclass

GIB = 2**30
# Of chips in a flat torus, whose slices have one shape for each size; the others' sides are the compiler's to judge.
FLAT_SLICES = ("1x1", "2x2", "2x4", "4x4", "4x8", "8x8", "8x16", "16x16")
_NAME = re.compile(r"([a-z0-9]+):((?:[1-9]\d*x){1,2}[1-9]\d*)")


@dataclass(frozen=True)
class Chip:
    """One jax device: a whole chip, or one of the two TensorCores of a tpu7x.

    kind: `jax.Device.device_kind`. peak: FLOP/s in bfloat16. hbm: bytes for programs; hbm_bandwidth: bytes/s.
    link: bytes/s over one link of the torus, one way; links: per device. dcn: bytes/s to other slices, the pod's
    data-centre bandwidth over its chips. clock: Hz. flat: whether its slices have two sides, else three.
    """

    name: str
    kind: str
    peak: float
    hbm: int
    hbm_bandwidth: float
    link: float
    links: int
    dcn: float
    clock: float
    flat: bool = False
    devices_per_chip: int = 1


CHIPS = {
    chip.name: chip
    for chip in (
        Chip("v4", "TPU v4", 275e12, int(30.75 * GIB), 1200e9, 45e9, 6, 6.25e9, 1.05e9),
        Chip("v5e", "TPU v5 lite", 197e12, int(15.75 * GIB), 819e9, 50e9, 4, 3.125e9, 1.5e9, flat=True),
        Chip("v5p", "TPU v5", 459e12, int(95.74 * GIB), 2765e9, 100e9, 6, 6.25e9, 1.75e9),
        Chip("v6e", "TPU v6 lite", 918e12, int(31.25 * GIB), 1640e9, 100e9, 4, 12.5e9, 1.75e9, flat=True),
        Chip("tpu7x", "TPU7x", 1153.5e12, int(94.75 * GIB), 3690e9, 50e9, 6, 6.25e9, 2.2e9, devices_per_chip=2),
    )
}


def chip_of(topology: str) -> Chip:
    """The chip of "v5e:16x16".

    Raises:
        ValueError: not CHIP:AxB or CHIP:AxBxC with a chip of the table, or not a slice that the chip has.
    """
    match = _NAME.fullmatch(topology)
    if match is None or match[1] not in CHIPS:
        expected = f"CHIP:AxB or CHIP:AxBxC, like v5e:16x16 or v5p:8x8x8; chips: {', '.join(CHIPS)}"
        raise ValueError(f"topology {topology!r}: expected {expected}")
    chip = CHIPS[match[1]]
    if chip.flat and match[2] not in FLAT_SLICES:
        raise ValueError(f"topology {topology!r}: slices of {chip.name} are {', '.join(FLAT_SLICES)}")
    if not chip.flat and match[2].count("x") != 2:
        raise ValueError(f"topology {topology!r}: slices of {chip.name} have three sides, as {chip.name}:4x4x4")
    return chip
