"""Order-sensitive probing: what a dictionary's codes say of the order of words, beside everything that says it without a dictionary.

Per task (`tasks`) and way of pooling (`pooling`): sparse probes on k features and a dense one, on the codes, on the activations
that they are codes of, on bags of words and of bigrams, and on the model's own surprisal. An arm's gain counts only against an ordinary
dictionary pooled by position bins with as many features (`scores.order_gains`). Everything but the codes is the same for all
dictionaries of a layer and is kept in the cache.
"""

from collections.abc import Mapping, Sequence
from functools import cached_property
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int
from pydantic import Field, field_validator
from torch import Tensor

from temporallens.activations.language.corpora import open_corpus
from temporallens.activations.language.loading import AS_IT_IS, Loading
from temporallens.activations.language.models import LanguageModel, Layer
from temporallens.cache import Cache
from temporallens.defaults import own_defaults
from temporallens.dictionaries.base import Dictionary
from temporallens.dictionaries.masks import group_of_position
from temporallens.errors import TemporalLensError, did_you_mean
from temporallens.evaluation.model.passes import TextActivations, open_model, text_activations
from temporallens.evaluation.order.scores import (
    DENSE,
    Judge,
    OrderGain,
    OrderMeasures,
    OrderScore,
    OrderTaskMeasures,
    held_out_logits,
    order_gains,
    scaled_logits,
    with_q_values,
)
from temporallens.evaluation.order.surprisal import text_surprisal
from temporallens.evaluation.order.tasks import TASKS, OrderTask, make_tasks, task_from_json, task_to_json
from temporallens.evaluation.probing.pooling import Members, Pooling, every_token, pool_codes, pool_raw, single_tokens
from temporallens.evaluation.section import Gains, Section, Subject, Tally, gains_table
from temporallens.files import fingerprint
from temporallens.precision import ComputeDtype
from temporallens.serial import as_json, from_json
from temporallens.settings import Length, Seed, Settings
from temporallens.wording import UNKNOWN, Row, Table, estimated, fixed

FORMAT = "temporallens.order/1"


class OrderPolicy(Settings):
    """The `order` section of a study's evaluation."""

    text: str = "sotu"
    """What tasks are made of: a shipped text (`sotu`, ...), a .txt, .md, .jsonl, .csv or .parquet file, a folder of such files, or a hub
    data set."""
    column: str | None = None
    """The column of a table that holds the text; None: `text`, or the only one (of a CSV file `text` alone)."""
    split: str | None = None
    """The part of a hub data set; None: train."""
    tasks: tuple[str, ...] | None = None
    """Names of tasks; None: all of them."""
    items: int = Field(300, ge=20)
    """Items of each task. 300 are about 70,000 tokens in all for a model to read, and intervals of +-.05 about an accuracy."""
    seed: Seed = 0
    """Draws the items, their folds, and the resamples behind every interval."""
    k: tuple[int, ...] = Field((5, 50), min_length=1)
    """Features of the sparse probes."""
    bins: int = Field(8, ge=1)
    """Log-spaced bins of positions, as the groups of a mask are; as many as the masks of the study have makes for a fair comparison."""
    context_length: Length = Field(128, ge=16)
    """Tokens of a text that are read, BOS included; the bins divide it."""
    compute_dtype: ComputeDtype = "auto"
    """What the model computes in; auto: bfloat16 where the processor multiplies it natively, else float32."""
    batch_size: int = Field(32, ge=1)
    """Texts in a forward pass."""

    @field_validator("tasks")
    @classmethod
    def _known(cls, tasks: tuple[str, ...] | None) -> tuple[str, ...] | None:
        for name in tasks or ():
            if name not in TASKS:
                raise ValueError(f"there is no order task '{name}'{did_you_mean(name, TASKS)}")
        return tasks

    @field_validator("k")
    @classmethod
    def _distinct(cls, k: tuple[int, ...]) -> tuple[int, ...]:
        if len(set(k)) < len(k) or min(k) < 1:
            raise ValueError("k names the sizes of sparse probes: give different numbers, 1 or more")
        return k


