"""MMEB-train (TIGER-Lab/MMEB-train): its published parquet as training pairs, and the table of its subsets.

A folder per subset, with the splits `original` and `diverse_instruction` as parquet files named after them; images
beside the subset folders. A text says `<|image_1|>` where its image belongs, and the encoder writes the image's markup
there. A side whose image path is empty is text alone; WebQA's queries have the marker all the same.
"""

import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from virtue_jax.data.example import IMAGE_MARKER, InvalidExample, TrainingPair
from virtue_jax.data.formats.parquet import ParquetRows
from virtue_jax.data.formats.table_rows import SIDES, TableRows
from virtue_jax.data.pair_source import PairRows

# Rows of each subset's split `original`, to the hundred that the data set's viewer shows.
SUBSETS = {
    "ImageNet_1K": 100_000,
    "N24News": 49_000,
    "HatefulMemes": 8_500,
    "VOC2007": 7_800,
    "SUN397": 19_900,
    "OK-VQA": 9_000,
    "A-OKVQA": 17_100,
    "DocVQA": 39_500,
    "InfographicsVQA": 24_000,
    "ChartQA": 28_300,
    "Visual7W": 70_000,
    "VisDial": 123_000,
    "CIRR": 26_100,
    "VisualNews_t2i": 100_000,
    "VisualNews_i2t": 100_000,
    "MSCOCO_t2i": 100_000,
    "MSCOCO_i2t": 113_500,
    "NIGHTS": 15_900,
    "WebQA": 17_200,
    "MSCOCO": 100_000,
}
LIMIT = 100_000  # rows of a subset that VIRTUE's train_mmeb.yaml lets in, the first ones

_REQUIRED = ("qry", "qry_image_path", "pos_text", "pos_image_path")
_OPTIONAL = ("neg_text", "neg_image_path")
SCHEMA = pa.schema([(name, pa.string()) for name in (*_REQUIRED, *_OPTIONAL)])


def subset_sources(folder: str, limit: int = LIMIT) -> dict[str, dict]:
    """The values of a `SourceConfig` for each of the 20 subsets under `folder`, as VIRTUE mixes them: weight 1 each."""
    return {
        name: {"kind": "mmeb", "path": f"{folder}/{name}", "image_root": folder, "weight": 1.0, "limit": limit}
        for name in SUBSETS
    }


class MmebTraining(TableRows, PairRows):
    """One MMEB-train subset as training pairs; no pixel is read.

    Args:
        where: the subset's folder, a parquet file, or several of them.
        image_root: folder that image paths are relative to; by default the one that holds the subset's folder (of
            files given one by one, `images` beside them or the file's own folder).
        split: which files of a folder are read: those whose name begins with it.

    Raises:
        InvalidExample: nothing of that split, unreadable file, missing column.
    """

    def __init__(
        self,
        where: str | os.PathLike | Sequence[str | os.PathLike],
        *,
        image_root: str | os.PathLike | None = None,
        split: str = "original",
    ):
        files, folder = _split_files(where, split)
        root = image_root if image_root is not None or folder is None else folder.absolute().parent
        super().__init__(files, _REQUIRED, _OPTIONAL, root)

    def pair(self, row: int) -> TrainingPair:
        table, number = self.locate(row)
        values, origin = table[number], self.origin(row)
        for name in ("query", "positive"):
            _check_side(values, *SIDES[name], origin)
        return TrainingPair(
            *(self.side(name, table, *map(values.get, SIDES[name]), origin) for name in ("query", "positive")),
            self.negatives(table, values, origin),
        )

    def markers_alone(self, limit: int = 0) -> int:
        """How many of the first `limit` rows (0 = all) have a `<|image_1|>` on a side without an image."""
        rows = np.concatenate([_markers_alone(table) for table in self.tables])
        return int(rows[: limit or None].sum())

    def origin(self, row: int) -> str:
        """Subset folder, file and row: the files of all subsets have the same names."""
        table, number = self.locate(row)
        return f"{table.path.parent.name}/{table.origin(number)}"


def train_row(
    query: tuple[str, str], positive: tuple[str, str], negative: tuple[str, str] = ("", "")
) -> dict[str, str]:
    """A row of `SCHEMA`, for `parquet.write_rows`: (text with its image marker, image path or "") of each side."""
    return dict(zip(SCHEMA.names, (*query, *positive, *negative), strict=True))


def _split_files(where, split: str) -> tuple[list[Path], Path | None]:
    """The parquet files to read, and the folder that was given, if it was one."""
    places = [where] if isinstance(where, str | os.PathLike) else list(where)
    if not places:
        raise InvalidExample("no parquet file given; name at least one file or folder")
    folder = Path(places[0])
    if len(places) > 1 or not folder.is_dir():
        return [Path(path) for path in places], None
    files = sorted(folder.glob(f"{split}*.parquet"))
    if not files:
        inside = ", ".join(sorted(path.name for path in folder.iterdir())[:20]) or "nothing"
        raise InvalidExample(
            f"{folder}: no parquet file of split {split!r} ({split}*.parquet); it has {inside}; give the folder of one "
            "subset"
        )
    return files, folder


def _check_side(values: dict, text_column: str, image_column: str, origin: str) -> None:
    text, image = values[text_column], values[image_column]
    if image is not None and not isinstance(image, str):
        raise InvalidExample(f"{origin}: {image_column} is {image!r}; expected a path, or '' for text alone")
    if text == "" and not image:
        raise InvalidExample(f"{origin}: neither {text_column} nor {image_column}; give at least one of them")


def _markers_alone(table: ParquetRows) -> np.ndarray:
    """bool[rows]"""
    alone = np.zeros(len(table), bool)
    for side in ("query", "positive"):
        text, image = (table.column(name).cast(pa.large_string(), safe=False) for name in SIDES[side])
        marked = pc.fill_null(pc.match_substring(text, IMAGE_MARKER), False)
        without = pc.equal(pc.fill_null(pc.binary_length(image), 0), 0)
        alone |= pc.and_(marked, without).to_numpy()
    return alone
