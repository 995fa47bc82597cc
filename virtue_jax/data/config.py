"""Which data a run trains on, and how they are packed: frozen values."""

from dataclasses import dataclass, field

from virtue_jax.batch import RowShape


@dataclass(frozen=True)
class SourceConfig:
    """One data set: `kind` "scar" (SCaR parquet, the `scenes` generator's included), "mmeb", "jsonl", or "prepared"
    (written by `virtue prepare`, where its limit, prompts and grouping are settled).

    path: file or folder; image_root: folder that image paths are relative to (default: beside the data).
    weight: share of this source in the mixture, by pairs; limit: only the first so many rows, 0 = all.
    box_weight, point_weight, mask_weight: of the kinds of visual prompt that a SCaR query carries.
    """

    path: str
    kind: str = "scar"
    image_root: str = ""
    weight: float = 1.0
    limit: int = 0
    box_weight: float = 1.0
    point_weight: float = 0.0
    mask_weight: float = 0.0


@dataclass(frozen=True)
class RowGroup:
    """`rows` packed rows of one shape in every step, over all processes; `micro_batches`: in how many parts they are
    encoded, 0 = chosen from the memory estimate."""

    shape: RowShape
    rows: int
    micro_batches: int = 0


@dataclass(frozen=True)
class DataConfig:
    """What to train on, and how it is packed.

    sources, rows: by names of one's own choice. rows: the row groups of a step, those without images last; empty =
    chosen from the sources' lengths. hard_negatives: distractors per query used as further targets. share_images: at
    most so many queries on one image share a row, and so one run of the image towers. interleave: consecutive pairs
    taken from one source (the reference's sub-batches). streams: independent packing streams, at least as many as
    processes hold rows of their own, best a multiple (each reads its own streams only); the order of the data depends
    on it. pixels: dtype in which images travel to the devices, "float32" or "uint8" (rounded to a grey level for SAM,
    exact for Qwen's tower). workers: processes that read and encode, 0 = threads.
    bad_rows: share of rows that may be unreadable before the run stops.
    """

    sources: dict[str, SourceConfig]
    rows: dict[str, RowGroup] = field(default_factory=dict)
    hard_negatives: int = 0
    share_images: int = 1
    interleave: int = 64
    streams: int = 1
    pixels: str = "float32"
    workers: int = 0
    prefetch: int = 2
    bad_rows: float = 0.001
