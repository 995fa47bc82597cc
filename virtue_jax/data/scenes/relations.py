"""Where an object is, in words: what each phrase means geometrically, and which one a caption uses.

Every phrase has two meanings. `holds` is the strict one: nobody would doubt the phrase. `possible` is the loose one:
somebody might say it. A caption uses a phrase that holds for its object and is not even possible for any other object
of the image; a distractor uses one that is not even possible for its object. What lies between is never used.
All of it is integer arithmetic on boxes (x, y, w, h) in whole pixels.
"""

from collections.abc import Sequence
from dataclasses import dataclass

Box = tuple[int, int, int, int]

# phrase -> (column, row) of the 3x3 grid; None = any.
_FRAME = {
    "in the upper left corner": (0, 0),
    "in the upper right corner": (2, 0),
    "in the lower left corner": (0, 2),
    "in the lower right corner": (2, 2),
    "in the center": (1, 1),
    "near the top edge": (None, 0),
    "near the bottom edge": (None, 2),
    "near the left edge": (0, None),
    "near the right edge": (2, None),
    "at the middle of the top edge": (1, 0),
    "at the middle of the bottom edge": (1, 2),
    "at the middle of the left edge": (0, 1),
    "at the middle of the right edge": (2, 1),
}
# phrase -> direction (x, y) from the anchor to the object.
_RELATIVE = {
    "to the left of": (-1, 0),
    "to the right of": (1, 0),
    "above": (0, -1),
    "below": (0, 1),
}
# In percent of the frame: where a third surely is, and how far somebody might stretch it.
_STRICT = ((0, 33), (34, 66), (67, 100))
_LOOSE = ((0, 42), (25, 75), (58, 100))


@dataclass(frozen=True)
class Relation:
    """A position in the frame (anchor None) or a direction from the object number `anchor` of the image."""

    phrase: str
    anchor: int | None = None

    def words(self, names: Sequence[str]) -> str:
        """The phrase as captions have it; `names` describe the objects of the image."""
        return self.phrase if self.anchor is None else f"{self.phrase} the {names[self.anchor]}"

    def holds(self, boxes: Sequence[Box], index: int, frame: tuple[int, int]) -> bool:
        """Whether nobody would doubt it of object `index`; frame is (width, height)."""
        if self.anchor is None:
            return _in_frame(self.phrase, boxes[index], frame, _STRICT)
        ahead, aside = self._offset(boxes, index)
        return ahead > 0 and 2 * abs(aside) <= ahead

    def possible(self, boxes: Sequence[Box], index: int, frame: tuple[int, int]) -> bool:
        """Whether somebody might say it of object `index`. Never of the anchor itself."""
        if self.anchor is None:
            return _in_frame(self.phrase, boxes[index], frame, _LOOSE)
        ahead, aside = self._offset(boxes, index)
        return ahead > 0 and 2 * abs(aside) < 3 * ahead

    def _offset(self, boxes: Sequence[Box], index: int) -> tuple[int, int]:
        """How far the object's centre lies from the anchor's along the phrase's direction, and across it (doubled)."""
        (dx, dy), (step_x, step_y) = _between(boxes[self.anchor], boxes[index]), _RELATIVE[self.phrase]
        return dx * step_x + dy * step_y, dx * step_y + dy * step_x


def _between(start: Box, end: Box) -> tuple[int, int]:
    """Twice the offset from one box's centre to the other's."""
    return 2 * (end[0] - start[0]) + end[2] - start[2], 2 * (end[1] - start[1]) + end[3] - start[3]


def _in_frame(phrase: str, box: Box, frame: tuple[int, int], thirds) -> bool:
    inside = True
    for axis, third in enumerate(_FRAME[phrase]):
        if third is not None:
            low, high = thirds[third]
            centre = 100 * (2 * box[axis] + box[axis + 2])
            inside &= 2 * frame[axis] * low <= centre <= 2 * frame[axis] * high
    return inside


def all_relations(count: int, index: int, *, relative: bool) -> list[Relation]:
    """Every phrase that could be said of object `index` out of `count`; none names the object itself."""
    anchors = [a for a in range(count) if a != index] if relative else []
    return [Relation(p) for p in _FRAME] + [Relation(p, a) for a in anchors for p in _RELATIVE]


def choose_relation(boxes: Sequence[Box], index: int, frame: tuple[int, int], *, relative: bool) -> Relation:
    """The phrase of object `index`'s caption: a function of the boxes alone.

    By its nearest neighbour if an unambiguous phrase exists for that, otherwise by the frame (the first that is
    unambiguous, in the table's order). Objects in different cells of the 3x3 grid always have one.
    """
    others = [i for i in range(len(boxes)) if i != index]
    options = [Relation(phrase) for phrase in _FRAME]
    if relative and others:
        nearest = min(others, key=lambda i: (sum(d * d for d in _between(boxes[i], boxes[index])), i))
        options = [Relation(phrase, nearest) for phrase in _RELATIVE] + options
    for relation in options:
        rivals = [i for i in others if i != relation.anchor]
        if relation.holds(boxes, index, frame) and not any(relation.possible(boxes, i, frame) for i in rivals):
            return relation
    raise ValueError(f"no phrase tells box {boxes[index]} from {[boxes[i] for i in others]} in a frame of {frame}")
