"""The identity of what is embedded, so that the loss knows equal targets for equal."""

import hashlib

import numpy as np

from virtue_jax.data.example import Example
from virtue_jax.data.pixels import ImagePixels


def content_id(example: Example) -> int:
    """31 bits, the same for equal text, images (path, bytes or pixels) and prompt, on every process and in every run.

    A query's positives are known by their contents, so that the loss does not take one query's positive for another's
    negative; likewise a hard negative that happens to be another query's positive. Two different contents agree by
    chance once in 2**31: then one target counts as no negative of one query.
    """
    digest = hashlib.blake2b(digest_size=8)
    prompt = example.prompt
    mask = None if prompt is None else prompt.mask
    parts = [example.text, *(image.digest if isinstance(image, ImagePixels) else image for image in example.images)]
    if prompt is not None:
        parts.append(repr((prompt.box, prompt.points, prompt.frame)))
    if mask is not None:
        parts.append(np.packbits(mask).tobytes() if isinstance(mask, np.ndarray) else mask)
    for part in parts:
        content = part if isinstance(part, bytes) else str(part).encode(errors="surrogatepass")
        digest.update(len(content).to_bytes(8, "little") + content)
    return int.from_bytes(digest.digest(), "little") & 0x7FFFFFFF
