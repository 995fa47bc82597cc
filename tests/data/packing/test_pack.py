import dataclasses
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from virtue_jax.batch import NO_TOKEN, RowShape
from virtue_jax.config import CLIP_MEAN, CLIP_STD, IMAGENET_MEAN, IMAGENET_STD
from virtue_jax.data.encoding.qwen_image import normalise_patches
from virtue_jax.data.encoding.sam_image import sam_image
from virtue_jax.data.example import Example
from virtue_jax.data.packing.first_fit import vision_places
from virtue_jax.data.packing.invariants import validate
from virtue_jax.data.packing.need import Need, need_of, row_shape
from virtue_jax.data.packing.pack import pack_rows


def places(rows, shape):
    return vision_places(map(need_of, rows), shape)


@pytest.fixture
def pack(small_sam_encoder):
    """Packs rows whose examples are settled, for the encoder's model."""

    def pack(rows, shape, **options):
        vision = options.pop("vision", None) or places(rows, shape)
        return pack_rows(rows, shape, small_sam_encoder.config, vision=vision, **options)

    return pack


def test_needs_and_the_smallest_shape_count_shared_images_once(rows):
    first, second = rows[0][0].images[0], rows[0][2].images[0]
    slots = sum(len(example) for example in rows[0])
    images = tuple((image.key, len(image.patches), True) for image in (first, second))
    assert need_of(rows[0]) == Need(slots, images, examples=3, prompts=2, points=3, masks=False, positives=2)
    assert row_shape(rows) == RowShape(
        slots=slots,
        examples=3,
        positives=2,
        vision_rows=2,
        patches=max(len(image.patches) for image in (first, second)),
        images=2,
        prompts=2,
        points=3,
        masks=True,
    )


def test_shapes_round_up_to_multiples_and_buckets(rows):
    need = row_shape(rows)
    shape = row_shape(rows, slots=128, patches=[4, 4096, 1024])
    assert shape.slots % 128 == 0 and 0 <= shape.slots - need.slots < 128 and shape.patches == 1024
    with pytest.raises(
        ValueError, match=r"row 0 \(row 0a, row 0b, row 0c\): \d+ patches, more than the largest bucket 8"
    ):
        row_shape(rows, patches=[4, 8])
    with pytest.raises(ValueError, match="patches must be a multiple of 4"):
        row_shape(rows, patches=[1001])
    with pytest.raises(ValueError, match="no rows"):
        row_shape([])


def test_every_example_can_be_read_back_from_its_row(rows, packed):
    _, batch = packed
    for r, row in enumerate(rows):
        prompts = 0
        for k, example in enumerate(row):
            here = batch.segments[r] == k + 1
            assert here.sum() == len(example)
            assert batch.pool[r, k] == np.flatnonzero(here)[-1] and batch.valid[r, k]
            np.testing.assert_array_equal(batch.tokens[r, here], example.tokens)
            np.testing.assert_array_equal(batch.positions[r][:, here], example.positions)
            slots = batch.vision_slot[r, here]
            np.testing.assert_array_equal(slots >= 0, example.vision >= 0)
            if example.images:
                own = np.concatenate([image.patches for image in example.images])
                own = normalise_patches(own).reshape(-1, 4, 588)
                stored = batch.patches[r].reshape(-1, 4, 588)
                np.testing.assert_array_equal(stored[slots[slots >= 0]], own[example.vision[example.vision >= 0]])
                expected = np.where(example.segmentation >= 0, prompts * 16 + example.segmentation, -1)
                np.testing.assert_array_equal(batch.prompt_slot[r, here], expected)
                count = len(example.prompt.labels)
                np.testing.assert_array_equal(batch.prompt_points[r, prompts, :count], example.prompt.points)
                np.testing.assert_array_equal(batch.prompt_labels[r, prompts, :count], example.prompt.labels)
                assert (batch.prompt_labels[r, prompts, count:] == NO_TOKEN).all()
                sam = batch.sam_images[r, batch.prompt_image[r, prompts]]
                np.testing.assert_array_equal(sam, sam_image(example.images[0].sam, 256))
                prompts += 1
            else:
                assert (batch.prompt_slot[r, here] == -1).all()


def test_a_shared_image_is_stored_once_with_its_coordinates(rows, packed):
    _, batch = packed
    first, second = rows[0][0].images[0], rows[0][2].images[0]
    assert first.key == rows[0][2].images[1].key != second.key
    cut = len(first.patches)
    np.testing.assert_array_equal(batch.patch_segments[0, 0, :cut], 1)
    np.testing.assert_array_equal(batch.patch_segments[0, 0, cut : cut + len(second.patches)], 2)
    assert not batch.patch_segments[0, 0, cut + len(second.patches) :].any()
    np.testing.assert_array_equal(batch.patch_yx[0, 0, :cut], first.patch_yx)
    assert batch.prompt_image[0].tolist() == [0, 1]


