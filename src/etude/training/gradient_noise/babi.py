"""Questions over short stories: the bAbI file format, a generator of such stories, and their vector form.

Weston et al., "Towards AI-Complete Question Answering: A Set of Prerequisite Toy Tasks", arXiv:1502.05698, 2015,
for the format; Sukhbaatar et al., "End-To-End Memory Networks", arXiv:1503.08895, 2015, for the vector form.
"""

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Int64
from torch import Tensor

__all__ = ["Question", "QuestionBatch", "babi_like", "build_vocab", "load_babi", "vectorize_babi"]

Sentence = tuple[str, ...]

_TASKS = ("where_is_actor", "where_is_object")
_SPLITS = ("train", "test")

_LINE = re.compile(r"(?P<number>\d+) (?P<text>.+)")
_WORD = re.compile(r"[a-z]+")

_ACTORS = ("alma", "bruno", "clara", "dario")
_LOCATIONS = ("attic", "cellar", "library", "orchard", "stable", "workshop")
_OBJECTS = ("compass", "kettle", "lantern")
_GO = (("walked", "to"), ("hurried", "to"), ("strolled", "to"), ("returned", "to"))
_TAKE = (("picked", "up"), ("took",), ("grabbed",))
_DROP = (("put", "down"), ("dropped",), ("left",))


@dataclass(frozen=True)
class Question:
    """A question, the story told before it, and its answer.

    Attributes:
        story: sentences of lower-case words, the oldest first.
        question: words of the question.
        answer: one token; a list of answers such as "apple,milk" counts as one.
        support: positions in `story` of the sentences that justify the answer.
    """

    story: tuple[Sentence, ...]
    question: Sentence
    answer: str
    support: tuple[int, ...] = ()


@dataclass(frozen=True)
class QuestionBatch:
    """Questions as word indices; index 0 is the null word, which fills what is empty.

    Attributes:
        stories: the most recent sentences, the latest first.
        questions: words of the questions.
        answers: index of each answer.
    """

    stories: Int64[Tensor, "batch memory words"]
    questions: Int64[Tensor, "batch words"]
    answers: Int64[Tensor, "batch"]

    def __len__(self) -> int:
        return len(self.answers)

    def __getitem__(self, index: slice | Tensor) -> "QuestionBatch":
        return QuestionBatch(self.stories[index], self.questions[index], self.answers[index])

    def trimmed(self) -> "QuestionBatch":
        """The same questions without the last memories that are empty in every story, which no attention reaches."""
        longest = int(self.stories.ne(0).any(dim=-1).sum(dim=1).max()) if len(self) else 0
        return QuestionBatch(self.stories[:, :longest], self.questions, self.answers)

    def to(self, device: torch.device | str) -> "QuestionBatch":
        return QuestionBatch(self.stories.to(device), self.questions.to(device), self.answers.to(device))


def load_babi(path: str | Path, task: int, split: str) -> list[Question]:
    """Reads one of the twenty bAbI tasks.

    Args:
        path: folder that holds the files `qa<task>_<name>_<split>.txt`, such as `tasks_1-20_v1-2/en`.
        task: number of the task, 1 to 20.
        split: "train" or "test".

    Raises:
        FileNotFoundError: if the folder has no file of that task and split.
        ValueError: if `split` is unknown, or a line does not have the format.
    """
    if split not in _SPLITS:
        raise ValueError(f"split must be one of {', '.join(_SPLITS)}, got {split!r}")
    files = sorted(Path(path).glob(f"qa{task}_*_{split}.txt"))
    if not files:
        raise FileNotFoundError(f"no qa{task}_*_{split}.txt in {path}; place the bAbI tasks v1.2 there")
    return _parse(files[0])


def _parse(file: Path) -> list[Question]:
    questions = []
    story: list[Sentence] = []
    position: dict[int, int] = {}  # line number -> index of its sentence; questions take numbers too
    for row, line in enumerate(file.read_text(encoding="utf-8").splitlines(), start=1):
        match = _LINE.fullmatch(line.rstrip())
        if match is None:
            raise ValueError(f"{file.name}, line {row}: expected '<number> <text>', got {line!r}")
        number = int(match["number"])
        if number == 1:
            story, position = [], {}
        text, *fields = match["text"].split("\t")
        words = tuple(_WORD.findall(text.lower()))
        if not fields:
            position[number] = len(story)
            story.append(words)
            continue
        answer, *support = fields
        facts = tuple(position[int(fact)] for fact in " ".join(support).split())
        questions.append(Question(tuple(story), words, answer.strip().lower(), facts))
    return questions


def babi_like(task: str, n: int, seed: int) -> list[Question]:
    """Stories in the manner of bAbI, from a generator of our own with its own words.

    Four actors walk between six locations and, in "where_is_object", carry three objects about. Each story asks five
    questions as it goes on. "where_is_actor" asks where an actor is, which one sentence answers; "where_is_object"
    asks where an object is, which takes two: who had it last, and where that actor was while having it last.

    Args:
        task: "where_is_actor" or "where_is_object".
        n: number of questions.
        seed: of the generator; equal seeds give equal stories.

    Raises:
        ValueError: if the task is unknown or `n` is negative.
    """
    if task not in _TASKS:
        raise ValueError(f"task must be one of {', '.join(_TASKS)}, got {task!r}")
    if n < 0:
        raise ValueError(f"n must be >= 0, got {n}")
    rng = np.random.default_rng(seed)
    questions: list[Question] = []
    while len(questions) < n:
        world = _World(rng, with_objects=task == "where_is_object")
        for _ in range(5):
            questions.append(world.ask())
    return questions[:n]


