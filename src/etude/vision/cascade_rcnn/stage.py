"""One box head of the cascade."""

from jaxtyping import Float
from torch import Tensor, nn

__all__ = ["BoxStage"]


class BoxStage(nn.Module):
    """Two hidden layers, the scores of K + 1 classes (0 is the background), and the box code.

    Args:
        in_features: of a pooled box, flattened.
        hidden: width of the layers.
        num_classes: K.
        codes: box codes that come out: 1 for all classes, K for one each, 0 for a stage that moves no boxes.
    """

    def __init__(self, in_features: int, hidden: int, num_classes: int, codes: int = 1):
        super().__init__()
        self.fc1 = nn.Linear(in_features, hidden)
        self.fc2 = nn.Linear(hidden, hidden)
        self.classifier = nn.Linear(hidden, num_classes + 1)
        self.regressor = nn.Linear(hidden, 4 * codes) if codes else None
        for layer in (self.fc1, self.fc2):
            nn.init.kaiming_uniform_(layer.weight, a=1)
            nn.init.zeros_(layer.bias)
        nn.init.normal_(self.classifier.weight, std=0.01)
        nn.init.zeros_(self.classifier.bias)
        if self.regressor is not None:
            nn.init.normal_(self.regressor.weight, std=0.001)
            nn.init.zeros_(self.regressor.bias)

    def forward(self, pooled: Float[Tensor, "boxes channels height width"]) -> tuple[Tensor, Tensor | None]:
        """Logits (boxes, K + 1) and codes (boxes, codes, 4), in float32."""
        hidden = self.fc2(self.fc1(pooled.flatten(1)).relu()).relu()
        codes = None if self.regressor is None else self.regressor(hidden).float().unflatten(1, (-1, 4))
        return self.classifier(hidden).float(), codes
