"""The two recurrent policies: which layers to keep, and by how much to shrink what is left (paper, section 3.2).

Both read raw features of layers (`LayerTable.features`) and, unless `normalise` is False, scale them first:
type / 8, kernel / 7, stride / 2, log2(out + 1) / 10, padding / 3, and places in a block by its length.
"""

from collections.abc import Sequence

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from etude.nas.n2n.students import FACTORS

__all__ = ["RemovalPolicy", "ShrinkPolicy", "normalised"]


def normalised(features: Float[Tensor, "*batch features"]) -> Float[Tensor, "*batch features"]:
    """Raw features of layers at similar scales; 5 or 7 of them."""
    kind, kernel, stride, out, padding = features[..., :5].unbind(-1)
    scaled = [kind / 8, kernel / 7, stride / 2, torch.log2(out + 1) / 10, padding / 3]
    if features.shape[-1] == 7:
        places = features[..., 5:]
        length = (places.sum(-1, keepdim=True) - 1).clamp(min=1)
        scaled += (places / length).unbind(-1)
    return torch.stack(scaled, dim=-1)


class _Policy(nn.Module):
    def __init__(self, feature_dim: int, hidden: int, layers: int, normalise: bool):
        super().__init__()
        if feature_dim not in (5, 7):
            raise ValueError(f"feature_dim must be 5, or 7 with places in blocks, got {feature_dim}")
        if hidden < 1 or layers < 1:
            raise ValueError(f"hidden and layers must be positive, got {hidden} and {layers}")
        self.feature_dim, self.normalise = feature_dim, normalise

    def _check(self, features: Tensor) -> None:
        if features.shape[-1] != self.feature_dim:
            raise ValueError(
                f"this policy reads {self.feature_dim} features of a layer, got {features.shape[-1]} "
                "(7 are those with skip_support)"
            )

    def _read(self, features: Tensor) -> Tensor:
        return normalised(features) if self.normalise else features


class RemovalPolicy(_Policy):
    """Decides for each layer whether it stays, by an LSTM that reads the layers in both directions.

    Decisions are independent given the sequence.

    Args:
        feature_dim: 5, or 7 with places in residual blocks.
        hidden, layers: of the LSTM; the paper's 30 and 2.
        bidirectional: whether a decision also depends on the layers after it.
        normalise: whether raw features are scaled first; the authors' code does not.
    """

    def __init__(
        self,
        feature_dim: int = 5,
        hidden: int = 30,
        layers: int = 2,
        bidirectional: bool = True,
        *,
        normalise: bool = True,
    ):
        super().__init__(feature_dim, hidden, layers, normalise)
        self.lstm = nn.LSTM(feature_dim, hidden, layers, batch_first=True, bidirectional=bidirectional)
        self.head = nn.Linear(hidden * (1 + bidirectional), 2)

    def forward(self, features: Float[Tensor, "layers features"]) -> Float[Tensor, "layers 2"]:
        """Log-probabilities of removing (0) and keeping (1) each layer."""
        self._check(features)
        states, _ = self.lstm(self._read(features)[None])
        return self.head(states[0]).log_softmax(-1)

    @torch.no_grad()
    def sample(
        self,
        features: Float[Tensor, "layers features"],
        fixed: Bool[Tensor, "layers"],
        *,
        count: int = 1,
        generator: torch.Generator | None = None,
    ) -> tuple[Int[Tensor, "count layers"], Float[Tensor, "count"]]:
        """Actions and their log-probabilities; fixed layers are kept and count for nothing."""
        keeping = self(features)[:, 1].exp()
        actions = (torch.rand(count, len(fixed), generator=generator) < keeping.cpu()).long()
        actions[:, fixed.cpu()] = 1
        return actions, self.log_prob(features, fixed, actions)

    def log_prob(
        self,
        features: Float[Tensor, "layers features"],
        fixed: Bool[Tensor, "layers"],
        actions: Int[Tensor, "count layers"],
    ) -> Float[Tensor, "count"]:
        """Log-probability of each row of actions, over the layers that are not fixed."""
        chosen = self(features).expand(len(actions), -1, -1).gather(2, actions[..., None])[..., 0]
        return torch.where(fixed, 0.0, chosen).sum(1)


