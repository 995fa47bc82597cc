"""`python -m converters import`: foreign checkpoints -> a model directory, tensor by tensor."""

import shutil
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from flax import nnx
from rich.console import Console

from converters import connector
from converters.errors import CheckpointError
from converters.foreign import ForeignVirtue, open_virtue
from converters.plan import check, finite, lazy_parameters, summary, unusable
from converters.progress import byte_progress
from converters.safetensors_file import write_safetensors
from virtue_jax.atomic_files import refuse_inputs, refuse_occupied
from virtue_jax.config import Compat, Numerics
from virtue_jax.model_directory import CARRIED, save_model
from virtue_jax.models.connector import Connector
from virtue_jax.models.parameters import parameters


@dataclass(frozen=True)
class ImportRequest:
    """What `import` was asked for; exactly one of `vlm` and `virtue`. dtype: "keep" or a name of `plan.DTYPES`."""

    out: Path
    sam2: Path
    vlm: Path | None = None
    virtue: Path | None = None
    connector: Path | None = None
    adapter: Path | None = None
    sam2_config: Path | None = None
    processor: Path | None = None
    dtype: str = "keep"
    compat: str | None = None
    seed: int = 0
    overwrite: bool = False


def run(request: ImportRequest, console: Console | None = None) -> None:
    """Converts, checks exact cover, and writes `request.out`, which appears whole at the end or not at all.

    Raises:
        CheckpointError: everything wrong with the checkpoints. FileExistsError, OSError: as `save_model`.
    """
    console = console or Console(file=sys.stderr)
    inputs = (request.vlm, request.virtue, request.sam2, request.sam2_config, request.connector, request.adapter)
    refuse_inputs(request.out, inputs)
    refuse_occupied(request.out, overwrite=request.overwrite)
    virtue = open_request(request)
    carried = check(virtue, request.dtype)
    params = lazy_parameters(virtue, request.dtype)
    fresh = not any(c.name == "connector" for c in virtue.components)
    if fresh:
        params |= fresh_connector(virtue, request.seed, request.dtype)
    for line in summary(virtue):
        console.print(f"left out  {line}", highlight=False, soft_wrap=True, markup=False)
    for line in virtue.notes:
        console.print(f"note  {line}", highlight=False, soft_wrap=True, markup=False)
    if not virtue.processor_files:
        console.print(
            "[yellow]no tokenizer files found: the model directory cannot embed until they are copied into it[/] "
            f"(looked in {request.processor or request.vlm or request.virtue}; give their folder with --processor DIR)"
        )
    try:
        with byte_progress("importing", sum(x.nbytes for x in params.values()), console) as progress:
            save_model(
                request.out,
                virtue.config,
                params,
                files=virtue.processor_files,
                extras=lambda folder: _write_carried(folder / CARRIED, virtue, carried),
                provenance=_provenance(request, fresh),
                overwrite=request.overwrite,
                progress=progress,
            )
    except CheckpointError as error:
        # Some tensor is unusable: find all of them, so that one error names all.
        raise CheckpointError(unusable(virtue, request.dtype) or error.problems) from None
    console.print(
        f"wrote {request.out}: {len(params)} parameters, {_billions(params)}", highlight=False, soft_wrap=True
    )


def open_request(request: ImportRequest) -> ForeignVirtue:
    """Opens what the request names; the connector of a merged VIRTUE or of a training checkpoint lies in its folder."""
    return open_virtue(
        vlm=Path(request.vlm or request.virtue),
        sam2_file=Path(request.sam2),
        connector_file=_connector_file(request),
        adapter_folder=request.adapter,
        sam2_config=request.sam2_config,
        processor_folder=request.processor,
        compat=None if request.compat is None else Compat.preset(request.compat),
    )


def _connector_file(request: ImportRequest) -> Path | None:
    if request.connector is not None or (request.virtue is None and request.adapter is None):
        return request.connector
    beside = Path(request.virtue or request.adapter) / connector.FILE_NAME
    if request.adapter is not None and not beside.is_file():
        remedy = "give the connector that it was trained with: --connector FILE.pth"
        raise CheckpointError([f"{request.adapter}: holds an adapter without {connector.FILE_NAME}; {remedy}"])
    return beside


def fresh_connector(virtue: ForeignVirtue, seed: int, dtype: str) -> dict[str, np.ndarray]:
    """`connector.*` as the model itself initialises it, from `seed`; float32 where dtype is "keep"."""
    numerics = Numerics(params="float32" if dtype == "keep" else dtype)
    module = Connector(virtue.config, numerics=numerics, rngs=nnx.Rngs(seed))
    return {f"connector.{path}": np.asarray(x) for path, x in parameters(module).items()}


def _write_carried(folder: Path, virtue: ForeignVirtue, carried: dict[str, list[str]]) -> None:
    folder.mkdir(exist_ok=True)
    for name, file in virtue.carried_files.items():
        shutil.copyfile(file, folder / name)
    for component in virtue.components:
        source, names = component.source, carried[component.name]
        if names:
            infos = {name: (source.infos[name].shape, source.infos[name].dtype) for name in names}
            write_safetensors(folder / f"{component.name}.safetensors", infos, _finite_tensors(source, names))


def _finite_tensors(source, names: list[str]) -> Iterator[tuple[str, np.ndarray]]:
    for name in names:
        array = source.read(name)
        if array.dtype.kind not in "biu" and not finite(array):
            raise CheckpointError([f"{source.infos[name].file}: tensor {name} holds NaN or infinity"])
        yield name, array


def _provenance(request: ImportRequest, fresh: bool) -> dict:
    names = {
        key: Path(value).name
        for key in ("vlm", "virtue", "sam2", "connector", "adapter", "sam2_config")
        if (value := getattr(request, key)) is not None
    }
    return {"imported_from": names, "dtype": request.dtype} | ({"connector_seed": request.seed} if fresh else {})


def _billions(params) -> str:
    return f"{sum(int(np.prod(x.shape)) for x in params.values()) / 1e9:.3f} billion values"
