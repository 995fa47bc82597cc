"""What a compiled program takes of one device's memory."""

from dataclasses import dataclass

import jax


@dataclass(frozen=True)
class ProgramMemory:
    """Bytes on one device, padding included: arguments, outputs (what lies in given-away arguments left out), and
    temporaries at the moment when most of them are alive."""

    arguments: int
    outputs: int
    temporaries: int

    @property
    def peak(self) -> int:
        return self.arguments + self.outputs + self.temporaries


def program_memory(program: jax.stages.Compiled) -> ProgramMemory | None:
    """None where the backend does not say it.

    A TPU's temporaries are read from its program's peak: the `temp_size_in_bytes` that its compiler tells is up to a
    third more than the block that it allocates, and that it refuses by (`tests/train/step/test_program_memory.py`). The
    peak that a CPU's compiler tells leaves temporaries out.
    """
    analysis = program.memory_analysis()
    if analysis is None:
        return None
    outputs = analysis.output_size_in_bytes - analysis.alias_size_in_bytes
    temporaries = analysis.temp_size_in_bytes
    if _platform(program) == "tpu" and analysis.peak_memory_in_bytes:
        temporaries = max(0, analysis.peak_memory_in_bytes - analysis.argument_size_in_bytes - outputs)
    return ProgramMemory(analysis.argument_size_in_bytes, outputs, temporaries)


def _platform(program: jax.stages.Compiled) -> str:
    devices = [device for sharding in jax.tree.leaves(program.input_shardings) for device in sharding.device_set]
    return devices[0].platform if devices else jax.default_backend()
