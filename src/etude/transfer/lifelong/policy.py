"""Policies as data: what sets the table before and after each task, and how policies add up."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any, ClassVar

from etude.transfer.lifelong.groups import Rules
from etude.transfer.lifelong.learner import Context, State

__all__ = ["Compose", "Policy", "Scripted", "policy_from_dict"]


@dataclass(frozen=True)
class Policy:
    """What happens before and after a task. Subclasses are frozen dataclasses whose fields are numbers and words.

    `rules` gives the policy as data. Policies add up: those added later override the rules of the earlier ones.

    Class attributes:
        adds_on: the policy alone does not say what becomes of old tasks; `NonForgetting` does for it.
        data: "task", or "all" if training also has all earlier tasks' examples.
        keeps_targets: the policy looks after the targets; they are not taken anew before training.
    """

    adds_on: ClassVar[bool] = False
    data: ClassVar[str] = "task"
    keeps_targets: ClassVar[bool] = False
    _known: ClassVar[dict[str, type["Policy"]]] = {}

    def __init_subclass__(cls) -> None:
        Policy._known[cls.__name__] = cls

    def rules(self, number: int, state: State | None = None) -> Rules:
        """Selector -> b (or "masked") while task `number` is learned; `state` for policies that look back."""
        return {}

    def units(self, context: Context) -> int | None:
        """How many units the task at hand recruits in each layer; None leaves it to the network."""
        return None

    def before_task(self, context: Context) -> None:
        context.apply(self.rules(context.number, context.state))

    def after_task(self, context: Context) -> None:
        return None

    def complete(self) -> "Policy":
        """The policy, with `NonForgetting` under it if it only adds on."""
        return Compose((self._known["NonForgetting"](), self)) if self.adds_on else self

    def schedule(self, tasks: int) -> list[dict[str, Any]]:
        """What the policy sets before each of so many tasks, as data."""
        return [
            {"task": number, "event": "before", "rules": dict(self.rules(number))} for number in range(1, tasks + 1)
        ]

    def as_dict(self) -> dict[str, Any]:
        """Name and fields, ready for JSON; `policy_from_dict` makes the policy from them."""
        values = {item.name: getattr(self, item.name) for item in fields(self)}
        return {"policy": type(self).__name__, **{name: _plain(value) for name, value in values.items()}}

    def __add__(self, other: "Policy") -> "Compose":
        return Compose((*self.parts(), *other.parts()))

    def parts(self) -> tuple["Policy", ...]:
        return (self,)


@dataclass(frozen=True)
class Compose(Policy):
    """Several policies in turn: rules of the later ones override, units are those of the last that says how many."""

    policies: tuple[Policy, ...] = ()

    @property
    def adds_on(self) -> bool:  # type: ignore[override]
        return all(policy.adds_on for policy in self.policies)

    @property
    def data(self) -> str:  # type: ignore[override]
        return "all" if any(policy.data == "all" for policy in self.policies) else "task"

    @property
    def keeps_targets(self) -> bool:  # type: ignore[override]
        return any(policy.keeps_targets for policy in self.policies)

    def rules(self, number: int, state: State | None = None) -> Rules:
        merged: dict[str, float | int | str] = {}
        for policy in self.policies:
            for selector, b in policy.rules(number, state).items():
                merged.pop(selector, None)
                merged[selector] = b
        return merged

    def units(self, context: Context) -> int | None:
        told = [count for count in (policy.units(context) for policy in self.policies) if count is not None]
        return told[-1] if told else None

    def before_task(self, context: Context) -> None:
        for policy in self.policies:
            policy.before_task(context)

    def after_task(self, context: Context) -> None:
        for policy in self.policies:
            policy.after_task(context)

    def parts(self) -> tuple[Policy, ...]:
        return self.policies

    def as_dict(self) -> dict[str, Any]:
        return {"policy": "Compose", "policies": [policy.as_dict() for policy in self.policies]}


@dataclass(frozen=True)
class Scripted(Policy):
    """A policy of your own, as data.

        Scripted({"*[old->old]": "inf", "*[new->old]": "masked", "G[1->1]": 0.5}, recruit=20)

    Args:
        before: selector -> b, set before every task.
        after: the same, set after every task.
        recruit: units for each task; None leaves it to the network.
    """

    before: Mapping[str, Any]
    after: Mapping[str, Any] | None = None
    recruit: int | None = None

    def rules(self, number: int, state: State | None = None) -> Rules:
        return self.before

    def units(self, context: Context) -> int | None:
        return self.recruit

    def after_task(self, context: Context) -> None:
        context.apply(self.after or {}, "after")


def policy_from_dict(told: Mapping[str, Any]) -> Policy:
    """The policy that `Policy.as_dict` described.

    Raises:
        ValueError: if the name is unknown, or a field is not the policy's.
    """
    values = dict(told)
    name = values.pop("policy", None)
    if name not in Policy._known:
        raise ValueError(f"there is no policy {name!r}; there are {', '.join(sorted(Policy._known))}")
    kind = Policy._known[name]
    if kind is Compose:
        return Compose(tuple(policy_from_dict(part) for part in values["policies"]))
    unknown = sorted(set(values) - {item.name for item in fields(kind)})
    if unknown:
        raise ValueError(f"{name} has no {', '.join(unknown)}; it has {', '.join(item.name for item in fields(kind))}")
    return kind(**{key: _restored(value) for key, value in values.items()})


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, Sequence) and not isinstance(value, str):
        return [_plain(item) for item in value]
    return "inf" if isinstance(value, float) and value == float("inf") else value


def _restored(value: Any) -> Any:
    if isinstance(value, Mapping):
        return dict(value)
    if isinstance(value, list):
        return tuple(value)
    return float("inf") if value == "inf" else value
