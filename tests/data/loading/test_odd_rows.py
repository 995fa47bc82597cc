"""Whatever the data of a row provoke, at whatever stage, leaves that row out; the steps are those without it."""

import dataclasses
import io
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from words import Words, make_encoder, same, take, words_loader

from virtue_jax.data.example import Example, TrainingPair, VisualPrompt
from virtue_jax.data.unreadable import Quarantine


def encoded_image() -> bytes:
    file = io.BytesIO()
    Image.fromarray(np.zeros((56, 56, 3), np.uint8)).save(file, "PNG")
    return file.getvalue()


PNG = encoded_image()


class OddWords(Words):
    """Words whose rows of `odd`, {row: kind}, provoke errors that no reader foresaw."""

    def __init__(self, count, odd):
        super().__init__(count)
        self.odd = odd

    def __getitem__(self, row):
        kind = self.odd.get(row)
        if kind == "source raises":
            raise RuntimeError("the shard's index is\nnot sorted \ud83d")
        if kind == "no pair":
            return ()
        if kind == "no tuple":
            return None
        if kind == "not a pair":
            return ("a query", "its answer")
        return super().__getitem__(row)

    def pair(self, row):
        pair, kind = super().pair(row), self.odd.get(row)
        origin = self.origin(row)
        if kind == "reader raises":
            return {}["column"]
        if kind == "decoder raises":
            return TrainingPair(Example("", (b"\x89PNG cut",), origin=origin), pair.positives)
        if kind == "recursion":
            return self.pair(row)
        if kind == "half a character":
            return TrainingPair(Example("an emoji \ud83d", origin=origin), pair.positives)
        if kind in ENCODER_FAULTS:
            return TrainingPair(Example(kind, origin=origin), pair.positives, pair.negatives)
        if kind == "mask of no kind":
            return TrainingPair(Example("x", (PNG,), VisualPrompt(mask=["m.png"]), origin=origin), pair.positives)
        return pair


def cut(name):
    return lambda e: dataclasses.replace(e, **{name: getattr(e, name)[..., :-1]})


# What an encoder might give that packing would refuse, or spoil its row with.
ENCODER_FAULTS = {
    "tokens of another length": cut("tokens"),
    "positions of another length": cut("positions"),
    "tokens outside the vocabulary": lambda e: dataclasses.replace(e, tokens=e.tokens + 5000),
    "tokens that are no integers": lambda e: dataclasses.replace(e, tokens=e.tokens.astype(np.float32)),
    "vision tokens of no image": lambda e: dataclasses.replace(e, vision=np.zeros_like(e.vision)),
    "a prompt without an image": lambda e: dataclasses.replace(e, prompt=object()),
    "nothing": lambda e: None,
    "tokenizer raises": None,
}


class OddEncoder:
    """An encoder that spoils what the odd rows ask it to."""

    def __init__(self, encoder):
        self.encoder, self.config = encoder, encoder.config

    def encode(self, example, **options):
        encoded = self.encoder.encode(example, **options)
        if example.text == "tokenizer raises":
            raise OverflowError("out of range integral type conversion attempted")
        return ENCODER_FAULTS[example.text](encoded) if example.text in ENCODER_FAULTS else encoded


KINDS = (
    *("source raises", "no pair", "no tuple", "not a pair", "reader raises", "decoder raises", "recursion"),
    *("half a character", "mask of no kind", *ENCODER_FAULTS),
)
ODD = {3 + 4 * i: kind for i, kind in enumerate(KINDS)}
COUNT = 4 * len(KINDS) + 5


def odd_loader(golden, **options):
    return words_loader(OddEncoder(make_encoder(golden)), OddWords(COUNT, ODD), streams=2, **options)


def broken_loader(golden, **options):
    """The same rows are bad in the way that every reader foresees."""
    return words_loader(make_encoder(golden), Words(COUNT, broken=ODD), streams=2, **options)


def test_odd_rows_are_quarantined_by_name_and_steps_are_those_of_any_bad_row(golden, tmp_path):
    loader = odd_loader(golden)
    steps = take(loader, 6)
    for step, expected in zip(steps, take(broken_loader(golden), 6), strict=True):
        assert same(step, expected) and step.report.pairs == expected.report.pairs
    entries = [entry for step in steps for entry in step.report.quarantined]
    row_of = {entry["origin"]: entry for entry in entries}
    assert row_of.keys() == {f"word:{row}" for row in ODD}, "each of them in two epochs"
    for row, kind in ODD.items():
        error = row_of[f"word:{row}"]["error"]
        assert f"word:{row}" in error and "\n" not in error and error.isprintable(), kind
    assert "'\\ud83d'" in row_of[f"word:{row_named('half a character')}"]["error"]
    assert "write the whole character" in row_of[f"word:{row_named('half a character')}"]["error"]
    assert "RuntimeError: the shard's index is not sorted" in row_of[f"word:{row_named('source raises')}"]["error"]
    Quarantine(tmp_path).add(entries)
    assert len((tmp_path / "quarantine.jsonl").read_text().splitlines()) == len(entries)


def row_named(kind):
    return next(row for row, name in ODD.items() if name == kind)


def test_odd_rows_count_against_the_limit(golden):
    with pytest.raises(ValueError, match=r"bad_rows 0.05 allows"):
        take(odd_loader(golden, bad_rows=0.05), 40)


WORKERS = """
import sys
from test_odd_rows import odd_loader
from words import same

def main():
    threads, workers = (odd_loader(sys.argv[1], worker_count=count) for count in (0, 2))
    for _ in range(6):
        first, second = next(threads), next(workers)
        assert same(first, second) and first.report == second.report
    assert threads.get_state() == workers.get_state()
    threads.close()
    workers.close()
    print("equal")

if __name__ == "__main__":
    main()
"""


@pytest.mark.slow
def test_worker_processes_leave_out_the_same_rows(golden, tmp_path):
    (tmp_path / "script.py").write_text(WORKERS)
    here = Path(__file__).parent
    done = subprocess.run(
        [sys.executable, str(tmp_path / "script.py"), str(golden)],
        env=os.environ | {"PYTHONPATH": str(here)},
        cwd=here.parents[2],
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.stdout.strip().endswith("equal"), done.stderr[-2000:]
