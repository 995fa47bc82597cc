"""The published sizes are those of the published configuration files."""

import dataclasses
import json

import pytest
from golden_files import GOLDEN

from virtue_jax.published_models import SIZES, published_geometry


@pytest.mark.parametrize("size", SIZES)
def test_sizes_are_those_of_the_published_files(size):
    values = json.loads((GOLDEN / f"full_size/qwen2_vl_{size}_config.json").read_text())
    virtue = published_geometry(size)
    text = dataclasses.asdict(virtue.text)
    text["mrope_section"] = list(text["mrope_section"])
    published = values | {"mrope_section": values["rope_scaling"]["mrope_section"]}
    assert text == {name: published.get(name, text[name]) for name in text}
    assert len(set(text) & set(published)) == len(text)
    vision = dataclasses.asdict(virtue.vision)
    shared = set(vision) & set(values["vision_config"])
    assert {"depth", "embed_dim", "num_heads", "hidden_size"} <= shared
    assert {name: vision[name] for name in shared} == {name: values["vision_config"][name] for name in shared}


def test_an_unknown_size_is_refused():
    with pytest.raises(ValueError, match="'3b': expected one of 2b, 7b"):
        published_geometry("3b")
