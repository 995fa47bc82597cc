"""What a run starts from: a model directory, or random weights and a tokenizer made for the run's own texts."""

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
from flax import nnx

from virtue_jax.checkpoint import companions, load_config, load_model
from virtue_jax.config import TextConfig, VirtueConfig
from virtue_jax.data.example import TrainingPair
from virtue_jax.data.fresh_tokenizer import train_tokenizer
from virtue_jax.data.loader import PairSource
from virtue_jax.data.tokens import Tokenizer
from virtue_jax.models.lora import adapt
from virtue_jax.models.parameters import abstract_virtue, parameters, select
from virtue_jax.models.virtue import Virtue
from virtue_jax.train.config import TrainConfig

_TOKENIZER_ROWS = 2000  # training rows whose texts a fresh tokenizer learns from


@dataclass(frozen=True)
class StartingModel:
    """virtue: geometry and behaviour. params: {path: array}, trainable ones float32. companions: arguments of
    `save_model` that make a trained copy self-contained."""

    virtue: VirtueConfig
    params: dict[str, jax.Array]
    tokenizer: Tokenizer
    companions: dict[str, Any]


def load_starting_model(config: TrainConfig, source: PairSource, workdir: Path) -> StartingModel:
    """`source` and `workdir` serve a model from scratch: its tokenizer is trained on the source's texts and kept in
    `workdir/tokenizer`, where a resumed run finds it again.

    Raises:
        FileNotFoundError, ValueError: not a whole model directory; an adapter for a model that has one.
    """
    return _from_directory(config) if config.model.directory else _from_scratch(config, source, workdir)


def _from_directory(config: TrainConfig) -> StartingModel:
    directory = Path(config.model.directory)
    virtue = load_config(directory)
    fresh = config.model.adapter
    if fresh is not None and virtue.adapter is not None:
        raise ValueError(f"{directory} has an adapter already: {virtue.adapter}; leave model.adapter out")
    shapes = parameters(abstract_virtue(dataclasses.replace(virtue, adapter=fresh or virtue.adapter), config.numerics))
    trainable = select(sorted(shapes), config.trainable)
    stored = parameters(abstract_virtue(virtue, config.numerics))
    dtypes = {path: "float32" for path in trainable if path in stored}
    _, model = load_model(directory, config.numerics, dtypes=dtypes)
    if fresh is not None:
        adapt(model.text, fresh, numerics=config.numerics, rngs=nnx.Rngs(config.seed))
        virtue = dataclasses.replace(virtue, adapter=fresh)
    return StartingModel(virtue, parameters(model), Tokenizer.load(directory), companions(directory))


def _from_scratch(config: TrainConfig, source: PairSource, workdir: Path) -> StartingModel:
    geometry = config.model.scratch
    folder = workdir / "tokenizer"
    if not folder.exists():
        train_tokenizer(_texts(source), geometry.text.vocab_size).save_pretrained(folder)
    tokenizer = Tokenizer.load(folder)
    virtue = dataclasses.replace(geometry, text=_with_vocabulary(geometry.text, tokenizer))
    make = jax.jit(lambda key: parameters(Virtue(virtue, numerics=config.numerics, rngs=nnx.Rngs(key))))
    return StartingModel(virtue, make(jax.random.key(config.seed)), tokenizer, {"extras": tokenizer.save})


def _texts(source: PairSource):
    step = max(1, len(source) // _TOKENIZER_ROWS)
    for row in range(0, len(source), step):
        element = source[row]
        for pair in [element] if isinstance(element, TrainingPair) else element:
            yield from (example.text for example in (pair.query, pair.positive, *pair.negatives))


def _with_vocabulary(text: TextConfig, tokenizer: Tokenizer) -> TextConfig:
    ids = tokenizer.tokenizer.convert_tokens_to_ids
    return dataclasses.replace(
        text,
        vocab_size=len(tokenizer.tokenizer),
        image_token_id=ids("<|image_pad|>"),
        vision_start_token_id=ids("<|vision_start|>"),
        vision_end_token_id=ids("<|vision_end|>"),
    )
