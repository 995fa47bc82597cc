"""The compiler flags of a launch, each with its reason: one table for `virtue compile`, `virtue flags` and launch/."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Flag:
    """One compiler option. reason: what it changes for this program, and how that is known."""

    name: str
    value: str
    reason: str


# Names as in MaxText's published launch settings; effects as the compiled steps of this package show them.
_ASYNC_GATHERS = (
    Flag(
        "xla_enable_async_all_gather",
        "true",
        "fsdp: weight gathers may be started early; without this group v6e makes every gather wait",
    ),
    Flag(
        "xla_tpu_enable_async_collective_fusion",
        "true",
        "fsdp: a started gather is fused with the arithmetic that runs beside it",
    ),
    Flag(
        "xla_tpu_enable_async_collective_fusion_fuse_all_gather",
        "true",
        "fsdp: the same for all-gathers, which are what frozen split weights cost",
    ),
    Flag(
        "xla_tpu_enable_async_collective_fusion_multiple_steps",
        "true",
        "fsdp: one gather may span several fusions, since a layer's weights take longer than one of them",
    ),
    Flag(
        "xla_tpu_overlap_compute_collective_tc",
        "true",
        "fsdp: collectives that the tensor core drives run beside its arithmetic",
    ),
)
_GPU = (
    Flag(
        "xla_gpu_enable_latency_hiding_scheduler",
        "true",
        "starts collectives early and waits late; off by default. Collectives are asynchronous by default already",
    ),
    Flag(
        "xla_gpu_enable_while_loop_double_buffering",
        "true",
        "layers are a loop: two of them per turn, so that the next layer's weights (fsdp) are gathered during this one",
    ),
)

FLAGS: dict[str, tuple[Flag, ...]] = {
    "v4": (),
    "v5e": (),
    "v5p": (),
    "v6e": _ASYNC_GATHERS,
    "tpu7x": (),
    "gpu": _GPU,
}


def flags_for(target: str) -> tuple[Flag, ...]:
    """The flags of a kind of chip.

    Raises:
        ValueError: no such target.
    """
    if target not in FLAGS:
        raise ValueError(f"no target {target!r}; there are {', '.join(FLAGS)}")
    return FLAGS[target]


def variable_for(target: str) -> str:
    """The environment variable that takes the flags: libtpu has its own, everything else is XLA's."""
    return "XLA_FLAGS" if target == "gpu" else "LIBTPU_INIT_ARGS"


def as_arguments(flags: tuple[Flag, ...]) -> str:
    """One line for that variable."""
    return " ".join(f"--{flag.name}={flag.value}" for flag in flags)


def as_compiler_options(flags: tuple[Flag, ...]) -> dict[str, str]:
    """The same as `compiler_options` of a compilation."""
    return {flag.name: flag.value for flag in flags}
