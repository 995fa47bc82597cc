"""Writes a source of training pairs once, images included, as ArrayRecord files that `PreparedTraining` reads."""

import os
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

import tensorflow_datasets as tfds
from array_record.python.array_record_module import ArrayRecordReader

from virtue_jax.data.example import ImageBytes, InvalidExample
from virtue_jax.data.formats.records import SPLIT, dataset_info, stored_pair, to_record
from virtue_jax.data.pair_source import PairSource, pair_origin, read_row, row_origin
from virtue_jax.data.unreadable import Quarantine, Unreadable, readable, too_many_bad

ELEMENTS_PER_FILE = 8192  # a reader keeps every file open, and a process may have a thousand or so
_BATCH = 16  # elements between two writes of the set's own description


@dataclass
class PreparedSet:
    """What was written of one source: elements, pairs, images; bytes: of the files of records. bad: pairs that
    could not be read."""

    elements: int = 0
    pairs: int = 0
    images: int = 0
    bytes: int = 0
    bad: list[Unreadable] = field(default_factory=list)

    @property
    def seen(self) -> int:
        """Pairs, good and bad."""
        return self.pairs + len(self.bad)


def prepare(
    source: PairSource,
    directory: Path,
    *,
    about: dict | None = None,
    bad_rows: float = 0.001,
    elements_per_file: int = ELEMENTS_PER_FILE,
    progress: Callable[[int], None] = lambda seen: None,
) -> PreparedSet:
    """Writes every element of a source into `directory`, which is there and empty, in the source's order.

    What depends on chance or on the configuration is settled here: the kind of prompt that each SCaR row carries, which
    rows are grouped by image, and the limit. Image files are kept byte by byte; each is decoded once to be sure of it.
    Pairs that cannot be read are left out and named in `quarantine.jsonl`. An image is stored once in each
    element that shows it: where many rows ask about one image, group them (`SharedImages`).

    Args:
        about: kept in the set's metadata, for people.
        bad_rows: share of pairs that may be bad, judged as the training loader does.
        progress: told how many elements are done.

    Raises:
        InvalidExample: too many bad pairs, or no good one; names the last. OSError: not all could be written.
    """
    info = dataset_info(directory, {"about": about or {}})
    writer = tfds.core.SequentialWriter(info, elements_per_file, file_format="array_record")
    writer.initialize_splits([SPLIT])
    written = _write(source, writer, Quarantine(directory), bad_rows, progress)
    with _told_of_the_disk():
        writer.close_all()
    if not written.elements:
        last = _last_errors(written) or "no data"
        raise InvalidExample(f"none of {written.seen} pairs can be read; the last: {last}")
    sizes = _file_sizes(directory, written.elements)
    written.bytes = sum(sizes.values())
    info.metadata.update(elements=written.elements, pairs=written.pairs, bad=len(written.bad), file_bytes=sizes)
    info.write_to_directory(directory)
    return written


def _write(source: PairSource, writer, quarantine: Quarantine, bad_rows: float, progress) -> PreparedSet:
    written, batch = PreparedSet(), []

    def flush() -> None:
        with _told_of_the_disk():
            writer.add_examples({SPLIT: batch})
        batch.clear()

    for number, (record, pairs, bad) in enumerate(_records(source)):
        written.bad += bad
        written.pairs += pairs
        if bad:
            quarantine.add([unreadable.entry(number) for unreadable in bad])
            _check_bad(written, bad_rows)
        if record is not None:
            batch.append(record)
            written.elements += 1
            written.images += len(record["images"])
        if len(batch) == _BATCH:
            flush()
        progress(number + 1)
    flush()
    return written


class _Read(NamedTuple):
    """The record of what can be read of an element, None = nothing; its pairs; what cannot be read of it."""

    record: dict | None
    pairs: int
    bad: list[Unreadable]


def _read(source: PairSource, row: int) -> _Read:
    shared: dict[str, ImageBytes] = {}
    element, good, bad = read_row(source, row), [], []
    for pair in element:
        if not isinstance(pair, Unreadable):
            pair = readable(pair_origin(source, row, element, pair), stored_pair, pair, shared)
        (bad if isinstance(pair, Unreadable) else good).append(pair)
    return _Read(to_record(row_origin(source, row), good) if good else None, len(good), bad)


def _records(source: PairSource) -> Iterator[_Read]:
    """Every element in order, read and decoded by threads a little ahead."""
    threads = os.cpu_count() or 1
    pool = ThreadPoolExecutor(threads)
    ahead: deque[Future] = deque()
    try:
        for row in range(len(source)):
            ahead.append(pool.submit(_read, source, row))
            if len(ahead) > 2 * threads:
                yield ahead.popleft().result()
        while ahead:
            yield ahead.popleft().result()
    finally:
        pool.shutdown(cancel_futures=True)


@contextmanager
def _told_of_the_disk() -> Iterator[None]:
    """ArrayRecord's failures to write as what they are."""
    try:
        yield
    except RuntimeError as error:
        raise OSError(str(error)) from error


def _check_bad(written: PreparedSet, allowed: float) -> None:
    if too_many_bad(len(written.bad), written.seen, allowed):
        raise InvalidExample(
            f"{len(written.bad)} of the first {written.seen} pairs cannot be read, more than config.data.bad_rows "
            f"{allowed} allows; the last: {_last_errors(written)}. Correct them, leave them out, or allow more"
        )


def _last_errors(written: PreparedSet) -> str:
    return "; ".join(bad.error for bad in written.bad[-3:])


def _file_sizes(directory: Path, elements: int) -> dict[str, int]:
    """Bytes of each file of records, after a look at how many each holds: a full disk may end a file early."""
    sizes, held = {}, 0
    for path in sorted(directory.glob("*.array_record-*")):
        reader = ArrayRecordReader(str(path))
        held += reader.num_records()
        reader.close()
        sizes[path.name] = path.stat().st_size
    if held != elements:
        raise OSError(f"the files hold {held} of the {elements} elements given to them; is the disk full?")
    return sizes
