"""From votes to what a caller is told: the ensemble's answer, its bytes, and the view that it came from."""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from fractions import Fraction
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from sisa_ray.core.errors import ConfigError
from sisa_ray.core.private_vote import private_labels
from sisa_ray.learning.ensemble import Floats, Rule, Task, aggregate, rule_for
from sisa_ray.serving.electorate import Electorate
from sisa_ray.serving.passes import Answer, Finish
from sisa_ray.serving.problems import Problem

Media = Literal["json", "arrow"]


@dataclass(frozen=True, kw_only=True)
class Question:
    """What is wanted of the rows beside labels or values."""

    rule: Rule
    probabilities: bool = False
    is_private: bool = False


class Finishers:
    """Makes answers of votes: one object for each rule, so that callers who want the same share a pass."""

    def __init__(self, *, task: Task, default_rule: str, epsilon: Fraction, num_classes: int | None) -> None:
        self._task: Task = task
        self._default = rule_for(default_rule, task)
        self._epsilon = epsilon
        self._num_classes = num_classes or 1
        self._plain = Question(rule=self._default)
        self._made: dict[tuple[Rule, bool], Finish] = {}

    def question(self, options: dict[str, Any]) -> Question:
        """A caller's options, checked.

        Raises:
            Problem: naming the option that breaks a rule.
        """
        if not options:
            return self._plain
        unknown = sorted(set(options) - {"aggregation", "probabilities", "private"})
        if unknown:
            raise _bad("body: has keys other than rows, aggregation, probabilities and private")
        for name in ("probabilities", "private"):
            if not isinstance(options.get(name, False), bool):
                raise _bad(f"{name}: must be true or false")
        wanted = options.get("aggregation")
        if wanted is not None and not isinstance(wanted, str):
            raise _bad("aggregation: must be a string")
        try:
            rule = rule_for(wanted, self._task) if wanted and wanted != "auto" else self._default
        except ConfigError as error:
            raise _bad(str(error)) from None
        question = Question(
            rule=rule,
            probabilities=options.get("probabilities", False),
            is_private=options.get("private", False),
        )
        if self._task == "regression" and (question.probabilities or question.is_private):
            raise _bad("probabilities, private: are for classification; this run predicts values")
        if question.is_private and (question.probabilities or wanted is not None):
            raise _bad(
                "private: gives labels by a noisy majority alone; leave aggregation and probabilities out"
            )
        return replace(question, rule="majority") if question.is_private else question

    def finisher(self, question: Question) -> Finish:
        """What makes the answer to such questions."""
        key = (question.rule, question.is_private)
        if key not in self._made:
            self._made[key] = self._private if question.is_private else self._aggregating(question.rule)
        return self._made[key]

    def _aggregating(self, rule: Rule) -> Finish:
        def finish(votes: Floats, electorate: Electorate) -> Answer:
            said = aggregate(rule, votes, electorate.weights, task=self._task)
            answer: Answer = {"values": np.asarray(said.values)}
            if said.probabilities is not None and said.agreement is not None:
                answer |= {"probabilities": said.probabilities, "agreement": said.agreement}
            return answer

        return finish

    def _private(self, votes: Floats, electorate: Electorate) -> Answer:
        labels = votes.argmax(axis=2)
        counts = np.stack([(labels == c).sum(axis=0) for c in range(votes.shape[2])], axis=1)
        chosen = private_labels(counts.astype(np.int64), self._epsilon, num_changed=electorate.num_changed)
        return {"values": chosen}


@dataclass(frozen=True, kw_only=True)
class Source:
    """Where an answer came from."""

    position: int
    generation: int
    num_voters: int
    num_shards: int


def encode(answer: Answer, question: Question, source: Source, *, task: Task, media: Media) -> bytes:
    """The body of an answer."""
    name = "labels" if task == "classification" else "values"
    columns: dict[str, npt.NDArray[Any]] = {name: answer["values"]}
    if question.probabilities:
        columns["probabilities"] = answer["probabilities"]
    if not question.is_private and "agreement" in answer:
        columns["agreement"] = answer["agreement"]
    facts = {
        "aggregation": "private" if question.is_private else question.rule,
        "voters": source.num_voters,
        "shards": source.num_shards,
        "view": {"position": source.position, "generation": source.generation},
    }
    if media == "json":
        return json.dumps({**{n: v.tolist() for n, v in columns.items()}, **facts}).encode()
    arrays = {n: pa.array(v) if v.ndim == 1 else _lists(v) for n, v in columns.items()}
    table = pa.table(arrays).replace_schema_metadata({"sisa_ray": json.dumps(facts)})
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, table.schema) as writer:
        writer.write_table(table)
    body: bytes = sink.getvalue().to_pybytes()
    return body


def _lists(values: npt.NDArray[Any]) -> pa.Array:
    return pa.FixedSizeListArray.from_arrays(pa.array(values.reshape(-1)), values.shape[1])


def _bad(detail: str) -> Problem:
    return Problem(422, "bad-question", detail)
