"""Multi-query associative recall: many key-value pairs, many queries at varying distance, a large vocabulary.

Arora, Eyuboglu, Timalsina, Johnson, Poli, Zou, Rudra & Ré, arXiv:2312.04927, section 4 and appendix; details as in
the authors' generator. An example of length L with n pairs reads k1 v1 k2 v2 ..., then has (L - 2 n) / 2 slots of two
tokens. Each key stands once more, first in a slot g that is drawn without replacement with

    p(g) ~ a (g + 1)^(a - 1),   g = 0, 1, ...                                                                     (1)

and there its value is the label. The value itself never follows the query: it would answer later ones. Keys are
tokens 1 .. V/2 - 1, values V/2 .. V - 1, each at most once an example; 0 fills the rest, or random tokens do.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset, Sampler

from etude.loop.evaluation import device_of, mode

__all__ = [
    "IGNORED",
    "MQARDataset",
    "accuracy_by_slice",
    "ar_classic",
    "mqar",
    "mqar_from_draws",
    "recall_accuracy",
    "recall_loss",
    "slot_probabilities",
]

IGNORED = -100
"""The label of what is not scored."""
_NUMBERS_AT_ONCE = 1 << 24


def mqar(
    vocab_size: int = 8192,
    num_examples: int = 1000,
    seq_len: int = 64,
    num_kv_pairs: int = 8,
    *,
    power_a: float | int = 0.01,
    num_passes: int = 1,
    random_non_queries: bool = True,
    seed: int | torch.Generator = 0,
) -> tuple[Int[Tensor, "n seq_len"], Int[Tensor, "n seq_len"]]:
    """Inputs, and labels that are `IGNORED` wherever nothing is asked; `num_kv_pairs` labels an example.

    Args:
        vocab_size: V.
        num_examples: rows.
        seq_len: L, even.
        num_kv_pairs: pairs of an example, and queries.
        power_a: a of Eq. (1), positive; 1 is uniform, small values make short distances likelier.
        num_passes: how often the pairs are read before the queries.
        random_non_queries: whether random tokens take the place of the filler 0. Among them keys may stand again,
            which are not scored. The paper's figure 2 has no random tokens.
        seed: or a generator.

    Raises:
        ValueError: if the pairs do not fit, with the inequality that is broken; or for numbers out of range.
    """
    _check(vocab_size, num_examples, seq_len, num_kv_pairs, num_passes)
    space = (seq_len - 2 * num_kv_pairs * num_passes) // 2
    weights = slot_probabilities(space, power_a)
    draw = seed if isinstance(seed, torch.Generator) else torch.Generator().manual_seed(seed)
    half = vocab_size // 2
    keys = 1 + _distinct(num_examples, half - 1, num_kv_pairs, draw)
    values = half + _distinct(num_examples, vocab_size - half, num_kv_pairs, draw)
    slots = _one_after_another(num_examples, weights, num_kv_pairs, draw)
    filler = torch.randint(vocab_size, (num_examples, seq_len), generator=draw) if random_non_queries else None
    return mqar_from_draws(keys, values, slots, seq_len, num_passes=num_passes, filler=filler)


def slot_probabilities(space: int, power_a: float | int) -> Float[Tensor, "space"]:
    """Eq. (1) for the first of the draws, float64.

    Raises:
        ValueError: if `power_a` is not positive or there is no slot.
    """
    if not power_a > 0:
        raise ValueError(f"power_a must be positive, got {power_a}")
    if space < 1:
        raise ValueError(f"there must be a slot, got {space}")
    weights = power_a * torch.arange(1, space + 1, dtype=torch.float64) ** (power_a - 1)
    return weights / weights.sum()


def mqar_from_draws(
    keys: Int[Tensor, "n pairs"],
    values: Int[Tensor, "n pairs"],
    slots: Int[Tensor, "n pairs"],
    seq_len: int,
    *,
    num_passes: int = 1,
    filler: Int[Tensor, "n seq_len"] | None = None,
) -> tuple[Int[Tensor, "n seq_len"], Int[Tensor, "n seq_len"]]:
    """Examples in which key i stands again in slot `slots[i]`.

    Args:
        keys, values: tokens, 1 or more.
        slots: 0 .. (seq_len - 2 pairs passes) / 2 - 1, each once an example.
        seq_len: L, even.
        num_passes: how often the pairs are read.
        filler: tokens for what is neither pair nor query; zeros if None.

    Raises:
        ValueError: if slots lie outside or are taken twice, or a key or value is below 1.
    """
    count, pairs = keys.shape
    start = 2 * pairs * num_passes
    space = (seq_len - start) // 2
    if seq_len % 2 or space < pairs:
        raise ValueError(f"seq_len must be even and hold 2 ({num_passes} + 1) {pairs} tokens, got {seq_len}")
    if count and (int(slots.min()) < 0 or int(slots.max()) >= space):
        raise ValueError(f"slots must lie in 0..{space - 1}, got {int(slots.min())}..{int(slots.max())}")
    if count and not bool((slots.sort(1).values.diff(dim=1) > 0).all()):
        raise ValueError("each slot can be taken once an example")
    if count and min(int(keys.min()), int(values.min())) < 1:
        raise ValueError(f"keys and values are 1 or more, got {min(int(keys.min()), int(values.min()))}")
    inputs = torch.zeros(count, seq_len, dtype=torch.int64)
    labels = torch.full((count, seq_len), IGNORED)
    inputs[:, :start] = torch.stack([keys, values], dim=-1).flatten(1).repeat(1, num_passes)
    places = start + 2 * slots
    inputs.scatter_(1, places, keys)
    labels.scatter_(1, places, values)
    if filler is not None:
        inputs = torch.where(inputs == 0, filler, inputs)
    return inputs, labels


def ar_classic(
    vocab_size: int = 20, num_examples: int = 1000, seq_len: int = 32, *, seed: int | torch.Generator = 0
) -> tuple[Int[Tensor, "n seq_len"], Int[Tensor, "n seq_len"]]:
    """The older task: pairs with a fixed value for each key, a 0, and one query, the last token.

    Keys 1 .. V/2 - 1 recur within an example; the query is one of those read.

    Args:
        vocab_size: V, at least 4.
        num_examples: rows.
        seq_len: L, even, at least 4: (L - 2) / 2 pairs.
        seed: or a generator.

    Raises:
        ValueError: for numbers out of range.
    """
    if vocab_size < 4 or seq_len < 4 or seq_len % 2 or num_examples < 0:
        raise ValueError(
            "need vocab_size >= 4, an even seq_len >= 4 and num_examples >= 0, got "
            f"{vocab_size}, {seq_len} and {num_examples}"
        )
    draw = seed if isinstance(seed, torch.Generator) else torch.Generator().manual_seed(seed)
    half, pairs = vocab_size // 2, (seq_len - 2) // 2
    meaning = torch.randint(half, vocab_size, (num_examples, half), generator=draw)
    keys = torch.randint(1, half, (num_examples, pairs), generator=draw)
    query = keys.gather(1, torch.randint(pairs, (num_examples, 1), generator=draw))
    inputs = torch.zeros(num_examples, seq_len, dtype=torch.int64)
    inputs[:, : 2 * pairs] = torch.stack([keys, meaning.gather(1, keys)], dim=-1).flatten(1)
    inputs[:, -1:] = query
    labels = torch.full_like(inputs, IGNORED)
    labels[:, -1:] = meaning.gather(1, query)
    return inputs, labels


def recall_loss(logits: Float[Tensor, "*batch vocab"], labels: Int[Tensor, "*batch"]) -> Float[Tensor, ""]:
    """Mean cross-entropy of what is scored; zero, with zero gradients, if nothing is."""
    scored = labels != IGNORED
    if not bool(scored.any()):
        return logits.sum() * 0.0
    return F.cross_entropy(logits[scored], labels[scored])


def recall_accuracy(logits: Float[Tensor, "*batch vocab"], labels: Int[Tensor, "*batch"]) -> float:
    """Share of the scored labels that have the largest logit.

    Raises:
        ValueError: if nothing is scored.
    """
    scored = labels != IGNORED
    if not bool(scored.any()):
        raise ValueError(f"no label is scored: all are {IGNORED}")
    return float((logits[scored].argmax(-1) == labels[scored]).double().mean())


class MQARDataset(Dataset):
    """Examples of several lengths and numbers of pairs, to train on a mixture and to test by slice.

        data = MQARDataset([{"seq_len": 64, "num_kv_pairs": 4, "num_examples": 1000},
                            {"seq_len": 128, "num_kv_pairs": 8, "num_examples": 1000}], vocab_size=512)
        for inputs, labels in data.loader(64, generator=generator):  # a batch is of one segment
            ...

    Args:
        segments: arguments of `mqar` for each part.
        seed: of all draws, or a generator.
        shared: arguments of `mqar` for all parts.

    Raises:
        ValueError: without a segment; as `mqar`.
    """

    def __init__(self, segments: Sequence[Mapping[str, Any]], *, seed: int | torch.Generator = 0, **shared: Any):
        if not segments:
            raise ValueError("a mixture needs a segment")
        draw = seed if isinstance(seed, torch.Generator) else torch.Generator().manual_seed(seed)
        self.parts: list[tuple[Tensor, Tensor]] = []
        self.slices: list[tuple[int, int]] = []
        for segment in segments:
            inputs, labels = mqar(**{**shared, **segment}, seed=draw)
            self.parts.append((inputs, labels))
            self.slices.append((inputs.shape[1], int((labels[:1] != IGNORED).sum())))
        self._ends = torch.tensor([len(inputs) for inputs, _ in self.parts]).cumsum(0)

    def __len__(self) -> int:
        return int(self._ends[-1])

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        if not 0 <= index < len(self):
            raise IndexError(f"example {index} of {len(self)}")
        part = int(torch.searchsorted(self._ends, index, right=True))
        inputs, labels = self.parts[part]
        row = index - (int(self._ends[part - 1]) if part else 0)
        return inputs[row], labels[row]

    def loader(self, batch_size: int, *, generator: torch.Generator | None = None) -> DataLoader:
        """Batches of one segment each, in random order if a generator is given.

        Raises:
            ValueError: if `batch_size` is not positive.
        """
        if batch_size < 1:
            raise ValueError(f"batch_size must be positive, got {batch_size}")
        return DataLoader(self, batch_sampler=_Segments(self._ends.tolist(), batch_size, generator))


class _Segments(Sampler):
    def __init__(self, ends: list[int], batch_size: int, generator: torch.Generator | None):
        self.bounds = list(zip([0, *ends], ends))
        self.batch_size, self.generator = batch_size, generator

    def __len__(self) -> int:
        return sum(-(-(end - start) // self.batch_size) for start, end in self.bounds)

    def __iter__(self) -> Iterator[list[int]]:
        batches: list[Tensor] = []
        for start, end in self.bounds:
            if self.generator is None:
                rows = torch.arange(start, end)
            else:
                rows = start + torch.randperm(end - start, generator=self.generator)
            batches.extend(rows.split(self.batch_size) if end > start else ())
        order = range(len(batches)) if self.generator is None else torch.randperm(
            len(batches), generator=self.generator
        ).tolist()  # fmt: skip
        for index in order:
            yield batches[index].tolist()


@torch.no_grad()
def accuracy_by_slice(
    model: nn.Module | Callable[[Tensor], Tensor], data: MQARDataset, *, batch_size: int = 256
) -> dict[tuple[int, int], float]:
    """(length, pairs) -> accuracy.

    Args:
        model: tokens -> logits; a module is put into evaluation mode for the time.
        data: segments of equal length and pairs are one slice.
        batch_size: examples of one pass.
    """
    right: dict[tuple[int, int], list[float]] = {}
    for key, (inputs, labels) in zip(data.slices, data.parts):
        if isinstance(model, nn.Module):
            with mode(model, training=False):
                device = device_of(model)
                found = [_right(model, x.to(device), y.to(device)) for x, y in _pairs(inputs, labels, batch_size)]
        else:
            found = [_right(model, x, y) for x, y in _pairs(inputs, labels, batch_size)]
        right.setdefault(key, []).extend(torch.cat(found).tolist())
    return {key: sum(values) / len(values) for key, values in right.items()}


def _pairs(inputs: Tensor, labels: Tensor, size: int) -> Iterator[tuple[Tensor, Tensor]]:
    return zip(inputs.split(size), labels.split(size))


def _right(model: Any, ids: Tensor, labels: Tensor) -> Tensor:
    """Whether each scored answer is right; a model that can leaves the other logits unformed."""
    scored = labels != IGNORED
    logits = model.scored_logits(ids, labels) if hasattr(model, "scored_logits") else model(ids)[scored]
    return (logits.argmax(-1) == labels[scored]).double()


def _check(vocab_size: int, num_examples: int, seq_len: int, pairs: int, passes: int) -> None:
    if num_examples < 0 or pairs < 1 or passes < 1:
        raise ValueError(
            f"need num_examples >= 0, num_kv_pairs >= 1 and num_passes >= 1, got {num_examples}, {pairs} and {passes}"
        )
    if seq_len % 2:
        raise ValueError(f"seq_len must be even, got {seq_len}")
    if vocab_size <= seq_len:
        raise ValueError(f"need vocab_size > seq_len, got {vocab_size} <= {seq_len}")
    if pairs > vocab_size // 2 - 1:
        raise ValueError(f"need num_kv_pairs <= vocab_size / 2 - 1, got {pairs} > {vocab_size // 2 - 1}")
    if 2 * pairs * (passes + 1) > seq_len:
        raise ValueError(f"need 2 num_kv_pairs (num_passes + 1) <= seq_len, got {2 * pairs * (passes + 1)} > {seq_len}")


def _distinct(rows: int, choices: int, count: int, draw: torch.Generator) -> Int[Tensor, "rows count"]:
    """Distinct numbers below `choices` in random order, all alike: Floyd's way, which never forms the whole range."""
    found = torch.empty(rows, count, dtype=torch.int64)
    for place in range(count):
        last = choices - count + place
        drawn = torch.randint(last + 1, (rows,), generator=draw)
        taken = (found[:, :place] == drawn[:, None]).any(1)
        found[:, place] = torch.where(taken, last, drawn)
    return found.gather(1, torch.rand(rows, count, generator=draw).argsort(1))


def _one_after_another(rows: int, weights: Tensor, count: int, draw: torch.Generator) -> Int[Tensor, "rows count"]:
    """Indices drawn in turn without replacement, by a race of exponential clocks (Gumbel top-k)."""
    block = max(1, _NUMBERS_AT_ONCE // len(weights))
    found = [torch.empty(0, count, dtype=torch.int64)]
    for start in range(0, rows, block):
        clocks = torch.empty(min(block, rows - start), len(weights), dtype=weights.dtype).exponential_(generator=draw)
        found.append((clocks / weights).topk(count, dim=1, largest=False, sorted=True).indices)
    return torch.cat(found)
