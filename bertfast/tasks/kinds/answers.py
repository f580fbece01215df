"""Answers to questions that are parts of a text, as in SQuAD 1.1 and 2.0."""

from __future__ import annotations

import math
import os
import unicodedata
from collections.abc import Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np
import torch

from ...core.heads import fp32
from ...data.labelled import columns
from ...data.labelled.questions import Answer, Questions, questions_of, read_squad
from ...data.labelled.tables import Table, read_table
from ...data.sequences import Batch, Sequences
from ...errors import ArgumentError
from ..form import Form
from ..metrics import probabilities, squad
from ..windows import (
    Spans,
    Windows,
    answer_positions,
    answer_tokens,
    best_spans,
    input_ids,
    null_score,
    windows,
)
from .base import Examples, Kind, Targets, as_array

STRIDE = 128
MAX_QUESTION = 64
BEST = 20
_ANSWERS_SHARE = 0.99  # of the answers to train on that the limit of length lets through
_LEAST_LONGEST = 30  # of BERT's code


class Found(NamedTuple):
    """text: of the answer, "" for none. start, stop: its characters in the context; 0, 0 for none. probability: among
    the best answers and, where that is possible, none. null_score: by how much none scores above the best answer; of a
    context without tokens the score of none itself."""

    text: str
    start: int
    stop: int
    probability: float
    null_score: float


class Context(NamedTuple):
    """text: of an example. offsets: where its tokens stand in it, int32 [tokens, 2]. windows: how they lie."""

    text: str
    offsets: np.ndarray
    windows: Windows


class Best(NamedTuple):
    """The best answers of an example, the score of none, and its context."""

    spans: Spans
    null: float
    context: Context

    @property
    def place(self) -> tuple[int, int]:
        """The characters of the best answer; (0, 0) of a context without tokens."""
        if not len(self.spans.scores):
            return 0, 0
        text, offsets = self.context.text, self.context.offsets
        stop = int(offsets[self.spans.last[0], 1])
        # accents that are characters of their own have no token
        while stop < len(text) and unicodedata.category(text[stop])[0] == "M":
            stop += 1
        return int(offsets[self.spans.first[0], 0]), stop

    @property
    def text(self) -> str:
        """The best answer, as if none were impossible."""
        return self.context.text[slice(*self.place)]

    @property
    def gap(self) -> float:
        """By how much no answer scores above the best one."""
        return self.null - float(self.spans.scores[0]) if len(self.spans.scores) else math.inf


