"""SortedNet: one network that holds many, all trained at once, any of them ready to use.

Valipour, Rezagholizadeh, Rajabzadeh, Kavehzadeh, Tahaei, Chen & Ghodsi, "SortedNet: A Scalable and Generalized
Framework for Training Modular Deep Neural Networks", arXiv:2309.00255, 2023 (first titled "SortedNet, a Place for Every
Network and Every Network in its Place").

`sorted_` makes any network hold a `SubModelSpace`; `SortedSampler` trains it, through `sorted_step` or attached to a
loop that stands; `select` picks a sub-model for a budget, `set_submodel` switches to it and `extract` cuts it out.
"""

from etude.training.sortednet.attention import Attention, SortedMultiheadAttention
from etude.training.sortednet.batchnorm import SortedBatchNorm, recalibrate_batchnorm
from etude.training.sortednet.convert import Rule, sorted_
from etude.training.sortednet.depth import SortedModuleList, SortedSequential
from etude.training.sortednet.extraction import extract
from etude.training.sortednet.inference import Decoded, EarlyExit, early_exit, speculative_decode
from etude.training.sortednet.models import (
    SortedMLP,
    SortedMobileNetV2,
    SortedResNet18,
    SortedTransformerEncoder,
    SortedTransformerLM,
)
from etude.training.sortednet.sampling import Attachment, SortedSampler, Step, sorted_step
from etude.training.sortednet.selection import (
    Cost,
    count_flops,
    evaluate_all,
    measure_costs,
    measure_latency,
    pareto,
    select,
)
from etude.training.sortednet.slicing import (
    Cut,
    SortedConv2d,
    SortedEmbedding,
    SortedLayerNorm,
    SortedLinear,
)
from etude.training.sortednet.submodels import SubModel, SubModelSpace
from etude.training.sortednet.switching import (
    active_submodel,
    count_parameters,
    set_submodel,
    space_of,
    submodel_regions,
)

__all__ = [
    "Attachment",
    "Attention",
    "Cost",
    "Cut",
    "Decoded",
    "EarlyExit",
    "Rule",
    "SortedBatchNorm",
    "SortedConv2d",
    "SortedEmbedding",
    "SortedLayerNorm",
    "SortedLinear",
    "SortedMLP",
    "SortedMobileNetV2",
    "SortedModuleList",
    "SortedMultiheadAttention",
    "SortedResNet18",
    "SortedSampler",
    "SortedSequential",
    "SortedTransformerEncoder",
    "SortedTransformerLM",
    "Step",
    "SubModel",
    "SubModelSpace",
    "active_submodel",
    "count_flops",
    "count_parameters",
    "early_exit",
    "evaluate_all",
    "extract",
    "measure_costs",
    "measure_latency",
    "pareto",
    "recalibrate_batchnorm",
    "select",
    "set_submodel",
    "sorted_",
    "sorted_step",
    "space_of",
    "speculative_decode",
    "submodel_regions",
]
