"""Checkpoint files of any kind behind one face: `Source` = {tensor name: info} over one or several files."""

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np

from converters.errors import CheckpointError, refuse
from converters.safetensors_file import SafetensorsFile, TensorInfo
from converters.torch_file import TorchFile

INDEXES = ("model.safetensors.index.json", "pytorch_model.bin.index.json")
SINGLE_FILES = ("model.safetensors", "pytorch_model.bin")


class Source:
    """Tensors of one or several files under the names that the rule tables use.

    infos: {name: TensorInfo}. `read(name)` gives a copy of one tensor; only one file is kept open at a time.
    """

    def __init__(self, files: Sequence[SafetensorsFile | TorchFile], rename: Callable[[str], str] = str):
        self.files = list(files)
        self._home: dict[str, tuple[SafetensorsFile | TorchFile, str]] = {}
        self.infos: dict[str, TensorInfo] = {}
        problems = []
        for file in self.files:
            for stored, info in file.infos.items():
                name = rename(stored)
                if name not in self._home:
                    self._home[name], self.infos[name] = (file, stored), info
                elif not _same(self._home[name], (file, stored)):
                    first = self.infos[name].file
                    problems.append(
                        f"{file.path}: tensor {stored} is there twice with different values (also in {first})"
                    )
            _close(file)
        refuse(problems)

    @property
    def where(self) -> Path:
        """The file, or the folder of several files, that errors name."""
        paths = [file.path for file in self.files]
        return paths[0] if len(paths) == 1 else paths[0].parent

    def read(self, name: str) -> np.ndarray:
        file, stored = self._home[name]
        for other in self.files:
            if other is not file:
                _close(other)
        return file.read(stored)


class ArraySource:
    """A `Source` whose tensors are shapes only or arrays in memory: {name: array or shape}; for tests and plans."""

    def __init__(self, tensors: Mapping[str, Sequence[int] | np.ndarray], where: str = "in memory", dtype=np.float32):
        self.where = Path(where)
        self._tensors = tensors
        self.infos = {
            name: TensorInfo(t.shape, t.dtype, self.where)
            if isinstance(t, np.ndarray)
            else TensorInfo(tuple(t), np.dtype(dtype), self.where)
            for name, t in tensors.items()
        }

    def read(self, name: str) -> np.ndarray:
        return self._tensors[name]


def open_file(path: Path) -> SafetensorsFile | TorchFile:
    """One file, by its suffix.

    Raises:
        CheckpointError: no such file, an unknown suffix, or a damaged file.
    """
    path = Path(path)
    if not path.is_file():
        raise CheckpointError([f"{path}: no such file"])
    if path.suffix == ".safetensors":
        return SafetensorsFile(path)
    if path.suffix in (".pt", ".pth", ".bin"):
        return TorchFile(path)
    raise CheckpointError([f"{path}: expected .safetensors, .bin, .pt or .pth"])


def open_source(path: Path, rename: Callable[[str], str] = str) -> Source:
    return Source([open_file(path)], rename)


def open_folder(folder: Path, rename: Callable[[str], str] = str) -> Source:
    """The weights of a Hugging Face folder: safetensors before .bin, sharded (by its index) or not.

    Raises:
        CheckpointError: no weights, shards missing or damaged, or an index that disagrees with its shards.
    """
    folder = Path(folder)
    for single in SINGLE_FILES:
        if (folder / single).is_file():
            return open_source(folder / single, rename)
    for index in INDEXES:
        if (folder / index).is_file():
            return Source(_open_shards(folder / index), rename)
    raise CheckpointError([f"{folder}: no weights: none of {', '.join(SINGLE_FILES + INDEXES)} is there"])


def _open_shards(index: Path) -> list[SafetensorsFile | TorchFile]:
    try:
        weight_map = json.loads(index.read_text())["weight_map"]
        shards = sorted(set(weight_map.values()))
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise CheckpointError([f"{index}: damaged index: expected JSON with a weight_map ({error!r})"]) from error
    files, problems = [], []
    for shard in shards:
        try:
            files.append(open_file(index.parent / shard))
        except CheckpointError as error:
            problems += error.problems
    opened = {file.path.name: set(file.infos) for file in files}
    for name, shard in weight_map.items():
        if shard in opened and name not in opened[shard]:
            problems.append(f"{index.parent / shard}: missing tensor {name}, which {index.name} places there")
    for shard, names in opened.items():
        for name in sorted(names):
            if weight_map.get(name) != shard:
                problems.append(f"{index.parent / shard}: extra tensor {name}, which {index.name} does not place there")
    refuse(problems)
    return files


def _close(file: SafetensorsFile | TorchFile) -> None:
    if isinstance(file, TorchFile):
        file.close()


def _same(one, other) -> bool:
    a, b = one[0].read(one[1]), other[0].read(other[1])
    return a.dtype == b.dtype and a.shape == b.shape and a.tobytes() == b.tobytes()
