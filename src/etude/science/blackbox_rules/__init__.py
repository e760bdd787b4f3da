"""Rules for black boxes on tables with more columns than rows.

Karim, Shajalal, Grass, Döhmen, Chala, Boden, Beecks & Decker, "Interpreting Black-box Machine Learning Models for High
Dimensional Datasets", arXiv:2208.13405, IEEE DSAA 2023.

A network learns to classify (`networks`, `blackbox`). Its inside is probed (`probing`), its inputs are perturbed
(`perturbing`), the rankings are merged (`ranking`), and a transparent model imitates it on the top k columns
(`surrogate`, `explainer`). From that come rules (`rules`), contributions (`shapley`), anchors and counterfactuals
(`local`), and how far all of it can be trusted (`metrics`). `baselines` are XGBoost and TabNet; `generator` draws
tables whose truth is known; `plots` shows.

    from etude.data import tables
    data = tables.table("patients.csv", target="diagnosis")
    (X, y), held_out, (X_test, y_test) = ((part.inputs, part.targets) for part in (data.train, data.val, data.test))
    black_box = BlackBoxClassifier(random_state=0).fit(X, y)
    explainer = SurrogateExplainer(black_box, surrogate="forest").fit(X, y, held_out=held_out)
    print(explainer.fidelity(X_test), explainer.scores(X_test, y_test))
    print(explainer.rule_list().to_text(data.columns))
    print(explainer.explain(X_test[0]), explainer.counterfactual(X_test[0]))
"""

from etude.science.blackbox_rules.baselines import BoostedTrees, TabNet
from etude.science.blackbox_rules.blackbox import BlackBoxClassifier, column_predictions, feature_order
from etude.science.blackbox_rules.explainer import SurrogateExplainer
from etude.science.blackbox_rules.generator import SparseTable, sparse_interactions
from etude.science.blackbox_rules.local import (
    Counterfactual,
    LocalExplanation,
    anchor,
    nearest_box,
    representative_rows,
)
from etude.science.blackbox_rules.metrics import classification_scores, comprehensiveness, fidelity, sufficiency
from etude.science.blackbox_rules.networks import (
    AutoencoderClassifier,
    ConvAutoencoder,
    DenseAutoencoder,
    Perceptron,
    SelfAttentionNet,
)
from etude.science.blackbox_rules.perturbing import (
    Sensitivity,
    permutation_importance,
    permutations_within,
    sensitivity_importance,
)
from etude.science.blackbox_rules.plots import plot_contributions, plot_fidelity_curve, plot_importances
from etude.science.blackbox_rules.probing import (
    attention_importance,
    gradient_importance,
    gradient_x_input,
    integrated_gradients,
)
from etude.science.blackbox_rules.ranking import (
    Agreement,
    Importances,
    aggregate_ranks,
    measure_importances,
    rank_agreement,
    ranks,
)
from etude.science.blackbox_rules.rules import (
    Condition,
    LeafBoxes,
    Rule,
    RuleList,
    leaf_boxes,
    prune_rules,
    tree_rules,
)
from etude.science.blackbox_rules.shapley import kernel_shap, tree_shap
from etude.science.blackbox_rules.surrogate import Surrogate, mixed_rows, select_top_k

__all__ = [
    "Agreement",
    "AutoencoderClassifier",
    "BlackBoxClassifier",
    "BoostedTrees",
    "Condition",
    "ConvAutoencoder",
    "Counterfactual",
    "DenseAutoencoder",
    "Importances",
    "LeafBoxes",
    "LocalExplanation",
    "Perceptron",
    "Rule",
    "RuleList",
    "SelfAttentionNet",
    "Sensitivity",
    "SparseTable",
    "Surrogate",
    "SurrogateExplainer",
    "TabNet",
    "aggregate_ranks",
    "anchor",
    "attention_importance",
    "classification_scores",
    "column_predictions",
    "comprehensiveness",
    "feature_order",
    "fidelity",
    "gradient_importance",
    "gradient_x_input",
    "integrated_gradients",
    "kernel_shap",
    "leaf_boxes",
    "measure_importances",
    "mixed_rows",
    "nearest_box",
    "permutation_importance",
    "permutations_within",
    "plot_contributions",
    "plot_fidelity_curve",
    "plot_importances",
    "prune_rules",
    "rank_agreement",
    "ranks",
    "representative_rows",
    "select_top_k",
    "sensitivity_importance",
    "sparse_interactions",
    "sufficiency",
    "tree_rules",
    "tree_shap",
]
