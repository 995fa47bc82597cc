"""Checkpoint files of any kind behind one face: `Source` = {tensor name: info} over one or several files."""

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np

from converters.errors import CheckpointError, Problems, refuse
from converters.mapped_file import MappedFile, TensorInfo
from converters.safetensors_file import SafetensorsFile
from converters.torch_file import TorchFile

# Weights of a Hugging Face folder, in the order in which `transformers` looks for them.
WEIGHTS = (
    "model.safetensors",
    "model.safetensors.index.json",
    "pytorch_model.bin",
    "pytorch_model.bin.index.json",
)
_WEIGHT_SUFFIXES = (".safetensors", ".bin", ".index.json", ".gguf", ".h5", ".msgpack")
_NO_WEIGHTS = ("training_args.bin", "optimizer.bin", "scheduler.bin", "adapter_model.safetensors", "adapter_model.bin")

# What PyTorch puts into tensors' names when it wraps a module: for several devices, compiled, sharded.
_WRAPPERS = {"module", "_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module"}


def unwrapped(name: str) -> str:
    """A tensor's name without the wrappers of PyTorch, in any order and place."""
    return ".".join(part for part in name.split(".") if part not in _WRAPPERS)


class Source:
    """Tensors of one or several files under the names that the rule tables use.

    infos: {name: TensorInfo}. `read(name)` gives a copy of one tensor; only one file is kept open at a time.
    unused: files with other weights that lie beside them and are not read. notes: lines on how tensors were changed.
    """

    notes: Sequence[str] = ()

    def __init__(self, files: Sequence[MappedFile], rename: Callable[[str], str] = str):
        self.files = list(files)
        self.unused: tuple[Path, ...] = ()
        self._home: dict[str, tuple[MappedFile, str]] = {}
        self.infos: dict[str, TensorInfo] = {}
        problems = []
        for file in self.files:
            for stored, info in file.infos.items():
                name = rename(unwrapped(stored))
                if name not in self._home:
                    self._home[name], self.infos[name] = (file, stored), info
                elif not _same(self._home[name], (file, stored)):
                    first = self.infos[name].file
                    problems.append(
                        f"{file.path}: tensor {stored} is there twice with different values (also in {first})"
                    )
            file.close()
        refuse(problems)

    @property
    def where(self) -> Path:
        """The file, or the folder of several files, that errors name."""
        paths = [file.path for file in self.files]
        return paths[0] if len(paths) == 1 else paths[0].parent

    def read(self, name: str) -> np.ndarray:
        """A copy of one tensor, in its own dtype."""
        file, stored = self._home[name]
        for other in self.files:
            if other is not file:
                other.close()
        return file.read(stored)

    def stored_name(self, name: str) -> str:
        """The tensor's name in its file, without the wrappers of PyTorch."""
        return unwrapped(self._home[name][1])


class ArraySource:
    """A `Source` whose tensors are shapes only or arrays in memory: {name: array or shape}; for tests and plans."""

    unused = notes = ()

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


def open_file(path: Path) -> MappedFile:
    """Opens one file, by its suffix.

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
    """The tensors of one file, renamed. Raises as `open_file`."""
    return Source([open_file(path)], rename)


def open_folder(folder: Path, rename: Callable[[str], str] = str) -> Source:
    """The weights of a Hugging Face folder, those that `transformers` would load: safetensors before .bin, one file
    before shards with an index. `unused` of the result names weights of another generation.

    Raises:
        CheckpointError: no weights, shards missing or damaged, an index that disagrees with its shards, or a single
            file and shards of one format that hold different weights.
    """
    folder = Path(folder)
    present = [name for name in WEIGHTS if (folder / name).is_file()]
    if not present:
        held = ", ".join(sorted(path.name for path in folder.glob("*"))[:10]) or "nothing"
        raise CheckpointError([f"{folder}: no weights: none of {', '.join(WEIGHTS)} is there; it holds {held}"])
    source = Source(_open_weights(folder / present[0]), rename)
    index = f"{present[0]}.index.json"
    if index in present and not _same_weights(source, folder / index, rename):
        lines = f"{folder}: {present[0]} and the shards of {index} hold different weights; remove the older of the two"
        raise CheckpointError([lines])
    read = {file.path.name for file in source.files} | {present[0]}
    source.unused = tuple(
        path
        for path in sorted(folder.iterdir())
        if path.name.endswith(_WEIGHT_SUFFIXES) and path.name not in (*read, *_NO_WEIGHTS)
    )
    return source


def _same_weights(source: Source, index: Path, rename: Callable[[str], str]) -> bool:
    """Whether an index beside a single file tells of the same tensors; one whose shards are all gone tells of none."""
    shards = {index.parent / shard for shard in _weight_map(index).values()}
    if shards == {source.where} or not any(shard.is_file() for shard in shards):
        return True
    other = Source(_open_weights(index), rename)
    if set(other.infos) != set(source.infos):
        return False
    return all(equal_bits(source.read(name), other.read(name)) for name in source.infos)


def _open_weights(path: Path) -> list[MappedFile]:
    return _open_shards(path) if path.suffix == ".json" else [open_file(path)]


def _weight_map(index: Path) -> dict[str, str]:
    try:
        weight_map = json.loads(index.read_text())["weight_map"]
        if not all(isinstance(shard, str) for shard in weight_map.values()):
            raise TypeError("shards are named by strings")
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise CheckpointError([f"{index}: damaged index: expected JSON with a weight_map ({error!r})"]) from error
    return weight_map


def _open_shards(index: Path) -> list[MappedFile]:
    weight_map, problems = _weight_map(index), Problems()
    opened = [problems.of(open_file, index.parent / shard) for shard in sorted(set(weight_map.values()))]
    files = [file for file in opened if file is not None]
    names_in = {file.path.name: set(file.infos) for file in files}
    for name, shard in weight_map.items():
        if shard in names_in and name not in names_in[shard]:
            problems.append(f"{index.parent / shard}: missing tensor {name}, which {index.name} places there")
    for shard, names in names_in.items():
        for name in sorted(names):
            if weight_map.get(name) != shard:
                problems.append(f"{index.parent / shard}: extra tensor {name}, which {index.name} does not place there")
    problems.refuse()
    return files


def _same(a: tuple[MappedFile, str], b: tuple[MappedFile, str]) -> bool:
    return equal_bits(a[0].read(a[1]), b[0].read(b[1]))


def equal_bits(a: np.ndarray, b: np.ndarray) -> bool:
    """Whether dtype, shape and every bit agree, so that NaN is equal to itself."""
    same_kind = a.dtype == b.dtype and a.shape == b.shape
    return same_kind and np.array_equal(a.reshape(-1).view(np.uint8), b.reshape(-1).view(np.uint8))
