"""Scenes: an embedded, deterministic generator of SCaR-like data that needs no download (stands beside SCaR itself).

An image shows several drawn objects before a background; each object has a box, a point and a mask, a caption
"object + relation + scene", and nine distractors with one of the three swapped, taken from the same image where it has
them. Only the visual prompt tells which caption is meant.
"""

from virtue_jax.data.scenes.files import EVAL_FILE, IMAGE_FOLDER, QUERY_TEXT, TRAIN_FILE, write_scenes
from virtue_jax.data.scenes.scene import Scene, SceneObject, make_scene
from virtue_jax.data.scenes.vocabulary import Vocabulary

__all__ = [
    "EVAL_FILE", "IMAGE_FOLDER", "QUERY_TEXT", "TRAIN_FILE", "Scene", "SceneObject", "Vocabulary", "make_scene",
    "write_scenes",
]  # fmt: skip
