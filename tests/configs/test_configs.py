"""Every run file holds what a TrainConfig holds; the full-size ones fit the published geometry, without arrays."""

import dataclasses
import json
import math
from pathlib import Path

import pytest

from configs import quickstart, virtue_2b_scar
from virtue_jax.config import AdapterConfig, HieraConfig, Sam2Config, TextConfig, VirtueConfig, VisionConfig, from_dict
from virtue_jax.parallel.mesh import data_mesh
from virtue_jax.train.config import TrainConfig
from virtue_jax.train.setup import setup


def test_every_run_file_is_known_here():
    files = {path.stem for path in Path(quickstart.__file__).parent.glob("*.py")} - {"__init__"}
    assert files == {"quickstart", "virtue_2b_scar"}


@pytest.mark.parametrize("run", ["recognise", "point"])
def test_the_quickstart_runs_train_every_parameter(run):
    config = from_dict(TrainConfig, quickstart.get_config(run).to_dict())
    scratch = from_dict(TrainConfig, quickstart.get_config("recognise").to_dict()).model.scratch
    virtue = dataclasses.replace(scratch, text=dataclasses.replace(scratch.text, vocab_size=300))
    assert setup(config, virtue, data_mesh()).frozen == {}


def test_unknown_quickstart_runs_are_refused():
    with pytest.raises(ValueError, match="recognise, point"):
        quickstart.get_config("aim")


def published_2b(golden) -> VirtueConfig:
    values = json.loads((golden / "full_size/qwen2_vl_2b_config.json").read_text())
    text = {f.name: values[f.name] for f in dataclasses.fields(TextConfig) if f.name in values}
    text["mrope_section"] = tuple(values["rope_scaling"]["mrope_section"])
    vision = {k: values["vision_config"][k] for k in ("depth", "embed_dim", "num_heads", "hidden_size")}
    hiera = HieraConfig(112, 2, (2, 3, 16, 3), (12, 16, 20))
    return VirtueConfig(Sam2Config(hiera), VisionConfig(**vision), TextConfig(**text), AdapterConfig())


def test_the_2b_run_trains_adapter_and_connector_of_the_published_size(golden):
    config = from_dict(TrainConfig, virtue_2b_scar.get_config().to_dict())
    run = setup(config, published_2b(golden), data_mesh())
    counts = {path: math.prod(x.shape) for path, x in run.state.trainable.items()}
    assert sum(counts.values()) == 4_530_176 + 143_360 + 1_509_376  # LoRA, DoRA magnitudes, connector
    assert all(path.startswith(("connector.", "text.")) for path in counts)
    assert all(x.dtype == "float32" for x in run.state.trainable.values())
    floats = {str(x.dtype) for path, x in run.frozen.items() if "gaussian" not in path}
    assert floats == {"bfloat16"}


def test_rows_hold_the_largest_image():
    config = from_dict(TrainConfig, virtue_2b_scar.get_config().to_dict())
    shape = config.data.queries
    assert shape.patches == 4 * 1280 and shape.slots >= 256 + 1280 + 128
    assert config.batch_size % config.query_micro_batches == 0
    assert config.batch_size % config.target_micro_batches == 0
