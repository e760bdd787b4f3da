"""Guidance as an initialisation: align a target with a guide on noise, without data or labels, then train it plainly.

Subramaniam et al., arXiv:2410.20035. Inputs are

    images: clamp(N(0, 1) + N(0, 0.1^2), 0, 1);    tokens: uniform                                         (1)

In the authors' program the guide alone is given noise, so that rows of target and guide are no longer the same
example; here both get the same noise.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from etude.training.guidance.guide import Guidance

__all__ = ["align_initialization", "noise_images", "noise_tokens"]


def align_initialization(
    target: nn.Module,
    guide: nn.Module | Guidance,
    noise_sampler: Callable[[], Tensor | tuple[Any, ...]],
    steps: int = 300,
    lr: float = 1e-3,
) -> list[float]:
    """Trains the target's alignment with a guide, and nothing else, with an Adam of its own.

        sampler = lambda: noise_images((128, 3, 32, 32), generator)
        align_initialization(target, guide, sampler, steps=300)
        optimizer = torch.optim.Adam(target.parameters(), lr=1e-3)      # then train as usual

    The target is trained in training mode, so that its batch norms also see the noise, and is left in the mode it had.

    Args:
        target: aligned in place.
        guide: a network, or a `Guidance` for other layers or metrics than its defaults.
        noise_sampler: gives the inputs of each step: a tensor, or the arguments of the networks as a tuple.
        steps: number of updates, >= 0.
        lr: of Adam, > 0.

    Returns:
        The alignment loss before each update.

    Raises:
        ValueError: if `steps` is negative or `lr` not positive, or the guidance has no weight.
    """
    if steps < 0:
        raise ValueError(f"steps must be >= 0, got {steps}")
    if not lr > 0:
        raise ValueError(f"lr must be positive, got {lr}")
    guidance = guide if isinstance(guide, Guidance) else Guidance(guide)
    if not guidance.weight > 0:
        raise ValueError(f"nothing aligns the target: the guidance has weight {guidance.weight}")
    # The logits' weights, say, are beyond the last layer compared and get no gradient.
    optimizer = torch.optim.Adam(target.parameters(), lr=lr)
    modes = [(module, module.training) for module in target.modules()]
    losses = []
    target.train()
    try:
        with guidance.capture(target):
            for _ in range(steps):
                inputs = noise_sampler()
                target(*inputs) if isinstance(inputs, tuple) else target(inputs)
                loss = guidance()
                if loss.requires_grad:
                    optimizer.zero_grad()
                    loss.backward()
                    optimizer.step()
                losses.append(loss.detach())
    finally:
        for module, training in modes:
            module.training = training
        target.zero_grad()
    return torch.stack(losses).tolist() if losses else []


def noise_images(shape: tuple[int, ...], generator: torch.Generator | None = None) -> Tensor:
    """Noise in the shape of images, Eq. (1): half of its pixels are black.

    Args:
        shape: (batch, channels, height, width), or any other.
        generator: source of the noise, on whose device it is made; the default generator if None.
    """
    device = "cpu" if generator is None else generator.device
    first, second = (torch.randn(shape, generator=generator, device=device) for _ in range(2))
    return (first + 0.1 * second).clamp(0, 1)


def noise_tokens(shape: tuple[int, ...], vocab: int, generator: torch.Generator | None = None) -> Tensor:
    """Uniform token ids from 0..vocab-1.

    Raises:
        ValueError: if `vocab` is not positive.
    """
    if vocab < 1:
        raise ValueError(f"vocab must be at least 1, got {vocab}")
    device = "cpu" if generator is None else generator.device
    return torch.randint(vocab, shape, generator=generator, device=device)
