"""A small world for whole commands: scenes of 64 pixels, and a model of the tiny run with random weights."""

import dataclasses
from pathlib import Path

import numpy as np
import pytest
import tiny_run

from virtue_jax.cli.main import main
from virtue_jax.config import VirtueConfig, from_dict
from virtue_jax.data.encoding.tokens import Tokenizer
from virtue_jax.data.scenes import Vocabulary, write_scenes
from virtue_jax.model_directory import parameter_shapes, save_model


@pytest.fixture(scope="session")
def scenes(tmp_path_factory) -> Path:
    """24 training and 6 evaluation images of few words, two or three objects each."""
    folder = tmp_path_factory.mktemp("scenes")
    every = Vocabulary()
    words = Vocabulary(every.kinds[:4], every.colours[:4], every.textures[:1], every.scenes[:4], relative=False)
    write_scenes(folder, train=24, eval=6, seed=5, width=(64, 64), height=(64, 64), objects=(2, 3), vocabulary=words)
    return folder


@pytest.fixture(scope="session")
def tiny_virtue(golden, tmp_path_factory) -> Path:
    """A model directory of the tiny run's geometry with the golden tokenizer and random weights."""
    config = from_dict(VirtueConfig, tiny_run.get_config().model.scratch.to_dict())
    special = {"image_token_id": 1012, "vision_start_token_id": 1009, "vision_end_token_id": 1010}
    config = dataclasses.replace(config, text=dataclasses.replace(config.text, vocab_size=1024, **special))
    rng = np.random.default_rng(0)
    # Not zero-centred, so that norms' scales are usable.
    params = {path: rng.normal(0.1, 0.1, shape).astype(np.float32) for path, shape in parameter_shapes(config).items()}
    folder = tmp_path_factory.mktemp("tiny_virtue") / "model"
    save_model(folder, config, params, extras=Tokenizer.load(golden / "tiny/vlm").save)
    return folder


@pytest.fixture
def fails(capsys):
    """`fails(command, *arguments)`: what a command says, usually one line, before it ends with status 2."""

    def run(command: str, *arguments) -> str:
        capsys.readouterr()
        with pytest.raises(SystemExit) as ended:
            main([command, *map(str, arguments)])
        assert ended.value.code == 2
        said, hint = capsys.readouterr().err.strip().rsplit("\n", 1)
        assert hint in (
            f"(`virtue --traceback {command} ...` shows where)",
            f"(`virtue {command} --help` tells what each is)",
        )
        assert said.startswith(f"virtue {command}: ") and "Traceback" not in said
        return said.removeprefix(f"virtue {command}: ")

    return run