def test_images_go_into_the_vision_rows_that_are_named(rows, pack, small_sam_encoder):
    images = {image.key: len(image.patches) for image in rows[0][2].images}
    shape = row_shape(rows)
    assert shape.vision_rows == 2
    first, second = rows[0][0].images[0], rows[0][2].images[0]
    turned = pack(rows, shape, vision=[{first.key: 1, second.key: 0}, {first.key: 0}])
    fitted = pack(rows, shape)
    for batch, numbers in ((fitted, (0, 1)), (turned, (1, 0))):
        validate(batch, shape, small_sam_encoder.config)
        for image, v in zip((first, second), numbers, strict=True):
            count = images[image.key]
            assert batch.patch_segments[0, v].tolist() == [1] * count + [0] * (shape.patches - count)
            np.testing.assert_array_equal(batch.patches[0, v, :count], normalise_patches(image.patches))
            tokens = batch.vision_slot[0][batch.segments[0] == 3]
            assert v * shape.patches // 4 in tokens and v * shape.patches // 4 + count // 4 - 1 in tokens
    narrow = dataclasses.replace(shape, vision_rows=1)
    with pytest.raises(ValueError, match=r"row 0 overflows: vision_rows: 1 do not hold images of "):
        places(rows, narrow)
    together = [{first.key: 0, second.key: 0}, {first.key: 0}]
    over = rf"row 0 \(row 0a.*vision row 0: \d+ patches needed, capacity {shape.patches}"
    with pytest.raises(ValueError, match=over):
        pack(rows, narrow, vision=together)
    with pytest.raises(ValueError, match=r"row 1 .*has the vision row None, expected 0 to 1"):
        pack(rows, shape, vision=[places(rows, shape)[0], {}])
    with pytest.raises(ValueError, match="vision: places for 1 rows, expected one mapping for each of 2"):
        pack(rows, shape, vision=together[:1])


def test_only_images_that_prompts_are_on_take_a_sam_input(pack, small_sam_encoder, noise, png):
    first, second, third = png(noise), png(noise[:40, :50]), png(noise[:30, :40])
    row = [small_sam_encoder.encode(Example("x", images)) for images in ((first, third, second), (second,))]
    assert [image.sam is None for image in row[0].images] == [False, True, True]
    shape = row_shape([row])
    assert (shape.images, shape.vision_rows, shape.prompts) == (2, 3, 2)
    batch = pack([row], shape)
    assert batch.sam_images.shape[1] == 2 and batch.prompt_image.tolist() == [[0, 1]]
    np.testing.assert_array_equal(batch.sam_images[0, 1], sam_image(row[1].images[0].sam, 256))


def test_grey_levels_are_those_that_the_normalised_pixels_come_from(rows, packed, pack, small_sam_encoder):
    shape, batch = packed
    grey = pack(rows, shape, pixels="uint8")
    validate(grey, shape, small_sam_encoder.config, pixels="uint8")
    mean, std = (np.array(x, np.float32) for x in (CLIP_MEAN, CLIP_STD))
    patches = (grey.patches.reshape(2, -1, 3, 196) / np.float32(255) - mean[:, None]) / std[:, None]
    real = batch.patch_segments.reshape(2, -1) > 0
    np.testing.assert_allclose(patches.reshape(2, -1, 588)[real], batch.patches.reshape(2, -1, 588)[real], atol=1e-6)
    levels = (batch.sam_images * np.float32(IMAGENET_STD) + np.float32(IMAGENET_MEAN)) * 255
    used = np.array([[True, True], [True, False]])
    assert np.abs(levels[used] - grey.sam_images[used]).max() <= 1 + 1e-2  # Pillow rounds after each axis
    with pytest.raises(ValueError, match="pixels 'int8': expected one of float32, uint8"):
        pack(rows, shape, pixels="int8")


def test_pixels_may_be_written_by_threads(rows, packed, pack):
    shape, batch = packed
    with ThreadPoolExecutor(3) as pool:
        threaded = pack(rows, shape, each=pool.map)
    for ours, theirs in zip(batch, threaded, strict=True):
        np.testing.assert_array_equal(ours, theirs)