@own_defaults()
def measure_order(
    dictionary: Dictionary,
    model: str,
    layer: Layer,
    policy: OrderPolicy,
    cache: Path,
    revision: str | None = None,
    loading: Loading = AS_IT_IS,
) -> OrderMeasures:
    """Probe `dictionary` and everything that it is to be compared with; all but the first is kept in the folder `cache`.

    Raises TemporalLensError when the text is too short, when a word lies beyond the context, or when the dictionary is for another width.
    """
    work = _Work(model, layer, policy, cache, revision, loading)
    if dictionary.width != work.activations.width:
        raise TemporalLensError(
            f"this dictionary of width {dictionary.width} is for another layer or model: {model} has width {work.activations.width}"
        )
    baselines, no_surprisal = work.baselines()
    measured = []
    for task in work.tasks:
        pooled = pool_codes(dictionary, work.activations, work.members(task), poolings_of(task), work.bin_of)
        if all(not np.ptp(values, axis=0).any() for values in pooled.values()):
            raise TemporalLensError(
                f"the codes of all items of '{task.name}' are the same: the dictionary was never trained, or its weights did not load"
            )
        judge = Judge(task, policy.seed)
        scores = [
            judge.score("dictionary", pooling, probe, logits)
            for pooling, table in pooled.items()
            for probe, logits in held_out_logits(table, task, policy.k).items()
        ]
        measured.append(judge.measures([*scores, *baselines[task.name]]))
    return OrderMeasures(with_q_values(measured), work.fingerprint, policy.bins, no_surprisal)


def poolings_of(task: OrderTask) -> tuple[Pooling, ...]:
    """Ways of pooling that differ: one token is its own mean."""
    return ("mean", "last", "bins") if task.spans is None else ("last", "bins")


def _tasks_of(policy: OrderPolicy, files: Cache) -> list[OrderTask]:
    """Tasks of a text, made once for all dictionaries of a study where the text is known to stay the same."""
    corpus = open_corpus(policy.text, policy.column, policy.split)
    key = {"tasks": corpus.fingerprint, **policy.model_dump(mode="json", include={"items", "seed", "tasks"})}
    if corpus.fingerprint is not None and (known := files.json(key)) is not None:
        return [task_from_json(content) for content in known]
    tasks = make_tasks(corpus, policy.items, policy.seed, policy.tasks)
    if corpus.fingerprint is not None:
        files.put_json(key, [task_to_json(task) for task in tasks])
    return tasks


