"""The data that a configuration names: every kind of source, limits, shared images, and the loader over them."""

import dataclasses
import json

import pytest

from virtue_jax.batch import RowShape
from virtue_jax.config import HieraConfig, Sam2Config, TextConfig, VirtueConfig, VisionConfig
from virtue_jax.data.config import DataConfig, RowGroup, SourceConfig
from virtue_jax.data.encoding.tokens import Tokenizer
from virtue_jax.data.scenes import write_scenes
from virtue_jax.data.sources.open_data import make_loader, open_sources
from virtue_jax.train.step.config import ModelConfig, TrainConfig


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("sources")
    write_scenes(folder / "scenes", train=4, eval=0, seed=0, width=(96, 96), height=(96, 96), objects=(2, 4))
    lines = [{"query": {"text": f"q {i}"}, "positive": [{"text": f"p {i}"}, {"text": "p"}]} for i in range(9)]
    (folder / "own.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return folder


def data_config(folder, **changes):
    sources = {
        "scenes": SourceConfig(str(folder / "scenes"), weight=3.0),
        "own": SourceConfig(str(folder / "own.jsonl"), kind="jsonl", limit=5),
    }
    rows = {
        "images": RowGroup(RowShape(200, 4, 2, vision_rows=1, patches=16, images=1, prompts=4, points=4), 8),
        "text": RowGroup(RowShape(64, 8, 2), 8),
    }
    return DataConfig(**{"sources": sources, "rows": rows, "interleave": 4, "streams": 2, **changes})


def test_sources_are_opened_cut_and_grouped(folder):
    scenes, own = open_sources(data_config(folder), seed=0)
    assert len(own) == 5 and [p.text for p in own[4][0].positives] == ["p 4", "p"]
    grouped, _ = open_sources(data_config(folder, share_images=3), seed=0)
    assert grouped.pairs == len(scenes) and max(map(len, grouped.groups)) in (2, 3)
    (cut,) = open_sources(data_config(folder, sources={"cut": SourceConfig(str(folder / "scenes"), limit=3)}), seed=0)
    assert len(cut) == 3


def test_unknown_kinds_and_no_source_are_refused(folder):
    with pytest.raises(ValueError, match="kind 'csv' is not one of scar, mmeb, jsonl"):
        open_sources(data_config(folder, sources={"x": SourceConfig("x", kind="csv")}), seed=0)
    with pytest.raises(ValueError, match=r"sources is empty"):
        open_sources(data_config(folder, sources={}), seed=0)


def test_the_loader_mixes_by_weight_and_gives_the_streams_asked_for(folder, golden):
    tokenizer = Tokenizer.load(golden / "tiny" / "vlm")
    text = TextConfig(1024, 64, 128, 1, 4, 2, (2, 3, 3), 1012, 1009, 1010)
    vision, sam2 = (
        VisionConfig(depth=1, embed_dim=32, num_heads=2, hidden_size=64),
        HieraConfig(8, 1, (1, 1, 1, 1), (2,)),
    )
    virtue = VirtueConfig(Sam2Config(sam2, image_size=64), vision, text, min_pixels=56 * 56, max_pixels=56 * 56)
    config = TrainConfig(ModelConfig("somewhere"), data_config(folder, pixels="uint8"), steps=1, batch_size=8)
    sources = open_sources(config.data, config.seed)
    whole, part = (
        make_loader(config.data, sources, virtue, tokenizer, batch_size=config.batch_size, seed=0, streams=streams)
        for streams in (None, (1,))
    )
    queries = []
    for _ in range(4):
        step, mine = next(whole), next(part)
        assert [len(batch.tokens) for batch in step.groups] == [8, 8]
        assert step.groups[0].sam_images.dtype == "uint8" and step.report.pairs == 8
        for batch, half in zip(step.groups, mine.groups, strict=True):
            assert (batch.tokens[len(half.tokens) :] == half.tokens).all()
        queries += [
            o for group in step.report.origins for row in group for o in row if o.endswith("query") or "_" not in o
        ]
    whole.close()
    part.close()
    own = sum("own.jsonl" in o and o.endswith("query") for o in queries)
    assert own == 8  # a quarter of 32
    without = dataclasses.replace(config, data=data_config(folder, rows={}))
    with pytest.raises(ValueError, match=r"no row group; give at least one in config\.data\.rows"):
        make_loader(without.data, sources, virtue, tokenizer, batch_size=without.batch_size, seed=0)
