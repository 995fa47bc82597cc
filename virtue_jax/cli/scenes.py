"""Make data like SCaR's, no download needed: images, a parquet file to train on and one to evaluate on."""

import argparse

from virtue_jax.cli.progress import progress_bar
from virtue_jax.data.scenes import Vocabulary, write_scenes
from virtue_jax.data.scenes.vocabulary import COLOURS, KINDS, SCENES, TEXTURES


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("--out", required=True, metavar="DIR")
    add("--train", type=int, default=2000, metavar="N", help="training images (one row per object; 2000)")
    add("--eval", type=int, default=200, metavar="N", help="evaluation images (200)")
    add("--seed", type=int, default=0)
    add("--format", choices=("png", "jpg"), default="png")
    pair = {"type": int, "nargs": 2, "metavar": ("LOW", "HIGH")}
    add("--width", default=(640, 640), help="pixels, a range (640 640)", **pair)
    add("--height", default=(480, 480), help="pixels, a range (480 480)", **pair)
    add("--objects", default=(3, 6), help="per image, a range (3 6)", **pair)
    for name, table in (("kinds", KINDS), ("colours", COLOURS), ("textures", TEXTURES), ("backgrounds", SCENES)):
        add(f"--{name}", type=int, default=len(table), metavar="N", help=f"how many {name} (all {len(table)})")
    add("--frame-relations", action="store_true", help="relations to the frame alone, not to objects")


def run(args: argparse.Namespace) -> None:
    """Makes the images and both parquet files; prints how many rows each has."""
    words = Vocabulary(
        kinds=KINDS[: args.kinds],
        colours=tuple(COLOURS)[: args.colours],
        textures=TEXTURES[: args.textures],
        scenes=SCENES[: args.backgrounds],
        relative=not args.frame_relations,
    )
    with progress_bar("scenes", args.train + args.eval) as done:
        rows = write_scenes(
            args.out,
            train=args.train,
            eval=args.eval,
            seed=args.seed,
            width=tuple(args.width),
            height=tuple(args.height),
            objects=tuple(args.objects),
            vocabulary=words,
            image_format=args.format,
            progress=lambda finished, _: done(finished),
        )
    print(f"{args.out}: {rows['train']} training rows, {rows['eval']} evaluation rows")
