"""The loader: which rows a batch holds, that it resumes to the bit, and that processes share the work."""

import dataclasses
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from virtue_jax.batch import QUERY, TARGET, RowShape
from virtue_jax.config import HieraConfig, Sam2Config, TextConfig, VirtueConfig, VisionConfig
from virtue_jax.data.encode import ExampleEncoder
from virtue_jax.data.example import Example, InvalidExample, TrainingPair, VisualPrompt
from virtue_jax.data.loader import row_order, training_loader
from virtue_jax.data.pack import row_shape
from virtue_jax.data.pairs import content_id
from virtue_jax.data.scar import ScarTraining
from virtue_jax.data.scenes import write_scenes
from virtue_jax.data.shared_images import SharedImages
from virtue_jax.data.tokens import Tokenizer


class Words:
    """Text pairs, some of which share their positive; row i has i % 4 hard negatives."""

    def __init__(self, count, name="word"):
        self.count, self.name = count, name

    def __len__(self):
        return self.count

    def __getitem__(self, row):
        negatives = tuple(Example(f"not {i}") for i in range(row % 4))
        return TrainingPair(Example(f"{self.name} {row}"), Example(f"answer {row // 2}"), negatives)


def make_encoder(golden):
    tokenizer = Tokenizer.load(Path(golden) / "tiny/vlm")
    text = TextConfig(1024, 64, 128, 1, 4, 2, (2, 3, 3), *(tokenizer.ids(t)[0] for t in SPECIAL))
    vision = VisionConfig(depth=1, embed_dim=32, num_heads=2, hidden_size=64)
    sam2 = Sam2Config(HieraConfig(8, 1, (1, 1, 1, 1), (2,)), image_size=64)
    return ExampleEncoder(VirtueConfig(sam2, vision, text), tokenizer)


@pytest.fixture(scope="module")
def encoder(golden):
    return make_encoder(golden)


SPECIAL = ("<|image_pad|>", "<|vision_start|>", "<|vision_end|>")
TEXT_ROW = RowShape(slots=32)


def text_loader(encoder, source, **options):
    shapes = {"query_shape": TEXT_ROW, "target_shape": TEXT_ROW}
    return training_loader(source, encoder, **{"global_batch": 4, "seed": 1, **shapes, **options})


def same(first, second):
    return all(
        (a is None and b is None) or np.array_equal(a, b)
        for group, other in zip(first, second, strict=True)
        for a, b in zip(group, other, strict=True)
    )


def rows(loader, batches):
    return [ref.row for number in range(batches) for ref in loader.batches.rows(number)]


def test_every_epoch_holds_every_row_once_in_a_new_order(encoder):
    order = rows(text_loader(encoder, Words(10)), batches=10)
    epochs = [order[i : i + 10] for i in range(0, 40, 10)]
    assert all(sorted(epoch) == list(range(10)) for epoch in epochs)
    assert len({tuple(epoch) for epoch in epochs}) == 4
    assert rows(text_loader(encoder, Words(10), seed=2), batches=10) != order


def test_a_batch_is_queries_with_their_positives_and_negatives(encoder):
    loader = text_loader(encoder, Words(8), negatives=2)
    batch, refs = next(loader), loader.batches.rows(0)
    pairs = [Words(8)[ref.row] for ref in refs]
    assert batch.queries.pair[:, 0].tolist() == [content_id(pair.positive) for pair in pairs]
    assert (batch.queries.side == QUERY).all() and (batch.targets.side[batch.targets.valid] == TARGET).all()
    ids, valid = batch.targets.pair.reshape(4, 3), batch.targets.valid.reshape(4, 3)
    for pair, row_ids, row_valid in zip(pairs, ids, valid, strict=True):
        assert row_ids[0] == content_id(pair.positive)
        assert row_valid.sum() == 1 + min(2, len(pair.negatives))
        known = {content_id(negative) for negative in pair.negatives}
        assert set(row_ids[1:][row_valid[1:]].tolist()) <= known
    assert batch.queries.vision_slot is None and batch.queries.tokens.shape == (4, 32)


def test_more_negatives_than_asked_for_are_drawn_anew(encoder):
    class Same(Words):
        def __getitem__(self, row):
            return TrainingPair(Example("q"), Example("p"), tuple(Example(f"n {i}") for i in range(9)))

    loader = text_loader(encoder, Same(4), negatives=3)
    drawn = [tuple(pairs) for _ in range(3) for pairs in next(loader).targets.pair.reshape(4, 4)[:, 1:].tolist()]
    assert all(len(set(pairs)) == 3 for pairs in drawn) and len(set(drawn)) > 3


