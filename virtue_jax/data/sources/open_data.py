"""The training data that a configuration names, as a loader of steps."""

from collections.abc import Callable, Sequence

from virtue_jax.config import VirtueConfig
from virtue_jax.data.config import DataConfig, SourceConfig
from virtue_jax.data.encoding.encode import ExampleEncoder
from virtue_jax.data.encoding.tokens import Tokenizer
from virtue_jax.data.example import IMAGE_MARKER
from virtue_jax.data.formats.jsonl import JsonlTraining
from virtue_jax.data.formats.mmeb import MmebTraining
from virtue_jax.data.formats.record_reader import PreparedTraining
from virtue_jax.data.formats.scar import ScarTraining
from virtue_jax.data.loading.loader import TrainingLoader, training_loader
from virtue_jax.data.pair_source import PairSource
from virtue_jax.data.sources.shared_images import FirstRows, SharedImages


def open_sources(config: DataConfig, seed: int, say: Callable[[str], None] = lambda line: None) -> list[PairSource]:
    """Every source of the configuration, cut to its limit; SCaR's rows grouped by image where images are shared.

    say: told, in a line a source, what a person should know of it.

    Raises:
        ValueError: no source, an unknown kind. InvalidExample: files that are not of that kind.
    """
    if not config.sources:
        raise ValueError("config.data.sources is empty; name at least one data set")
    return [_open(name, source, config.share_images, seed, say) for name, source in config.sources.items()]


def _open(name: str, source: SourceConfig, share_images: int, seed: int, say: Callable[[str], None]) -> PairSource:
    root = source.image_root or None
    match source.kind:
        case "scar":
            weights = {"box": source.box_weight, "point": source.point_weight, "mask": source.mask_weight}
            rows = ScarTraining(source.path, image_root=root, prompts=weights, seed=seed)
            if share_images > 1:
                return SharedImages(rows, share_images, source.limit)
        case "mmeb":
            rows = MmebTraining(source.path, image_root=root)
            _say_markers(name, rows, source.limit, say)
        case "jsonl":
            rows = JsonlTraining(source.path, image_root=root)
        case "prepared":
            return _prepared(source)
        case _:
            raise ValueError(f"source {source.path}: kind {source.kind!r} is not one of scar, mmeb, jsonl, prepared")
    return FirstRows(rows, source.limit) if source.limit else rows


def _say_markers(name: str, rows: MmebTraining, limit: int, say: Callable[[str], None]) -> None:
    alone = rows.markers_alone(limit)
    if alone:
        say(
            f"source {name}: {alone} rows have a {IMAGE_MARKER} where there is no image; it is dropped from these "
            "texts (kept as a word where the model's compat.marker_alone is 'token')"
        )


def _prepared(source: SourceConfig) -> PairSource:
    rows = PreparedTraining(source.path)
    if not source.limit or source.limit >= rows.pairs:
        return rows
    if rows.pairs > len(rows):
        raise ValueError(
            f"source {source.path}: limit {source.limit} counts rows, but these {rows.pairs} are in {len(rows)} groups "
            "by image; give the limit to `virtue prepare` instead"
        )
    return FirstRows(rows, source.limit)


def make_loader(
    data: DataConfig,
    sources: Sequence[PairSource],
    virtue: VirtueConfig,
    tokenizer: Tokenizer,
    *,
    batch_size: int,
    seed: int,
    streams: Sequence[int] | None = None,
) -> TrainingLoader:
    """The steps of some of the packing streams, those of this process (default: all). `data.rows` must be there.

    batch_size: pairs per step over all processes. seed: of the order of the data.

    Raises:
        ValueError: rows, batch size or streams that do not fit together; see `training_loader`.
    """
    return training_loader(
        sources,
        ExampleEncoder(virtue, tokenizer),
        groups=[(group.shape, group.rows) for group in data.rows.values()],
        batch_size=batch_size,
        seed=seed,
        streams=data.streams,
        own=streams,
        negatives=data.hard_negatives,
        weights=[source.weight for source in data.sources.values()],
        interleave=data.interleave,
        pixels=data.pixels,
        bad_rows=data.bad_rows,
        worker_count=data.workers,
        prefetch=data.prefetch,
    )
