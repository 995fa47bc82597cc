"""A training run as frozen values; `configs/*.py` give them as an ml_collections dict."""

from dataclasses import dataclass, field

from virtue_jax.config import AdapterConfig, Numerics, VirtueConfig
from virtue_jax.data.config import DataConfig
from virtue_jax.eval.config import EvalConfig
from virtue_jax.parallel.mesh import MeshConfig
from virtue_jax.train.step.loss import LossConfig
from virtue_jax.train.step.optimizer import OptimizerConfig


@dataclass(frozen=True)
class ModelConfig:
    """Where the model comes from: exactly one of `directory` (a converted or trained model) and `scratch`.

    scratch: geometry of a model with random weights; a tokenizer is trained on the data's texts, at most
        `text.vocab_size` tokens, and its size and token ids replace those given.
    size: of the published sizes, the one in `directory` ("2b", "7b"); lets `virtue compile` work before there are
        weights. A directory with another geometry is refused.
    adapter: a fresh adapter for a `directory` without one; a model that has one keeps its own.
    """

    directory: str = ""
    scratch: VirtueConfig | None = None
    adapter: AdapterConfig | None = None
    size: str = ""

    def __post_init__(self):
        if bool(self.directory) == (self.scratch is not None):
            raise ValueError("model: give exactly one of `directory` and `scratch`")


@dataclass(frozen=True)
class RunNumerics(Numerics):
    """`Numerics` of a run; attention "auto" is the kernel that is made for the platform of the mesh
    (`ops.attention.KERNELS`), so that one run file serves TPUs, GPUs and CPUs."""

    attention: str = "auto"


@dataclass(frozen=True)
class TrainConfig:
    """One run. `batch_size`: pairs per step over all processes (a step may hold fewer where rows are full).

    trainable: patterns over parameter paths (whole matches); everything else is frozen.
    checkpoint_every: steps between checkpoints; checkpoint_minutes: a checkpoint also after so much time, 0 = never;
    `keep` of them stay. nonfinite: "stop" at a loss or gradient that is not finite, or "skip" such a step, at most
    `skip_limit` times in a run. watchdog_minutes: without a finished step for so long, the process dumps its stacks and
    exits, 0 = never; starting, restoring, compiling, saving and writing the model have four times as long.
    profile_steps: first and last step of a profiler trace, empty = none.
    memory_gib: of one device, for what is chosen from the memory estimate; 0 = what the device says.
    evals: evaluations while it trains, by names of one's own choice; keep_best: the name of one of them, whose
    best-scoring model is kept in `best` of the work directory, "" = none.
    """

    model: ModelConfig
    data: DataConfig
    steps: int
    batch_size: int
    trainable: tuple[str, ...] = (r"text\..*\.(lora_a|lora_b|magnitude)", r"connector\..*")
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    numerics: RunNumerics = field(default_factory=RunNumerics)
    loss: LossConfig = field(default_factory=LossConfig)
    mesh: MeshConfig = field(default_factory=MeshConfig)
    seed: int = 0
    log_every: int = 10
    checkpoint_every: int = 500
    checkpoint_minutes: float = 0.0
    keep: int = 2
    nonfinite: str = "stop"
    skip_limit: int = 10
    watchdog_minutes: float = 0.0
    profile_steps: tuple[int, ...] = ()
    memory_gib: float = 0.0
    evals: dict[str, EvalConfig] = field(default_factory=dict)
    keep_best: str = ""

    def __post_init__(self):
        counts = ("steps", "batch_size", "log_every", "checkpoint_every", "keep")
        wrong = {name: getattr(self, name) for name in counts if getattr(self, name) < 1}
        if wrong:
            raise ValueError(f"config: {wrong}: expected whole numbers of at least 1")
        if self.nonfinite not in ("stop", "skip"):
            raise ValueError(f"config.nonfinite: {self.nonfinite!r} is not one of stop, skip")
        if self.profile_steps and (len(self.profile_steps) != 2 or self.profile_steps[0] > self.profile_steps[1]):
            raise ValueError(f"config.profile_steps: {self.profile_steps}: expected (first, last) or nothing")
        if self.keep_best and self.keep_best not in self.evals:
            raise ValueError(f"config.keep_best: {self.keep_best!r} is not one of config.evals: {list(self.evals)}")
