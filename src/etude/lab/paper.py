"""Papers and their claims: what a claims file declares, checked when it is imported."""

from __future__ import annotations

import inspect
import json
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import product
from typing import Any

from etude.lab.contrast import Contrast, Shown

__all__ = ["SCALES", "TUNING_SEED", "Claim", "Paper", "Setup", "Source"]

SCALES = ("smoke", "small", "medium", "full")
TUNING_SEED = 1000
"""First tuning seed; seeds that count stay below it."""

_SLUG = re.compile(r"[a-z][a-z0-9_]*")
_ARM = re.compile(r"[A-Za-z0-9][\w@.+=-]*")


class Setup:
    """The numbers of a claim at one scale: an immutable record, read as attributes.

        Setup(steps=2_000, width=32).steps

    Raises:
        TypeError: if a value has no JSON form (the values are part of a trial's identity).
    """

    def __init__(self, **values: Any):
        try:
            json.dumps(values)
        except TypeError as error:
            raise TypeError(f"a setup holds numbers, strings, booleans, lists and dicts; {error}") from None
        self.__dict__.update(values)

    def __setattr__(self, name: str, value: Any) -> None:
        raise AttributeError(f"a Setup is immutable; use setup.replace({name}={value!r})")

    def replace(self, **changes: Any) -> Setup:
        """A copy with some values changed; an unknown name is refused."""
        unknown = sorted(set(changes) - set(self.__dict__))
        if unknown:
            raise ValueError(f"setup has no {', '.join(unknown)}; it has {', '.join(self.__dict__)}")
        return Setup(**{**self.__dict__, **changes})

    def as_dict(self) -> dict[str, Any]:
        return dict(self.__dict__)

    def __getattr__(self, name: str) -> Any:
        raise AttributeError(f"setup has no {name!r}; it has {', '.join(self.__dict__)}")

    def __reduce__(self) -> tuple[Any, ...]:
        return (_make_setup, (self.as_dict(),))

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Setup) and self.__dict__ == other.__dict__

    def __hash__(self) -> int:
        return hash(json.dumps(self.__dict__, sort_keys=True))

    def __repr__(self) -> str:
        return f"Setup({', '.join(f'{name}={value!r}' for name, value in self.__dict__.items())})"


def _make_setup(values: dict[str, Any]) -> Setup:
    return Setup(**values)


@dataclass(frozen=True)
class Source:
    """A data set of a claim: a loader without arguments, and the scales it serves (all of them if None)."""

    load: Callable[[], Any]
    scales: tuple[str, ...] | None = None

    def serves(self, scale: str) -> bool:
        return self.scales is None or scale in self.scales


