"""The similarity of every layer of one network with every layer of another."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from etude.nn.similarity import MinibatchCKA
from etude.training.guidance.features import FeatureTap, Layers

__all__ = ["LayerSimilarity", "cka_matrix"]


@dataclass(frozen=True)
class LayerSimilarity:
    """Similarities of layers.

    Attributes:
        values: similarity of each layer of the first network (row) with each of the second (column).
        rows, columns: the layers' names, in the order in which they run.
    """

    values: Float[Tensor, "rows columns"]
    rows: tuple[str, ...]
    columns: tuple[str, ...]


@torch.no_grad()
def cka_matrix(
    model_a: nn.Module,
    model_b: nn.Module,
    loader: Iterable[Any],
    *,
    layers_a: Layers = None,
    layers_b: Layers = None,
) -> LayerSimilarity:
    """Unbiased linear CKA between the layers of two networks, averaged over mini-batches (`MinibatchCKA`).

        cka_matrix(guide, target, DataLoader(test, batch_size=256)).values

    Both networks run in evaluation mode and are left in the mode they had.

    Args:
        model_a, model_b: may be one and the same.
        loader: batches of inputs, or of (inputs, targets) pairs, of at least 4 examples each (`drop_last`).
        layers_a, layers_b: which layers, as for `FeatureTap`.

    Raises:
        ValueError: if there is no batch, a batch is too small, or a network has no such layers.
    """
    cka = MinibatchCKA()
    names: tuple[tuple[str, ...], tuple[str, ...]] | None = None
    modes = [(module, module.training) for model in (model_a, model_b) for module in model.modules()]
    model_a.eval()
    model_b.eval()
    try:
        for batch in loader:
            inputs = batch[0] if isinstance(batch, tuple | list) else batch
            found = []
            for model, layers in ((model_a, layers_a), (model_b, layers_b)):
                with FeatureTap(model, layers) as features:
                    model(inputs)
                found.append(dict(features))
            cka.update(list(found[0].values()), list(found[1].values()))
            names = (tuple(found[0]), tuple(found[1]))
    finally:
        for module, training in modes:
            module.training = training
    if names is None:
        raise ValueError("the loader gave no batch")
    return LayerSimilarity(cka.compute(), *names)
