"""From trials to verdicts.

Every contrast is reduced to one number per seed: a weighted sum of the arms' metrics, oriented so that larger
speaks for the claim (for `lower`, baseline minus arm). Arms share their seeds, so the sum is a paired difference.
The interval of its mean is then compared with two regions:

    holds    the interval lies inside the region `hold`
    fails    the interval lies wholly outside the region `keep`

and what is neither is undecided. For `higher` with margin m, hold = (m, inf) and keep = (0, inf).
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields, replace
from typing import Any

from etude.lab.contrast import (
    Contrast,
    Efficient,
    Equivalent,
    Higher,
    Identity,
    Interaction,
    Lower,
    NotWorse,
    Shape,
    Threshold,
    Trend,
    transformed,
)
from etude.lab.scores import Results, Scores, has_run
from etude.lab.statistics import Interval, interval, resolvable, seeds_needed, sign_flip_p

__all__ = ["MIN_SEEDS", "ContrastVerdict", "Results", "claim_p", "claim_verdict", "deciding", "judge"]

MIN_SEEDS = 3


@dataclass(frozen=True)
class ContrastVerdict:
    """The verdict on one contrast, as it stands in the evidence.

    Attributes:
        kind, role, text, spec: the contrast.
        status: "holds", "fails", "undecided", or "none" while trials are missing.
        n: number of seeds that entered the interval.
        effect, low, high: the mean and its interval, on the contrast's scale; for `efficient`, of the quality; for
            `shape`, against the arm that decides; for `identity`, the largest, lowest and highest deviation.
        level: level of the interval (0.90 for `equivalent`, two one-sided tests of 5 %).
        margin: the declared margin, or the tolerance.
        sd: standard deviation of the differences.
        p: the contrast holds if and only if p < 0.05 (1 - level), barring the rules for failed trials.
        p_signflip: exact sign-flip permutation p-value, where there is one.
        resolvable: if undecided, the distance from the margin that these seeds see with a probability of 0.8.
        needed_seeds: if undecided, the seeds needed for the effect as observed; None if none are enough.
        differences: the number per seed.
        flags: "deterministic" (no variation), "worst value" (a failed baseline scored it), "resplit" (corrected).
        reason: what the numbers do not say by themselves.
    """

    kind: str
    role: str
    text: str
    spec: Mapping[str, Any]
    status: str
    n: int = 0
    effect: float | None = None
    low: float | None = None
    high: float | None = None
    level: float | None = None
    margin: float | None = None
    sd: float | None = None
    p: float | None = None
    p_signflip: float | None = None
    resolvable: float | None = None
    needed_seeds: int | None = None
    differences: Mapping[str, float] = field(default_factory=dict)
    flags: tuple[str, ...] = ()
    reason: str = ""

    def to_json(self) -> dict[str, Any]:
        """The entry of the evidence file."""
        return {**asdict(self), "flags": list(self.flags)}

    @classmethod
    def from_json(cls, entry: Mapping[str, Any]) -> "ContrastVerdict":
        """The verdict of an entry; names that this version does not know are passed over."""
        known = {item.name: entry[item.name] for item in fields(cls) if item.name in entry}
        return cls(**{**known, "flags": tuple(known.get("flags", ()))})


def judge(
    contrast: Contrast,
    results: Results,
    seeds: Sequence[int],
    *,
    worst: Mapping[str, float | int] | None = None,
    resplit: float | int | None = None,
    level: float = 0.95,
) -> ContrastVerdict:
    """Judges a contrast from the trials of its arms.

    Args:
        contrast: what was declared.
        results: the trials of each arm by seed; other arms and seeds are passed over.
        seeds: the planned seeds, all of which must have run.
        worst: per metric, what a baseline scores where its trial failed.
        resplit: n_test / n_train if the seeds re-split one data set.
        level: level of the interval; `look_level(n)` at a declared look.

    Raises:
        ValueError: if a seed is planned twice.
    """
    if len(set(seeds)) < len(seeds):
        raise ValueError(f"seeds must be distinct, got {list(seeds)}")
    blank = ContrastVerdict(contrast.kind, contrast.role, contrast.text(), contrast.spec(), "undecided")
    planned = [(arm, seed) for arm in contrast.arms() for seed in seeds]
    ran = [(arm, seed) for arm, seed in planned if has_run(results.get(arm, {}).get(seed))]
    if len(ran) < len(planned) or not planned:
        return replace(blank, status="none", reason=f"{len(ran)} of {len(planned)} trials")

    scores = Scores(contrast, results, seeds, worst or {})
    usable = [seed for seed in seeds if seed not in scores.lost]
    if len(seeds) < MIN_SEEDS and not isinstance(contrast, Identity):
        return replace(blank, reason=f"{len(seeds)} seeds planned, at least {MIN_SEEDS} are needed")
    if len(usable) < (1 if isinstance(contrast, Identity) else MIN_SEEDS):
        return replace(blank, n=len(usable), reason="; ".join(scores.failures))
    if isinstance(contrast, Identity):
        judged = _identity(contrast, blank, scores, usable)
    else:
        judged = _statistical(contrast, blank, scores, usable, level, resplit)
    return _after_failures(judged, scores)


def claim_verdict(verdicts: Sequence[ContrastVerdict]) -> tuple[str, str]:
    """Status and reason of a claim from the verdicts on its contrasts.

    Any primary contrast that fails makes the claim fail, and all must hold for it to hold. A claim without
    primary contrasts, or with trials missing, has none.
    """
    primary = [verdict for verdict in verdicts if verdict.role == "primary"]
    if not primary:
        return "none", "no primary contrast"
    for status in ("fails", "none", "undecided"):
        found = [verdict for verdict in primary if verdict.status == status]
        if status == "none" and found:
            return "none", found[0].reason
        if found:
            return status, "; ".join(item.text + (f": {item.reason}" if item.reason else "") for item in found)
    return "holds", ""


def deciding(contrasts: Sequence[Mapping[str, Any]], status: str) -> Mapping[str, Any]:
    """The first contrast that has the claim's own status, else the first one; empty without contrasts."""
    same = [contrast for contrast in contrasts if contrast.get("status") == status]
    return next(iter([*same, *contrasts]), {})