def test_padding_is_at_the_right_and_neutral(rows, packed):
    shape, batch = packed
    rest = batch.segments == 0
    assert rest.any(axis=1).all() and rest[:, -1].all()
    for array, filler in ((batch.tokens, 0), (batch.vision_slot, -1), (batch.prompt_slot, -1)):
        assert (array[rest] == filler).all()
    assert not batch.valid[1, 1:].any()
    assert (batch.content[1, 1:] == -1).all() and (batch.positives[1] == -1).all()
    assert (batch.prompt_labels[1, 1] == NO_TOKEN).all() and not batch.patches[1][batch.patch_segments[1] == 0].any()
    assert shape.masks and batch.has_mask.tolist() == [[False, False], [True, False]]
    np.testing.assert_array_equal(batch.prompt_masks[1, 0], rows[1][0].prompt.mask)
    assert not batch.prompt_masks[0].any()


def test_labels_are_taken_over(rows, packed, pack):
    shape, batch = packed
    assert batch.side.tolist() == [[0, 1, 0], [1, 0, 0]]
    assert batch.content.tolist() == [[-1, 5, -1], [9, -1, -1]]
    assert batch.positives.tolist() == [[[5, 9], [-1, -1], [7, -1]], [[-1, -1]] * 3]
    without = [[dataclasses.replace(example, label=None) for example in row] for row in rows]
    unlabelled = pack(without, shape)
    assert (unlabelled.side == 0).all() and (unlabelled.positives == -1).all() and (unlabelled.content == -1).all()
    with pytest.raises(ValueError, match=r"row 0 .*overflows: positives: 2 needed, capacity 1"):
        pack(rows, dataclasses.replace(shape, positives=1), vision=places(rows, shape))


def test_groups_have_only_the_arrays_that_they_need(rows, pack, small_sam_encoder, noise, png):
    text = [[small_sam_encoder.encode(Example("hi")), small_sam_encoder.encode(Example("A tiger"))]]
    batch = pack(text, row_shape(text))
    fields = batch._fields
    cut = fields.index("vision_slot")
    assert all(getattr(batch, name) is None for name in fields[cut:])
    assert all(getattr(batch, name) is not None for name in fields[:cut])

    plain = [[small_sam_encoder.encode(Example("x", (png(noise),)), segmentation=False)]]
    batch = pack(plain, row_shape(plain))
    cut = fields.index("prompt_slot")
    assert all(getattr(batch, name) is None for name in fields[cut:]) and batch.patches is not None

    unmasked = rows[:1]
    batch = pack(unmasked, row_shape(unmasked))
    assert batch.prompt_masks is None and batch.has_mask.dtype == bool


def test_mask_alone_makes_a_group_without_sparse_tokens(rows, pack, small_sam_encoder):
    shape = row_shape(rows[1:])
    batch = pack(rows[1:], shape)
    assert shape.points == 0 and batch.prompt_points.shape == (1, 1, 0, 2)
    validate(batch, shape, small_sam_encoder.config)


@pytest.mark.parametrize("name", ["slots", "examples", "images", "patches", "prompts", "points", "masks"])
def test_overflow_names_row_examples_need_and_capacity(name, rows, pack):
    shape = row_shape(rows)
    need = getattr(shape, name)
    smaller = {"masks": False, "patches": need - 4}.get(name, need - 1)
    row = 1 if name == "masks" else 0
    with pytest.raises(
        ValueError, match=rf"row {row} \(row {row}.* overflows: {name}: {need} needed, capacity {smaller}"
    ):
        pack(rows, dataclasses.replace(shape, **{name: smaller}), vision=places(rows, shape))


def test_examples_of_another_model_are_refused(rows, tiny_config, small_sam_encoder):
    shape, ours = row_shape(rows), small_sam_encoder.config
    vision = places(rows, shape)
    with pytest.raises(ValueError, match="row 0a: encoded with 16 segmentation tokens, not 256"):
        pack_rows(rows, shape, tiny_config, vision=vision)
    with pytest.raises(ValueError, match=r"row 1: .*mask logits are \(64, 64\), the model's \(256, 256\)"):
        pack_rows(rows[1:], shape, tiny_config, vision=vision[1:])
    other = dataclasses.replace(ours, vision=dataclasses.replace(ours.vision, patch_size=16))
    with pytest.raises(ValueError, match="patches have 588 values, the model's 768"):
        pack_rows(rows, shape, other, vision=vision)
    with pytest.raises(ValueError, match="patches must be a multiple of 4"):
        pack_rows(rows, dataclasses.replace(shape, patches=shape.patches + 2), ours, vision=vision)
    for wrong in ({"vision_rows": 0}, {"images": 0}, {"examples": 0}, {"prompts": 0}):
        with pytest.raises(ValueError, match="RowShape"):
            pack_rows([], dataclasses.replace(shape, **wrong), ours, vision=[])