class Answers(Kind):
    """The task qa. An input is (question, context); gold ones are lists of `Answer`."""

    head = "BertForQuestionAnswering"

    @property
    def labels(self) -> tuple[str, ...]:
        return ("start", "end")

    @staticmethod
    def open(form: Form, path: str, part: str) -> Questions | Table:
        """SQuAD's json; or a table with the columns of question (text), context (text_pair) and answers (label), which
        one to predict on need not have."""
        named = form.columns
        mismatched = named.mismatched or ("drop" if part == "train" else "keep")
        if os.path.splitext(path)[1].lower() == ".json":
            return read_squad(path, mismatched)
        table = read_table(path, None, kind=named.kind, header=named.header)  # id and title, too
        if part == "test":
            return table
        return questions_of(table, named.text, named.text_pair, named.label, mismatched)

    @staticmethod
    def learn(form: Form, opened: Questions) -> Form:
        nulls = any(not question.answers for question in opened.questions)
        return replace(form, nulls=form.nulls or nulls)

    @staticmethod
    def examples(form: Form, opened: Questions | Table, labelled: bool) -> Examples:
        if isinstance(opened, Table):
            named = form.columns
            sides = [columns.texts(opened, c) for c in (named.text, named.text_pair)]
            names = [str(number) for number in opened.numbers]
            return Examples(list(zip(*sides, strict=True)), None, names)
        asked = opened.questions
        gold = [list(question.answers) for question in asked] if labelled else None
        inputs = [(question.question, question.context) for question in asked]
        return Examples(inputs, gold, [question.id for question in asked], _dropped(opened))

    def limited(self, gold: Sequence[Sequence[Answer]], sequences: Sequences) -> Form:
        """The form with the limit of length that lets .99 of the answers through; at least 30 tokens."""
        lengths = [0]
        for answers, context in zip(gold, sequences.details, strict=True):
            place = _tokens(answers, context)
            lengths += [place[1] - place[0] + 1] if place is not None else []
        limit = math.ceil(float(np.quantile(lengths, _ANSWERS_SHARE)))
        return replace(self.form, longest=max(limit, _LEAST_LONGEST))

    def encode(self, inputs: Sequence[tuple[str, str]]) -> Sequences:
        for index, item in enumerate(inputs):
            if not isinstance(item, tuple | list) or len(item) != 2:
                raise ArgumentError(f"texts[{index}]", "(question, context)", f"{item!r:.60}")
        asked = self.tokenizer.ids([question for question, _ in inputs])
        texts = self.tokenizer.encodings([context for _, context in inputs])
        rows, owner, details = [], [], []
        length = self.form.max_length
        most = min(MAX_QUESTION, (length - 3) // 2)
        for example, (question, encoding) in enumerate(zip(asked, texts, strict=True)):
            room = length - min(len(question), most) - 3
            found = windows(
                *(len(question), len(encoding.ids)),
                max_length=length,
                stride=self.form.stride or min(STRIDE, max(2 * room // 3, 1)),
                max_question=most,
            )
            for window in range(len(found.starts)):
                rows.append(input_ids(found, window, question, encoding.ids, self.cls, self.sep))
                owner.append(example)
            offsets = np.array(encoding.offsets, dtype=np.int32).reshape(-1, 2)
            details.append(Context(inputs[example][1], offsets, found))
        return Sequences(rows, owner, details)

    def targets(self, gold: Sequence[Sequence[Answer]], sequences: Sequences) -> Targets:
        pairs = [
            answer_positions(context.windows, _tokens(answers, context))
            for answers, context in zip(gold, sequences.details, strict=True)
        ]
        places = np.concatenate(pairs)
        named = {"start_positions": places[:, 0], "end_positions": places[:, 1]}
        return Targets(named, {}, np.ones(len(places)))

    def outputs(self, output: Any, batch: Batch) -> list[np.ndarray]:
        """[2, tokens] of each window: start and end logits."""
        logits = as_array(fp32(torch.cat([output.start_logits, output.end_logits])))
        return np.split(logits, batch.cu_seqlens[1:-1].tolist(), axis=1)

    def gather(self, sequences: Sequences, outputs: Sequence[np.ndarray]) -> list[Best]:
        found, at = [], 0
        for context in sequences.details:
            rows = outputs[at : at + len(context.windows.starts)]
            at += len(rows)
            sides = [row[0] for row in rows], [row[1] for row in rows]
            spans = best_spans(context.windows, *sides, n_best=BEST, longest=self.form.longest)
            found.append(Best(spans, null_score(*sides), context))
        return found

    def tuned(self, gold: Sequence[Sequence[Answer]], found: Sequence[Best]) -> Form:
        """The threshold of no answer, for F1."""
        if not self.form.nulls:
            return self.form
        golds, told, nulls = self._compared(gold, found)
        threshold = squad.best_threshold(golds, told, nulls, "f1", self.form.language).threshold
        return replace(self.form, null_threshold=threshold)

    def scores(self, gold: Sequence[Sequence[Answer]], found: Sequence[Best]) -> dict[str, float]:
        """F1 and exact match; where nulls are possible, at the form's threshold."""
        golds, told, nulls = self._compared(gold, found)
        if self.form.nulls:
            told = squad.with_null(told, nulls, self.form.null_threshold)
        score = squad.answer_scores(golds, told, self.form.language)
        named = {"f1": score.f1, "exact_match": score.exact}
        if self.form.nulls:
            for name, part in (("answered", score.answered), ("null", score.null)):
                if part is not None:
                    named[f"{name}_f1"] = part[1]
        return named

    def answers(self, inputs: Sequence[tuple[str, str]], found: Sequence[Best]) -> list[Found]:
        return [self._answer(best) for best in found]

    def _answer(self, best: Best) -> Found:
        gap = best.gap
        if not len(best.spans.scores):
            return Found("", 0, 0, 1.0, best.null)
        scores = [*best.spans.scores, best.null] if self.form.nulls else best.spans.scores
        shares = probabilities(np.array(scores))
        if self.form.nulls and gap > self.form.null_threshold:
            return Found("", 0, 0, float(shares[-1]), gap)
        return Found(best.text, *best.place, float(shares[0]), gap)

    def _compared(self, gold: Any, found: Sequence[Best]) -> tuple[dict, dict, dict]:
        """Gold answers, best ones and null scores, by number."""
        golds = {str(i): [answer.text for answer in some] for i, some in enumerate(gold)}
        told = {str(i): best.text for i, best in enumerate(found)}
        nulls = {str(i): best.gap for i, best in enumerate(found)}
        return golds, told, nulls


def _tokens(answers: Sequence[Answer], context: Context) -> tuple[int, int] | None:
    """The tokens of the first answer."""
    if not answers:
        return None
    text, start = answers[0]
    return answer_tokens(context.offsets, start, start + len(text))


def _dropped(opened: Questions) -> str:
    """What is said of answers that do not stand where they should."""
    if not opened.mismatched:
        return ""
    count, lost = len(opened.mismatched), len(opened.dropped)
    return f"{count} answers are not where they should be ({opened.mismatched[0]}); {lost} questions left out"
