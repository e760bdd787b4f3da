"""Buying samples of source tasks where they help a target most: relevance by Lasso, and a plan in proportion to it.

Wang, Chen, Jamieson & Du, "Improved Active Multi-Task Representation Learning via Lasso", ICML 2023, arXiv:2306.02556.

Source tasks t = 1..T and a target share a representation, y = <B w_t, x> + noise. If the target's head is a mixture of
the sources' heads, W nu = w, then |nu_t| says how many samples of source t are worth their price; the mixture of least
L1 norm is sparse, and its plan costs ||nu^1||_1^2 where that of the L2 norm costs up to T ||nu^2||_2^2. A Lasso on
estimated heads finds it:

    oracle = TableOracle.from_frame(table, task="shop", target="sales", exclude=["ours"])
    active = ActiveMTRL(LinearMTR(rank=5), "l1", n_explore=20, budget=2_000)
    history = active.run(oracle, X_ours, y_ours)
    dict(zip(oracle.names, history.counts)), history.predict(X_new)

Formulas of the relevance and of the plans are derived in their modules. The paper's constants for lambda are not used:
`lasso_relevance` takes the sparsest mixture that the target's own noise allows.
"""

from etude.transfer.active_mtrl.active import ActiveHistory, ActiveMTRL, Round
from etude.transfer.active_mtrl.allocation import allocate
from etude.transfer.active_mtrl.corruptions import CORRUPTIONS, DigitOracle, corrupt
from etude.transfer.active_mtrl.linear import LinearMTR, subspace_error
from etude.transfer.active_mtrl.neural import NeuralMTR, digit_encoder
from etude.transfer.active_mtrl.oracles import LinearInstance, LinearOracle, TableOracle, draw_instance
from etude.transfer.active_mtrl.plots import plot_relevance
from etude.transfer.active_mtrl.relevance import (
    l1_relevance,
    l2_relevance,
    lasso_relevance,
    realised_risk,
    risk_bound,
)

__all__ = [
    "CORRUPTIONS",
    "ActiveHistory",
    "ActiveMTRL",
    "DigitOracle",
    "LinearInstance",
    "LinearMTR",
    "LinearOracle",
    "NeuralMTR",
    "Round",
    "TableOracle",
    "allocate",
    "corrupt",
    "digit_encoder",
    "draw_instance",
    "l1_relevance",
    "l2_relevance",
    "lasso_relevance",
    "plot_relevance",
    "realised_risk",
    "risk_bound",
    "subspace_error",
]
