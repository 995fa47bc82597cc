"""What a prediction needs to know of every TPU chip, in one table.

Peaks, memory bandwidth and networks: each chip's page of the Cloud TPU documentation, as of 2026; v4's links from the
all-reduce bandwidth of its pod. `hbm` is what the compiler of libtpu 0.0.42 says there is when a program does not fit.
Clock rates are not documented: they are peak / (FLOPs of all matrix units in a cycle, by the documented number and size
of them), at which the compiler's cycles for one large product come to 0.78 to 0.94 of the peak (v6e, v5p).
"""

from dataclasses import dataclass

GIB = 2**30


@dataclass(frozen=True)
class Chip:
    """One jax device: a whole chip, or one of the two TensorCores of a tpu7x.

    kind: `jax.Device.device_kind`. peak: FLOP/s in bfloat16. hbm: bytes for programs; hbm_bandwidth: bytes/s.
    link: bytes/s over one link of the torus, one way; links: per device. dcn: bytes/s to other slices, the pod's
    data-centre bandwidth over its chips. clock: Hz.
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
    devices_per_chip: int = 1


CHIPS = {
    chip.name: chip
    for chip in (
        Chip("v4", "TPU v4", 275e12, int(30.75 * GIB), 1200e9, 45e9, 6, 6.25e9, 1.05e9),
        Chip("v5e", "TPU v5 lite", 197e12, int(15.75 * GIB), 819e9, 50e9, 4, 3.125e9, 1.5e9),
        Chip("v5p", "TPU v5", 459e12, int(95.74 * GIB), 2765e9, 100e9, 6, 6.25e9, 1.75e9),
        Chip("v6e", "TPU v6 lite", 918e12, int(31.25 * GIB), 1640e9, 100e9, 4, 12.5e9, 1.75e9),
        Chip("tpu7x", "TPU7x", 1153.5e12, int(94.75 * GIB), 3690e9, 50e9, 6, 6.25e9, 2.2e9, devices_per_chip=2),
    )
}
