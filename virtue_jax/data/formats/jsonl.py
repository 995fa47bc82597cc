"""People's own data: JSON lines to embed, and JSON lines of training pairs. Strict: whatever is not known is an error.

A line to embed: {"image": path or [paths], "text": str, "box": [x1, y1, x2, y2], "points": [[x, y, label], ...],
"mask": path}, all optional but one of image and text; coordinates in the first image's own pixels. "sam_box" and
"sam_point" ([x, y], [x, y, label] or a list of these) stand for box and points in SAM's 1024 frame. A training line:
{"query": {...}, "positive": {...}, "negatives": [{...}, ...]} of such objects; "positive" may be a list of several.
Paths are relative to the file's folder. null is the same as leaving the key out. UTF-8, with a byte order mark or
without. These are people's own pictures: their EXIF orientation is applied, so that coordinates are those of a viewer.
"""

import codecs
import json
import os
from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np

from virtue_jax.data.example import POSITIVE, Example, InvalidExample, TrainingPair, VisualPrompt, plain_numbers
from virtue_jax.data.pair_source import PairRows
from virtue_jax.data.unreadable import Unreadable, readable

_EXAMPLE_KEYS = ("image", "text", "box", "points", "mask", "sam_box", "sam_point")
_PAIR_KEYS = ("query", "positive", "negatives")
_OTHER_ENCODINGS = (
    (codecs.BOM_UTF32_LE, "UTF-32"),  # before UTF-16, whose mark it begins with
    (codecs.BOM_UTF32_BE, "UTF-32"),
    (codecs.BOM_UTF16_LE, "UTF-16"),
    (codecs.BOM_UTF16_BE, "UTF-16"),
)


def readable_examples(path: str | os.PathLike) -> Iterator[Example | Unreadable]:
    """A file to embed, line by line: an example, or what is wrong with the line.

    Raises:
        InvalidExample: no such file, nothing in it, not UTF-8 by its byte order mark.
    """
    path = Path(path)
    for number, line in enumerate(_lines(path), start=1):
        origin = f"{path}:{number}"
        yield readable(origin, _example, line, path.parent, origin)


def read_examples(path: str | os.PathLike) -> Iterator[Example]:
    """The examples of a file to embed, in order.

    Raises:
        InvalidExample: names file, line, what was found, what was expected.
    """
    for example in readable_examples(path):
        if isinstance(example, Unreadable):
            raise InvalidExample(example.error)
        yield example


def _example(line: bytes, folder: Path, origin: str) -> Example:
    return parse_example(_parse(line, origin), folder, origin)


class JsonlTraining(PairRows):
    """Training pairs of a JSONL file by row number. The whole file is looked through when it is opened.

    image_root: folder that paths in it are relative to; by default the file's own.

    Raises:
        InvalidExample: as `readable_examples`; or half of the lines or more cannot be read: says what is wrong with the
            first of them.
    """

    def __init__(self, path: str | os.PathLike, *, image_root: str | os.PathLike | None = None):
        self.path = Path(path)
        self._folder = self.path.parent if image_root is None else Path(image_root)
        offsets, errors = [0], []
        for number, line in enumerate(_lines(self.path), start=1):
            pair = readable(origin := f"{self.path}:{number}", self._pair, line, origin)
            errors += [pair.error] if isinstance(pair, Unreadable) else []
            offsets.append(offsets[-1] + len(line))
        if 2 * len(errors) >= len(offsets) - 1:
            raise InvalidExample(errors[0])
        self._offsets = np.array(offsets, np.int64)

    def __len__(self) -> int:
        return len(self._offsets) - 1

    def pair(self, row: int) -> TrainingPair:
        with open(self.path, "rb") as file:
            file.seek(int(self._offsets[row]))
            line = file.read(int(self._offsets[row + 1] - self._offsets[row]))
        return self._pair(line, self.origin(row))

    def origin(self, row: int) -> str:
        return f"{self.path}:{row + 1}"

    def _pair(self, line: bytes, origin: str) -> TrainingPair:
        record = _parse(line, origin)
        record = _known(record, _PAIR_KEYS, origin)
        for key in ("query", "positive"):
            if key not in record:
                raise InvalidExample(f"{origin}: no {key!r}; a training line needs 'query' and 'positive'")
        negatives = record.get("negatives", [])
        if not isinstance(negatives, list):
            raise InvalidExample(f"{origin}: negatives is {_shown(negatives)}; expected a list of objects")
        positives, several = record["positive"], isinstance(record["positive"], list)
        if several and not positives:
            raise InvalidExample(f"{origin}: positive is an empty list; give at least one")
        folder = self._folder
        return TrainingPair(
            parse_example(record["query"], folder, f"{origin} query"),
            _parse_all(positives, folder, f"{origin} positive")
            if several
            else (parse_example(positives, folder, f"{origin} positive"),),
            _parse_all(negatives, folder, f"{origin} negatives"),
        )


def _parse_all(records: list, folder: Path, origin: str) -> tuple[Example, ...]:
    return tuple(parse_example(record, folder, f"{origin}[{i}]") for i, record in enumerate(records))


def _lines(path: Path) -> Iterator[bytes]:
    if not path.is_file():
        raise InvalidExample(f"{path}: no such file; check the path")
    with open(path, "rb") as file:
        start = file.read(4)
        for mark, name in _OTHER_ENCODINGS:
            if start.startswith(mark):
                raise InvalidExample(f"{path}: the file is {name}; save it as UTF-8")
        file.seek(0)
        empty = True
        for line in file:
            empty = False
            yield line
    if empty:
        raise InvalidExample(f"{path}: the file is empty; expected one JSON object per line")


