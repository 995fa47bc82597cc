"""The words of the scenes: kinds of objects, colours, textures, backgrounds. One table each, and what may be drawn."""

from dataclasses import dataclass

# name -> (colour, second colour of its textures, outline), RGB. The second colour is a shade of the first, so that
# no texture changes which colour a person would name.
COLOURS = {
    "red": ((214, 30, 34), (120, 8, 14), (30, 10, 10)),
    "green": ((34, 150, 56), (150, 220, 150), (8, 40, 14)),
    "blue": ((38, 70, 214), (140, 165, 250), (238, 242, 255)),
    "yellow": ((250, 218, 24), (168, 138, 0), (60, 48, 0)),
    "orange": ((246, 134, 12), (168, 76, 0), (66, 30, 0)),
    "purple": ((126, 36, 168), (208, 150, 236), (246, 236, 252)),
    "pink": ((250, 132, 186), (255, 216, 234), (96, 20, 60)),
    "turquoise": ((20, 196, 196), (0, 112, 116), (0, 44, 48)),
    "white": ((252, 252, 252), (176, 176, 180), (36, 36, 40)),
    "black": ((16, 16, 18), (104, 104, 108), (244, 244, 244)),
}

KINDS = (
    "circle", "ring", "square", "triangle", "star", "cross", "heart", "crescent",
    "arrow", "diamond", "hexagon", "house", "tree", "fish", "flower", "lightning bolt",
)  # fmt: skip

TEXTURES = ("", "striped", "dotted", "checkered")

SCENES = (
    "on a green meadow",
    "on a sandy beach",
    "on a snowy field",
    "under a starry night sky",
    "in front of a brick wall",
    "on a wooden table",
    "on a tiled floor",
    "on a checkered tablecloth",
    "over a rippled sea",
    "in front of a sunset",
    "on graph paper",
    "in a dark forest",
)


@dataclass(frozen=True)
class Vocabulary:
    """What the scenes may be made of; fewer words make an easier world.

    relative: whether captions may place an object by another one ("above the red ring"); otherwise by the frame alone.

    Raises:
        ValueError: a word that cannot be drawn, or too few of a sort for the distractors.
    """

    kinds: tuple[str, ...] = KINDS
    colours: tuple[str, ...] = tuple(COLOURS)
    textures: tuple[str, ...] = TEXTURES
    scenes: tuple[str, ...] = SCENES
    relative: bool = True

    def __post_init__(self):
        for sort, known in (("kinds", KINDS), ("colours", COLOURS), ("textures", TEXTURES), ("scenes", SCENES)):
            words = getattr(self, sort)
            unknown = [word for word in words if word not in known]
            if unknown or not words or len(set(words)) != len(words):
                raise ValueError(f"{sort} {list(words)}: expected different words out of {list(known)}")
        if len(self.scenes) < 4:
            raise ValueError(f"scenes {list(self.scenes)}: three scene swaps need at least four")


@dataclass(frozen=True)
class Description:
    """What an object looks like. Within an image no two objects share (colour, kind): the texture alone never tells
    them apart, since a striped red ring may truly be called a red ring."""

    texture: str
    colour: str
    kind: str

    def __str__(self) -> str:
        return " ".join(word for word in (self.texture, self.colour, self.kind) if word)

    @property
    def name(self) -> tuple[str, str]:
        return self.colour, self.kind


def with_article(phrase: str) -> str:
    """The phrase with "A" or "An" before it."""
    return f"{'An' if phrase[0] in 'aeiou' else 'A'} {phrase}"
