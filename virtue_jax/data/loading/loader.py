"""Training steps: elements dealt to packing streams, read in parallel, packed by first-fit, made ahead by a thread.

What stream s of S packs at step t is a function of (sources, seed, S, t) alone: not of the number of processes, threads
or workers. Element e of the order (`ElementOrder`) goes to stream e mod S, which owns 1/S of the rows of every group.
"""

import os
import queue
import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor

from virtue_jax.batch import Batch
from virtue_jax.config import VirtueConfig
from virtue_jax.data.encoding.encode import ExampleEncoder
from virtue_jax.data.loading.elements import ElementReader
from virtue_jax.data.loading.order import ElementOrder
from virtue_jax.data.loading.read_pool import ReadPool
from virtue_jax.data.loading.step import Step, pack_step
from virtue_jax.data.loading.stream import Stream, StreamRules, StreamState
from virtue_jax.data.packing.first_fit import Groups
from virtue_jax.data.packing.invariants import validate
from virtue_jax.data.packing.layout import PIXELS, check_shape
from virtue_jax.data.pair_source import PairSource

READ_AHEAD = 64  # encoded elements held before the step that packs them, over all streams of a process
_CHECKED_ROWS = 4  # of each group, in the first step


def training_loader(
    sources: Sequence[PairSource],
    encoder: ExampleEncoder,
    *,
    groups: Groups,
    batch_size: int,
    seed: int,
    streams: int = 1,
    own: Sequence[int] | None = None,
    negatives: int = 0,
    weights: Sequence[float] | None = None,
    interleave: int = 1,
    pixels: str = "float32",
    bad_rows: float = 0.001,
    worker_count: int = 0,
    prefetch: int = 2,
) -> "TrainingLoader":
    """An endless iterator of packed steps; in an epoch every row of a source comes once.

    Args:
        groups: shape and rows of each row group of a step, over all processes.
        batch_size: pairs per step over all processes; a step holds fewer where rows are full, and the rest waits.
        seed: of the order, and of the choice among hard negatives and positives.
        streams: independent packing streams. own: those that this process packs, ascending (default: all).
        negatives: hard negatives per pair used as further targets.
        weights: of the sources, by pairs (default: equal). interleave: pairs taken from one source in a run.
        pixels: dtype in which images travel, "float32" or "uint8".
        bad_rows: share of pairs that may be unusable before `next` raises.
        worker_count: processes that read and encode, for all streams together; 0 = threads of this process. With
            more, the calling script needs an `if __name__ == "__main__"` guard, and sources and encoder must pickle.
        prefetch: steps made ahead.

    Raises:
        ValueError: an empty source, impossible shapes, rows or a batch that do not divide by `streams`, numbers out of
            range; on `next`: too many elements that cannot be used.
    """
    own = tuple(range(streams) if own is None else own)
    _check(groups, batch_size, streams, own, negatives, worker_count, prefetch, bad_rows, pixels)
    of_stream = [(shape, rows // streams) for shape, rows in groups]
    order = ElementOrder.of(sources, seed=seed, weights=weights, interleave=interleave)
    reader = ElementReader(list(sources), order, encoder, of_stream, batch_size // streams, negatives, seed, pixels)
    ahead = max(1, min(reader.step_pairs, READ_AHEAD // len(own)))
    rules = StreamRules(reader.step_pairs, ahead, bad_rows, order.mean_pairs)
    return TrainingLoader(reader, own, streams, rules, worker_count, prefetch)


class TrainingLoader(Iterator[Step]):
    """Steps from where `set_state` says, made ahead by a thread. `close` ends it, and any worker processes."""

    def __init__(
        self,
        reader: ElementReader,
        own: tuple[int, ...],
        streams: int,
        rules: StreamRules,
        worker_count: int,
        prefetch: int,
    ):
        self.reader = reader
        self._own, self._streams = own, streams
        self._rules, self._worker_count, self._prefetch = rules, worker_count, prefetch
        self._states = {index: StreamState() for index in own}
        self._ahead: _StepThread | None = None

    def __next__(self) -> Step:
        if self._ahead is None:
            pool = ReadPool(self.reader, self._worker_count)
            streams = [Stream(pool, index, self._streams, self._states[index], self._rules) for index in self._own]
            self._ahead = _StepThread(self.reader, streams, pool, self._prefetch)
        step, states = self._ahead.next()
        self._states = dict(zip(self._own, states, strict=True))
        return step

    def get_state(self) -> dict:
        """{"streams": {"INDEX": {"drawn", "waiting", "bad"}}} after the last step that `next` returned, for JSON."""
        return {
            "streams": {
                str(index): {"drawn": state.drawn, "waiting": list(state.waiting), "bad": state.bad}
                for index, state in self._states.items()
            }
        }

    def set_state(self, state: dict) -> None:
        """Continues at a saved state, which may hold other processes' streams too.

        Raises:
            ValueError: not a state of such a loader.
        """
        states = {index: _stream_state(state, index, self._streams) for index in self._own}
        self.close()
        self._states = states

    def close(self) -> None:
        if self._ahead is not None:
            self._ahead.close()
            self._ahead = None


class _StepThread:
    """Packs steps in a thread, at most `ahead` that nobody has asked for yet."""

    def __init__(self, reader: ElementReader, streams: Sequence[Stream], reading: ReadPool, ahead: int):
        self._reader, self._streams, self._reading = reader, streams, reading
        self._room, self._steps, self._stop = threading.Semaphore(ahead), queue.SimpleQueue(), threading.Event()
        self._failed: BaseException | None = None
        self._pool = ThreadPoolExecutor(os.cpu_count())
        self._thread = threading.Thread(target=self._run, name="training steps", daemon=True)
        self._thread.start()

    def next(self) -> tuple[Step, list[StreamState]]:
        if self._failed is None:
            step = self._steps.get()
            if not isinstance(step, BaseException):
                self._room.release()
                return step
            self._failed = step
        raise self._failed

    def close(self) -> None:
        self._stop.set()
        self._room.release()
        self._pool.shutdown(wait=False, cancel_futures=True)  # ends a step that is being written
        self._reading.close()  # likewise one that waits for elements
        self._thread.join()

    def _run(self) -> None:
        try:
            reader, checked = self._reader, False
            groups, config, pixels = reader.groups, reader.encoder.config, reader.pixels
            while self._room.acquire() and not self._stop.is_set():
                step = pack_step(self._streams, groups, config, pixels=pixels, each=self._pool.map)
                if not checked:
                    _check_rows(step, groups, config, pixels)
                    checked = True
                self._steps.put((step, [stream.state() for stream in self._streams]))
        except BaseException as error:  # handed to whoever asks for the next step
            self._steps.put(error)


def _check_rows(step: Step, groups: Groups, config: VirtueConfig, pixels: str) -> None:
    """The promises that models rely on, of a few rows: cheap enough for every start."""
    for batch, (shape, _) in zip(step.groups, groups, strict=True):
        few = Batch(*(None if array is None else array[:_CHECKED_ROWS] for array in batch))
        validate(few, shape, config, pixels=pixels)


def _check(groups, batch_size, streams, own, negatives, worker_count, prefetch, bad_rows, pixels) -> None:
    if pixels not in PIXELS:
        raise ValueError(f"pixels {pixels!r}: expected one of {', '.join(PIXELS)}")
    if not groups:
        raise ValueError("no row group; give at least one in config.data.rows")
    for shape, rows in groups:
        check_shape(shape)
        if rows < 1 or rows % streams:
            raise ValueError(f"{rows} rows of {shape}: expected a multiple of {streams} streams")
    if batch_size < 1 or streams < 1 or batch_size % streams:
        raise ValueError(f"batch_size={batch_size}: expected a multiple of {streams} streams")
    if not own or list(own) != sorted(set(own)) or own[0] < 0 or own[-1] >= streams:
        raise ValueError(f"own streams {list(own)}: expected some of 0 to {streams - 1}, ascending")
    if prefetch < 1 or min(negatives, worker_count) < 0 or not 0 <= bad_rows < 1:
        raise ValueError(
            f"prefetch={prefetch} must be 1 or more, negatives={negatives}, worker_count={worker_count} 0 or more, "
            f"bad_rows={bad_rows} at least 0 and less than 1"
        )


def _stream_state(state: dict, index: int, streams: int) -> StreamState:
    saved = state.get("streams", {}).get(str(index)) if isinstance(state.get("streams"), dict) else None
    expected = {"drawn": int, "waiting": list, "bad": int}
    right = isinstance(saved, dict) and {name: type(value) for name, value in saved.items()} == expected
    if right:
        restored = StreamState(saved["drawn"], tuple(saved["waiting"]), saved["bad"])
        end = index + streams * restored.drawn
        right = min(restored.bad, restored.drawn) >= 0 and all(
            isinstance(e, int) and e % streams == index and 0 <= e < end for e in restored.waiting
        )
    if not right:
        raise ValueError(
            f"data position of stream {index} of {streams}: {saved!r}; expected "
            '{"drawn": number, "waiting": [elements], "bad": number} as get_state of such streams gives it'
        )
    return restored