class _World:
    """Actors, locations and objects, with the sentence at which each fact about them was told."""

    def __init__(self, rng: np.random.Generator, with_objects: bool):
        self.rng, self.with_objects = rng, with_objects
        self.story: list[Sentence] = []
        self.place: dict[str, tuple[str, int]] = {}  # actor -> (location, sentence)
        self.holder: dict[str, tuple[str, int]] = {}  # carried object -> (actor, sentence)
        self.left: dict[str, tuple[str, tuple[int, int]]] = {}  # object put down -> (location, sentences)

    def ask(self) -> Question:
        """Tells two sentences or more, until something can be asked, and asks it."""
        self._tell()
        self._tell()
        while not (known := self._known()):
            self._tell()
        thing = self._pick(sorted(known))
        location, support = known[thing]
        article = ("the",) if self.with_objects else ()
        return Question(tuple(self.story), ("where", "is", *article, thing), location, support)

    def _known(self) -> dict[str, tuple[str, tuple[int, ...]]]:
        """What can be asked: name -> (location, supporting sentences)."""
        if not self.with_objects:
            return {actor: (location, (told,)) for actor, (location, told) in self.place.items()}
        carried = {
            thing: (self.place[actor][0], (told, self.place[actor][1])) for thing, (actor, told) in self.holder.items()
        }
        return {**carried, **self.left}

    def _tell(self) -> None:
        actor = self._pick(_ACTORS)
        here = self.place.get(actor)
        if not self.with_objects or here is None or self.rng.random() < 0.5:
            elsewhere = [location for location in _LOCATIONS if here is None or location != here[0]]
            location = self._pick(elsewhere)
            self.place[actor] = (location, len(self.story))
            self._say(actor, self._pick(_GO), location)
            return
        mine = [thing for thing, (holder, _) in self.holder.items() if holder == actor]
        near = [
            thing
            for thing in _OBJECTS
            if thing not in self.holder and (thing not in self.left or self.left[thing][0] == here[0])
        ]
        if mine and (not near or self.rng.random() < 0.5):
            thing = self._pick(mine)
            del self.holder[thing]
            self.left[thing] = (here[0], (len(self.story), here[1]))
            self._say(actor, self._pick(_DROP), thing)
        elif near:
            thing = self._pick(near)
            self.left.pop(thing, None)
            self.holder[thing] = (actor, len(self.story))
            self._say(actor, self._pick(_TAKE), thing)
        else:
            self._tell()

    def _say(self, actor: str, verb: Sentence, noun: str) -> None:
        self.story.append((actor, *verb, "the", noun))

    def _pick(self, options: Sequence[Any]) -> Any:
        return options[int(self.rng.integers(len(options)))]


def build_vocab(questions: Iterable[Question]) -> dict[str, int]:
    """An index from 1 up for every word and answer, in alphabetical order; 0 is left to the null word."""
    words: set[str] = set()
    for question in questions:
        words.update(question.question, (question.answer,), *question.story)
    return {word: index for index, word in enumerate(sorted(words), start=1)}


def vectorize_babi(
    stories: Sequence[Question], vocab: dict[str, int], memory: int = 50, sentence_len: int | None = None
) -> QuestionBatch:
    """Word indices of the questions and of the `memory` most recent sentences before each, the latest first.

    Args:
        stories: the questions with their stories.
        vocab: index of each word, from 1 up; see `build_vocab`.
        memory: number of sentences kept; the rest of a shorter story is null.
        sentence_len: words of a sentence; as many as the longest one needs if None.

    Raises:
        ValueError: if a word is not in `vocab`, a sentence is longer than `sentence_len`, or `memory` is not positive.
    """
    if memory < 1:
        raise ValueError(f"memory must be at least 1, got {memory}")
    longest = max((len(words) for item in stories for words in (item.question, *item.story)), default=1)
    if sentence_len is None:
        sentence_len = longest
    if longest > sentence_len:
        raise ValueError(f"sentence_len is {sentence_len}, but a sentence has {longest} words")

    def indices(words: Iterable[str]) -> list[int]:
        try:
            return [vocab[word] for word in words]
        except KeyError as error:
            raise ValueError(f"the word {error.args[0]!r} is not in the vocabulary of {len(vocab)} words") from None

    memories = np.zeros((len(stories), memory, sentence_len), dtype=np.int64)
    questions = np.zeros((len(stories), sentence_len), dtype=np.int64)
    for row, item in enumerate(stories):
        for slot, words in enumerate(item.story[: -memory - 1 : -1]):
            memories[row, slot, : len(words)] = indices(words)
        questions[row, : len(item.question)] = indices(item.question)
    answers = np.array(indices(item.answer for item in stories), dtype=np.int64)
    return QuestionBatch(*(torch.from_numpy(array) for array in (memories, questions, answers)))
