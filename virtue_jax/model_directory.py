"""The model directory: everything an embedder needs, in one folder that either loads whole or not at all.

    virtue_config.json    format, version, VirtueConfig, provenance; written last
    params/               `array_store`: {dotted path: array}, stacked layers as the model has them
    tokenizer.json, ...   the tokenizer and processor files
    carried/              files that the model does not use, kept for exact export

Arrays are written one block at a time, so that a conversion never holds more than about one tensor.
"""

import functools
import json
import os
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from types import MappingProxyType
from typing import Any

import jax
import numpy as np

from virtue_jax.array_store import LazyArray, load_arrays, read_arrays, stored_arrays, write_arrays
from virtue_jax.atomic_files import new_directory
from virtue_jax.config import Numerics, VirtueConfig, from_dict, to_dict
from virtue_jax.models.parameters import abstract_virtue, bind, parameters
from virtue_jax.models.virtue import Virtue

CONFIG_FILE = "virtue_config.json"
PARAMS = "params"
CARRIED = "carried"
FORMAT = "virtue_jax model"
VERSION = 2  # 1: `params` was written by Orbax; it is read alike


def save_model(
    directory: str | os.PathLike,
    config: VirtueConfig,
    params: Mapping[str, jax.Array | np.ndarray | LazyArray],
    *,
    files: Iterable[Path] = (),
    carried: Iterable[Path] = (),
    extras: Callable[[Path], None] | None = None,
    provenance: Mapping[str, Any] | None = None,
    overwrite: bool = False,
    progress: Callable[[int], None] | None = None,
) -> None:
    """Writes a model directory; it appears whole, under its name, at the very end.

    Args:
        params: {dotted path: array}, exactly those of `config`'s model. A `LazyArray` is made when it is written.
        files: tokenizer and processor files, copied to the top of the directory.
        carried: files or folders copied into `carried/`.
        extras: called with the unfinished directory, to write more into it.
        provenance: JSON-able; where the model came from.
        overwrite: replaces an existing directory (which stays until the new one is complete).
        progress: called with the number of parameter bytes written since the last call.

    Raises:
        FileExistsError: the directory exists and `overwrite` is false.
        ValueError: `params` do not fit `config`'s model: everything wrong, named.
        OSError: the disk is full or cannot be written; an existing directory is untouched.
    """
    _refuse_misfit(
        {path: tuple(x.shape) for path, x in params.items()},
        parameter_shapes(config),
        "the parameters given",
    )
    with new_directory(directory, overwrite=overwrite) as folder:
        write_arrays(folder / PARAMS, params, progress or (lambda written: None))
        for file in files:
            shutil.copyfile(file, folder / Path(file).name)
        for file in carried:
            (folder / CARRIED).mkdir(exist_ok=True)
            copy = shutil.copytree if Path(file).is_dir() else shutil.copyfile
            copy(file, folder / CARRIED / Path(file).name)
        if extras is not None:
            extras(folder)
        head = {"format": FORMAT, "version": VERSION, "config": to_dict(config), "provenance": dict(provenance or {})}
        (folder / CONFIG_FILE).write_text(json.dumps(head, indent=2) + "\n")


def read_head(directory: str | os.PathLike) -> dict:
    """`virtue_config.json` as a dict: format, version, config, provenance.

    Raises:
        FileNotFoundError: not a model directory. ValueError: damaged, or of another version.
    """
    file = Path(directory) / CONFIG_FILE
    if not file.is_file():
        raise FileNotFoundError(
            f"{directory} is not a model directory (no {CONFIG_FILE}); make one: python -m converters"
        )
    try:
        head = json.loads(file.read_text())
        form, version = head["format"], head["version"]
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{file} is damaged: {error!r}") from error
    if form != FORMAT or version not in (1, VERSION):
        raise ValueError(f"{file}: {form!r} version {version!r}; this program reads {FORMAT!r} up to version {VERSION}")
    return head


def load_config(directory: str | os.PathLike) -> VirtueConfig:
    """The geometry and behaviour of a model directory. Raises as `read_head`, and ValueError for unknown keys."""
    return from_dict(VirtueConfig, read_head(directory)["config"], str(Path(directory) / CONFIG_FILE))


def stored_parameters(directory: str | os.PathLike) -> dict[str, jax.ShapeDtypeStruct]:
    """{dotted path: shape and dtype} as stored.

    Raises:
        FileNotFoundError: no parameters there. ValueError: they are damaged.
    """
    with _readable(directory) as folder:
        return stored_arrays(folder)


