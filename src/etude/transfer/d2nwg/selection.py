"""Choosing among networks by the support, and what else is done to them before they are used."""

import copy

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int64
from torch import Tensor, nn
from torch.func import functional_call, vmap

from etude.transfer.d2nwg.codec import WeightCodec

__all__ = ["best_on_support", "nearest_by_features", "nearest_by_support", "recalibrate_bn", "support_losses"]


@torch.no_grad()
def support_losses(
    module: nn.Module,
    codec: WeightCodec,
    vectors: Float[Tensor, "nets params"],
    support: Float[Tensor, "sets classes samples *input"],
    mask: Bool[Tensor, "sets classes samples"] | None = None,
    *,
    chunk: int = 256,
) -> Float[Tensor, "nets sets"]:
    """Cross-entropy of every network on every support, the mean over its rows.

    Args:
        support: rows by class; class i is output unit i.
        mask: which rows are there.
        chunk: networks that go together.
    """
    sets, classes, samples = support.shape[:3]
    network = copy.deepcopy(module).eval()
    rows = support.flatten(0, 2)
    targets = torch.arange(classes, device=support.device).repeat_interleave(samples).repeat(sets)
    weights = torch.ones(sets, classes * samples, device=support.device) if mask is None else mask.flatten(1).float()

    def of_one(vector: Tensor) -> Tensor:
        losses = F.cross_entropy(functional_call(network, codec.unflatten(vector), (rows,)), targets, reduction="none")
        return (losses.view(sets, -1) * weights).sum(dim=1) / weights.sum(dim=1)

    return vmap(of_one, chunk_size=chunk)(vectors)


def best_on_support(
    module: nn.Module,
    codec: WeightCodec,
    vectors: Float[Tensor, "sets n params"],
    support: Float[Tensor, "sets classes samples *input"],
    mask: Bool[Tensor, "sets classes samples"] | None = None,
) -> Float[Tensor, "sets params"]:
    """Of each data set's networks the one with the smallest loss on its own support: accuracy ties, losses do not."""
    chosen = []
    for index, own in enumerate(vectors):
        there = None if mask is None else mask[index : index + 1]
        chosen.append(own[support_losses(module, codec, own, support[index : index + 1], there)[:, 0].argmin()])
    return torch.stack(chosen)


def nearest_by_support(
    module: nn.Module,
    codec: WeightCodec,
    zoo: Float[Tensor, "nets params"],
    support: Float[Tensor, "sets classes samples *input"],
) -> Int64[Tensor, "sets"]:
    """The network of the zoo that fits each support best: what a zoo offers without a generator."""
    return support_losses(module, codec, zoo, support).argmin(dim=0)


def nearest_by_features(
    zoo: Float[Tensor, "nets classes features"], support: Float[Tensor, "sets classes samples features"]
) -> Int64[Tensor, "sets"]:
    """The network whose data set has the class means nearest the support's, classes in the order of the outputs.

    Args:
        zoo: class means of each network's data set.
    """
    return torch.cdist(support.mean(dim=2).flatten(1), zoo.flatten(1)).argmin(dim=1)


@torch.no_grad()
def recalibrate_bn(module: nn.Module, inputs: Float[Tensor, "n *input"], *, batch_size: int = 256) -> nn.Module:
    """Sets running statistics of batch norm to the averages over `inputs`; the network in place.

    Generated weights go with the statistics of no network; these take a pass over unlabelled inputs.

    Raises:
        ValueError: if there is no batch norm, or no inputs.
    """
    norms = [part for part in module.modules() if isinstance(part, nn.modules.batchnorm._BatchNorm)]
    norms = [part for part in norms if part.track_running_stats]
    if not norms:
        raise ValueError("the network has no batch norm with running statistics")
    if len(inputs) < 2:
        raise ValueError(f"statistics need two inputs or more, got {len(inputs)}")
    momenta = [part.momentum for part in norms]
    was_training = module.training
    module.eval()  # dropout stays off
    for part in norms:
        part.reset_running_stats()
        part.momentum = None  # a plain average over batches
        part.train()
    for batch in inputs.split(batch_size):
        if len(batch) > 1:
            module(batch)
    for part, momentum in zip(norms, momenta):
        part.momentum = momentum
    module.train(was_training)
    return module
