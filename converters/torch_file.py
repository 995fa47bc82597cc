"""PyTorch's `.pt`, `.pth` and `.bin` files. torch is imported only here, and only when such a file is opened.

Files are read with `weights_only=True`: tensors and plain containers, nothing in them is executed.
"""

from pathlib import Path

import ml_dtypes
import numpy as np

from converters.errors import CheckpointError
from converters.safetensors_file import TensorInfo

# A mapped file's pages stay resident until it is unmapped: it is mapped afresh after this many bytes were read.
_REMAP_AFTER = 1 << 28


class TorchFile:
    """One PyTorch file as {dotted name: tensor}: `infos` and `read(name)`, like `SafetensorsFile`.

    Nested dicts are flattened with a dot ("sam2_reducer.weight"); Meta's {"model": state
    dict} is unwrapped.

    Raises:
        CheckpointError: a file that is empty, truncated, not a PyTorch file, holds anything but tensors, or needs code.
    """

    def __init__(self, path: Path):
        self.path = path
        self._tensors: dict | None = None
        self._touched = 0
        self._mapped = True
        tensors = self._open()
        self.infos = {name: TensorInfo(tuple(t.shape), _dtype(path, name, t), path) for name, t in tensors.items()}

    def read(self, name: str) -> np.ndarray:
        """A copy of the tensor, in its own dtype."""
        array = _to_numpy(self._open()[name])
        self._touched += array.nbytes
        if self._mapped and self._touched > _REMAP_AFTER:
            self.close()
        return array

    def close(self) -> None:
        """Unmaps the file; the next `read` opens it again."""
        self._tensors = None
        self._touched = 0

    def _open(self) -> dict:
        if self._tensors is None:
            self._tensors = _flatten(self.path, self._load())
        return self._tensors

    def _load(self):
        import torch

        if self.path.stat().st_size == 0:
            raise CheckpointError([f"{self.path}: the file is empty"])
        try:
            self._mapped = torch.serialization._is_zipfile(open(self.path, "rb"))  # noqa: SIM115
            return torch.load(self.path, map_location="cpu", weights_only=True, mmap=self._mapped)
        except Exception as error:  # torch raises a dozen types for damaged files
            reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
            raise CheckpointError(
                [f"{self.path}: truncated, damaged or not a PyTorch weights file: {reason}"]
            ) from error


def _flatten(path: Path, loaded) -> dict:
    import torch

    if isinstance(loaded, dict) and set(loaded) == {"model"} and isinstance(loaded["model"], dict):
        loaded = loaded["model"]
    if not isinstance(loaded, dict):
        raise CheckpointError([f"{path}: holds a {type(loaded).__name__}, expected a dict of tensors"])
    flat, problems = {}, []
    for key, value in loaded.items():
        inner = value.items() if isinstance(value, dict) else [(None, value)]
        for subkey, tensor in inner:
            name = str(key) if subkey is None else f"{key}.{subkey}"
            if isinstance(tensor, torch.Tensor):
                flat[name] = tensor
            else:
                problems.append(f"{path}: {name} is a {type(tensor).__name__}, expected a tensor")
    if problems:
        raise CheckpointError(problems)
    return flat


def _dtype(path: Path, name: str, tensor) -> np.dtype:
    import torch

    if tensor.dtype is torch.bfloat16:
        return np.dtype(ml_dtypes.bfloat16)
    try:
        return torch.empty(0, dtype=tensor.dtype).numpy().dtype
    except TypeError as error:
        raise CheckpointError([f"{path}: tensor {name} has dtype {tensor.dtype}, which is not supported"]) from error


def _to_numpy(tensor) -> np.ndarray:
    import torch

    tensor = tensor.detach().contiguous()
    if tensor.dtype is torch.bfloat16:
        return tensor.view(torch.int16).numpy().copy().view(ml_dtypes.bfloat16)
    return tensor.numpy().copy()


def save_torch(path: Path, tree: dict) -> None:
    """`torch.save` of nested dicts of arrays, as tensors of the same dtypes and bits.

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