def claim_p(verdicts: Sequence[ContrastVerdict]) -> float | None:
    """p-value of a claim: the largest of its primary contrasts', since all must hold. None if one has none."""
    p_values = [verdict.p for verdict in verdicts if verdict.role == "primary" and verdict.kind != "identity"]
    known = [p for p in p_values if p is not None]
    return max(known) if known and len(known) == len(p_values) else None


@dataclass(frozen=True)
class _Question:
    """A mean and where it must lie: inside `hold` to hold, outside `keep` to fail.

    `closed` says that the ends of `hold` belong to it. `tails` is 2 where `level` leaves half of the error to each
    end, and 1 where it leaves all of it (two one-sided tests).
    """

    weights: Mapping[str, float]
    hold: tuple[float, float]
    keep: tuple[float, float]
    level: float
    tails: int = 2
    closed: bool = False
    margin: float | int | None = None
    sign_flip_about: float | None = 0.0

    def status(self, found: Interval) -> str:
        (low, high), (keep_low, keep_high) = self.hold, self.keep
        inside = low < found.low and found.high < high
        if inside or (self.closed and low <= found.low and found.high <= high):
            return "holds"
        return "fails" if found.high < keep_low or found.low > keep_high else "undecided"

    def p(self, found: Interval) -> float:
        if found.se == 0:
            return 0.0 if self.status(found) == "holds" else 1.0
        return min(1.0, self.tails * max(found.p_above(self.hold[0]), found.p_below(self.hold[1])))

    def distance(self, found: Interval) -> float:
        """How far the mean lies on the side where it would be decided; 0 where no number of seeds would do."""
        if self.hold[0] < found.mean < self.hold[1]:
            return min(found.mean - self.hold[0], self.hold[1] - found.mean)
        return max(self.keep[0] - found.mean, found.mean - self.keep[1], 0.0)