@dataclass(frozen=True, eq=False)
class Claim:
    """One sentence that a paper asserts, made runnable. Made by `Paper.claim`; see there for the fields."""

    paper: Paper
    name: str
    says: str
    function: Callable[..., Mapping[str, float]]
    arms: tuple[str, ...]
    contrasts: tuple[Contrast, ...]
    shown: tuple[str, ...]
    setups: Mapping[str, Setup]
    data: Mapping[str, Source]
    tune: Mapping[str, Any]
    tune_by: str
    tune_goal: str
    tune_seeds: int
    untuned: tuple[str, ...]
    tuned_like: Mapping[str, str]
    seeds: Mapping[str, tuple[int, ...]]
    version: int
    reported: str
    worst: Mapping[str, float]
    measured: tuple[str, ...]
    resplit: float | None
    resources: Mapping[str, float]
    timeout: float
    notes: str
    kind: str = ""
    helps: Contrast | None = None
    helps_tables: bool = False

    @property
    def id(self) -> str:
        return f"{self.paper.slug}/{self.name}"

    def ids(self, scale: str | None = None) -> list[tuple[str, str | None]]:
        """(claim id, data set name) of every data set that serves `scale`; one pair without a data set."""
        if not self.data:
            return [(self.id, None)]
        chosen = [name for name, source in self.data.items() if scale is None or source.serves(scale)]
        return [(f"{self.id}@{name}" if len(self.data) > 1 else self.id, name) for name in chosen]

    def tunes(self, arm: str) -> bool:
        return bool(self.tune) and arm not in self.untuned and arm not in self.tuned_like

    def candidates(self, arm: str) -> list[dict[str, Any]]:
        """The tuning grid of an arm, in order; one empty candidate if it is not tuned."""
        if not self.tunes(arm):
            return [{}]
        axes = []
        for knob, values in self.tune.items():
            options = values.get(arm) if isinstance(values, Mapping) else values
            if options is not None:
                axes.append([(knob, value) for value in options])
        return [dict(choice) for choice in product(*axes)]

    def knobs(self) -> tuple[str, ...]:
        return tuple(self.tune)

    def metrics(self, arm: str) -> set[str]:
        """Names of the metrics that the contrasts need of an arm."""
        asked = [*self.contrasts, self.helps] if self.helps is not None else self.contrasts
        return {metric for contrast in asked if arm in contrast.arms() for metric in contrast.metrics()}

    def for_users(self) -> Claim:
        """The claim cut down to `helps`: its two arms, each tuned by itself over the whole grid.

        An arm that elsewhere takes another's choice searches that arm's grid here.

        Raises:
            ValueError: if the claim asks nothing of a user's data.
        """
        if self.helps is None:
            raise ValueError(f"{self.id} asks nothing of a user's data: it declares no helps=")
        arms = self.helps.arms()
        tune = {
            knob: {arm: values.get(arm, values.get(self.tuned_like.get(arm, ""))) for arm in arms}
            if isinstance(values, Mapping)
            else values
            for knob, values in self.tune.items()
        }
        return replace(
            self, arms=arms, contrasts=(self.helps,), shown=(), tune=tune, tuned_like={},
            untuned=tuple(arm for arm in self.untuned if arm in arms),
        )  # fmt: skip


