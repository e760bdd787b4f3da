"""The controller: an LSTM that writes down a pair of cells choice by choice."""

import torch
from jaxtyping import Float, Int64
from torch import Tensor, nn
from torch.distributions import Categorical

from etude.nas.nasnet.genotype import Genotype, SearchSpace

__all__ = ["NASNetController"]


class NASNetController(nn.Module):
    """One LSTM layer; each of the 50 choices has a softmax and an embedding of its own, over its legal alternatives.

    A choice is embedded as the input of the next step; the first input is learned. All weights start uniform in
    [-0.1, 0.1], so that every alternative is almost equally likely at first.

        controller = NASNetController(SearchSpace())
        genotypes, log_probs = controller.sample(20, torch.Generator().manual_seed(0))

    Args:
        space: what may be chosen.
        hidden_dim: of the LSTM and the embeddings; the paper's 100.
    """

    legal: Tensor

    def __init__(self, space: SearchSpace | None = None, hidden_dim: int = 100):
        super().__init__()
        if hidden_dim < 1:
            raise ValueError(f"hidden_dim must be positive, got {hidden_dim}")
        self.space = SearchSpace() if space is None else space
        choices = torch.tensor(self.space.choices)
        steps, widest = len(choices), int(choices.max())
        self.lstm = nn.LSTM(hidden_dim, hidden_dim, batch_first=True)
        self.start = nn.Parameter(torch.empty(hidden_dim))
        self.embeddings = nn.Parameter(torch.empty(steps, widest, hidden_dim))
        self.weight = nn.Parameter(torch.empty(steps, widest, hidden_dim))
        self.bias = nn.Parameter(torch.empty(steps, widest))
        self.register_buffer("legal", torch.arange(widest) < choices[:, None], persistent=False)
        for parameter in self.parameters():
            nn.init.uniform_(parameter, -0.1, 0.1)

    @torch.no_grad()
    def sample_actions(
        self, n: int, generator: torch.Generator | None = None
    ) -> tuple[Int64[Tensor, "n steps"], Float[Tensor, "n"]]:
        """`n` lists of choices and their log-probabilities, in nats."""
        if n < 1:
            raise ValueError(f"n must be positive, got {n}")
        inputs, state = self.start.expand(n, 1, -1), None
        actions, log_prob = [], self.start.new_zeros(n)
        for step, legal in enumerate(self.legal):
            output, state = self.lstm(inputs, state)
            scores = output[:, 0] @ self.weight[step].T + self.bias[step]
            log_probs = scores.masked_fill(~legal, -torch.inf).log_softmax(dim=1)
            action = torch.multinomial(log_probs.exp(), 1, generator=generator)
            log_prob = log_prob + log_probs.gather(1, action)[:, 0]
            actions.append(action)
            inputs = self.embeddings[step][action]
        return torch.cat(actions, dim=1), log_prob

    def sample(self, n: int, generator: torch.Generator | None = None) -> tuple[list[Genotype], Float[Tensor, "n"]]:
        """`n` genotypes and their log-probabilities."""
        actions, log_probs = self.sample_actions(n, generator)
        return [self.space.decode(row) for row in actions.tolist()], log_probs

    def distribution(self, actions: Int64[Tensor, "n steps"]) -> Categorical:
        """Of every choice given those before it: batch shape (n, steps); what is illegal has probability 0.

        Raises:
            ValueError: for choices of another number or out of range.
        """
        steps = len(self.legal)
        if actions.shape[1] != steps:
            raise ValueError(f"a genotype of this space is {steps} choices, got shape {tuple(actions.shape)}")
        if not bool(((actions >= 0) & (actions < self.legal.sum(dim=1))).all()):
            raise ValueError(f"a choice lies outside its range; there are {self.space.choices} alternatives")
        embedded = self.embeddings[torch.arange(steps - 1), actions[:, :-1]]
        output, _ = self.lstm(torch.cat([self.start.expand(len(actions), 1, -1), embedded], dim=1))
        scores = torch.einsum("nsh,swh->nsw", output, self.weight) + self.bias
        # Finite, for the entropy multiplies it by a probability of 0.
        lowest = torch.finfo(scores.dtype).min
        return Categorical(logits=scores.masked_fill(~self.legal, lowest), validate_args=False)

    def log_prob(self, actions: Int64[Tensor, "n steps"]) -> Float[Tensor, "n"]:
        """Log-probability of each list of choices: the sum over its steps."""
        return self.distribution(actions).log_prob(actions).sum(dim=1)

    def entropy(self, actions: Int64[Tensor, "n steps"]) -> Float[Tensor, "n"]:
        """Sum over the steps of the entropy of each choice given those before it, in nats."""
        return self.distribution(actions).entropy().sum(dim=1)
