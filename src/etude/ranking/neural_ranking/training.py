"""Training a ranking model on groups of candidates, and scoring candidates with it, both in bounded memory."""

import copy
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from etude.ranking.neural_ranking.base import MatchingModel
from etude.ranking.neural_ranking.candidates import Candidates, GroupSampler
from etude.ranking.neural_ranking.evaluation import evaluate
from etude.ranking.neural_ranking.objectives import OBJECTIVES

__all__ = ["FittedRanker", "cached_features", "score_candidates", "train_ranker"]

Features = tuple[Tensor, ...]
Judgements = Mapping[str, Mapping[str, int]]


@torch.no_grad()
def cached_features(
    model: MatchingModel, candidates: Candidates, *, batch_pairs: int = 2048, max_bytes: int = 2**30
) -> Features | None:
    """The model's features of all candidates, each (queries, K, ...), or None if they would take more than `max_bytes`.

    Raises:
        ValueError: if the features depend on what is trained.
    """
    if not model.cacheable:
        raise ValueError(f"the features of {type(model).__name__} depend on what is trained: they cannot be kept")
    queries, most = candidates.docs.shape
    kept: list[Tensor] = []
    for rows, columns in _chunks(torch.arange(queries, device=candidates.docs.device), candidates, batch_pairs):
        parts = model.features(*candidates.pairs(rows, columns, whole=True))
        if not kept:
            if sum(part[0].numel() * part.element_size() for part in parts) * queries * most > max_bytes:
                return None
            kept = [part.new_zeros((queries, most, *part.shape[1:])) for part in parts]
        for whole, part in zip(kept, parts):
            whole[rows, columns] = part
    return tuple(kept)


def _chunks(
    rows: Tensor, candidates: Candidates, batch_pairs: int, *, by_length: bool = False
) -> list[tuple[Tensor, Tensor]]:
    """(rows, columns) of the candidates of these queries, so many at a time; texts of like length together if asked."""
    places = candidates.mask[rows].nonzero()
    if by_length:
        chosen = rows[places[:, 0]]
        docs = candidates.texts.doc_mask.sum(dim=1)[candidates.docs[chosen, places[:, 1]]]
        order = docs // 32 * (candidates.query_mask.shape[1] + 1) + candidates.query_mask.sum(dim=1)[chosen]
        places = places[order.argsort(stable=True)]
    return [(rows[part[:, 0]], part[:, 1]) for part in places.split(batch_pairs) if len(part)]


def _encoded(
    model: MatchingModel, candidates: Candidates, rows: Tensor, batch_texts: int
) -> tuple[Tensor, Tensor, Tensor]:
    """Vectors of these queries and of their distinct documents, each text once, and which row a document has."""
    texts = candidates.texts
    distinct = candidates.docs[rows][candidates.mask[rows]].unique()
    number = torch.zeros(len(texts.doc_ids), dtype=torch.int64, device=rows.device)
    number[distinct] = torch.arange(len(distinct), device=rows.device)

    def encode(ids: Tensor, mask: Tensor, query: bool) -> Tensor:
        parts = [
            model.encode(some, real, query=query) for some, real in zip(ids.split(batch_texts), mask.split(batch_texts))
        ]
        return torch.cat(parts)

    queries = encode(candidates.query_ids[rows], candidates.query_mask[rows], True)
    docs = encode(texts.doc_ids[distinct], texts.doc_mask[distinct], False) if len(distinct) else queries[:0]
    return queries, docs, number


def _score(
    model: MatchingModel, candidates: Candidates, rows: Tensor, columns: Tensor, features: Features | None
) -> Float[Tensor, " pairs"]:
    if features is not None:
        return model.head(*(part[rows, columns] for part in features))
    return model(*candidates.pairs(rows, columns))


@torch.no_grad()
def score_candidates(
    model: MatchingModel,
    candidates: Candidates,
    rows: Int[Tensor, " chosen"],
    *,
    features: Features | None = None,
    batch_pairs: int = 512,
) -> Float[Tensor, "chosen K"]:
    """Scores of the candidates of these queries, -inf where there is none; `batch_pairs` pairs are held at a time."""
    was_training = model.training
    model.eval()
    place = torch.full((len(candidates.queries),), -1, device=rows.device)
    place[rows] = torch.arange(len(rows), device=rows.device)
    scores = torch.full((len(rows), candidates.docs.shape[1]), -torch.inf, device=rows.device)
    separable = model.focus == "representation" and features is None
    vectors = _encoded(model, candidates, rows, batch_pairs) if separable else None
    for chosen, columns in _chunks(rows, candidates, batch_pairs, by_length=vectors is None and features is None):
        if vectors is None:
            found = _score(model, candidates, chosen, columns, features)
        else:
            queries, docs, number = vectors
            found = model.compare(queries[place[chosen]], docs[number[candidates.docs[chosen, columns]]])
        scores[place[chosen], columns] = found.float()
    model.train(was_training)
    return scores


