"""A handful of programs for all sizes and kinds of input; an embedding is the same alone and in any company."""

import numpy as np
import pytest

from virtue_jax.data.example import Example, InvalidExample, VisualPrompt
from virtue_jax.embedding import embedder as module
from virtue_jax.parallel.mesh import MeshConfig, make_mesh

TOLERANCE = 1e-5
pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def alone(small_embedder, mixed) -> np.ndarray:
    embedder = small_embedder()
    return np.concatenate([embedder.embed([example]) for example in mixed])


def test_photos_of_all_sizes_and_texts_share_a_handful_of_programs(small_embedder, mixed, picture, compiled):
    embedder = small_embedder(text_rows=2)  # one that has compiled nothing yet
    embedder.embed([example for example in mixed if example.images])
    assert len(compiled) <= 4
    embedder.embed(mixed)
    sizes = np.random.default_rng(0).integers(20, 400, (100, 2))
    embedder.embed([Example("", (picture(*map(int, size)),)) for size in sizes])
    embedder.embed([Example("word " * int(n)) for n in range(1, 200, 7)])
    assert len(compiled) <= 4, compiled


def test_packed_is_alone(small_embedder, mixed, alone, compiled):
    together = small_embedder().embed(mixed)
    assert together.dtype == np.float32 and not compiled
    np.testing.assert_allclose(together, alone, atol=TOLERANCE)
    np.testing.assert_allclose(np.linalg.norm(together, axis=1), 1, atol=1e-5)
    similarity = together @ together.T
    assert (similarity[~np.eye(len(mixed), dtype=bool)] < 0.99999).all()


def test_several_examples_share_a_row(small_embedder, mixed, monkeypatch):
    embedder, batches = small_embedder(), []
    read = embedder._programs.read
    monkeypatch.setattr(embedder._programs, "read", lambda batch, seen: batches.append(batch) or read(batch, seen))
    embedder.embed(mixed)
    assert len(batches) < len(mixed) / 2
    assert max(batch.valid.sum() for batch in batches if batch.vision_slot is not None) > 1


def test_order_is_kept_over_windows(small_embedder, mixed, alone, monkeypatch):
    monkeypatch.setattr(module, "WINDOW_IMAGES", 2)
    monkeypatch.setattr(module, "WINDOW", 3)
    monkeypatch.setattr(module, "IN_FLIGHT", 2)
    order, done = np.random.default_rng(1).permutation(len(mixed)), []
    embedder = small_embedder()
    embedder._image_rows, rows = 1, embedder._image_rows
    got = embedder.embed((mixed[i] for i in order), progress=done.append)
    embedder._image_rows = rows
    np.testing.assert_allclose(got, alone[order], atol=TOLERANCE)
    assert done == sorted(done) and done[-1] == len(mixed)


def test_pixels_of_few_examples_are_in_memory_at_once(small_embedder, picture, monkeypatch):
    monkeypatch.setattr(module, "WINDOW_IMAGES", 8)
    embedder, encoded, finished = small_embedder(), [], []
    encode = embedder._encode

    def count(example, number, segmentation):
        encoded.append(number)
        assert len(encoded) <= (finished[-1] if finished else 0) + 2 * 8 + module.IN_FLIGHT * 4 + 8
        return encode(example, number, segmentation)

    monkeypatch.setattr(embedder, "_encode", count)
    embedder.embed([Example("", (picture(30, 30),))] * 80, progress=finished.append)
    assert len(encoded) == 80


def test_what_no_row_holds_has_a_program_of_its_own(small_embedder, picture, compiled):
    embedder = small_embedder()
    many = tuple((float(x), float(y), (x + y) % 2) for x in range(5, 45, 10) for y in range(5, 55, 10))
    largest = picture(400, 500)
    examples = [
        Example("word " * 3000),
        Example("", (largest, picture(500, 400), picture(450, 450), picture(480, 440))),
        Example("", (picture(60, 100),), VisualPrompt(points=many)),
        Example("word " * 700, (largest,)),
    ]
    got = embedder.embed(examples)
    assert np.isfinite(got).all()
    np.testing.assert_allclose(np.linalg.norm(got, axis=1), 1, atol=1e-5)
    again = embedder.embed([*examples, Example("word " * 2999)])
    assert len(compiled) <= 8
    np.testing.assert_allclose(again[:4], got, atol=TOLERANCE)
    assert (np.abs(got @ embedder.embed([Example("word")]).T) < 0.99999).all()


def test_without_segmentation(small_embedder, mixed):
    embedder = small_embedder()
    plain = embedder.embed(mixed, segmentation=False)
    each = np.concatenate([embedder.embed([example], segmentation=False) for example in mixed[:4]])
    np.testing.assert_allclose(plain[:4], each, atol=TOLERANCE)
    assert np.abs(plain - embedder.embed(mixed))[1].max() > 1e-3


def test_nothing_to_embed_is_no_rows(small_embedder):
    assert small_embedder().embed([]).shape == (0, 64)


@pytest.mark.parametrize("example", [{"text": "one"}, Example("one"), "a tiger", b"bytes"])
def test_one_example_in_place_of_a_list_is_refused(small_embedder, example):
    with pytest.raises(InvalidExample, match=r"give a list of examples.*embed\(\[example\]\)"):
        small_embedder().embed(example)


def test_the_first_bad_example_is_named(small_embedder, picture):
    bad = [{"text": "good"}, {"image": "absent.png"}, {"text": 3}, *[{"text": "good"}] * 5]
    with pytest.raises(InvalidExample, match=r"example 1: image 'absent\.png' does not exist"):
        small_embedder().embed(bad)


def test_rows_of_a_call_and_the_mesh_are_checked(small_embedder):
    with pytest.raises(ValueError, match="text_rows is 0: expected at least 1"):
        small_embedder(text_rows=0)


def test_a_mesh_may_be_given(small_embedder, mixed, alone):
    got = small_embedder(mesh=make_mesh(MeshConfig()), image_rows=2).embed(mixed)
    np.testing.assert_allclose(got, alone, atol=TOLERANCE)
