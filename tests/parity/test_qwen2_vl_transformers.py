"""A ladder against `transformers`' own Qwen2-VL with random weights: patches, vision tower, every layer, embedding.

The PyTorch side sees one example at a time; ours sees images and examples packed into rows.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from flax import nnx
from qwen_checkpoint import load_qwen, pack_images
from transformers import Qwen2VLConfig, Qwen2VLForConditionalGeneration

from virtue_jax.data.encoding.positions import ImageSpan, multimodal_positions

pytestmark = [pytest.mark.parity, pytest.mark.slow]

IMAGE, START, END = 90, 91, 92
# Largest difference allowed on each rung, relative to the rung's largest value. On the first one PyTorch itself is
# 1.4e-6 away from float64 (sums of 1,176 terms), ours 3e-7.
PATCHES, VISION, HIDDEN, EMBEDDING = 3e-6, 3e-6, 5e-6, 5e-6
GRIDS = np.array([[1, 6, 10], [1, 2, 14], [1, 8, 2], [1, 4, 4]])  # odd shapes: 2 x 14 and 8 x 2 are one token thin
# Token ids of the examples; IMAGE stands for all tokens of the next image.
EXAMPLES = [
    [5, 6, START, IMAGE, END, 7, 8, 9],
    [START, IMAGE, END, START, IMAGE, END, 11, 12],
    [20, 21, 22, 23, 24],
    [START, IMAGE, END],
]


class Reference:
    """A random Qwen2-VL of `transformers`, and what it computes."""

    def __init__(self, folder, tied: bool):
        torch.manual_seed(7)
        text = {
            "vocab_size": 100,
            "hidden_size": 96,
            "intermediate_size": 160,
            "num_hidden_layers": 3,
            "num_attention_heads": 6,
            "num_key_value_heads": 2,
            "max_position_embeddings": 512,
            "rope_parameters": {"rope_type": "default", "rope_theta": 1e6, "mrope_section": [2, 3, 3]},
            "tie_word_embeddings": tied,
            "pad_token_id": None,
            "bos_token_id": None,
            "eos_token_id": None,
        }
        config = Qwen2VLConfig(
            text_config=text,
            vision_config={"depth": 3, "embed_dim": 48, "num_heads": 3, "hidden_size": 96},
            image_token_id=IMAGE,
            vision_start_token_id=START,
            vision_end_token_id=END,
            tie_word_embeddings=tied,
        )
        self.model = Qwen2VLForConditionalGeneration(config).eval()
        with torch.no_grad():
            for name, parameter in self.model.named_parameters():
                is_norm = "norm" in name or "ln_q" in name
                centre = 1.0 if is_norm and name.endswith("weight") else 0.0
                scale = 0.2 if parameter.ndim == 1 else (len(parameter) / parameter.numel()) ** 0.5
                parameter.copy_(centre + scale * torch.randn_like(parameter))
        self.model.save_pretrained(folder)
        self.pixels = [first_frame_twice(seed, h * w) for seed, (_, h, w) in enumerate(GRIDS)]

    @torch.no_grad()
    def vision(self, image: int) -> dict[str, np.ndarray]:
        pixels, grid = torch.from_numpy(self.pixels[image]), torch.from_numpy(GRIDS[image : image + 1])
        tower = self.model.model.visual
        out = tower(pixels, grid_thw=grid)
        stages = {"patch_embed": tower.patch_embed(pixels), "last": out.last_hidden_state, "tokens": out.pooler_output}
        return {name: stage.numpy() for name, stage in stages.items()}

    @torch.no_grad()
    def text(self, ids: list[int], images: list[int]):
        """(hidden states [layers + 1, L, H], M-RoPE positions [3, L]) of one example."""
        tokens = torch.tensor([ids])
        inputs = {"input_ids": tokens, "attention_mask": torch.ones_like(tokens)}
        if not images:
            out = self.model(**inputs, output_hidden_states=True)
            return torch.cat(out.hidden_states).numpy(), np.tile(np.arange(len(ids)), (3, 1))
        types = (tokens == IMAGE).int()
        grids = torch.from_numpy(GRIDS[images])
        positions, _ = self.model.model.get_rope_index(tokens, mm_token_type_ids=types, image_grid_thw=grids)
        pixels = torch.from_numpy(np.concatenate([self.pixels[i] for i in images]))
        picture = {"pixel_values": pixels, "image_grid_thw": grids, "mm_token_type_ids": types}
        out = self.model(**inputs, **picture, output_hidden_states=True)
        return torch.cat(out.hidden_states).numpy(), positions[:, 0].numpy()


def first_frame_twice(seed: int, patches: int) -> np.ndarray:
    frame = np.random.default_rng(seed).standard_normal((patches, 3, 1, 196)).astype(np.float32)
    return np.repeat(frame, 2, axis=2).reshape(patches, -1)


@pytest.fixture(scope="module", params=[True, False], ids=["tied", "untied"])
def both(request, tmp_path_factory):
    """(the PyTorch model, our towers loaded from what it saved)."""
    folder = tmp_path_factory.mktemp("qwen2_vl")
    return Reference(folder, request.param), load_qwen(folder)


def assert_close(got, expected, tolerance):
    np.testing.assert_allclose(got, expected, rtol=0, atol=tolerance * np.abs(expected).max())


def expanded() -> list[tuple[list[int], list[int], list[ImageSpan]]]:
    """(token ids with every image at its full length, its images, where they stand) of each example."""
    images, out = iter(range(len(GRIDS))), []
    for example in EXAMPLES:
        ids, used, spans = [], [], []
        for token in example:
            if token == IMAGE:
                used.append(next(images))
                _, h, w = GRIDS[used[-1]]
                spans.append(ImageSpan(len(ids), h // 2, w // 2))
                ids += [IMAGE] * (h * w // 4)
            else:
                ids.append(token)
        out.append((ids, used, spans))
    return out


@functools.cache
def packed_images(tower):
    """patch_embed, last block and vision tokens of all images in one padded row."""
    reference, ours = tower
    row = pack_images(np.concatenate(reference.pixels), GRIDS, 160)
    last = ours.vision.encode(*row)
    return ours.vision.patch_embed(row[0])[0], last[0], ours.vision.merger(last)[0]


def test_vision_tower_of_packed_images_of_odd_sizes(both):
    patch_embed, last, tokens = packed_images(both)
    start = 0
    for image, (_, h, w) in enumerate(GRIDS):
        expected, end = both[0].vision(image), start + h * w
        assert_close(patch_embed[start:end], expected["patch_embed"], PATCHES)
        assert_close(last[start:end], expected["last"], VISION)
        assert_close(tokens[start // 4 : end // 4], expected["tokens"], VISION)
        start = end


def test_every_layer_of_packed_examples_under_mrope(both):
    reference, ours = both
    tokens = np.asarray(packed_images(both)[2])
    offsets = np.cumsum([0, *(h * w // 4 for _, h, w in GRIDS)])
    inputs, positions, segments, expected = [], [], [], []
    for number, (ids, images, spans) in enumerate(expanded(), start=1):
        row = np.array(ours.text.embed(jnp.asarray(ids)))
        if images:
            row[np.array(ids) == IMAGE] = tokens[offsets[images[0]] : offsets[images[-1] + 1]]
        hidden, theirs = reference.text(ids, images)
        np.testing.assert_array_equal(multimodal_positions(len(ids), spans), theirs)
        inputs.append(row)
        positions.append(theirs)
        segments.append(np.full(len(ids), number))
        expected.append(hidden)
    segments = np.pad(np.concatenate(segments), (0, 5))
    inputs = np.pad(np.concatenate(inputs), [(0, 5), (0, 0)])
    positions = np.pad(np.concatenate(positions, axis=1), [(0, 0), (0, 5)])
    got = np.asarray(ours.text.hidden_states(jnp.asarray(inputs)[None], positions[None], segments[None]))[:, 0]
    for number, hidden in enumerate(expected, start=1):
        mine = got[:, segments == number]
        for layer in range(len(hidden)):
            assert_close(mine[layer], hidden[layer], HIDDEN)
        last, theirs = mine[-1, -1], hidden[-1, -1]
        assert_close(last / np.linalg.norm(last), theirs / np.linalg.norm(theirs), EMBEDDING)


def test_gradient_reaches_the_inputs_as_in_pytorch(both):
    reference, ours = both
    rng = np.random.default_rng(0)
    inputs = rng.standard_normal((1, 9, 96)).astype(np.float32)
    weights = rng.standard_normal((1, 9, 96)).astype(np.float32)
    positions = rng.integers(0, 30, (3, 1, 9))
    theirs = torch.from_numpy(inputs).requires_grad_()
    model = reference.model.model.language_model
    out = model(inputs_embeds=theirs, position_ids=torch.from_numpy(positions)).last_hidden_state
    (out * torch.from_numpy(weights)).sum().backward()
    graphdef, state = nnx.split(ours.text)

    def loss(x):
        text = nnx.merge(graphdef, state)
        return jnp.sum(text(x, positions.transpose(1, 0, 2), jnp.ones((1, 9), jnp.int32)) * weights)

    assert_close(jax.grad(loss)(jnp.asarray(inputs)), theirs.grad.numpy(), HIDDEN)