class _Work:
    """Tasks, and what the model makes of their texts."""

    def __init__(
        self, model: str, layer: Layer, policy: OrderPolicy, cache: Path, revision: str | None, loading: Loading = AS_IT_IS
    ) -> None:
        self.model, self.layer, self.policy, self.cache, self.revision, self.loading = model, layer, policy, cache, revision, loading
        self._files = Cache(cache / "order", FORMAT)
        self.tasks = _tasks_of(policy, self._files)
        self.texts = list(dict.fromkeys(text for task in self.tasks for text in task.texts))
        self._number = {text: number for number, text in enumerate(self.texts)}
        self.activations: TextActivations = text_activations(
            model,
            layer,
            self.texts,
            policy.context_length,
            policy.compute_dtype,
            policy.batch_size,
            cache=cache,
            padding_side="right",
            whole_context=False,
            revision=revision,
            loading=loading,
            title="order tasks",
        )
        self.bin_of: Int[Tensor, " P"] = group_of_position(policy.context_length, policy.bins)

    @property
    def network(self) -> LanguageModel:
        return open_model(self.model, self.layer, self.policy.compute_dtype, self.revision, self.loading)

    @cached_property
    def _every_token(self) -> Members:
        return every_token(self.activations)

    @cached_property
    def fingerprint(self) -> str:
        """Of all that two dictionaries must share to be compared."""
        policy = self.policy.model_dump(mode="json", exclude={"text", "column", "split", "batch_size", "compute_dtype"})
        tasks = [
            [task.name, task.texts, task.spans, *(column.tolist() for column in (task.label, task.group, task.document, task.fold))]
            for task in self.tasks
        ]
        return fingerprint([FORMAT, self.network.content, self.layer, policy, tasks])

    def numbers(self, task: OrderTask) -> Int[Tensor, " n"]:
        """Which of the texts each item is of."""
        return torch.tensor([self._number[text] for text in task.texts])

    def members(self, task: OrderTask) -> Members:
        """The tokens of each item."""
        numbers = self.numbers(task)
        if task.spans is not None:
            return single_tokens(numbers, self.columns(task))
        every = self._every_token
        counts = torch.bincount(every.text, minlength=every.items)
        first = counts.cumsum(0) - counts
        item = torch.repeat_interleave(torch.arange(len(numbers)), counts[numbers])
        ends = counts[numbers].cumsum(0)
        token = torch.arange(len(item)) - (ends - counts[numbers])[item] + first[numbers][item]
        return Members(every.text[token], every.column[token], item, len(numbers))

    def columns(self, task: OrderTask) -> Int[Tensor, " n"]:
        """Where the last token of the word that each item is about stands."""
        spans = task.spans or []
        encoded = self.network.tokenizer.backend_tokenizer.encode_batch(task.texts, add_special_tokens=False)
        token = [
            max(index for index, (start, end) in enumerate(encoding.offsets) if start < last and end > first)
            for encoding, (first, last) in zip(encoded, spans, strict=True)
        ]
        column = torch.tensor(token) + int(self.activations.bos)
        beyond = int((column >= self.policy.context_length).sum())
        if beyond or not bool(self.activations.live[self.numbers(task), column.clamp(max=self.policy.context_length - 1)].all()):
            raise TemporalLensError(
                f"the order task '{task.name}' asks about words beyond the context of {self.policy.context_length} tokens: "
                "give a greater context_length"
            )
        return column

    def baselines(self) -> tuple[dict[str, list[OrderScore]], str | None]:
        """What is reached without a dictionary, by task, and why there is no surprisal; from the cache where it holds that."""
        files, key = self._files, {"baselines": self.fingerprint}
        if (known := files.json(key)) is not None:
            return from_json(dict[str, list[OrderScore]], known["scores"]), known["no_surprisal"]
        surprisal = text_surprisal(
            self.model, self.layer, self.activations, self.policy.compute_dtype, self.cache, self.revision, self.loading
        )
        no_surprisal = None if surprisal is not None else f"{self.network.title} predicts no next token"
        scores = {task.name: self._without_dictionary(task, surprisal) for task in self.tasks}
        files.put_json(key, {"scores": as_json(scores), "no_surprisal": no_surprisal})
        return scores, no_surprisal

    def _without_dictionary(self, task: OrderTask, surprisal: Sequence[Tensor] | None) -> list[OrderScore]:
        judge = Judge(task, self.policy.seed)
        pooled = pool_raw(self.activations, self.members(task), poolings_of(task), self.bin_of)
        scores = [
            judge.score("activations", pooling, probe, logits)
            for pooling, table in pooled.items()
            for probe, logits in held_out_logits(table, task, self.policy.k).items()
        ]
        words, pairs = word_counts(task)
        scores.append(judge.score("bag of words", None, DENSE, held_out_logits(words, task, ())[DENSE]))
        scores.append(judge.score("bigrams", None, DENSE, held_out_logits(np.concatenate([words, pairs], 1), task, ())[DENSE]))
        if surprisal is not None:
            scores.append(judge.score("surprisal", None, DENSE, scaled_logits(self._surprises(task, surprisal), task)))
        return scores

    def _surprises(self, task: OrderTask, surprisal: Sequence[Tensor]) -> Float[np.ndarray, "n 4"]:
        """Mean, largest, spread and last surprisal of each text; of a word, those of what was read when it ends."""
        numbers = self.numbers(task).tolist()
        stops = [None] * len(numbers) if task.spans is None else self.columns(task).tolist()  # column 0 has no surprisal
        read = [surprisal[number][:stop] for number, stop in zip(numbers, stops, strict=True)]
        return np.array([[float(x.mean()), float(x.max()), float(x.std(correction=0)), float(x[-1])] for x in read], np.float32)


