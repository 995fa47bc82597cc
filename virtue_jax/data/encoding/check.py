"""Whether an example can be embedded, as far as headers show it."""

import io

from PIL import Image

from virtue_jax.data.encoding.encode import ExampleEncoder
from virtue_jax.data.encoding.images import load_image
from virtue_jax.data.encoding.prompts import check_prompt, prompt_text
from virtue_jax.data.encoding.qwen_image import resized_size
from virtue_jax.data.example import Example, ImageBytes, InvalidExample


def check_example(example: Example, encoder: ExampleEncoder) -> None:
    """Reads headers of images only.

    Raises:
        InvalidExample: as `ExampleEncoder.encode`, for what shows without pixels.
    """
    sizes = [_size_in_header(source, example.origin) for source in example.images]
    for height, width in sizes:
        try:
            resized_size(height, width, encoder.config)
        except InvalidExample:
            raise
        except ValueError as error:
            raise InvalidExample(f"{example.origin}: {error}") from error
    compat = encoder.config.compat
    if example.prompt is not None:
        check_prompt(example.prompt, sizes[0], compat, example.origin)
    text = prompt_text(example, sizes[0] if sizes else None, compat)
    try:
        tokens, _ = encoder.tokenizer.encode(text, [1] * len(sizes))
    except ValueError as error:
        raise InvalidExample(f"{example.origin}: {error}") from error
    if not len(tokens):
        raise InvalidExample(f"{example.origin}: the text {text!r} has no token; write something")


def _size_in_header(source, origin: str) -> tuple[int, int]:
    """(height, width)"""
    if isinstance(source, ImageBytes):
        return source.size
    try:
        with Image.open(io.BytesIO(source) if isinstance(source, bytes) else source) as image:
            return image.size[::-1]
    except (OSError, ValueError, SyntaxError):
        return load_image(source, origin).shape[:2]  # says what is wrong with it
