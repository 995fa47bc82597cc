"""A question: something to find, what may be found, and what is right."""

from collections.abc import Hashable
from dataclasses import dataclass

import numpy as np

from virtue_jax.data.encoding.encode import image_key
from virtue_jax.data.example import Example, InvalidExample


@dataclass(frozen=True)
class Question:
    """A query and its candidates.

    candidates: in the row's order, repeats kept; texts, images, or both. Questions that share a pool share one tuple.
    labels: the keys of the right ones. keys: what makes two candidates the same one, which is embedded once; empty =
    `key_of(candidate)`. kinds: what sort each candidate is (SCaR's types of distractors); empty = not known. dataset:
    which of several published sets the row belongs to. row: its number in the source.
    """

    query: Example
    candidates: tuple[Example, ...]
    labels: frozenset[Hashable]
    keys: tuple[Hashable, ...] = ()
    kinds: tuple[str, ...] = ()
    dataset: str = ""
    row: int = 0

    def __post_init__(self):
        if not self.keys:
            object.__setattr__(self, "keys", tuple(map(key_of, self.candidates)))
        for name, values in (("keys", self.keys), ("kinds", self.kinds)):
            if values and len(values) != len(self.candidates):
                raise InvalidExample(f"{self.origin}: {len(values)} {name} for {len(self.candidates)} candidates")
        if not self.labels & set(self.keys):
            raise InvalidExample(f"{self.origin}: none of the candidates is a right one")

    @property
    def origin(self) -> str:
        """File and row."""
        return self.query.origin


def key_of(candidate: Example) -> Hashable:
    """Its text, the identity of its images, and what is pointed at in them."""
    prompt = candidate.prompt
    if prompt is not None:
        mask = prompt.mask.tobytes() if isinstance(prompt.mask, np.ndarray) else prompt.mask
        prompt = (prompt.box, tuple(map(tuple, prompt.points)), mask, prompt.frame)
    return candidate.text, *map(image_key, candidate.images), prompt
