"""What a run starts from: a model directory, or random weights and a tokenizer made for the run's own texts."""

import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import jax
from flax import nnx

from virtue_jax.atomic_files import new_directory
from virtue_jax.config import TextConfig, VirtueConfig
from virtue_jax.data.encoding.fresh_tokenizer import train_tokenizer
from virtue_jax.data.encoding.tokens import Tokenizer
from virtue_jax.data.pair_source import PairSource, read_row
from virtue_jax.data.unreadable import Unreadable
from virtue_jax.model_directory import companions, load_config, load_parameters, stored_parameters
from virtue_jax.models.lora import adapt
from virtue_jax.models.parameters import abstract_virtue, bind, parameters
from virtue_jax.parallel.processes import barrier, is_leader
from virtue_jax.published_models import published_geometry
from virtue_jax.train.random_weights import initials, random_weights
from virtue_jax.train.step.config import TrainConfig
from virtue_jax.train.survival.identity import TOKENIZER

_TOKENIZER_ROWS = 2000  # training rows whose texts a fresh tokenizer learns from


@dataclass(frozen=True)
class StartingModel:
    """virtue: geometry and behaviour. companions: arguments of `save_model` that make a trained copy self-contained."""

    virtue: VirtueConfig
    tokenizer: Tokenizer
    companions: dict[str, Any]


def starting_model(config: TrainConfig, sources: Sequence[PairSource], workdir: Path) -> StartingModel:
    """The model without its weights, which `load_weights` gives once it is known where each belongs.

    `sources` and `workdir` serve a model from scratch: its tokenizer is trained on the sources' texts (by the leader)
    and kept in `workdir/tokenizer`, where a resumed run finds it again.

    Raises:
        FileNotFoundError, ValueError: not a whole model directory; an adapter for a model that has one; another size
            than the run file says.
    """
    if config.model.scratch is not None:
        return _from_scratch(config.model.scratch, sources, workdir / TOKENIZER)
    directory = Path(config.model.directory)
    virtue, fresh = load_config(directory), config.model.adapter
    if fresh is not None and virtue.adapter is not None:
        raise ValueError(f"{directory} has an adapter already: {virtue.adapter}; leave model.adapter out")
    if config.model.size:
        _check_size(virtue, config.model.size, directory)
    virtue = dataclasses.replace(virtue, adapter=fresh or virtue.adapter)
    return StartingModel(virtue, Tokenizer.load(directory), companions(directory))


def model_geometry(config: TrainConfig) -> VirtueConfig:
    """The run's model without its weights, which need not be there: geometry of its directory where that exists, else
    of the published size that `model.size` names.

    Raises:
        ValueError: neither. FileNotFoundError: a directory that is no model's.
    """
    model = config.model
    if model.scratch is not None:
        return model.scratch
    if Path(model.directory).exists():
        geometry = load_config(Path(model.directory))
    elif model.size:
        geometry = published_geometry(model.size)
    else:
        raise ValueError(
            f"{model.directory} does not exist, and model.size does not say which published size it will hold: "
            "--config.model.size=2b or 7b"
        )
    return dataclasses.replace(geometry, adapter=model.adapter or geometry.adapter)


def _check_size(virtue: VirtueConfig, size: str, directory: Path) -> None:
    def sizes(config: VirtueConfig) -> tuple[int, ...]:
        text, vision = config.text, config.vision
        return text.num_hidden_layers, text.hidden_size, text.intermediate_size, vision.depth, vision.embed_dim

    expected = published_geometry(size)
    if sizes(virtue) != sizes(expected):
        raise ValueError(
            f"{directory} is no {size} model: layers, widths (text), depth, width (vision) are {sizes(virtue)}, of "
            f"{size} {sizes(expected)}; set model.size to what it is, or leave it out"
        )


def load_weights(
    config: TrainConfig,
    virtue: VirtueConfig,
    wanted: Mapping[str, jax.ShapeDtypeStruct],
    have: Mapping[str, jax.Array] | None = None,
) -> dict[str, jax.Array]:
    """Starting values of the parameters `wanted` ({path: shape, dtype and sharding}), read or made in their places: no
    device and no host ever holds a sharded one whole. A function of the model and `config.seed`.

    have: parameters loaded already; a fresh adapter takes what it needs of the kernels from there.

    Raises:
        FileNotFoundError, ValueError: as `load_parameters`.
    """
    from_scratch, plain = config.model.scratch is not None, dataclasses.replace(virtue, adapter=None)
    known = initials(plain, config.numerics) if from_scratch else stored_parameters(config.model.directory)
    adapter = virtue.adapter if from_scratch else config.model.adapter
    new = {path for path in wanted if path not in known} if adapter is not None else set()
    old = {path: x for path, x in wanted.items() if path not in new}
    if from_scratch:
        loaded = random_weights(plain, config.numerics, config.seed, old)
    else:
        loaded = load_parameters(config.model.directory, old, partial=True) if old else {}
    if new:
        loaded |= _fresh_adapter(config, virtue, {p: wanted[p] for p in new}, {**(have or {}), **loaded})
    return {path: loaded[path] for path in wanted}


def _fresh_adapter(
    config: TrainConfig, virtue: VirtueConfig, wanted: Mapping[str, jax.ShapeDtypeStruct], have: Mapping
) -> dict[str, jax.Array]:
    plain = abstract_virtue(dataclasses.replace(virtue, adapter=None), config.numerics)
    kernels = {path.rsplit(".", 1)[0] + ".kernel" for path in wanted}
    kernels = {path: x for path, x in have.items() if path in kernels}

    @partial(jax.jit, out_shardings={path: x.sharding for path, x in wanted.items()})
    def make(key, kernels):
        model = bind(plain, {**parameters(plain), **kernels})  # the rest stays shapes, which `adapt` does not touch
        adapt(model.text, virtue.adapter, numerics=config.numerics, rngs=nnx.Rngs(key))
        adapted = parameters(model)
        return {path: adapted[path].astype(x.dtype) for path, x in wanted.items()}

    return make(jax.random.key(config.seed), kernels)


def _from_scratch(geometry: VirtueConfig, sources: Sequence[PairSource], folder: Path) -> StartingModel:
    if is_leader() and not folder.exists():
        with new_directory(folder) as unfinished:
            train_tokenizer(_texts(sources), geometry.text.vocab_size).save_pretrained(unfinished)
    barrier("the tokenizer is made")
    tokenizer = Tokenizer.load(folder)
    virtue = dataclasses.replace(geometry, text=_with_vocabulary(geometry.text, tokenizer))
    return StartingModel(virtue, tokenizer, {"extras": tokenizer.save})


def _texts(sources: Sequence[PairSource]) -> Iterable[str]:
    for source in sources:
        for row in range(0, len(source), max(1, len(source) * len(sources) // _TOKENIZER_ROWS)):
            for pair in read_row(source, row):
                if not isinstance(pair, Unreadable):  # training meets it again, counts it and names it
                    yield from (example.text for example in (pair.query, *pair.positives, *pair.negatives))


def _with_vocabulary(text: TextConfig, tokenizer: Tokenizer) -> TextConfig:
    ids = tokenizer.tokenizer.convert_tokens_to_ids
    return dataclasses.replace(
        text,
        vocab_size=len(tokenizer.tokenizer),
        image_token_id=ids("<|image_pad|>"),
        vision_start_token_id=ids("<|vision_start|>"),
        vision_end_token_id=ids("<|vision_end|>"),
    )
