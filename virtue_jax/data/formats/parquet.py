"""Rows of a parquet file: read by number, without a Python object for any row that is not asked for, and written."""

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from virtue_jax.atomic_files import new_file
from virtue_jax.data.example import InvalidExample
from virtue_jax.data.unreadable import Unreadable, readable

_ROWS_PER_GROUP = 2048


class ParquetRows:
    """The chosen columns of one parquet file, held as Arrow columns; read on first use.

    `repeated` are text columns with few different values, each held once. Pickles without the data: worker processes
    read the file for themselves.

    Raises:
        InvalidExample: missing, empty or damaged file, or a column that is not there; names file and columns.
    """

    def __init__(
        self,
        path: str | os.PathLike,
        required: Sequence[str],
        optional: Sequence[str] = (),
        repeated: Sequence[str] = (),
    ):
        self.path = Path(path)
        metadata = read_footer(self.path)
        present = metadata.schema.to_arrow_schema().names
        missing = [name for name in required if name not in present]
        if missing:
            raise InvalidExample(
                f"{self.path}: no column {', '.join(missing)}; it has {', '.join(present)}; "
                "write the missing columns, or choose the loader that this file was made for"
            )
        self.columns = [*required, *(name for name in optional if name in present)]
        self._repeated = list(repeated)
        self._length = metadata.num_rows
        self._table: pa.Table | None = None

    def __len__(self) -> int:
        return self._length

    def __getitem__(self, row: int) -> dict:
        """The row's values as plain Python objects, by column.

        Raises:
            InvalidExample: a value that Python cannot hold, a text that is not UTF-8 most often; names row and column.
        """
        table = self._open()
        return {name: self._value(table.column(name), row, name) for name in self.columns}

    def texts(self, name: str) -> list[object]:
        """A column's values, None where one cannot be read: its row says why."""
        column = self.column(name)
        try:
            return column.to_pylist()
        except Exception:  # one bad value spoils the whole list
            values = (readable(self.origin(row), self._value, column, row, name) for row in range(len(self)))
            return [None if isinstance(value, Unreadable) else value for value in values]

    def _value(self, column: pa.ChunkedArray, row: int, name: str) -> object:
        try:
            return column[row].as_py()
        except UnicodeDecodeError as error:
            wrong = f"is not UTF-8 ({error.reason} at byte {error.start}); write the column as UTF-8"
        except Exception as error:  # of dates and the like that Python has no value for
            wrong = f"cannot be read as {column.type} ({error}); write it as the type that this column should have"
        raise InvalidExample(f"{self.path}:row {row}: {name} {wrong}")

    def column(self, name: str) -> pa.ChunkedArray:
        return self._open().column(name)

    def origin(self, row: int) -> str:
        return f"{self.path.name}:row {row}"

    def __getstate__(self) -> dict:
        return self.__dict__ | {"_table": None}

    def _open(self) -> pa.Table:
        if self._table is None:
            try:
                self._table = pq.ParquetFile(self.path, memory_map=True, read_dictionary=self._repeated).read(
                    self.columns
                )
            except Exception as error:  # Arrow raises OSError, its own, and plain ValueError
                raise InvalidExample(f"{self.path}: damaged parquet ({error}); fetch or write it again") from error
        return self._table


def read_footer(path: Path) -> pq.FileMetaData:
    """The file's schema and row count.

    Raises:
        InvalidExample: no such file, or not parquet.
    """
    if not path.is_file():
        raise InvalidExample(f"{path}: no such file; check the path")
    try:
        metadata = pq.read_metadata(path)
        metadata.schema.to_arrow_schema()  # as readers do, who may rely on it
        return metadata
    except Exception as error:
        raise InvalidExample(f"{path}: not a whole parquet file ({error}); fetch or write it again") from error


def parquet_files(where: str | os.PathLike | Sequence[str | os.PathLike], column: str) -> list[Path]:
    """Files as given; of a folder, every parquet file (sorted by name) that has this column.

    Raises:
        InvalidExample: nothing there, or no file of that sort in a folder.
    """
    places = [where] if isinstance(where, str | os.PathLike) else list(where)
    if not places:
        raise InvalidExample("no parquet file given; name at least one file or folder")
    files: list[Path] = []
    for path in map(Path, places):
        if not path.is_dir():
            files.append(path)
            continue
        inside = sorted(path.glob("*.parquet"))
        chosen = [file for file in inside if column in read_footer(file).schema.to_arrow_schema().names]
        if not chosen:
            present = ", ".join(file.name for file in inside) or "no parquet file at all"
            raise InvalidExample(f"{path}: no parquet file with column {column!r} in this folder; it has {present}")
        files += chosen
    return files


@contextmanager
def write_rows(path: Path, schema: pa.Schema) -> Iterator[Callable[[list[dict]], None]]:
    """Yields what takes rows, {column: value} each, for a file that appears whole when the block succeeds.

    Raises:
        OSError: the disk is full, or the folder cannot be written. pa.ArrowException: values of another type.
    """
    waiting: list[dict] = []

    with new_file(path) as unfinished, pq.ParquetWriter(unfinished, schema, compression="zstd") as table:

        def flush() -> None:
            table.write_table(pa.Table.from_pylist(waiting, schema))
            waiting.clear()

        def write(rows: list[dict]) -> None:
            waiting.extend(rows)
            if len(waiting) >= _ROWS_PER_GROUP:
                flush()

        yield write
        if waiting:
            flush()
