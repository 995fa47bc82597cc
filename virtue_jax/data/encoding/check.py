"""What is wrong with an example, as far as headers and texts show it: asked of all inputs before the model runs."""

from typing import NamedTuple

from virtue_jax.data.encoding.encode import ExampleEncoder
from virtue_jax.data.encoding.images import check_mask, image_size
from virtue_jax.data.encoding.prompts import check_prompt
from virtue_jax.data.encoding.qwen_image import check_aspect_ratio, resized_size
from virtue_jax.data.example import Example


class _ImageTokens(NamedTuple):
    """What the text takes of an image (`encode.TokenGrid`)."""

    vision_tokens: int
    grid: tuple[int, int]


def check_example(example: Example, encoder: ExampleEncoder) -> None:
    """Does what `encoder.encode` does, short of decoding pixels: files are opened for their headers, boxes, points and
    masks compared with the image's size, the text tokenised. What only the pixels show (a damaged or cut-off file, a
    mask with nothing inside) is found by `encode`.

    Raises:
        InvalidExample: as `encode`; names `example.origin`.
    """
    config, upright = encoder.config, encoder.reads_upright(example)
    sizes = [image_size(source, example.origin, upright=upright) for source in example.images]
    images = []
    for size in sizes:
        check_aspect_ratio(*size, example.origin)
        rows, columns = (side // config.vision.patch_size for side in resized_size(*size, config))
        images.append(_ImageTokens(rows * columns // config.vision.spatial_merge_size**2, (rows, columns)))
    if example.prompt is not None:
        check_prompt(example.prompt, sizes[0], config.compat, example.origin)
        if example.prompt.mask is not None:
            check_mask(example.prompt.mask, sizes[0], example.origin, upright=upright)
    encoder.tokens(example, sizes[0] if sizes else None, images)
