"""SCaR: find the caption of the object pointed at among ten (paper section 4; hit@1, ground truth first).

Asked in up to four ways, which tell whether the visual prompt is what finds it: with the true prompt, without any, with
the prompt of another object of the same image, and on a crop of the object instead of a prompt.
"""

import functools
from dataclasses import replace

import numpy as np

from virtue_jax.config import Compat
from virtue_jax.data.encoding.images import crop
from virtue_jax.data.example import Example
from virtue_jax.data.formats.scar import ScarEvaluation
from virtue_jax.data.unreadable import Unreadable, readable
from virtue_jax.eval.config import EvalConfig
from virtue_jax.eval.metrics import beats
from virtue_jax.eval.question import Question
from virtue_jax.eval.result import Scored
from virtue_jax.eval.task import Presentation, Task

TRUE = "gt"  # SCaR's word for the kind of the true caption


class Scar(Task):
    """A question whose image shows no other object has no `wrong` prompt and is left out of that mode alone."""

    MODES = ("prompt", "none", "wrong", "crop")
    PRESENTATION = Presentation(
        title="SCaR, hit@1 in percent (chance 10; by distractor type 25)",
        subtitle="SCaR: does the visual prompt find the caption?",
        modes={
            "prompt": "true prompt",
            "none": "no prompt",
            "wrong": "another's prompt",
            "crop": "crop instead",
        },
        types={"global_context": "scene", "background_relation": "relation", "object_swap": "object"},
        chance=0.1,
        chance_by_type=0.25,
    )

    def __init__(self, config: EvalConfig, compat: Compat):
        super().__init__(config, compat)
        root = config.image_root or None
        gap = compat.evaluation_gap
        self._source = ScarEvaluation(config.path, image_root=root, prompt=config.prompt, gap=gap)

    def __len__(self) -> int:
        return len(self._source)

    def origin(self, row: int) -> str:
        return self._source.origin(row)

    def question(self, row: int) -> Question:
        read = self._source[row]
        return Question(
            query=read.query,
            candidates=tuple(Example(text, origin=f"{read.origin} tgt_text") for text in read.candidates),
            keys=read.candidates,
            labels=frozenset([read.candidates[read.answer]]),
            kinds=read.types,
            dataset=read.dataset,
            row=row,
        )

    def query(self, question: Question, mode: str) -> Example | None:
        query = question.query
        if mode == "prompt":
            return query
        if mode == "none":
            return replace(query, prompt=None)
        if mode == "crop":
            box = self._source.box(question.row)
            return replace(query, prompt=None, images=(crop(query.images[0], box, query.origin),))
        others = [row for row in self._other_objects.get(question.row, ()) if row not in self.left_out]
        prompts = (readable(query.origin, lambda row: self._source[row].query.prompt, row) for row in others)
        prompt = next((prompt for prompt in prompts if not isinstance(prompt, Unreadable)), None)
        return None if prompt is None else replace(query, prompt=prompt)

    def score(self, question: Question, score: np.ndarray) -> Scored:
        """hit@1: the true caption scores above all nine others (a tie is a miss). By type, `hit@1` ranks it against the
        distractors of that type alone (chance 1 in 4), and `chosen` says whether one of them came out first of all."""
        kinds = np.array(question.kinds)
        true = kinds == TRUE
        hit, best = beats(score, true, ~true), kinds[int(np.argmax(score))]
        types = {
            kind: {"hit@1": float(beats(score, true, kinds == kind)), "chosen": float(best == kind and not hit)}
            for kind in dict.fromkeys(question.kinds)
            if kind != TRUE
        }
        return Scored(question.row, {"hit@1": float(hit)}, question.dataset, types)

    @functools.cached_property
    def _other_objects(self) -> dict[int, list[int]]:
        """{row: rows that ask about another box of the same image}, those after it first."""
        others = {}
        for rows in self._source.rows_by_image().values():
            boxes = {row: readable(self.origin(row), self._source.box, row) for row in rows}
            rows = [row for row in rows if not isinstance(boxes[row], Unreadable)]
            for i, row in enumerate(rows):
                others[row] = [other for other in rows[i + 1 :] + rows[:i] if boxes[other] != boxes[row]]
        return others
