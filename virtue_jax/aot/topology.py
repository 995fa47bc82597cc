"""Devices of TPU slices that are not there: what libtpu's compiler compiles for."""

import importlib.util
import os
from collections.abc import Sequence

import jax
from jax.experimental import topologies

from virtue_jax.chips import chip_of

# Without the first, libtpu asks a metadata server; without the second, a second process on the machine is refused; the
# others it would ask for in warnings, and does not use.
ENVIRONMENT = {
    "TPU_SKIP_MDS_QUERY": "1",
    "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
    "TPU_ACCELERATOR_TYPE": "v5litepod-4",
    "TPU_WORKER_HOSTNAMES": "localhost",
}


def prepare_environment() -> None:
    """Sets what the compiler needs to run on a machine without a TPU; before jax looks for devices."""
    os.environ.update(ENVIRONMENT)
    jax.config.update("jax_platforms", "cpu")


def topology_devices(topology: str, slices: int = 1) -> Sequence:
    """Compile-only devices of `slices` such slices. `prepare_environment` must have run first.

    Raises:
        ValueError: a topology that its chip has not, or that the compiler does not know.
        ModuleNotFoundError: libtpu is not installed.
    """
    chip = chip_of(topology)
    if importlib.util.find_spec("libtpu") is None:
        raise ValueError("the TPU compiler is not installed: pip install 'virtue_jax[tpu]' (libtpu; no TPU is needed)")
    options = {"chip_config_name": "megacore"} if chip.name == "v4" else {}  # else a v4 chip is two devices
    if slices > 1:
        options["num_slices"] = slices
    try:
        described = topologies.get_topology_desc(platform="tpu", topology_name=topology, **options)
    except Exception as error:  # libtpu says what it does not like in errors of several kinds
        reason = " ".join(str(error).split())[:300]
        raise ValueError(f"topology {topology!r} x {slices}: the TPU compiler does not know it: {reason}") from error
    return described.devices
