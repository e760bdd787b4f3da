"""A small network and a few points in double precision, on which everything can be computed outright."""

import pytest
import torch
from torch import nn

from etude.loop import seeded


@pytest.fixture
def problem() -> tuple[nn.Module, torch.Tensor, torch.Tensor]:
    """A network of 49 parameters, 40 inputs and their classes."""
    with seeded(3):
        model = nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 4)).double()
        x = torch.randn(40, 4, dtype=torch.float64)
        y = torch.randint(4, (40,))
    return model, x, y
