"""The caption of each object and its nine distractors: three scene, three relation and three object swaps."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from virtue_jax.data.scenes.relations import Box, Relation, all_relations, choose_relation
from virtue_jax.data.scenes.vocabulary import Description, Vocabulary, with_article

SWAPS = 3
# SCaR's names, in the order of its ten candidates.
CANDIDATE_TYPES = ("gt", *["global_context"] * SWAPS, *["background_relation"] * SWAPS, *["object_swap"] * SWAPS)


@dataclass(frozen=True)
class Setting:
    """What a caption can speak of: the objects of an image with their boxes, the frame (width, height), the scene."""

    descriptions: Sequence[Description]
    boxes: Sequence[Box]
    frame: tuple[int, int]
    scene: str

    @property
    def names(self) -> list[str]:
        return [str(description) for description in self.descriptions]


def caption(thing: str, relation: str, scene: str) -> str:
    return f"{with_article(thing)} {relation} {scene}"


def write_captions(rng: np.random.Generator, setting: Setting, words: Vocabulary) -> list[list[str]]:
    """For each object its ten candidate captions, the true one first, in the order of `CANDIDATE_TYPES`."""
    count = len(setting.boxes)
    relations = [choose_relation(setting.boxes, i, setting.frame, relative=words.relative) for i in range(count)]
    candidates = []
    for index, relation in enumerate(relations):
        name, place = setting.names[index], relation.words(setting.names)
        scenes = _first(rng, [[scene for scene in words.scenes if scene != setting.scene]])
        places = _first(rng, _false_relations(setting, index, relations, words))
        things = _first(rng, _other_objects(setting, index, relation, words))
        candidates.append(
            [caption(name, place, setting.scene)]
            + [caption(name, place, scene) for scene in scenes]
            + [caption(name, other.words(setting.names), setting.scene) for other in places]
            + [caption(str(other), place, setting.scene) for other in things]
        )
    return candidates


def _false_relations(setting: Setting, index: int, chosen: list[Relation], words: Vocabulary) -> list[list[Relation]]:
    """Phrases that nobody could say of object `index`, best first: those of the other objects' captions, those that
    hold for some other object, the rest. None names the object itself, which would give the distractor away."""
    boxes, frame, count = setting.boxes, setting.frame, len(setting.boxes)
    sayable = all_relations(count, index, relative=words.relative)
    false = [relation for relation in sayable if not relation.possible(boxes, index, frame)]
    others = [i for i in range(count) if i != index]
    theirs = [relation for relation in false if relation in [chosen[i] for i in others]]
    present = [r for r in false if r not in theirs and any(r.holds(boxes, i, frame) for i in others if i != r.anchor)]
    return [theirs, present, [r for r in false if r not in theirs and r not in present]]


def _other_objects(setting: Setting, index: int, relation: Relation, words: Vocabulary) -> list[list[Description]]:
    """Descriptions of other things than object `index`, best first: the other objects of the image (but for the one
    its relation names), absent ones that share its colour or kind with another's kind or colour, any absent ones."""
    present = setting.descriptions
    own, taken = present[index], {description.name for description in present}
    in_image = [d for i, d in enumerate(present) if i not in (index, relation.anchor)]
    textures = [description.texture for description in present]
    kinds, colours = {d.kind for d in present}, {d.colour for d in present}
    mixed, absent = [], []
    for i, (colour, kind) in enumerate((c, k) for c in words.colours for k in words.kinds):
        if (colour, kind) in taken:
            continue
        near = (colour == own.colour and kind in kinds) or (kind == own.kind and colour in colours)
        (mixed if near else absent).append(Description(textures[i % len(textures)], colour, kind))
    return [in_image, mixed, absent]


def _first(rng: np.random.Generator, groups: list[list]) -> list:
    """`SWAPS` entries, from the first group as far as it reaches, then the next; in random order within each."""
    taken: list = []
    for group in groups:
        order = rng.permutation(len(group)).tolist()
        taken += [group[i] for i in order[: SWAPS - len(taken)]]
    if len(taken) < SWAPS:
        raise ValueError(f"only {len(taken)} distractors of a sort can be made; give the vocabulary more words")
    return taken
