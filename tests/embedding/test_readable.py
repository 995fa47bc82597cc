"""Bad examples among many: each is named, and little is embedded twice."""

import numpy as np

from virtue_jax.data.example import Example, InvalidExample
from virtue_jax.embedding import readable


class Numbers:
    """Embeds a text as the number that it is; one that is no number fails, as a damaged picture does."""

    def __init__(self):
        self.encoder, self.given = self, 0

    def encode(self, example):
        if not example.text.isdecimal():
            raise InvalidExample(f"{example.origin}: no number")

    def embed(self, examples, progress=None):
        self.given += len(examples)
        for example in examples:
            self.encode(example)
        if progress is not None:
            progress(len(examples))
        return np.array([[int(example.text)] for example in examples], np.float32).reshape(-1, 1)


def test_a_bad_example_among_many_is_named_and_only_its_part_is_embedded_again():
    examples = [Example(str(number)) for number in range(5 * readable.PART)]
    place = 2 * readable.PART + 7
    examples[place] = Example("bad", origin="row")
    embedder, done = Numbers(), []
    vectors, bad = readable.embed_readable(embedder, examples, done.append)
    assert list(bad) == [place] and bad[place].error == "row: no number"
    expected = np.arange(len(examples))
    expected[place] = 0
    np.testing.assert_array_equal(vectors[:, 0], expected)
    assert embedder.given < len(examples) + readable.PART and done == sorted(done) and done[-1] == len(examples)