def word_counts(task: OrderTask) -> tuple[Float[np.ndarray, "n V"], Float[np.ndarray, "n W"]]:
    """How often each word, and each pair of neighbours, stands in each item; the pair of a word that an item is about is with the
    word before it."""
    words = task.words
    pairs: list[list[tuple[str, ...]]]
    if task.spans is None:
        pairs = [list(pairwise(item)) for item in words]
    else:
        before = [text[:start].split()[-1:] for text, (start, _) in zip(task.texts, task.spans, strict=True)]
        pairs = [[(*(word.casefold() for word in earlier), *item)] for earlier, item in zip(before, words, strict=True)]
    return _counts(words), _counts(pairs)


def _counts(items: Sequence[Sequence[Any]]) -> Float[np.ndarray, "n V"]:
    column_of = {name: column for column, name in enumerate(dict.fromkeys(name for item in items for name in item))}
    counts = np.zeros((len(items), len(column_of)), dtype=np.float32)
    for row, item in enumerate(items):
        np.add.at(counts[row], [column_of[name] for name in item], 1)
    return counts


def _of_subject(subject: Subject, policy: OrderPolicy) -> OrderMeasures:
    model, layer, revision = (subject.source[name] for name in ("model", "layer", "revision"))
    return measure_order(subject.dictionary, model, layer, policy, subject.cache, revision, subject.loading)


def _text_content(policy: OrderPolicy) -> str | None:
    return open_corpus(policy.text, policy.column, policy.split).fingerprint


def tables(found: Mapping[str, OrderMeasures]) -> list[Table]:
    """Accuracy on order-sensitive tasks: the best of each dictionary's ways by pooling, beside what needs no dictionary."""
    made = []
    for head, measure in found.items():
        rows = [_order_row(task) for task in measure.tasks]
        columns = [
            "task",
            "items",
            "chance",
            "bag of words",
            "bigrams",
            "surprisal",
            "channels, bins",
            "codes, mean",
            "codes, last",
            "codes, bins",
        ]
        note = (
            "Dense probes; accuracy on folds that the probe did not see. An arm gains only where it beats an ordinary dictionary "
            "pooled by bins."
        )
        made.append(Table(f"Order-sensitive tasks: {head}", columns, rows, note))
    return made


def _order_row(task: OrderTaskMeasures) -> Row:
    def best(basis: str, pooling: str | None) -> str:
        found = [score for score in task.scores if score.basis == basis and (pooling is None or score.pooling == pooling)]
        dense = [score for score in found if score.probe == "dense"] or found
        return estimated(dense[0].accuracy, 2) if dense else UNKNOWN

    head = task.name.replace("_", " ") + ("" if task.about_order else " (control)")
    cells = [f"{task.items:,}", fixed(task.chance, 2)]
    ways = (("bag of words", None), ("bigrams", None), ("surprisal", None), ("activations", "bins"))
    cells += [best(basis, pooling) for basis, pooling in ways]
    cells += [best("dictionary", pooling) for pooling in ("mean", "last", "bins")]
    return Row(head, cells)


def _gains_table(against: str, gains: Mapping[str, Sequence[OrderGain]]) -> Table:
    tallies = [
        Tally(run, gain.pooling, gain.probe, gain.verdict, gain.against_bins.value) for run, found in gains.items() for gain in found
    ]
    rule = "Above: better than its codes pooled by bins and than those pooled alike, q < .05."
    return gains_table("order-sensitive tasks", "accuracy", rule, against, tallies)


SECTION = Section(
    name="order",
    policy=OrderPolicy,
    version=1,
    measure=_of_subject,
    measures=OrderMeasures,
    reads_model=True,
    gains=Gains(OrderGain, lambda arm, ordinary, cache: order_gains(arm, ordinary), _gains_table),
    content=_text_content,
    tables=tables,
)
