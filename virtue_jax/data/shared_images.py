"""Training pairs grouped by image, so that the queries on one image share a row and one run of the image towers."""

from virtue_jax.data.example import TrainingPair
from virtue_jax.data.scar import ScarTraining


class SharedImages:
    """Groups of at most `size` rows of one image; an image with more rows makes several groups, none is dropped.

    A `PairSource` whose elements are tuples of pairs. Groups are formed once, in the files' order.
    """

    def __init__(self, rows: ScarTraining, size: int):
        self.rows = rows
        self.groups = [
            tuple(same[start : start + size])
            for same in rows.rows_by_image().values()
            for start in range(0, len(same), size)
        ]

    def __len__(self) -> int:
        return len(self.groups)

    def __getitem__(self, group: int) -> tuple[TrainingPair, ...]:
        return tuple(self.rows[row] for row in self.groups[group])
