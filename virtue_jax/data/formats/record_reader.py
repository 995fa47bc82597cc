"""Training pairs that `virtue prepare` has written: one ArrayRecord element each, images included, read by number."""

import json
import os
from pathlib import Path

import tensorflow_datasets as tfds

from virtue_jax.data.example import InvalidExample, TrainingPair
from virtue_jax.data.formats.records import NAME, SPLIT, VERSION, from_record
from virtue_jax.data.pair_source import check_row
from virtue_jax.data.unreadable import Unreadable, readable

_AGAIN = "write it again with `virtue prepare`"


class PreparedTraining:
    """Elements of one prepared source: a pair each, or several where images were shared when it was prepared.

    Images are the bytes of the original files, with their sizes, and masks arrays; every example encodes to the same
    arrays as the original's, and `origin` names the file and row it came from. What tells examples apart is another:
    `content_id` and `image_key` digest an image's bytes here, its path there, so equal images under two paths are one.
    The kinds of SCaR's prompts, the grouping by image and the limit are those of the configuration that it was prepared
    by. Pickles without open files.

    Raises:
        InvalidExample: not a whole prepared set, or one of another version of the layout; names the directory.
    """

    def __init__(self, directory: str | os.PathLike):
        self.path = Path(directory)
        info = _read_json(self.path, "dataset_info.json")
        if (info.get("name"), info.get("version")) != (NAME, VERSION):
            raise InvalidExample(
                f"{self.path}: holds {info.get('name')} {info.get('version')}, expected {NAME} {VERSION}: prepared by "
                f"another version of this program; {_AGAIN}"
            )
        about = _read_json(self.path, "metadata.json")
        _check_files(self.path, about.get("file_bytes"))
        self.pairs, self._length = (about[key] for key in ("pairs", "elements"))
        self._records = None

    def __len__(self) -> int:
        return self._length

    def __getitem__(self, row: int) -> tuple[TrainingPair | Unreadable, ...]:
        check_row(row, len(self))
        element = readable(self._place(row), self._read, row)
        return (element,) if isinstance(element, Unreadable) else element[1]

    def origin(self, row: int) -> str:
        """File and row of the original; of a damaged record, its place here."""
        try:
            return self._read(row)[0]
        except InvalidExample:
            return self._place(row)

    def __getstate__(self) -> dict:
        return self.__dict__ | {"_records": None}

    def _read(self, row: int) -> tuple[str, tuple[TrainingPair, ...]]:
        if self._records is None:
            builder = tfds.builder_from_directory(self.path)
            self._records = builder.as_data_source(SPLIT, deserialize_method=tfds.decode.DeserializeMethod.RAW_BYTES)
        try:
            return from_record(self._records[row])
        except Exception as error:  # ArrayRecord and protobuf have an exception each for damaged bytes
            reason = " ".join(str(error).split())
            raise InvalidExample(f"{self._place(row)}: damaged record ({reason}); {_AGAIN}") from error

    def _place(self, row: int) -> str:
        return f"{self.path}: element {row}"


def _read_json(directory: Path, name: str) -> dict:
    path = directory / name
    try:
        values = json.loads(path.read_text())
    except FileNotFoundError as error:
        sets = sorted(path.parent.name for path in directory.glob("*/dataset_info.json"))
        hint = f"it holds the prepared sets {', '.join(sets)}: give one of these" if sets else _AGAIN
        raise InvalidExample(f"{directory}: not a prepared data set, there is no {name}; {hint}") from error
    except (ValueError, OSError) as error:
        raise InvalidExample(f"{path}: cannot be read ({error}); {_AGAIN}") from error
    if not isinstance(values, dict):
        raise InvalidExample(f"{path}: expected a JSON object; {_AGAIN}")
    return values


def _check_files(directory: Path, sizes: object) -> None:
    """That every file of records is there, as long as it was written."""
    if not isinstance(sizes, dict) or not sizes:
        raise InvalidExample(f"{directory}/metadata.json: no sizes of the files of records: not a whole set; {_AGAIN}")
    present = {path.name: path.stat().st_size for path in directory.iterdir() if path.name in sizes}
    wrong = [name for name, size in sizes.items() if present.get(name) != size]
    if wrong:
        name = wrong[0]
        seen = f"{present[name]} bytes" if name in present else "missing"
        raise InvalidExample(
            f"{directory}: {len(wrong)} of {len(sizes)} files are not as they were written, first {name}: {seen}, "
            f"expected {sizes[name]} bytes; copy them again, or {_AGAIN}"
        )
