"""`virtue scenes --out DIR [--train N] [--eval N] [...]`"""

import argparse

from virtue_jax.cli.progress import progress_bar
from virtue_jax.data.scenes import Vocabulary, write_scenes
from virtue_jax.data.scenes.vocabulary import COLOURS, KINDS, SCENES, TEXTURES


def run(argv: list[str]) -> None:
    """Makes the images and both parquet files; prints how many rows each has."""
    args = _parser().parse_args(argv)
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
            progress=lambda made, _: done(made),
        )
    print(f"{args.out}: {rows['train']} training rows, {rows['eval']} evaluation rows")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="virtue scenes", description="Make SCaR-like data: images and parquet.")
    parser.add_argument("--out", required=True, metavar="DIR")
    parser.add_argument("--train", type=int, default=2000, help="training images (one row per object)")
    parser.add_argument("--eval", type=int, default=200, help="evaluation images")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--format", choices=("png", "jpg"), default="png")
    pair = {"type": int, "nargs": 2, "metavar": ("LOW", "HIGH")}
    parser.add_argument("--width", default=(640, 640), help="pixels, a range (default 640 640)", **pair)
    parser.add_argument("--height", default=(480, 480), help="pixels, a range (default 480 480)", **pair)
    parser.add_argument("--objects", default=(3, 6), help="per image, a range (default 3 6)", **pair)
    for name, table in (("kinds", KINDS), ("colours", COLOURS), ("textures", TEXTURES), ("backgrounds", SCENES)):
        parser.add_argument(
            f"--{name}", type=int, default=len(table), help=f"how many {name} (default all {len(table)})"
        )
    parser.add_argument("--frame-relations", action="store_true", help="relations to the frame alone, not to objects")
    return parser