def load_parameters(
    directory: str | os.PathLike, wanted: Mapping[str, jax.ShapeDtypeStruct], *, partial: bool = False
) -> dict[str, jax.Array]:
    """Restores the parameters straight into the dtype and sharding that `wanted` gives each path.

    Args:
        wanted: {dotted path: shape, dtype and (optionally) sharding}; without a sharding: the first device.
        partial: whether the directory may hold more than what is wanted.

    Raises:
        FileNotFoundError: no parameters there. ValueError: paths or shapes that do not fit, all named; damage.
    """
    stored = {path: x.shape for path, x in stored_parameters(directory).items()}
    chosen = {path: shape for path, shape in stored.items() if path in wanted or not partial}
    _refuse_misfit(chosen, {path: tuple(x.shape) for path, x in wanted.items()}, f"{directory}: the parameters stored")
    here = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    placed = {path: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding or here) for path, x in wanted.items()}
    with _readable(directory) as folder:
        return load_arrays(folder, placed)


def read_parameters(directory: str | os.PathLike, paths: Iterable[str]) -> dict[str, np.ndarray]:
    """Some parameters as stored, on the host: {dotted path: array}.

    Raises:
        FileNotFoundError: no parameters there. ValueError: damaged, or a path that is not there.
    """
    with _readable(directory) as folder:
        return read_arrays(folder, paths)


def load_model(
    directory: str | os.PathLike,
    numerics: Numerics,
    *,
    dtypes: Mapping[str, str] | None = None,
    shardings: Mapping[str, jax.sharding.Sharding] | None = None,
    **config_overrides: Any,
) -> tuple[VirtueConfig, Virtue]:
    """A model directory's config and model, parameters in `numerics.params`.

    Args:
        dtypes: {dotted path: dtype} of parameters that differ from `numerics.params` (trained ones in float32).
        shardings: {dotted path: sharding}; the rest goes to the first device.
        config_overrides: fields of `VirtueConfig` to replace, such as `compat`.

    Raises:
        FileNotFoundError, ValueError: as `load_config` and `load_parameters`.
    """
    config = replace(load_config(directory), **config_overrides)
    model = abstract_virtue(config, numerics)
    shapes = parameters(model)
    dtypes, shardings = dtypes or {}, shardings or {}
    unknown = sorted((set(dtypes) | set(shardings)) - set(shapes))
    if unknown:
        raise ValueError(f"{directory}: dtypes or shardings given for parameters that do not exist: {unknown}")
    wanted = {
        path: jax.ShapeDtypeStruct(x.shape, dtypes.get(path, x.dtype), sharding=shardings.get(path))
        for path, x in shapes.items()
    }
    return config, bind(model, load_parameters(directory, wanted))


def companions(directory: str | os.PathLike) -> dict[str, list[Path]]:
    """`files` and `carried` of a model directory, as `save_model` takes them: for saving a trained copy of it."""
    folder = Path(directory)
    files = sorted(path for path in folder.iterdir() if path.is_file() and path.name != CONFIG_FILE)
    carried = sorted((folder / CARRIED).iterdir()) if (folder / CARRIED).is_dir() else []
    return {"files": files, "carried": carried}


@functools.lru_cache(maxsize=8)
def abstract_parameters(config: VirtueConfig, dtype: str = "float32") -> Mapping[str, jax.ShapeDtypeStruct]:
    """{dotted path: shape and dtype} of the model that `config` describes, with `Numerics(params=dtype)`."""
    return MappingProxyType(parameters(abstract_virtue(config, Numerics(params=dtype))))


def parameter_shapes(config: VirtueConfig) -> dict[str, tuple[int, ...]]:
    """{dotted path: shape} of the model that `config` describes."""
    return {path: tuple(x.shape) for path, x in abstract_parameters(config).items()}


@contextmanager
def _readable(directory: str | os.PathLike) -> Iterator[Path]:
    """The folder of the parameters, for a block that reads them; what goes wrong there is damage."""
    read_head(directory)
    folder = Path(directory).absolute() / PARAMS
    if not folder.is_dir():
        raise FileNotFoundError(f"{folder} is missing: the model directory is not whole")
    try:
        yield folder
    except Exception as error:  # tensorstore raises several types for damaged files
        raise ValueError(f"{folder} is damaged: {_first_line(error)}") from error


def _refuse_misfit(have: Mapping[str, tuple], want: Mapping[str, tuple], where: str) -> None:
    problems = [f"missing {path} {want[path]}" for path in sorted(set(want) - set(have))]
    problems += [f"unknown {path} {have[path]}" for path in sorted(set(have) - set(want))]
    problems += [
        f"{path} has shape {have[path]}, the model needs {want[path]}"
        for path in sorted(set(have) & set(want))
        if have[path] != want[path]
    ]
    if problems:
        listing = "\n  ".join(problems)
        raise ValueError(f"{where}: {len(problems)} parameters do not fit the model:\n  {listing}")


def _first_line(error: BaseException) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]
