"""Both Qwen2-VL towers: published sizes, independence of examples packed in a row, numerics. PyTorch: tests/parity."""

import functools
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from virtue_jax.config import Numerics, TextConfig, VisionConfig
from virtue_jax.models.qwen2_text import QwenText
from virtue_jax.models.qwen2_vision import QwenVision, VisionAttention
from virtue_jax.ops.rotary import patch_angles

VISION = VisionConfig(depth=2, embed_dim=32, num_heads=2, hidden_size=24)
TEXT = TextConfig(
    vocab_size=50,
    hidden_size=32,
    intermediate_size=48,
    num_hidden_layers=2,
    num_attention_heads=4,
    num_key_value_heads=2,
    mrope_section=(1, 1, 2),
    image_token_id=1,
    vision_start_token_id=2,
    vision_end_token_id=3,
)
TOLERANCE = 2e-6  # packed against alone, of the largest value: sums of other lengths are ordered otherwise


def _published(golden, size: str) -> tuple[VisionConfig, TextConfig, dict]:
    raw = json.loads((golden / "full_size" / f"qwen2_vl_{size}_config.json").read_text())
    tensors = json.loads((golden / "full_size" / f"qwen2_vl_{size}_instruct.json").read_text())["tensors"]
    vision = raw["vision_config"]
    names = ("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads")
    names += ("num_key_value_heads", "image_token_id", "vision_start_token_id", "vision_end_token_id")
    text = TextConfig(**{name: raw[name] for name in names}, mrope_section=tuple(raw["rope_scaling"]["mrope_section"]))
    return VisionConfig(vision["depth"], vision["embed_dim"], vision["num_heads"], vision["hidden_size"]), text, tensors