@dataclass(frozen=True)
class FittedRanker:
    """What `train_ranker` did.

    Args:
        steps: updates made.
        best_step: after how many of them the model was best on validation.
        best: its measure there; NaN without validation.
        losses: loss of every update.
    """

    steps: int
    best_step: int
    best: float
    losses: list[float]


def train_ranker(
    model: MatchingModel,
    candidates: Candidates,
    train: Int[Tensor, " train"],
    val: Int[Tensor, " val"] | None = None,
    *,
    judgements: Judgements | None = None,
    objective: str | nn.Module = "pairwise",
    scale: float | None = None,
    lr: float = 1e-3,
    steps: int = 400,
    batch: int = 32,
    negatives: int = 4,
    checks: int = 10,
    patience: int | None = None,
    measure: str = "nDCG@10",
    features: Features | None = None,
    generator: torch.Generator | None = None,
    callback: Callable[[int, int, float, float], None] | None = None,
) -> FittedRanker:
    """Adam on groups from `GroupSampler`; the model is left as it was when best on the validation queries.

    Args:
        model: is trained in place.
        candidates: of all queries.
        train, val: their queries; without `val` the last state is kept.
        judgements: of the validation queries, all of them: relevant documents that are no candidates count as missed.
        objective: name in `OBJECTIVES`, or a module f(scores, labels), whose parameters are trained as well.
        scale: of the scores in the objective, which changes no order; None: 10, DSSM's gamma, for a model whose scores
            are `bounded`, and 1 for others. Between scores in [-1, 1] hardly a pair ever has the hinge's margin of 1:
            at scale 1 the loss is linear, easy pairs count like hard ones, and what is learnt is the largest mean
            difference, DRMM's tanh at its ends and its frequencies lost.
        lr, steps, batch: of Adam; groups in a batch.
        negatives: in a group.
        checks: how often validation looks, evenly over the steps.
        patience: checks without a better value after which training ends; never if None.
        measure: of the validation.
        features: from `cached_features`: the head alone is trained.
        generator: draws the groups.
        callback: called at every check with step, steps, loss and measure (NaN without validation).

    Raises:
        ValueError: for an unknown objective, numbers out of range, validation without judgements, or if no training
            query has a relevant document among its candidates.
    """
    if isinstance(objective, str) and objective not in OBJECTIVES:
        raise ValueError(f"objective must be one of {', '.join(OBJECTIVES)}, got {objective!r}")
    if steps < 1 or batch < 1 or checks < 1 or lr <= 0:
        raise ValueError(f"steps, batch, checks and lr must be positive, got {steps}, {batch}, {checks}, {lr}")
    if scale is not None and not 0 < scale < float("inf"):
        raise ValueError(f"scale must be positive and finite, got {scale}")
    factor = (10.0 if model.bounded else 1.0) if scale is None else scale
    if val is not None and judgements is None:
        raise ValueError("validation needs judgements")
    sampler = GroupSampler(candidates, train, negatives=negatives, generator=generator)
    loss_of = OBJECTIVES[objective] if isinstance(objective, str) else objective
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    parameters += [] if isinstance(objective, str) else list(objective.parameters())
    optimizer = torch.optim.Adam(parameters, lr=lr)
    due = {round(steps * (check + 1) / checks) for check in range(checks)}
    losses: list[float] = []
    best, best_step, best_state, waited = float("-inf"), 0, None, 0
    model.train()
    for step in range(1, steps + 1):
        rows, columns = (x.to(candidates.docs.device) for x in sampler.draw(batch))
        flat_rows = rows[:, None].expand_as(columns).reshape(-1)
        scores = _score(model, candidates, flat_rows, columns.reshape(-1), features).view(columns.shape)
        loss = loss_of(factor * scores, candidates.labels[rows[:, None], columns])
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
        if step not in due:
            continue
        value = float("nan")
        if val is not None and judgements is not None:
            run = candidates.to_run(score_candidates(model, candidates, val, features=features), val)
            value = evaluate(run, {query: judgements.get(query, {}) for query in run}, measures=[measure])[measure]
            waited += 1
            if value > best:
                best, best_step, waited = value, step, 0
                best_state = copy.deepcopy(model.state_dict())
        if callback is not None:
            callback(step, steps, losses[-1], value)
        if patience is not None and waited >= patience:
            break
    if best_state is not None:
        model.load_state_dict(best_state)
    model.eval()
    return FittedRanker(len(losses), best_step or len(losses), best if best_state is not None else float("nan"), losses)