class ShrinkPolicy(_Policy):
    """Chooses a factor for every attribute of every layer, one after the other.

    For layer l and attribute j = 0 .. 4 a stacked LSTM reads the layer's features as they are by then and gives the
    distribution over `factors`; the factor drawn multiplies attribute j, unless it is the type, before the next step.
    The next layer begins from its own features, and the state runs on. Attributes that are fixed keep their sizes,
    and their steps have no probability; the authors' code draws there too, without effect.

    Args:
        feature_dim, hidden, layers, normalise: as for `RemovalPolicy`.
        factors: the choices; 1 must be among them.

    Raises:
        ValueError: if a factor lies outside (0, 1] or 1 is missing.
    """

    def __init__(
        self,
        feature_dim: int = 5,
        hidden: int = 30,
        layers: int = 2,
        factors: Sequence[float | int] = FACTORS,
        *,
        normalise: bool = True,
    ):
        super().__init__(feature_dim, hidden, layers, normalise)
        if 1.0 not in factors or not all(0 < factor <= 1 for factor in factors):
            raise ValueError(f"factors must lie in (0, 1] with 1 among them, got {tuple(factors)}")
        self.factors = tuple(float(factor) for factor in factors)
        self.whole = self.factors.index(1.0)
        self.lstm = nn.LSTM(feature_dim, hidden, layers, batch_first=True)
        self.head = nn.Linear(hidden, len(factors))

    @torch.no_grad()
    def sample(
        self,
        features: Float[Tensor, "layers features"],
        fixed: Bool[Tensor, "layers 5"],
        *,
        count: int = 1,
        generator: torch.Generator | None = None,
    ) -> tuple[Int[Tensor, "count layers 5"], Float[Tensor, "count"]]:
        """Indices into `factors` and their log-probabilities; fixed attributes have factor 1."""
        self._check(features)
        table = features.new_tensor(self.factors)
        actions = torch.full((count, len(features), 5), self.whole)
        state = None
        for layer in range(len(features)):
            now = features[layer].expand(count, -1).clone()
            for attribute in range(5):
                states, state = self.lstm(self._read(now)[:, None], state)
                if fixed[layer, attribute]:
                    continue
                probabilities = self.head(states[:, 0]).softmax(-1)
                drawn = torch.multinomial(probabilities.cpu(), 1, generator=generator)[:, 0]
                actions[:, layer, attribute] = drawn
                if attribute > 0:
                    now[:, attribute] *= table[drawn.to(table.device)]
        return actions, self.log_prob(features, fixed, actions)

    def forward(
        self, features: Float[Tensor, "layers features"], actions: Int[Tensor, "count layers 5"]
    ) -> Float[Tensor, "count layers 5 factors"]:
        """Log-probabilities of the factors at every step, given the actions before it."""
        self._check(features)
        count, layers = len(actions), len(features)
        factors = features.new_tensor(self.factors)[actions]
        # What step j reads: attributes 1 .. j - 1 are shrunk by then, the others are as they were.
        seen = features[None, :, None, :].expand(count, layers, 5, -1)
        shrunk = seen[..., :5] * factors[:, :, None, :]
        steps, places = torch.arange(5)[:, None], torch.arange(5)
        earlier = ((places < steps) & (places > 0)).to(features.device)
        seen = torch.cat([torch.where(earlier, shrunk, seen[..., :5]), seen[..., 5:]], dim=-1)
        states, _ = self.lstm(self._read(seen).reshape(count, layers * 5, -1))
        return self.head(states).log_softmax(-1).reshape(count, layers, 5, -1)

    def log_prob(
        self,
        features: Float[Tensor, "layers features"],
        fixed: Bool[Tensor, "layers 5"],
        actions: Int[Tensor, "count layers 5"],
    ) -> Float[Tensor, "count"]:
        """Log-probability of each row of actions, over the attributes that are not fixed."""
        chosen = self(features, actions).gather(3, actions[..., None])[..., 0]
        return torch.where(fixed, 0.0, chosen).sum((1, 2))
