"""Embed the lines of a JSONL file: `embedding` float32[N, D], unit length, rows in the order of the lines.

All lines are checked before the model runs. A bad one ends the command, or is left out (--skip-bad): `line` int64[N]
then says which lines are there, from 1, and NAME.quarantine.jsonl beside the output which are not, and why.
"""

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from virtue_jax.atomic_files import new_file
from virtue_jax.cli.parser import add_model
from virtue_jax.cli.progress import progress_bar
from virtue_jax.config import POSITION_SCHEMES

if TYPE_CHECKING:
    import numpy as np

    from virtue_jax.data.unreadable import Unreadable
    from virtue_jax.embedding.embedder import Embedder


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_model(parser)
    add = parser.add_argument
    add(
        "--input",
        required=True,
        metavar="FILE.jsonl",
        help='lines {"image": path or list, "text": ..., "box": [x1,y1,x2,y2], "points": [[x,y,label],...], '
        '"mask": path}; all optional but one of image and text',
    )
    add("--out", required=True, metavar="FILE.npz")
    add("--skip-bad", action="store_true", help="leave lines out that cannot be embedded")
    add("--positions", choices=POSITION_SCHEMES, help="rotary scheme in place of the behaviour's")


def run(args: argparse.Namespace) -> None:
    """Writes the embeddings."""
    import numpy as np

    from virtue_jax.embedding.embedder import Embedder

    out = Path(args.out)
    if out.suffix != ".npz":
        raise ValueError(f"--out {args.out}: expected a name that ends in .npz")
    if not out.absolute().parent.is_dir():
        raise ValueError(f"--out {args.out}: the folder does not exist; make it first")
    lines = _Lines(args.input, args.skip_bad)  # what its text shows is found before a model is loaded
    embedder = Embedder.load(
        args.model, compat=args.compat, positions=args.positions, dtype=args.dtype, image_rows=args.image_rows
    )
    embeddings = lines.embed(embedder)
    kept = {"line": lines.numbers} if args.skip_bad else {}
    with new_file(out) as path:
        np.savez(path, embedding=embeddings, **kept)
    print(f"{args.out}: embedding float32{list(embeddings.shape)}")
    listed = lines.list_bad(out)
    if listed is not None:
        print(f"left out: {len(lines.bad)} of {len(lines.bad) + len(embeddings)} lines, listed in {listed}")


class _Lines:
    """The lines of a file to embed, without those that turn out bad. bad: {line, from 1: what is wrong with it}.

    Raises:
        InvalidExample: the first bad line, unless `skip_bad`; names file and line.
    """

    def __init__(self, path: str, skip_bad: bool):
        from virtue_jax.data.formats.jsonl import readable_examples
        from virtue_jax.data.unreadable import Unreadable

        self._path, self._skip_bad, self.bad = path, skip_bad, {}
        lines = dict(enumerate(readable_examples(path), start=1))
        self._good = {line: example for line, example in lines.items() if not isinstance(example, Unreadable)}
        self._meet({line: example for line, example in lines.items() if isinstance(example, Unreadable)})

    @property
    def numbers(self) -> "np.ndarray":
        """int64[N]: the lines that are left, from 1."""
        import numpy as np

        return np.array(list(self._good), np.int64)

    def embed(self, embedder: "Embedder") -> "np.ndarray":
        """float32[N, D], after all headers are checked."""
        from virtue_jax.embedding.readable import embed_readable, unreadable_headers

        with progress_bar("checking lines", len(self._good)) as done:
            self._leave_out(unreadable_headers(list(self._good.values()), embedder, done))
        examples = list(self._good.values())
        with progress_bar("embedding", len(examples)) as done:
            if not self._skip_bad:
                return embedder.embed(examples, progress=done)
            vectors, late = embed_readable(embedder, examples, done)
        good = [place for place in range(len(vectors)) if place not in late]
        self._leave_out(late)
        return vectors[good]

    def _leave_out(self, bad: "dict[int, Unreadable]") -> None:
        """bad: by place among those that are left."""
        numbers = list(self._good)
        self._meet({numbers[place]: problem for place, problem in bad.items()})

    def _meet(self, bad: "dict[int, Unreadable]") -> None:
        from virtue_jax.data.example import InvalidExample

        if bad and not self._skip_bad:
            raise InvalidExample(bad[min(bad)].error)
        self.bad |= bad
        self._good = {line: example for line, example in self._good.items() if line not in bad}
        if not self._good:
            raise InvalidExample(
                f"{self._path}: no line of it can be embedded; the first: {self.bad[min(self.bad)].error}"
            )

    def list_bad(self, out: Path) -> Path | None:
        """Writes NAME.quarantine.jsonl beside `out`, and removes an earlier one; None where nothing was left out."""
        from virtue_jax.data.unreadable import Quarantine

        quarantine = Quarantine(out.absolute().parent, f"{out.stem}.quarantine.jsonl", fresh=True)
        bad = sorted(self.bad.items())
        quarantine.add([problem.entry(line) for line, problem in bad])
        return quarantine.path if bad else None