@dataclass(eq=False)
class Paper:
    """The card of a paper, to which its claims are attached.

    Args:
        slug: names the module, the claims file, the tests and the page.
        domain: the room of the method, such as `training`.
        title, authors, year, arxiv, venue: the reference.
        summary: one sentence in plain words: what the method does.
        methods: import paths of the method's modules.
        usage: a few runnable lines that use the method.
        notes: what a user must know, and what `small` cannot decide.
        code: address of the official code, if there is one.
        extra: the pip extra that the claims need.
    """

    slug: str
    domain: str
    title: str
    authors: str
    year: int
    arxiv: str = ""
    venue: str = ""
    summary: str = ""
    methods: tuple[str, ...] = ()
    usage: str = ""
    notes: str = ""
    code: str = ""
    extra: str = "run"
    claims: dict[str, Claim] = field(default_factory=dict, repr=False)

    def __post_init__(self) -> None:
        if not _SLUG.fullmatch(self.slug):
            raise ValueError(f"slug must be lower-case letters, digits and underscores, got {self.slug!r}")
        if not self.title or not self.authors:
            raise ValueError(f"{self.slug}: a paper needs a title and authors")
        if not 1950 <= self.year <= 2100:
            raise ValueError(f"{self.slug}: year must lie in 1950..2100, got {self.year}")

    def claim(
        self,
        says: str,
        *,
        arms: Sequence[str],
        expect: Sequence[Contrast | Shown],
        setup: Mapping[str, Setup],
        data: Mapping[str, Source | Callable[[], Any]] | None = None,
        tune: Mapping[str, Any] | None = None,
        tune_by: str = "",
        tune_goal: str = "max",
        tune_seeds: int = 2,
        untuned: Sequence[str] = (),
        tuned_like: Mapping[str, str] | None = None,
        seeds: int | range | Mapping[str, int | range] = 5,
        version: int = 1,
        reported: str = "",
        worst: Mapping[str, float | int] | None = None,
        measured: Sequence[str] = (),
        resplit: float | int | None = None,
        resources: Mapping[str, float | int] | None = None,
        timeout: float | int = 600.0,
        notes: str = "",
        helps: Contrast | None = None,
        helps_tables: bool = False,
    ) -> Callable[[Callable[..., Mapping[str, float]]], Callable[..., Mapping[str, float]]]:
        """Registers the decorated function as a claim; the function runs one trial and returns its metrics.

        Args:
            says: the sentence that the claim asserts.
            arms: the things compared.
            expect: primary contrasts, and what `shown(...)` displays without a verdict.
            setup: the numbers at each scale, with the same names at every scale; `smoke` is required.
            data: name -> loader or `Source`; the function then takes the loaded data as its second argument.
            tune: knob -> grid, searched by every arm alike; a dict value gives grids to the arms that have the knob.
            tune_by, tune_goal: the validation metric that chooses, and whether "max" or "min" is better.
            tune_seeds: how many tuning seeds (1000, 1001, ...) each candidate runs on.
            untuned: arms without tuning. tuned_like: arms that take another arm's choice.
            seeds: a count (0..n-1) or a range, or either for each scale.
            version: raised when the protocol changes.
            reported: the paper's own figure, with its place.
            worst: the value that a failed baseline scores, by metric.
            measured: metrics of time, outside equality checks.
            resplit: n_test / n_train where each seed re-splits one data set (Nadeau-Bengio).
            resources: what a trial takes, such as {"gpus": 1}. timeout: seconds that a trial may take.
            notes: what the controls say, and departures from the published protocol.
            helps: the contrast that `etude try` puts to a user's own data: does the method help there?
            helps_tables: a row of a table serves as an image of one line, because the networks flatten their input.

        Raises:
            ValueError: if the declaration contradicts itself; the message names the claim and the value.
        """

        def register(function: Callable[..., Mapping[str, float]]) -> Callable[..., Mapping[str, float]]:
            name = function.__name__
            contrasts: list[Contrast] = []
            displayed: list[str] = []
            for item in expect:
                if isinstance(item, Shown):
                    displayed.extend(item.arms)
                    contrasts.extend(item.contrasts)
                else:
                    contrasts.append(item)
            sources = {
                key: value if isinstance(value, Source) else Source(value) for key, value in (data or {}).items()
            }
            claim = Claim(
                paper=self, name=name, says=says, function=function, arms=tuple(arms), contrasts=tuple(contrasts),
                shown=tuple(displayed), setups=dict(setup), data=sources, tune=dict(tune or {}), tune_by=tune_by,
                tune_goal=tune_goal, tune_seeds=tune_seeds, untuned=tuple(untuned), tuned_like=dict(tuned_like or {}),
                seeds={scale: _seeds(seeds, scale) for scale in setup}, version=version, reported=reported,
                worst={metric: float(value) for metric, value in (worst or {}).items()}, measured=tuple(measured),
                resplit=None if resplit is None else float(resplit),
                resources={name: float(amount) for name, amount in (resources or {}).items()},
                timeout=float(timeout), notes=notes, kind=_data_kind(function), helps=helps, helps_tables=helps_tables,
            )  # fmt: skip
            _check(claim)
            if name in self.claims:
                raise ValueError(f"{claim.id} is declared twice")
            self.claims[name] = claim
            return function

        return register

    def claim_ids(self, scale: str | None = None) -> Iterator[tuple[str, Claim, str | None]]:
        """(claim id, claim, data set name) for all claims; with a scale, those that have a setup for it."""
        for claim in self.claims.values():
            if scale is None or scale in claim.setups:
                for claim_id, data_name in claim.ids(scale):
                    yield claim_id, claim, data_name