def _questions(contrast: Contrast, level: float) -> dict[str, _Question]:
    """The questions that must all be answered with yes, each with the name of the arm it is about."""
    match contrast:
        case Higher() | Lower():
            sign, bounds = (1.0 if isinstance(contrast, Higher) else -1.0), (contrast.margin, math.inf)
            weights = {contrast.arm: sign, contrast.than: -sign}
            question = _Question(weights, bounds, (0.0, math.inf), level, margin=contrast.margin)
        case Interaction():
            weights = dict(zip((*contrast.pair, *contrast.minus), (1.0, -1.0, -1.0, 1.0)))
            question = _Question(weights, (contrast.margin, math.inf), (0.0, math.inf), level, margin=contrast.margin)
        case NotWorse():
            sign, bounds = _sign(contrast.better), (-contrast.margin, math.inf)
            weights = {contrast.arm: sign, contrast.than: -sign}
            question = _Question(weights, bounds, bounds, level, margin=contrast.margin)
        case Equivalent():
            bounds, weights = (-contrast.margin, contrast.margin), {contrast.arm: 1.0, contrast.to: -1.0}
            question = _Question(weights, bounds, bounds, 2 * level - 1, tails=1, closed=True, margin=contrast.margin)
        case Threshold():
            ends = [
                None if end is None else transformed(end, contrast.transform)
                for end in (contrast.above, contrast.below)
            ]
            about = None if None not in ends else ends[0] if ends[1] is None else ends[1]
            bounds = _open(*ends)
            question = _Question({contrast.arm: 1.0}, bounds, bounds, level, sign_flip_about=about)
        case Trend():
            bounds = _open(*contrast.slope)
            weights = {str(contrast.arm): 1.0} if contrast.against is None else _slope_weights(dict(contrast.against))
            question = _Question(weights, bounds, bounds, level, closed=True, sign_flip_about=None)
        case Shape():
            sign, bounds = _sign(contrast.better), (0.0, math.inf)
            inside = dict.fromkeys(contrast.optimum, sign / len(contrast.optimum))
            return {arm: _Question({**inside, arm: -sign}, bounds, bounds, level) for arm in contrast.baseline_arms()}
        case _:
            raise TypeError(f"no rule for a contrast of kind {contrast.kind!r}")
    return {contrast.arms()[0]: question}


def _statistical(
    contrast: Contrast,
    blank: ContrastVerdict,
    scores: Scores,
    usable: Sequence[int],
    level: float,
    resplit: float | int | None,
) -> ContrastVerdict:
    answers = []
    for about, question in _questions(contrast, level).items():
        differences = scores.combined(question.weights, contrast.metric, usable)
        found = interval(list(differences.values()), level=question.level, resplit=resplit)
        answers.append((about, question, differences, found))
    # The arm that comes closest to refuting the claim stands for all.
    about, question, differences, found = min(
        answers, key=lambda answer: (answer[1].status(answer[3]) != "fails", answer[3].low)
    )
    status, centre = question.status(found), question.sign_flip_about
    distance = question.distance(found)
    undecided = status == "undecided"
    reason = f"decided by {about}" if len(answers) > 1 else ""
    if undecided and distance == 0:
        reason = _joined(reason, "more seeds would not decide an effect of this size")
    verdict = replace(
        blank,
        status=status,
        n=found.n,
        effect=found.mean,
        low=found.low,
        high=found.high,
        level=question.level,
        margin=question.margin,
        sd=found.sd,
        p=max(question.p(found) for _, question, _, found in answers),
        p_signflip=None if centre is None else sign_flip_p([value - centre for value in differences.values()]),
        resolvable=found.sd * resolvable(found.n, level=question.level, resplit=resplit) if undecided else None,
        needed_seeds=seeds_needed(distance, found.sd, level=question.level, resplit=resplit) if undecided else None,
        differences={str(seed): value for seed, value in differences.items()},
        flags=("deterministic",) * (found.sd == 0) + ("resplit",) * bool(resplit),
        reason=reason,
    )
    if isinstance(contrast, Equivalent):
        return _with_control(contrast, verdict, scores, usable, level, resplit)
    return _with_cost(contrast, verdict, scores, usable) if isinstance(contrast, Efficient) else verdict


