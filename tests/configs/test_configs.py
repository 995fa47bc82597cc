"""Every run file holds what a TrainConfig holds; the full-size ones fit the published geometry, without arrays."""

import dataclasses
import importlib
import math
from pathlib import Path

import jax
import pytest

from configs import quickstart
from virtue_jax.config import AdapterConfig, from_dict
from virtue_jax.data.formats.mmeb import SUBSETS
from virtue_jax.data.packing.first_fit import misfit
from virtue_jax.data.packing.need import Need
from virtue_jax.data.row_groups.published import published_needs
from virtue_jax.data.row_groups.simulate import SampleOrder, simulate
from virtue_jax.ops.splash import FAST_SPLASH_BLOCK, splash_block
from virtue_jax.parallel.mesh import MeshConfig, make_mesh
from virtue_jax.published_models import published_geometry
from virtue_jax.train.step.config import TrainConfig
from virtue_jax.train.step.setup import setup

RUNS = [(size, stage, variant) for size in ("2b", "7b") for stage in ("mmeb", "scar") for variant in ("", "large")]
LORA = {"2b": 4_530_176, "7b": 10_092_544}
MAGNITUDES = {"2b": 143_360, "7b": 329_728}
CONNECTOR = {"2b": 1_509_376, "7b": 2_035_712}


def published(size: str, stage: str, variant: str) -> TrainConfig:
    module = importlib.import_module(f"configs.virtue_{size}_{stage}")
    return from_dict(TrainConfig, module.get_config(variant).to_dict())


def groups_of(config: TrainConfig, streams: int = 1):
    return [(group.shape, group.rows // streams) for group in config.data.rows.values()]


def test_every_run_file_is_known_here():
    files = {path.stem for path in Path(quickstart.__file__).parent.glob("*.py")} - {"__init__", "published"}
    assert files == {"quickstart"} | {f"virtue_{size}_{stage}" for size, stage, _ in RUNS}


@pytest.mark.parametrize("run", ["recognise", "point"])
def test_the_quickstart_runs_train_every_parameter(run):
    config = from_dict(TrainConfig, quickstart.get_config(run).to_dict())
    scratch = from_dict(TrainConfig, quickstart.get_config("recognise").to_dict()).model.scratch
    virtue = dataclasses.replace(scratch, text=dataclasses.replace(scratch.text, vocab_size=300))
    assert setup(config, virtue, make_mesh(config.mesh)).frozen == {}


def test_unknown_variants_are_refused():
    with pytest.raises(ValueError, match="recognise, point"):
        quickstart.get_config("aim")
    with pytest.raises(ValueError, match="variant 'huge': expected no variant, or large"):
        published("2b", "scar", "huge")


@pytest.mark.parametrize(("size", "stage", "variant"), RUNS)
def test_hyper_parameters_are_the_published_ones(size, stage, variant):
    config, large = published(size, stage, variant), 8 if variant else 1
    assert config.batch_size == 1024 * large
    assert config.steps == {"mmeb": 2000, "scar": 1000}[stage] // large
    assert config.optimizer.learning_rate == pytest.approx(2e-5 * math.sqrt(large))
    assert (config.optimizer.warmup_steps, config.optimizer.decay) == (200 // large, "linear")
    assert (config.loss.temperature, config.data.interleave) == (0.02, 64)
    assert (config.numerics.compute, config.numerics.params) == ("bfloat16", "bfloat16")
    assert config.model.adapter == (AdapterConfig() if stage == "mmeb" else None)
    sources = config.data.sources
    assert len(sources) == (len(SUBSETS) if stage == "mmeb" else 5)
    assert {(source.kind, source.weight, source.limit) for source in sources.values()} == {(stage, 1.0, 100_000)}


@pytest.mark.parametrize("size", ["2b", "7b"])
@pytest.mark.parametrize("stage", ["mmeb", "scar"])
@pytest.mark.parametrize("variant", ["", "large"])
def test_full_size_runs_train_adapter_and_connector(size, stage, variant):
    config, virtue = published(size, stage, variant), published_geometry(size)
    # One device stands for the mesh: all shapes are global. This machine's attention, not a TPU's.
    numerics = dataclasses.replace(config.numerics, attention="xla")
    run = setup(dataclasses.replace(config, numerics=numerics), virtue, make_mesh(MeshConfig(), jax.devices()[:1]))
    counts = {path: math.prod(x.shape) for path, x in run.state.trainable.items()}
    parts = {"connector": 0, "magnitude": 0, "lora": 0}
    for path, count in counts.items():
        name = path.split(".")[-1]
        parts["connector" if path.startswith("connector.") else name.split("_")[0]] += count
    assert parts == {"connector": CONNECTOR[size], "magnitude": MAGNITUDES[size], "lora": LORA[size]}
    assert all(x.dtype == "float32" for x in run.state.trainable.values())
    assert {str(x.dtype) for path, x in run.frozen.items() if "gaussian" not in path} == {"bfloat16"}
    frozen = sum(math.prod(x.shape) for x in run.frozen.values())
    assert frozen == pytest.approx({"2b": 2.28e9, "7b": 7.80e9}[size], rel=0.02)
    for batch, group in zip(run.groups, config.data.rows.values(), strict=True):
        shape = group.shape
        assert batch.tokens.shape == (group.rows, shape.slots)
        assert batch.patches.shape == (group.rows, shape.vision_rows, shape.patches, 588)
        assert batch.sam_images.shape == (group.rows, shape.images, 1024, 1024, 3)
        assert (batch.patches.dtype, batch.sam_images.dtype) == ("uint8", "uint8")


@pytest.mark.parametrize(("size", "stage", "variant"), RUNS)
def test_rows_divide_over_devices_and_streams_and_hold_the_longest_example(size, stage, variant):
    config, virtue = published(size, stage, variant), published_geometry(size)
    devices, streams = (256, 64) if variant else (64, 16)
    assert config.data.streams == streams and config.batch_size % streams == 0
    assert devices % (config.mesh.fsdp * config.mesh.tensor) == 0
    assert virtue.text.hidden_size % (128 * config.mesh.fsdp) == 0
    assert virtue.text.intermediate_size % (128 * config.mesh.fsdp) == 0
    for group in config.data.rows.values():
        assert group.rows % devices == group.rows % streams == 0
        for length in (group.shape.slots, group.shape.patches):
            assert splash_block(length, "slots or patches") >= FAST_SPLASH_BLOCK
    points = 3 if stage == "scar" else virtue.points_per_side**2 + 1
    patches = virtue.max_pixels // virtue.vision.patch_size**2
    query = Need(virtue.segmentation_tokens + patches // 4 + 90, (("i", patches, True),), 1, 1, points, positives=1)
    target = Need(512)
    assert misfit([query, target], groups_of(config, streams)) is None


@pytest.mark.parametrize("variant", ["", "large"])
@pytest.mark.parametrize("stage", ["mmeb", "scar"])
def test_rows_are_full_on_lengths_like_the_data(stage, variant):
    config = published("2b", stage, variant)
    sources = published_needs(stage, published_geometry("2b"), count=300, mixture="equal", seed=1)
    options = {"batch_size": config.batch_size, "streams": config.data.streams, "only": 4, "warmup": 4}
    figures = simulate(SampleOrder(sources, 64), groups_of(config), steps=8, **options)
    assert figures.row_efficiency >= {"scar": 0.94, "mmeb": 0.90}[stage]
    assert figures.pairs >= 0.95 * config.batch_size
    assert figures.waiting < 0.05