def _seeds(seeds: int | range | Mapping[str, int | range], scale: str) -> tuple[int, ...]:
    chosen = seeds.get(scale, 5) if isinstance(seeds, Mapping) else seeds
    listed = tuple(range(chosen)) if isinstance(chosen, int) else tuple(chosen)
    return listed[:1] if scale == "smoke" else listed


def _data_kind(function: Callable[..., Any]) -> str:
    parameter = inspect.signature(function).parameters.get("data")
    if parameter is None or parameter.annotation is inspect.Parameter.empty:
        return ""
    annotation = parameter.annotation
    return annotation if isinstance(annotation, str) else getattr(annotation, "__name__", str(annotation))


def _check(claim: Claim) -> None:
    def refuse(text: str) -> None:
        raise ValueError(f"{claim.id}: {text}")

    arms = set(claim.arms)
    if len(arms) != len(claim.arms) or not arms:
        refuse(f"arms must be distinct and at least one, got {claim.arms}")
    for arm in claim.arms:
        if not _ARM.fullmatch(arm):
            refuse(f"arm name {arm!r} must be letters, digits and _ @ . + = -")
    asked = [*claim.contrasts, claim.helps] if claim.helps is not None else claim.contrasts
    named = {arm for contrast in asked for arm in contrast.arms()} | set(claim.shown)
    named |= set(claim.untuned) | set(claim.tuned_like) | set(claim.tuned_like.values())
    named |= {arm for values in claim.tune.values() if isinstance(values, Mapping) for arm in values}
    if named - arms:
        refuse(f"unknown arms {sorted(named - arms)}; the arms are {list(claim.arms)}")
    if "smoke" not in claim.setups:
        refuse("a setup for the scale smoke is required")
    if set(claim.setups) - set(SCALES):
        refuse(f"unknown scales {sorted(set(claim.setups) - set(SCALES))}; the scales are {', '.join(SCALES)}")
    names = {scale: set(setup.as_dict()) for scale, setup in claim.setups.items()}
    for scale, keys in names.items():
        if keys != names["smoke"]:
            refuse(f"setups differ in their names between smoke and {scale}: {sorted(keys ^ names['smoke'])}")
    for source in claim.data.values():
        if source.scales is not None and set(source.scales) - set(SCALES):
            refuse(f"unknown scales {source.scales} of a data set")
    takes_data = "data" in inspect.signature(claim.function).parameters
    if takes_data != bool(claim.data):
        refuse("data= and a `data` argument of the function belong together")
    if claim.helps is not None and (not claim.data or len(claim.helps.arms()) != 2):
        refuse("helps= asks two arms about a user's data, so it needs data= and a contrast of two arms")
    if claim.helps_tables and (claim.helps is None or claim.kind != "ImageData"):
        refuse(f"helps_tables= is for a claim with helps= that takes ImageData, got {claim.kind or 'no data'}")
    if claim.tune and not claim.tune_by:
        refuse("tune= needs tune_by=, the validation metric that chooses")
    if claim.tune_goal not in ("max", "min"):
        refuse(f"tune_goal must be 'max' or 'min', got {claim.tune_goal!r}")
    for knob, values in claim.tune.items():
        grids = list(values.values()) if isinstance(values, Mapping) else [values]
        if any(len(grid) == 0 for grid in grids):
            refuse(f"the grid of {knob} is empty")
    for arm, other in claim.tuned_like.items():
        if not claim.tunes(other):
            refuse(f"{arm} takes the choice of {other}, which is not tuned")
    for scale, seeds in claim.seeds.items():
        if any(seed < 0 or seed >= TUNING_SEED for seed in seeds):
            refuse(
                f"seeds must lie in 0..{TUNING_SEED - 1} ({TUNING_SEED} up are tuning seeds), got {seeds} at {scale}"
            )
    if claim.timeout <= 0:
        refuse(f"timeout must be positive, got {claim.timeout}")
