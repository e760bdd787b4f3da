"""Deep Interest Network: a user's history weighed by the candidate before it is summed.

Zhou et al., "Deep Interest Network for Click-Through Rate Prediction", KDD 2018, arXiv:1706.06978.

    from etude.ranking.din import DIN, fit_clicks, interest_mixture

    log = interest_mixture(20_000)
    model = DIN([("item", log.fields["item"], 16), ("category", log.fields["category"], 16)], ["item", "category"])
    fit_clicks(model, log.clicks, epochs=3)

Each part stands alone: the attention (`InterestPooling`, `LocalActivationUnit`), the activation (`Dice`), the
penalty on the rows of a batch (`MiniBatchAwareL2`) and the metrics (`gauc`, `rela_impr`). `DINClassifier` fits a click
log; it needs scikit-learn and is imported when first asked for.
"""

from typing import TYPE_CHECKING, Any

from etude.nn.auc import GroupedAUC, auc, gauc, grouped_auc, rela_impr
from etude.ranking.din.activation import Dice
from etude.ranking.din.attention import InterestPooling, LocalActivationUnit
from etude.ranking.din.histories import build_histories
from etude.ranking.din.mixture import InterestMixture, interest_mixture
from etude.ranking.din.models import DIN, Field
from etude.ranking.din.regularization import MiniBatchAwareL2, count_occurrences, filter_rare
from etude.ranking.din.training import ClickFit, clip_gradients, count_clicks, fit_clicks, inputs_of, predict_clicks

if TYPE_CHECKING:
    from etude.ranking.din.estimator import DINClassifier

__all__ = [
    "DIN",
    "ClickFit",
    "DINClassifier",
    "Dice",
    "Field",
    "GroupedAUC",
    "InterestMixture",
    "InterestPooling",
    "LocalActivationUnit",
    "MiniBatchAwareL2",
    "auc",
    "build_histories",
    "clip_gradients",
    "count_clicks",
    "count_occurrences",
    "filter_rare",
    "fit_clicks",
    "gauc",
    "grouped_auc",
    "inputs_of",
    "interest_mixture",
    "predict_clicks",
    "rela_impr",
]


def __getattr__(name: str) -> Any:
    if name == "DINClassifier":
        from etude.ranking.din.estimator import DINClassifier

        return DINClassifier
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