@pytest.mark.parametrize("size", ["2b", "7b"])
def test_published_sizes_have_the_published_parameters_and_run(golden, size):
    vision_config, text_config, tensors = _published(golden, size)
    numerics = Numerics(compute="bfloat16", params="bfloat16")

    def towers():
        rngs = nnx.Rngs(0)
        return (
            QwenVision(vision_config, numerics=numerics, rngs=rngs),
            QwenText(text_config, numerics=numerics, rngs=rngs),
        )

    graphdef, state = nnx.split(nnx.eval_shape(towers))
    count = sum(x.size for x in jax.tree.leaves(state))
    head = tensors.get("lm_head.weight", [0])  # an embedder has none
    assert count == sum(int(np.prod(shape)) for shape in tensors.values()) - int(np.prod(head))

    def run(state, patches, yx, patch_segments, tokens, positions, segments):
        vision, text = nnx.merge(graphdef, state)
        embedded = text.embed(tokens).at[:, : patches.shape[1] // 4].set(vision(patches, yx, patch_segments))
        return text(embedded, positions, segments)

    i32 = functools.partial(jax.ShapeDtypeStruct, dtype=jnp.int32)
    image = jax.ShapeDtypeStruct((1, 1024, 588), jnp.bfloat16), i32((1, 1024, 2)), i32((1, 1024))
    out = jax.eval_shape(run, state, *image, i32((1, 512)), i32((1, 3, 512)), i32((1, 512)))
    assert (out.shape, out.dtype) == ((1, 512, text_config.hidden_size), jnp.bfloat16)


@functools.cache
def _vision():
    graphdef, state = nnx.split(QwenVision(VISION, numerics=Numerics(), rngs=nnx.Rngs(0)))
    return jax.jit(lambda *row: nnx.merge(graphdef, state)(*row))


@functools.cache
def _text():
    graphdef, state = nnx.split(QwenText(TEXT, numerics=Numerics(), rngs=nnx.Rngs(0)))
    return jax.jit(lambda *row: nnx.merge(graphdef, state)(*row))


def _image(seed: int, rows: int, columns: int):
    rng = np.random.default_rng(seed)
    yx = np.stack(np.meshgrid(np.arange(rows), np.arange(columns), indexing="ij"), -1).reshape(-1, 2)
    return rng.standard_normal((rows * columns, 588)).astype(np.float32), yx.astype(np.int32)


def _row(items, length: int):
    """Packs (array, ...) tuples one after the other: the arrays padded to `length`, and segments."""
    columns = [np.concatenate(column) for column in zip(*items, strict=True)]
    segments = np.concatenate([np.full(len(item[0]), i + 1, np.int32) for i, item in enumerate(items)])
    rng = np.random.default_rng(99)
    pads = [rng.integers(1, 9, (length - len(c), *c.shape[1:])).astype(c.dtype) for c in columns]  # rubbish, not zeros
    padded = [np.concatenate([c, pad])[None] for c, pad in zip(columns, pads, strict=True)]
    return *padded, np.pad(segments, (0, length - len(segments)))[None]


def _assert_close(got, expected):
    np.testing.assert_allclose(got, expected, rtol=0, atol=TOLERANCE * np.abs(expected).max())


@pytest.mark.slow
def test_images_of_a_row_and_padding_do_not_see_each_other():
    images = [_image(0, 4, 6), _image(1, 8, 2), _image(2, 2, 2)]
    packed = _vision()(*_row(images, 64))[0]
    start = 0
    for image in images:
        alone = _vision()(*_row([image], len(image[0])))[0]
        _assert_close(packed[start : start + len(alone)], alone)
        start += len(alone)
    assert np.isfinite(packed).all()


def _example(seed: int, length: int):
    """(inputs[L, H], positions[L, 3]) with positions that differ between the axes."""
    rng = np.random.default_rng(seed)
    return rng.standard_normal((length, 32)).astype(np.float32), rng.integers(0, 40, (length, 3)).astype(np.int32)


def _read(row):
    inputs, positions, segments = row
    return _text()(inputs, positions.transpose(0, 2, 1), segments)


@pytest.mark.slow
def test_examples_of_a_row_and_padding_do_not_see_each_other():
    examples = [_example(0, 11), _example(1, 5), _example(2, 8)]
    packed = _read(_row(examples, 32))[0]
    start = 0
    for example in examples:
        alone = _read(_row([example], len(example[0])))[0]
        _assert_close(packed[start : start + len(alone)], alone)
        start += len(alone)
    assert np.isfinite(packed).all()


def test_words_see_only_what_is_before_them():
    inputs, positions, segments = _row([_example(0, 12)], 12)
    changed = inputs.copy()
    changed[0, 7] += 1
    before, after = _read((inputs, positions, segments))[0], _read((changed, positions, segments))[0]
    np.testing.assert_array_equal(before[:7], after[:7])
    assert (np.abs(before[7:] - after[7:]).max(-1) > 1e-4).all()


def test_all_three_rotary_axes_matter():
    inputs, positions, segments = _row([_example(0, 12)], 12)
    before = _read((inputs, positions, segments))
    for axis in range(3):
        moved = positions.copy()
        moved[0, 4, axis] += 3
        assert np.abs(before - _read((inputs, moved, segments))).max() > 1e-4


def test_hidden_states_are_inputs_layers_and_final_norm():
    text = QwenText(TEXT, numerics=Numerics(), rngs=nnx.Rngs(0))
    inputs, positions, segments = _row([_example(0, 12)], 12)
    hidden = text.hidden_states(jnp.asarray(inputs), positions.transpose(0, 2, 1), segments)
    assert hidden.shape == (TEXT.num_hidden_layers + 1, 1, 12, 32)
    np.testing.assert_array_equal(hidden[0], inputs)
    _assert_close(hidden[-1], _read((inputs, positions, segments)))


def test_bfloat16_stays_close_to_float32():
    inputs, positions, segments = _row([_example(0, 12)], 12)
    exact = _read((inputs, positions, segments))
    rough = QwenText(TEXT, numerics=Numerics(compute="bfloat16"), rngs=nnx.Rngs(0))
    got = rough(jnp.asarray(inputs), positions.transpose(0, 2, 1), segments)
    assert got.dtype == jnp.bfloat16
    assert np.abs(got.astype(jnp.float32) - exact).mean() < 0.02 * np.abs(exact).mean()


def test_arrays_that_do_not_fit_are_refused():
    vision = nnx.eval_shape(lambda: QwenVision(VISION, numerics=Numerics(), rngs=nnx.Rngs(0)))
    text = nnx.eval_shape(lambda: QwenText(TEXT, numerics=Numerics(), rngs=nnx.Rngs(0)))
    patches, yx, segments = _row([_image(0, 4, 4)], 16)
    with pytest.raises(ValueError, match=r"patches \(1, 14, 588\): expected \[rows, multiple of 4, 588\]"):
        vision(patches[:, :14], yx[:, :14], segments[:, :14])
    with pytest.raises(ValueError, match=r"patch_segments \(1, 12\)"):
        vision(patches, yx, segments[:, :12])
    with pytest.raises(ValueError, match=r"positions \(3, 1, 8\)"):
        text(jnp.zeros((1, 8, 32)), jnp.zeros((3, 1, 8), int), jnp.ones((1, 8), int))
    with pytest.raises(ValueError, match="num_key_value_heads 3"):
        QwenText(TextConfig(**{**vars(TEXT), "num_key_value_heads": 3}), numerics=Numerics(), rngs=nnx.Rngs(0))


def test_the_kernel_s_layout_of_heads_is_another_order_of_the_same_numbers():
    attention = VisionAttention(VisionConfig(1, 32, 2, 16), numerics=Numerics(), rngs=nnx.Rngs(0))
    rng = np.random.default_rng(0)
    x = jnp.asarray(rng.normal(size=(2, 12, 32)), jnp.float32)
    angles = patch_angles(jnp.asarray(rng.integers(0, 9, (2, 12, 2))), 16)
    given = (x, attention.qkv.kernel[...], attention.qkv.bias[...], angles)
    for plain, last in zip(attention._heads_last(*given), attention._length_last(*given), strict=True):
        np.testing.assert_allclose(last, plain, rtol=1e-5, atol=1e-6)
