"""PyTorch's `.pt`, `.pth` and `.bin` files. torch is imported only here, and only when such a file is opened.

Files are read with `weights_only=True`: tensors, numbers and plain containers, nothing in them is executed.
"""

import _codecs
import re
from collections.abc import Iterator
from pathlib import Path

import ml_dtypes
import numpy as np

from converters.errors import CheckpointError, refuse
from converters.mapped_file import MappedFile, TensorInfo
from converters.quantised import PICKLED, refusal

# Where training code keeps the weights, beside an optimizer's state, counters and the like.
_WEIGHTS = ("model", "state_dict", "model_state_dict", "module")


class TorchFile(MappedFile):
    """One PyTorch file as {dotted name: tensor}.

    Nested dicts are joined with a dot ("sam2_reducer.weight"). Of a training checkpoint ({"model": state dict,
    "optimizer": ..., "epoch": ...}; Meta publishes {"model": state dict}) only the weights count.

    Raises:
        CheckpointError: a file that is empty, truncated, not a PyTorch file, holds anything but tensors, or needs code.
    """

    def __init__(self, path: Path):
        super().__init__(path)
        self.infos = {name: TensorInfo(tuple(t.shape), _dtype(path, name, t), path) for name, t in self._open().items()}

    def _copy(self, opened: dict, name: str) -> np.ndarray:
        return _to_numpy(opened[name])

    def _load(self) -> dict:
        import torch

        if self.path.stat().st_size == 0:
            raise CheckpointError([f"{self.path}: the file is empty; copy it again"])
        with open(self.path, "rb") as file:
            self.mapped = file.read(4) == b"PK\x03\x04"  # torch before 1.6 wrote files that cannot be mapped
        try:
            with torch.serialization.safe_globals(_numbers()):
                loaded = torch.load(self.path, map_location="cpu", weights_only=True, mmap=self.mapped)
        except Exception as error:  # torch raises a dozen types for damaged files
            raise CheckpointError([_unreadable(self.path, error)]) from error
        return _flatten(self.path, loaded)


def _numbers() -> list:
    """What numpy's numbers and arrays are pickled with, which run nothing: training code keeps losses and steps so."""
    dtypes = {type(np.dtype(kind)) for kind in "?bhilqBHILQefd"}
    functions = [np.float64(0).__reduce__()[0], np.empty(0).__reduce__()[0]]
    named = [(f, f"numpy.{core}.multiarray.{f.__name__}") for core in ("core", "_core") for f in functions]
    return [np.dtype, np.ndarray, *dtypes, *named, _codecs.encode]


def _unreadable(path: Path, error: Exception) -> str:
    reason = " ".join(str(error).split()) or type(error).__name__
    if package := next((name for name in PICKLED if f"GLOBAL {name}" in reason), None):
        return refusal(path, f"{package}, by its tensor classes")
    if code := re.search(r"GLOBAL ([\w.]+)", reason):
        return (
            f"{path}: needs the Python object {code[1]}, and nothing in a file is executed here; "
            "save its tensors alone, where you trust it: torch.save({'model': model.state_dict()}, FILE)"
        )
    return f"{path}: truncated, damaged or not a PyTorch weights file: {reason[:200]}; copy it again"


def _flatten(path: Path, loaded) -> dict:
    import torch

    if isinstance(loaded, dict):
        loaded = next((loaded[key] for key in _WEIGHTS if isinstance(loaded.get(key), dict)), loaded)
    if not isinstance(loaded, dict):
        raise CheckpointError([f"{path}: holds a {type(loaded).__name__}, expected a dict of tensors"])
    flat, problems = {}, []
    for name, leaf in _leaves(loaded):
        if isinstance(leaf, torch.Tensor):
            flat[name] = leaf
        else:
            remedy = "save the weights alone, or under `model`"
            problems.append(f"{path}: {name} is a {type(leaf).__name__}, expected a tensor; {remedy}")
    refuse(problems)
    return flat


def _leaves(tree: dict, prefix: str = "") -> Iterator[tuple[str, object]]:
    for key, value in tree.items():
        if isinstance(value, dict):
            yield from _leaves(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def _dtype(path: Path, name: str, tensor) -> np.dtype:
    kind = str(tensor.dtype).removeprefix("torch.")
    if tensor.is_quantized:
        raise CheckpointError([refusal(path, f"tensor {name} is {kind}")])
    try:
        return np.dtype(getattr(ml_dtypes, kind, kind))
    except TypeError as error:
        raise CheckpointError([f"{path}: tensor {name} has dtype {kind}, which is not supported"]) from error


def _to_numpy(tensor) -> np.ndarray:
    import torch

    tensor = tensor.detach().contiguous()
    if tensor.dtype is torch.bfloat16:
        return tensor.view(torch.int16).numpy().copy().view(ml_dtypes.bfloat16)
    return tensor.numpy().copy()


def save_torch(path: Path, tree: dict) -> None:
    """Writes nested dicts of arrays with `torch.save`, as tensors of the same dtypes and bits.

    Raises:
        OSError: the file cannot be written whole.
    """
    import torch

    try:
        torch.save(_to_torch(tree), path)
    except RuntimeError as error:  # torch's zip writer does not say OSError
        raise OSError(f"cannot write {path}: is the disk full? ({str(error).splitlines()[0]})") from error


def _to_torch(node):
    import torch

    if isinstance(node, dict):
        return {key: _to_torch(value) for key, value in node.items()}
    if node.dtype == ml_dtypes.bfloat16:
        return torch.from_numpy(np.ascontiguousarray(node).view(np.int16)).view(torch.bfloat16)
    return torch.from_numpy(np.ascontiguousarray(node))