def _with_control(
    contrast: Equivalent,
    verdict: ContrastVerdict,
    scores: Scores,
    usable: Sequence[int],
    level: float,
    resplit: float | int | None,
) -> ContrastVerdict:
    differences = scores.combined({contrast.control: 1.0, contrast.to: -1.0}, contrast.metric, usable)
    found = interval(list(differences.values()), level=level, resplit=resplit)
    differs = found.low > 0 or found.high < 0
    reason = f"control {contrast.control} - {contrast.to}: {found.mean:.4g} [{found.low:.4g}, {found.high:.4g}]"
    if not differs:
        reason += ", not shown to differ, so the metric may see nothing"
    p = max(verdict.p or 0.0, min(1.0, 2 * min(found.p_above(0.0), found.p_below(0.0))))
    status = "undecided" if verdict.status == "holds" and not differs else verdict.status
    return replace(verdict, status=status, p=p, reason=_joined(verdict.reason, reason))


def _with_cost(contrast: Efficient, verdict: ContrastVerdict, scores: Scores, usable: Sequence[int]) -> ContrastVerdict:
    cost, than = (scores.combined({arm: 1.0}, contrast.cost, usable) for arm in (contrast.arm, contrast.than))
    lower = sum(cost[seed] < than[seed] for seed in usable)
    total, than_total = math.fsum(cost.values()), math.fsum(than.values())
    cheap = lower == len(usable) and total <= contrast.max_ratio * than_total
    ratio = f", {total / than_total:.4g} of it on average" if than_total else ""
    reason = f"{contrast.cost} lower on {lower} of {len(usable)} seeds{ratio}"
    if cheap:
        return replace(verdict, reason=_joined(verdict.reason, reason))
    return replace(verdict, status="fails", p=1.0, resolvable=None, needed_seeds=None, reason=reason)


def _identity(contrast: Identity, blank: ContrastVerdict, scores: Scores, usable: Sequence[int]) -> ContrastVerdict:
    values = scores.combined({contrast.arm: 1.0}, contrast.metric, usable)
    deviations = {seed: value - contrast.value for seed, value in values.items()}
    largest = max(deviations.values(), key=abs)
    return replace(
        blank,
        status="holds" if abs(largest) <= contrast.tolerance else "fails",
        n=len(usable),
        effect=largest,
        low=min(deviations.values()),
        high=max(deviations.values()),
        margin=contrast.tolerance,
        differences={str(seed): deviation for seed, deviation in deviations.items()},
    )


def _after_failures(verdict: ContrastVerdict, scores: Scores) -> ContrastVerdict:
    if not scores.failures:
        return verdict
    verdict = replace(
        verdict,
        flags=verdict.flags + ("worst value",) * scores.used_worst,
        reason=_joined(*scores.failures, verdict.reason),
    )
    if scores.unscored or (scores.method_failed and verdict.status == "holds"):
        return replace(verdict, status="undecided", p=None)
    return replace(verdict, p=None) if scores.method_failed else verdict


def _slope_weights(positions: Mapping[str, float | int]) -> dict[str, float]:
    centre = math.fsum(positions.values()) / len(positions)
    spread = math.fsum((x - centre) ** 2 for x in positions.values())
    return {arm: (x - centre) / spread for arm, x in positions.items()}


def _open(low: float | int | None, high: float | int | None) -> tuple[float, float]:
    return (-math.inf if low is None else low, math.inf if high is None else high)


def _sign(better: str) -> float:
    return 1.0 if better == "higher" else -1.0


def _joined(*reasons: str) -> str:
    return "; ".join(reason for reason in reasons if reason)
