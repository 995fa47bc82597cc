"""A training run as frozen values; `configs/*.py` give them as an ml_collections dict."""

from dataclasses import dataclass, field

from virtue_jax.batch import RowShape
from virtue_jax.config import AdapterConfig, Numerics, VirtueConfig
from virtue_jax.train.optimizer import OptimizerConfig


@dataclass(frozen=True)
class ModelConfig:
    """Where the model comes from: exactly one of `directory` (a converted or trained model) and `scratch`.

    scratch: geometry of a model with random weights; a tokenizer is trained on the data's texts, at most
        `text.vocab_size` tokens, and its size and token ids replace those given.
    adapter: a fresh adapter for a `directory` without one; a model that has one keeps its own.
    """

    directory: str = ""
    scratch: VirtueConfig | None = None
    adapter: AdapterConfig | None = None

    def __post_init__(self):
        if bool(self.directory) == (self.scratch is not None):
            raise ValueError("model: give exactly one of `directory` and `scratch`")


@dataclass(frozen=True)
class DataConfig:
    """What to train on: `kind` "scar" (SCaR parquet, the `scenes` generator's included) or "jsonl".

    path: file or folder; image_root: folder that image paths are relative to (default: beside the data).
    prompts: weights of the visual prompt that a SCaR query carries; hard_negatives: distractors per query used as
    further targets, 0 = none. queries, targets: static row shapes; `queries.examples` queries of one image share a
    row, and so one run of the image towers; targets stand one to a row.
    """

    path: str
    queries: RowShape
    targets: RowShape
    kind: str = "scar"
    image_root: str = ""
    box_weight: float = 1.0
    point_weight: float = 0.0
    mask_weight: float = 0.0
    hard_negatives: int = 0
    workers: int = 0


@dataclass(frozen=True)
class TrainConfig:
    """One run. `batch_size` counts query rows over all processes; `*_micro_batches` in how many parts they are encoded.

    trainable: patterns over parameter paths (whole matches); everything else is frozen.
    checkpoint_every: steps between checkpoints; `keep` of them stay.
    """

    model: ModelConfig
    data: DataConfig
    steps: int
    batch_size: int
    trainable: tuple[str, ...] = (r"text\..*\.(lora_a|lora_b|magnitude)", r"connector\..*")
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    numerics: Numerics = field(default_factory=Numerics)
    temperature: float = 0.02
    query_micro_batches: int = 1
    target_micro_batches: int = 1
    seed: int = 0
    log_every: int = 10
    checkpoint_every: int = 500
    keep: int = 2

    def __post_init__(self):
        counts = ("steps", "batch_size", "query_micro_batches", "target_micro_batches")
        counts += ("log_every", "checkpoint_every", "keep")
        wrong = {name: getattr(self, name) for name in counts if getattr(self, name) < 1}
        if wrong:
            raise ValueError(f"config: {wrong}: expected whole numbers of at least 1")
        if not self.temperature > 0:
            raise ValueError(f"config.temperature: {self.temperature}: expected a number above 0")
