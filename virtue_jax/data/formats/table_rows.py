"""Rows of several parquet files by number, as if they were one, and the images that they name."""

import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from virtue_jax.data.encoding.tokens import IMAGE_TOKEN
from virtue_jax.data.example import IMAGE_MARKER, Example, InvalidExample
from virtue_jax.data.formats.parquet import ParquetRows

# Columns of text and image of each side of a training row.
SIDES = {
    "query": ("qry", "qry_image_path"),
    "positive": ("pos_text", "pos_image_path"),
    "negative": ("neg_text", "neg_image_path"),
}


class TableRows:
    """Random access to the rows of `files`, and the parts that all published schemas share.

    text, path: columns whose values repeat. image_root: folder that image paths are relative to; None = `images`
    beside a file where there is such a folder, else the file's own.
    """

    def __init__(
        self,
        files: Sequence[Path],
        required: Sequence[str],
        optional: Sequence[str],
        image_root: str | os.PathLike | None,
    ):
        text, path = required[:2]
        self.tables = [ParquetRows(file, required, optional, repeated=(text, path)) for file in files]
        self._starts = np.cumsum([0, *(len(table) for table in self.tables)])
        self._root = None if image_root is None else Path(image_root)

    def __len__(self) -> int:
        return int(self._starts[-1])

    def locate(self, row: int) -> tuple[ParquetRows, int]:
        """The file of a row, and its number in that file."""
        if not 0 <= row < len(self):
            raise IndexError(f"row {row} of {len(self)}")
        number = int(np.searchsorted(self._starts, row, side="right")) - 1
        return self.tables[number], row - int(self._starts[number])

    def origin(self, row: int) -> str:
        table, number = self.locate(row)
        return table.origin(number)

    def rows_by_image(self) -> dict[tuple[str, str], list[int]]:
        """(file, query's image path) -> the rows that ask about this image; a row without one stands alone."""
        rows: dict[tuple[str, str], list[int]] = {}
        for table, start in zip(self.tables, self._starts.tolist(), strict=False):
            for number, path in enumerate(table.texts("qry_image_path")):
                rows.setdefault((table.path.name, path or f"row {number}"), []).append(start + number)
        return rows

    def image_path(self, table: ParquetRows, relative: object, origin: str, column: str = "qry_image_path") -> str:
        """The file that an image path means.

        Raises:
            InvalidExample: not a path, or nothing there; names row, column, path and root.
        """
        if not isinstance(relative, str) or not relative:
            raise InvalidExample(f"{origin}: {column} is {relative!r}; expected a path relative to the image root")
        beside = table.path.parent / "images"
        root = self._root or (beside if beside.is_dir() else table.path.parent)
        path = root / relative
        if not path.is_file():
            raise InvalidExample(
                f"{origin}: image {relative!r} is not in the image root {str(root)!r}; "
                "put it there or pass another image_root"
            )
        return str(path)

    def side(self, name: str, table: ParquetRows, text: object, image: object, origin: str) -> Example:
        """The example of a side (`SIDES`): a text, an image, or both. A target's origin names its text's column."""
        text_column, image_column = SIDES[name]
        images = (self.image_path(table, image, origin, image_column),) if image else ()
        full_origin = origin if name == "query" else f"{origin} {text_column}"
        return Example(marked_text(text, text_column, origin), images, None, full_origin, upright=False)

    def negatives(self, table: ParquetRows, values: dict, origin: str) -> tuple[Example, ...]:
        """The hard negatives of a row's `neg_text` and `neg_image_path`: one each, or lists; empty entries are none."""
        texts, images = (as_list(values.get(name)) for name in SIDES["negative"])
        if texts and images and len(texts) != len(images):
            raise InvalidExample(
                f"{origin}: {len(texts)} neg_text but {len(images)} neg_image_path; expected one path (or '') per text"
            )
        count = max(len(texts), len(images))
        pairs = zip(texts or [""] * count, images or [""] * count, strict=True)
        return tuple(self.side("negative", table, text or "", image, origin) for text, image in pairs if text or image)


def as_list(value: object) -> list:
    """A list as it is, nothing as an empty list, anything else as the only entry."""
    return [] if value is None else list(value) if isinstance(value, list) else [value]


def marked_text(value: object, column: str, origin: str) -> str:
    """A published text, byte for byte, its `<|image_1|>` included: the encoder knows what to write there.

    Raises:
        InvalidExample: not a text, or more images in it than the one that a side has.
    """
    if not isinstance(value, str):
        raise InvalidExample(f"{origin}: {column} is {value!r}; expected a text")
    if value.count("<|image_") != value.count(IMAGE_MARKER) + value.count(IMAGE_TOKEN) or value.count(IMAGE_MARKER) > 1:
        raise InvalidExample(f"{origin}: {column} {value!r}: one {IMAGE_MARKER} at most; a side has one image")
    return value
