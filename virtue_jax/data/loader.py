"""Training batches: which rows, in which order, on which process; read, encoded and packed by Grain.

Global batch number b is a function of (sources, seed, b) alone: not of the number of processes, workers or threads.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import NamedTuple, Protocol

import grain
import numpy as np

from virtue_jax.batch import RowShape
from virtue_jax.data.encode import ExampleEncoder
from virtue_jax.data.example import TrainingPair
from virtue_jax.data.pairs import PairPacker, TrainingBatch

ENDLESS = 1 << 40  # batches; more than any run will see, and safely within what Grain can index


class PairSource(Protocol):
    """Random access to training pairs: `ScarTraining`, `JsonlTraining`, or anything with these two methods.

    An element may also be several pairs, whose queries then share a row (`SharedImages`).
    """

    def __len__(self) -> int: ...

    def __getitem__(self, row: int) -> TrainingPair | tuple[TrainingPair, ...]: ...


class TrainingLoader(Iterator[TrainingBatch]):
    """An endless iterator over training batches that can be saved and resumed.

    The state is the number of the next batch, so that it fits any number of workers and processes: after
    `set_state(s)` exactly that batch comes next. `close` ends the worker processes.
    """

    def __init__(self, batches: "BatchReader", worker_count: int, prefetch: int):
        self.batches = batches
        self._worker_count, self._prefetch = worker_count, prefetch
        self._next = 0
        self._iterator: grain.DatasetIterator | None = None

    def __next__(self) -> TrainingBatch:
        if self._iterator is None:
            self._iterator = iter(self._dataset(self._next))
        batch = next(self._iterator)
        self._next += 1
        return batch

    def get_state(self) -> dict:
        """{"next_batch": int}, fit for JSON."""
        return {"next_batch": self._next}

    def set_state(self, state: dict) -> None:
        """Continues at a saved state.

        Raises:
            ValueError: not a state of this loader.
        """
        number = state.get("next_batch")
        if set(state) != {"next_batch"} or not isinstance(number, int) or not 0 <= number < ENDLESS:
            raise ValueError(f"data position {state!r}: expected {{'next_batch': number}} as get_state gives it")
        self.close()
        self._next = number

    def close(self) -> None:
        if self._iterator is not None:
            self._iterator.close()
            self._iterator = None

    def _dataset(self, first: int) -> grain.IterDataset:
        numbers = grain.MapDataset.source(_Numbers(first, ENDLESS))
        options = grain.ReadOptions(num_threads=min(2, self._prefetch), prefetch_buffer_size=self._prefetch)
        dataset = numbers.map(self.batches.__getitem__).to_iter_dataset(options)
        if self._worker_count:
            _let_grain_read_flags()
            workers = grain.MultiprocessingOptions(self._worker_count, per_worker_buffer_size=self._prefetch)
            dataset = dataset.mp_prefetch(workers)
        return dataset


def training_loader(
    source: PairSource | Sequence[PairSource],
    encoder: ExampleEncoder,
    *,
    query_shape: RowShape,
    target_shape: RowShape,
    global_batch: int,
    seed: int,
    negatives: int = 0,
    shard: tuple[int, int] = (0, 1),
    weights: Sequence[float] | None = None,
    interleave: int = 1,
    worker_count: int = 0,
    prefetch: int = 2,
) -> TrainingLoader:
    """Batches of pairs, every source shuffled anew each epoch, endlessly; no row is dropped or repeated in an epoch.

    Args:
        source: one source, or a list or tuple of several to mix.
        query_shape, target_shape: capacities of the rows.
        global_batch: query rows per batch over all processes; this process gets `global_batch / shard[1]` of them.
        seed: of the order and of the choice of negatives.
        negatives: hard negatives per pair; of a pair that has more, others are drawn each time.
        shard: (this process, number of processes). Processes get consecutive parts of each global batch.
        weights: of the sources, by pairs (default: equal).
        interleave: consecutive pairs taken from one source before the next source's turn.
        worker_count: processes that make batches; 0 = threads of this process. With more, the calling script
            needs an `if __name__ == "__main__"` guard, and source and encoder must pickle.
        prefetch: batches made ahead (by each worker).

    Raises:
        ValueError: an empty source, a batch that does not divide, numbers out of range.
        InvalidExample: on `next`, for a row that cannot be read or encoded; names it.
    """
    sources = list(source) if isinstance(source, list | tuple) else [source]
    lengths = [len(each) for each in sources]
    _check_numbers(lengths, global_batch, shard, interleave, prefetch, negatives, worker_count)
    order = row_order(lengths, seed=seed, weights=weights, interleave=interleave)
    packer = PairPacker(encoder, query_shape, target_shape, negatives, seed)
    return TrainingLoader(BatchReader(sources, order, packer, global_batch, *shard), worker_count, prefetch)


def _check_numbers(lengths, global_batch, shard, interleave, prefetch, negatives, worker_count) -> None:
    index, count = shard
    if not lengths or not all(lengths):
        raise ValueError(f"sources with {lengths} rows: expected at least one row in each")
    if global_batch < 1 or not 0 <= index < count or global_batch % count:
        raise ValueError(
            f"global_batch={global_batch}, shard={shard}: expected a batch that divides by the number of processes"
        )
    if min(interleave, prefetch) < 1 or min(negatives, worker_count) < 0:
        raise ValueError(
            f"interleave={interleave}, prefetch={prefetch} must be 1 or more, "
            f"negatives={negatives}, worker_count={worker_count} 0 or more"
        )


class RowRef(NamedTuple):
    """A row of one of the sources."""

    source: int
    row: int


def row_order(
    lengths: Sequence[int], *, seed: int, weights: Sequence[float] | None = None, interleave: int = 1
) -> grain.MapDataset:
    """The endless order of rows: blocks of `interleave` rows of one source, the sources taking turns by weight.

    Random access: `row_order(...)[block]` is a list of `interleave` RowRefs.

    Raises:
        ValueError: weights that are not one positive number per source.
    """
    weights = [1.0] * len(lengths) if weights is None else list(weights)
    if len(weights) != len(lengths) or any(not w > 0 for w in weights):
        raise ValueError(f"weights {weights}: expected a positive number for each of {len(lengths)} sources")
    seeds = np.random.SeedSequence(seed).generate_state(len(lengths)).tolist()
    orders = [
        grain.MapDataset.range(length)
        .shuffle(seed=source_seed)
        .repeat()
        .map(partial(RowRef, number))
        .batch(interleave, batch_fn=list)
        for number, (length, source_seed) in enumerate(zip(lengths, seeds, strict=True))
    ]
    return orders[0] if len(orders) == 1 else grain.MapDataset.mix(orders, weights)


@dataclass(frozen=True)
class BatchReader:
    """Global batches by number: `reader[b]` reads, encodes and packs this process's part of batch b."""

    sources: Sequence[PairSource]
    order: grain.MapDataset
    packer: PairPacker
    global_batch: int
    index: int
    count: int

    def rows(self, number: int) -> list[RowRef]:
        """Which rows this process's part of global batch `number` holds."""
        size = self.global_batch // self.count
        first = number * self.global_batch + self.index * size
        block = len(self.order[0])
        blocks = range(first // block, (first + size - 1) // block + 1)
        refs = [ref for b in blocks for ref in self.order[b]]
        return refs[first % block :][:size]

    def __getitem__(self, number: int) -> TrainingBatch:
        first = number * self.global_batch + self.index * (self.global_batch // self.count)
        pairs = [self.sources[ref.source][ref.row] for ref in self.rows(number)]
        return self.packer.pack(pairs, first)


@dataclass(frozen=True)
class _Numbers:
    """The numbers from `first` on, as a Grain source that knows nothing of what they stand for."""

    first: int
    stop: int

    def __len__(self) -> int:
        return self.stop - self.first

    def __getitem__(self, index: int) -> int:
        return self.first + index


def _let_grain_read_flags() -> None:
    """Grain's workers read absl flags, which a program that does not start through absl has never parsed."""
    from absl import flags

    if not flags.FLAGS.is_parsed():
        flags.FLAGS.mark_as_parsed()
