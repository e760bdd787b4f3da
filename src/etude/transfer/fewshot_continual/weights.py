"""A pair of fast and slow weights around any module.

Wang, Li, Zhong & Zhu, "Few-shot Continual Learning: a Brain-inspired Approach", arXiv:2104.09034, 2021. That a network
keeps two copies of its weights, of which the fast one learns the tasks in sequence and the slow one generalises from
few shots, and that each is updated through the other, is the paper's statement. The two updates are a reconstruction
from its abstract: with theta_f the fast weights, theta_s the slow ones and rho, eta, kappa constants,

    before a task    theta_f <- (1 - rho) theta_f + rho theta_s                                           (1)
    after it         theta_s <- theta_s + eta_i (theta_f - theta_s),    eta_i = eta / (1 + kappa Omega_i)        (2)

for every weight i, where Omega_i is its importance for the tasks learned so far, scaled to mean 1: the step of a
consolidated synapse is small ("meta-plasticity").
"""

import copy
from collections.abc import Mapping

import torch
from torch import Tensor, nn

__all__ = ["FastSlow"]


class FastSlow(nn.Module):
    """Two copies of a module: `fast`, which tasks train, and `slow`, which absorbs it step by step.

        pair = FastSlow(encoder, eta=0.1)
        optimizer = torch.optim.Adam(pair.fast.parameters(), lr=1e-3)
        for task in tasks:
            ...                                  # train pair.fast on the task
            pair.consolidate()                   # Eq. (2)
            pair.restart_fast()                  # Eq. (1)

    With `eta=1` and `kappa=0` both copies are equal after every consolidation, bit for bit: a single set of weights.
    With `eta=0` the slow weights never move. Weights that the module ties stay tied in both copies. Floating-point
    buffers (the running statistics of batch norm) are averaged like the weights, with rate `eta`; counters and other
    buffers are copied from the fast module.

    Args:
        module: copied twice; it is not changed itself.
        eta: rate of the slow weights, in [0, 1].
        kappa: how much an important weight is slowed down, >= 0; 0 for a plain moving average.
        restart: rho, in [0, 1]: 0 lets the fast weights run on from task to task, 1 starts each from the slow ones.

    Raises:
        ValueError: if an argument lies outside its range.
    """

    def __init__(
        self, module: nn.Module, *, eta: float | int = 0.1, kappa: float | int = 0.0, restart: float | int = 0.0
    ):
        super().__init__()
        for name, value in (("eta", eta), ("restart", restart)):
            if not 0 <= value <= 1:
                raise ValueError(f"{name} must lie in [0, 1], got {value}")
        if not 0 <= kappa < float("inf"):
            raise ValueError(f"kappa must be finite and not negative, got {kappa}")
        self.eta, self.kappa, self.restart = eta, kappa, restart
        self.fast = copy.deepcopy(module)
        self.slow = copy.deepcopy(module)

    def forward(self, x: Tensor, weights: str = "slow") -> Tensor:
        """The output of one of the two copies."""
        return self.copy_of(weights)(x)

    def copy_of(self, weights: str) -> nn.Module:
        """The fast or the slow module."""
        if weights not in ("fast", "slow"):
            raise ValueError(f"weights must be 'fast' or 'slow', got {weights!r}")
        return self.fast if weights == "fast" else self.slow

    @torch.no_grad()
    def consolidate(self, importance: Mapping[str, Tensor] | None = None) -> None:
        """Moves the slow weights towards the fast ones, Eq. (2).

        Args:
            importance: importance >= 0 of every trainable parameter, by name; needed where `kappa` > 0, and only there.

        Raises:
            ValueError: if it is missing, does not fit the parameters, or the two copies lie on different devices.
        """
        rates = self._rates(importance)
        fast = dict(self.fast.named_parameters())
        for name, slow in self.slow.named_parameters():
            self._check_device(name, fast[name], slow)
            _move(slow, fast[name], rates[name])
        buffers = dict(self.fast.named_buffers())
        for name, buffer in self.slow.named_buffers():
            _move(buffer, buffers[name], self.eta if buffer.is_floating_point() else 1)

    @torch.no_grad()
    def restart_fast(self) -> None:
        """Pulls the fast weights back towards the slow ones, Eq. (1), buffers included."""
        self._pull(self.restart)

    @torch.no_grad()
    def sync(self) -> None:
        """Makes the fast weights and buffers a copy of the slow ones, bit for bit."""
        self._pull(1)

    def extra_repr(self) -> str:
        return f"eta={self.eta}, kappa={self.kappa}, restart={self.restart}"

    def _pull(self, rate: float | int) -> None:
        slow = {**dict(self.slow.named_parameters()), **dict(self.slow.named_buffers())}
        for name, fast in (*self.fast.named_parameters(), *self.fast.named_buffers()):
            self._check_device(name, fast, slow[name])
            _move(fast, slow[name], rate if fast.is_floating_point() else float(rate > 0))

    def _rates(self, importance: Mapping[str, Tensor] | None) -> dict[str, Tensor | float | int]:
        """eta_i of Eq. (2)."""
        parameters = dict(self.slow.named_parameters())
        if self.kappa == 0:
            return dict.fromkeys(parameters, self.eta)
        if importance is None:
            raise ValueError(f"kappa is {self.kappa}: consolidate() needs the importance of the weights")
        shapes = {name: tuple(weight.shape) for name, weight in parameters.items() if weight.requires_grad}
        given = {name: tuple(value.shape) for name, value in importance.items()}
        if given != shapes:
            differing = sorted(name for name in {*shapes, *given} if shapes.get(name) != given.get(name))
            raise ValueError(
                f"importance must have the shapes of the trainable parameters; {differing[0]} has "
                f"{shapes.get(differing[0])}, its importance {given.get(differing[0])}"
            )
        flat = torch.cat([value.flatten() for value in importance.values()])
        if not bool((flat >= 0).all()) or not bool(torch.isfinite(flat).all()):
            raise ValueError(f"importance must be finite and not negative, its least value is {flat.min().item()}")
        # All zero: nothing is consolidated yet, and Eq. (2) is the plain average.
        mean = flat.mean().clamp(min=torch.finfo(flat.dtype).tiny)
        rates = {name: self.eta / (1 + self.kappa * value / mean) for name, value in importance.items()}
        return dict.fromkeys(parameters, self.eta) | rates

    def _check_device(self, name: str, fast: Tensor, slow: Tensor) -> None:
        if fast.device != slow.device:
            raise ValueError(
                f"the fast and the slow weights must lie on one device, {name} is on {fast.device} and {slow.device}"
            )


def _move(target: Tensor, source: Tensor, rate: Tensor | float | int) -> None:
    """target <- target + rate (source - target); copied where the rate is 1, so that the limit is exact."""
    if isinstance(rate, Tensor):
        target.add_(rate.to(target.dtype) * (source - target))
    elif rate == 1:
        target.copy_(source)
    elif rate > 0:
        target.lerp_(source, rate)