def _parse(line: bytes, origin: str) -> dict:
    if not line.strip():
        raise InvalidExample(f"{origin}: blank line; expected one JSON object per line")

    def refuse(token: str):
        raise ValueError(f"{token} is not a number that JSON knows")

    def unique(pairs: list[tuple[str, object]]) -> dict:
        repeated = sorted(key for key, count in Counter(key for key, _ in pairs).items() if count > 1)
        if repeated:
            raise ValueError(f"keys {repeated} more than once")
        return dict(pairs)

    try:
        return json.loads(line.decode("utf-8-sig"), parse_constant=refuse, object_pairs_hook=unique)
    except UnicodeDecodeError as error:
        raise InvalidExample(f"{origin}: not UTF-8 ({error.reason} at byte {error.start}); save it as UTF-8") from error
    except (ValueError, RecursionError) as error:
        raise InvalidExample(
            f"{origin}: not one JSON object ({error}); write each example on a line of its own"
        ) from error


def _known(record: object, known: tuple[str, ...], origin: str) -> dict:
    """The record without what is null, checked for its keys."""
    if not isinstance(record, Mapping):
        raise InvalidExample(f"{origin}: {_shown(record)}; expected an object with keys out of {', '.join(known)}")
    unknown = sorted(str(key) for key in set(record) - set(known))
    if unknown:
        raise InvalidExample(f"{origin}: unknown keys {unknown}; known are {', '.join(known)}")
    return {key: value for key, value in record.items() if value is not None}


def parse_example(record: object, folder: Path, origin: str) -> Example:
    """One record of the embedding input as an Example; relative paths are relative to `folder`.

    A program may give what it holds in place of JSON's values: paths, encoded bytes, PIL images and uint8 arrays for
    images; paths, bytes, PIL images and arrays for the mask; arrays and tensors for coordinates; None for absent.

    Raises:
        InvalidExample: unknown keys, wrong types or values; names `origin`, the key and what was expected.
    """
    record = _known(record, _EXAMPLE_KEYS, origin)
    images = record.get("image", [])
    images = images if isinstance(images, list | tuple) else [images]
    if "image" in record and not images:
        raise InvalidExample(f"{origin}: image is an empty list; leave the key out for text alone")
    text = record.get("text", "")
    if not isinstance(text, str):
        raise InvalidExample(f"{origin}: text is {_shown(text)}; expected a string")
    try:
        prompt = _prompt(record, folder, origin)
    except InvalidExample as error:
        raise error if str(error).startswith(origin) else InvalidExample(f"{origin}: {error}") from error
    return Example(text, tuple(_picture(image, "image", folder, origin) for image in images), prompt, origin)


def _picture(value: object, key: str, folder: Path, origin: str) -> object:
    """A path as text, relative to `folder`; what a program holds stays as it is."""
    if value is None or value == "" or isinstance(value, bool | int | float | list | tuple | Mapping):
        raise InvalidExample(f"{origin}: {key} is {_shown(value)}; expected a path")
    return os.path.join(folder, os.fsdecode(value)) if isinstance(value, str | os.PathLike) else value


def _prompt(record: dict, folder: Path, origin: str) -> VisualPrompt | None:
    own = [key for key in ("box", "points") if key in record]
    sam = [key for key in ("sam_box", "sam_point") if key in record]
    if own and sam:
        raise InvalidExample(f"{origin}: both {own[0]} and {sam[0]}; give the whole prompt in one frame")
    box = _numbers(record[(own or sam)[0]], origin, (own or sam)[0]) if {"box", "sam_box"} & record.keys() else None
    points: tuple = ()
    if "points" in record:
        points = _points(record["points"], "points", (3,), origin)
    elif "sam_point" in record:
        value = plain_numbers(record["sam_point"])
        single = isinstance(value, list) and value and not isinstance(value[0], list)
        points = _points([value] if single else value, "sam_point", (2, 3), origin)
    mask = _picture(record["mask"], "mask", folder, origin) if "mask" in record else None
    if box is None and not points and mask is None:
        return None
    return VisualPrompt(box, points, mask, "sam" if sam else "image")


def _numbers(value: object, origin: str, key: str, lengths: tuple[int, ...] = (4,)) -> tuple:
    value = plain_numbers(value)
    right = isinstance(value, list) and all(isinstance(v, int | float) and not isinstance(v, bool) for v in value)
    if not right or len(value) not in lengths:
        expected = " or ".join(map(str, lengths))
        raise InvalidExample(f"{origin}: {key} is {_shown(value)}; expected a list of {expected} numbers")
    return tuple(value)


def _points(value: object, key: str, lengths: tuple[int, ...], origin: str) -> tuple:
    value = plain_numbers(value)
    if not isinstance(value, list) or not value:
        raise InvalidExample(f"{origin}: {key} is {_shown(value)}; expected a list of [x, y, label], at least one")
    points = [_numbers(point, origin, f"{key}[{i}]", lengths) for i, point in enumerate(value)]
    return tuple(point if len(point) == 3 else (*point, POSITIVE) for point in points)


def _shown(value: object) -> str:
    try:
        shown = json.dumps(value, ensure_ascii=False, default=repr)
        shown = shown.encode(errors="backslashreplace").decode()
    except Exception:  # what JSON did not write may have no form in it
        return f"a {type(value).__name__}"
    return shown if len(shown) <= 80 else shown[:77] + "..."