def test_equal_content_has_equal_ids_and_nothing_else_has():
    mask = np.zeros((4, 4), bool)
    different = [
        Example("a"),
        Example("b"),
        Example("", ("a",)),
        Example("", (b"b",)),
        Example("a", ("b",)),
        Example("a", ("b",), VisualPrompt(box=(1, 2, 3, 4))),
        Example("a", ("b",), VisualPrompt(box=(1, 2, 3, 4), frame="sam")),
        Example("a", ("b",), VisualPrompt(points=((1, 2, 0),))),
        Example("a", ("b",), VisualPrompt(mask=mask)),
        Example("a", ("b",), VisualPrompt(mask=~mask)),
        Example("a", ("b",), VisualPrompt(mask="m.png")),
    ]
    assert len({content_id(example) for example in different}) == len(different)
    assert content_id(Example("a", origin="here")) == content_id(Example("a", origin="there"))
    assert all(0 <= content_id(example) < 2**31 for example in different)


def test_resume_gives_exactly_the_next_batches(encoder):
    straight = text_loader(encoder, Words(10), negatives=1)
    batches = [next(straight) for _ in range(8)]
    assert straight.get_state() == {"next_batch": 8}
    first = text_loader(encoder, Words(10), negatives=1)
    for _ in range(3):
        next(first)
    resumed = text_loader(encoder, Words(10), negatives=1, prefetch=5)
    resumed.set_state(first.get_state())
    assert all(same(next(resumed), batch) for batch in batches[3:])
    resumed.set_state({"next_batch": 0})
    assert same(next(resumed), batches[0])


@pytest.mark.parametrize("state", [{}, {"next_batch": -1}, {"next_batch": "3"}, {"next_batch": 1, "epoch": 0}])
def test_foreign_states_are_refused(encoder, state):
    with pytest.raises(ValueError, match="next_batch"):
        text_loader(encoder, Words(4)).set_state(state)


@pytest.mark.parametrize("count", [2, 4])
def test_processes_together_have_the_global_batch(encoder, count):
    whole = text_loader(encoder, Words(10), negatives=1)
    parts = [text_loader(encoder, Words(10), negatives=1, shard=(i, count)) for i in range(count)]
    for number in range(5):
        assert [r for part in parts for r in part.batches.rows(number)] == whole.batches.rows(number)
        whole_batch, batches = next(whole), [next(part) for part in parts]
        for side in (0, 1):
            for name in ("tokens", "pair", "valid"):
                joined = np.concatenate([getattr(batch[side], name) for batch in batches])
                assert np.array_equal(joined, getattr(whole_batch[side], name))


def test_sources_take_turns_in_blocks_by_weight(encoder):
    order = row_order([6, 100], seed=0, weights=[1, 3], interleave=5)
    blocks = [order[number] for number in range(40)]
    assert all(len({ref.source for ref in block}) == 1 and len(block) == 5 for block in blocks)
    assert [block[0].source for block in blocks].count(0) == 10
    small = [ref.row for block in blocks if block[0].source == 0 for ref in block]
    assert all(sorted(small[i : i + 6]) == list(range(6)) for i in range(0, 48, 6))
    large = [ref.row for block in blocks if block[0].source == 1 for ref in block]
    assert sorted(large[:100]) == list(range(100))
    loader = text_loader(encoder, [Words(6), Words(100, "other")], weights=[1, 3], interleave=5, seed=0)
    flat = [ref for block in blocks for ref in block]
    assert [ref for number in range(10) for ref in loader.batches.rows(number)] == flat[:40]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"global_batch": 5, "shard": (0, 2)}, "divides"),
        ({"global_batch": 0}, "divides"),
        ({"shard": (2, 2)}, "divides"),
        ({"interleave": 0}, "1 or more"),
        ({"prefetch": 0}, "1 or more"),
        ({"negatives": -1}, "0 or more"),
        ({"weights": [1.0, 2.0]}, "positive number for each of 1 sources"),
    ],
)
def test_impossible_numbers_are_refused(encoder, options, message):
    with pytest.raises(ValueError, match=message):
        text_loader(encoder, Words(4), **options)
    with pytest.raises(ValueError, match="at least one row"):
        text_loader(encoder, Words(0))


