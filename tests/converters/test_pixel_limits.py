"""The pixel limits of an imported folder are the model's, and an export writes them back."""

import json

import pytest

from converters.exporting import ExportRequest
from converters.exporting import run as export
from converters.importing import open_request, run
from virtue_jax.config import VirtueConfig
from virtue_jax.model_directory import load_config

TOKEN = 28 * 28
PUBLISHED = {"min_pixels": 4 * TOKEN, "max_pixels": 16384 * TOKEN}
DEFAULTS = (4 * TOKEN, 1280 * TOKEN)


def with_processor(vlm, change, name="preprocessor_config.json"):
    """The folder with its processor's file changed; `change` replaces the limits that it had."""
    values = json.loads((vlm / "preprocessor_config.json").read_text())
    values = {key: value for key, value in values.items() if key not in PUBLISHED} | change
    text = json.dumps({"image_processor": values} if name == "processor_config.json" else values)
    (vlm / name).write_text(text)
    return vlm


def limits(request) -> tuple[int, int]:
    config = open_request(request).config
    return config.min_pixels, config.max_pixels


@pytest.mark.parametrize("name", ["preprocessor_config.json", "processor_config.json"])
@pytest.mark.parametrize(
    ("change", "wanted"),
    [
        ({"min_pixels": 16 * TOKEN, "max_pixels": 256 * TOKEN}, (16 * TOKEN, 256 * TOKEN)),
        ({"size": {"shortest_edge": 16 * TOKEN, "longest_edge": 256 * TOKEN}}, (16 * TOKEN, 256 * TOKEN)),
        ({"min_pixels": None, "max_pixels": None, "size": {"longest_edge": 99 * TOKEN}}, (4 * TOKEN, 99 * TOKEN)),
        # As transformers has it, the older keys count.
        ({"max_pixels": 64 * TOKEN, "size": {"shortest_edge": 1, "longest_edge": 256 * TOKEN}}, (1, 64 * TOKEN)),
        ({"size": {"min_pixels": 5000, "max_pixels": 6000}}, (5000, 6000)),
        ({"max_pixels": 2000 * TOKEN}, (4 * TOKEN, 2000 * TOKEN)),
        (PUBLISHED, DEFAULTS),
        ({"size": {"shortest_edge": 4 * TOKEN, "longest_edge": 16384 * TOKEN}}, DEFAULTS),
        ({}, DEFAULTS),
    ],
)
def test_limits_are_kept_under_whatever_key_but_for_qwens_published_maximum(request_for, copy, name, change, wanted):
    vlm = with_processor(copy("vlm"), change, name)
    assert limits(request_for(vlm=vlm)) == wanted


def test_a_published_maximum_that_is_not_taken_is_said(request_for, capfd):
    run(request_for())
    assert "VIRTUE's limit is kept: 1003520" in " ".join(capfd.readouterr().err.split())


def test_the_processor_that_is_given_counts(request_for, copy, tmp_path):
    vlm = with_processor(copy("vlm"), {"max_pixels": 100 * TOKEN})
    (tmp_path / "processor").mkdir()
    (tmp_path / "processor/preprocessor_config.json").write_text(json.dumps({"max_pixels": 50 * TOKEN}))
    assert limits(request_for(vlm=vlm, processor=tmp_path / "processor")) == (4 * TOKEN, 50 * TOKEN)


def test_defaults_are_what_the_reference_trains_with():
    fields = VirtueConfig.__dataclass_fields__
    assert (fields["min_pixels"].default, fields["max_pixels"].default) == DEFAULTS


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"max_pixels": "many"}, "max_pixels is 'many', expected a positive number of pixels"),
        ({"min_pixels": 0}, "min_pixels is 0, expected a positive number"),
        ({"min_pixels": 9999, "max_pixels": 8888}, "min_pixels 9999 is above max_pixels 8888"),
        ({"min_pixels": 2000 * TOKEN}, "is above max_pixels"),
        ({"max_pixels": 500, "min_pixels": 100}, "max_pixels 500 is less than the 784 pixels of one vision token"),
        ({"patch_size": 16}, "patch_size is 16, only 14 is supported"),
        ({"merge_size": 1}, "merge_size is 1, only 2 is supported"),
        ({"image_mean": [0.5, 0.5, 0.5]}, "image_mean is [0.5, 0.5, 0.5]"),
        ({"do_normalize": False}, "do_normalize is False"),
        ({"resample": 2}, "resample is 2, only 3 is supported"),
    ],
)
def test_limits_and_processors_that_cannot_be_are_refused(request_for, problems_of, copy, change, message):
    vlm = with_processor(copy("vlm"), change)
    text = problems_of(request_for(vlm=vlm))
    assert f"{vlm / 'preprocessor_config.json'}: " in text
    assert message in text


def test_a_damaged_processor_file_is_named(request_for, problems_of, copy):
    vlm = copy("vlm")
    (vlm / "preprocessor_config.json").write_text("{")
    assert f"{vlm / 'preprocessor_config.json'}: expected the processor's JSON" in problems_of(request_for(vlm=vlm))


@pytest.mark.parametrize("name", ["preprocessor_config.json", "processor_config.json"])
@pytest.mark.parametrize(
    "change", [PUBLISHED, {"size": {"shortest_edge": 784, "longest_edge": 16384 * TOKEN}}, {"max_pixels": 7 * TOKEN}]
)
def test_an_export_says_the_limits_that_the_model_embeds_with(request_for, copy, tmp_path, name, change):
    vlm = with_processor(copy("vlm"), change, name)
    run(request_for(vlm=vlm))
    export(ExportRequest(model=request_for().out, out=tmp_path / "out"))
    assert limits(request_for(vlm=tmp_path / "out/vlm")) == limits(request_for(vlm=vlm))
    config = load_config(request_for().out)
    from transformers import Qwen2VLImageProcessor

    size = Qwen2VLImageProcessor.from_pretrained(tmp_path / "out/vlm").size
    assert (size["shortest_edge"], size["longest_edge"]) == (config.min_pixels, config.max_pixels)


def test_a_file_that_says_the_same_is_exported_byte_for_byte(request_for, copy, tmp_path):
    change = {"min_pixels": 4 * TOKEN, "max_pixels": 300 * TOKEN}
    vlm = with_processor(copy("vlm"), change)
    run(request_for(vlm=vlm))
    export(ExportRequest(model=request_for().out, out=tmp_path / "out"))
    name = "preprocessor_config.json"
    assert (tmp_path / "out/vlm" / name).read_bytes() == (vlm / name).read_bytes()
