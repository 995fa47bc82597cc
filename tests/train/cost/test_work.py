import numpy as np

from virtue_jax.batch import NO_TOKEN, NOT_A_POINT, Batch, RowShape
from virtue_jax.data.config import RowGroup
from virtue_jax.train.cost.work import Work, batch_work, capacity


def test_work_counts_what_is_real():
    """Two rows: examples of 3 and 2 tokens, of 4; images of 4 and 8 patches in two vision rows; one of two prompts."""
    none = np.zeros((2, 0), np.int32)
    segments = np.array([[1, 1, 1, 2, 2, 0], [1, 1, 1, 1, 0, 0]], np.int32)
    patch_segments = np.zeros((2, 2, 8), np.int32)
    patch_segments[0, 0, :4], patch_segments[1, 1] = 1, 1
    labels = np.full((2, 2, 3), NO_TOKEN, np.int32)
    labels[0, 0], labels[1, 0, :2] = [2, 3, NOT_A_POINT], [1, NOT_A_POINT]
    batch = Batch(
        *[none] * 1,
        segments=segments,
        **dict.fromkeys(("positions", "pool", "side", "content", "positives", "valid"), none),
        patch_segments=patch_segments,
        prompt_labels=labels,
        prompt_image=np.zeros((2, 2), np.int32),
        has_mask=np.array([[True, False], [False, False]]),
        prompt_masks=np.zeros((2, 2, 4, 4), np.float32),
    )
    expected = Work(9, 9 + 4 + 16, 12, 16 + 64, images=2, prompts=2, prompt_tokens=5, masks=1)
    assert batch_work([batch]) == expected
    assert batch_work([batch, batch]) == expected + expected


def test_the_room_of_a_row_group():
    shape = RowShape(slots=10, vision_rows=2, patches=8, images=1, prompts=3, points=4)
    assert capacity(RowGroup(shape, rows=5)) == Work(50, 500, 80, 640, images=5, prompts=15, prompt_tokens=60)