@pytest.fixture(scope="module")
def scenes(tmp_path_factory):
    folder = tmp_path_factory.mktemp("scenes")
    write_scenes(folder, train=4, eval=0, seed=0, width=(96, 96), height=(96, 96))
    return folder


def scene_shapes(encoder, source):
    pairs = [source[row] for row in range(len(source))]
    queries = row_shape([[encoder.encode(pair.query)] for pair in pairs])
    targets = row_shape([[encoder.encode(e)] for pair in pairs for e in (pair.positive, *pair.negatives)])
    return {"query_shape": queries, "target_shape": targets}


def test_scenes_become_batches_with_images_and_every_kind_of_prompt(encoder, scenes):
    source = ScarTraining(scenes, prompts={"box": 1, "point": 1, "mask": 1})
    options = scene_shapes(encoder, source)
    loader = training_loader(source, encoder, global_batch=len(source), seed=0, negatives=9, **options)
    batch = next(loader)
    assert batch.queries.sam_images.shape == (len(source), 1, 64, 64, 3)
    assert batch.targets.valid.all() and len(batch.targets.tokens) == 10 * len(source)
    assert 0 < batch.queries.has_mask.sum() < len(source) and {1, 2, 3} <= set(batch.queries.prompt_labels.ravel())
    for i, ref in enumerate(loader.batches.rows(0)):
        text = source[ref.row].positive.text
        assert batch.targets.tokens[10 * i][: len(encoder.tokenizer.ids(text))].tolist() == encoder.tokenizer.ids(text)


def test_a_corrupt_image_raises_with_its_row(encoder, scenes, tmp_path):
    source = ScarTraining(scenes)
    options = scene_shapes(encoder, source)
    target = tmp_path / "images/scenes_train"
    target.mkdir(parents=True)
    for image in (scenes / "images/scenes_train").iterdir():
        (target / image.name).write_bytes(image.read_bytes()[:200])
    broken = ScarTraining(scenes, image_root=tmp_path / "images")
    loader = training_loader(broken, encoder, global_batch=2, seed=0, **options)
    with pytest.raises(InvalidExample, match=r"SCaR_train_scenes\.parquet:row \d+: image .*truncated"):
        next(loader)


WORKERS = """
import sys
from tests.data.test_loader import Words, make_encoder, same, text_loader

def main():
    encoder = make_encoder(sys.argv[1])
    threads, workers = text_loader(encoder, Words(10)), text_loader(encoder, Words(10), worker_count=2)
    assert all(same(next(threads), next(workers)) for _ in range(5))
    threads.set_state(workers.get_state())
    assert same(next(threads), next(workers))
    workers.close()
    print("equal")

if __name__ == "__main__":
    main()
"""


@pytest.mark.slow
def test_worker_processes_give_the_same_batches_from_a_plain_script(golden, tmp_path):
    (tmp_path / "script.py").write_text(WORKERS)
    root = Path(__file__).parents[2]
    done = subprocess.run(
        [sys.executable, str(tmp_path / "script.py"), str(golden)],
        env=os.environ | {"PYTHONPATH": str(root)},
        cwd=root,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.stdout.strip().endswith("equal"), done.stderr[-2000:]


def test_queries_on_one_image_share_a_row_and_none_is_lost(tmp_path, encoder):
    write_scenes(tmp_path, train=5, eval=0, seed=0, width=(64, 64), height=(64, 64), objects=(2, 5))
    scar = ScarTraining(tmp_path)
    source = SharedImages(scar, 3)
    assert sorted(row for group in source.groups for row in group) == list(range(len(scar)))
    assert all(len({pair.query.images for pair in source[i]}) == 1 for i in range(len(source)))
    encoded = [encoder.encode(pair.query) for pair in source[0]]
    shape = row_shape([encoded * 3], slots=8)
    shape = dataclasses.replace(shape, examples=3, prompts=3)
    loader = training_loader(
        source,
        encoder,
        query_shape=shape,
        target_shape=RowShape(slots=64),
        global_batch=len(source),
        seed=0,
        negatives=1,
    )
    batch = next(loader)
    assert batch.queries.valid.sum() == len(scar) and batch.targets.valid.sum() == 2 * len(scar)
    assert batch.targets.pair.shape == (len(source) * 3 * 2, 1)
    queries = batch.queries.pair[batch.queries.valid]
    assert set(queries.tolist()) <= set(batch.targets.pair[batch.targets.valid].tolist())
    assert (batch.queries.patch_segments.max(axis=1) == 1).all()
