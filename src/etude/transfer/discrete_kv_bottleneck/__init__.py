"""The discrete key-value bottleneck: learning class after class by changing only the values that inputs fetch.

Träuble, Goyal, Rahaman, Mozer, Kawaguchi, Bengio & Schölkopf, "Discrete Key-Value Bottleneck", ICML 2023,
arXiv:2207.11240.

    from etude.transfer.discrete_kv_bottleneck import BottleneckClassifier, KeyValueBottleneck, learn_in_phases
    from etude.transfer.streams import class_incremental_splits

    model = BottleneckClassifier(None, KeyValueBottleneck(576, 32, 256, dim_key=8, dim_value=10))
    model.place_keys(unlabelled_embeddings)
    learn_in_phases(model, embeddings, labels, class_incremental_splits(labels), epochs=3, lr=10.0, batch_size=64)

A frozen encoder gives a vector; fixed random projections make heads of it; each head fetches the value stored beside
its nearest key. Keys are placed without labels (`EMACodebook`) and then frozen; the values are all that learns, each
only when it is fetched. `DKVBClassifier` needs scikit-learn and is imported when first asked for. Images of one's own:

    encoder = pretrain_contrastive(ConvEncoder(), characters.strokes().images)      # or any module, such as a ViT
    classifier = DKVBClassifier(ChannelwiseEncoder(encoder, 28)).place_keys(unlabelled_images)
    for rows in phases_by_column(table["month"]):
        classifier.partial_fit(images[rows], labels[rows], classes=names)
"""

from typing import TYPE_CHECKING, Any

from etude.transfer.discrete_kv_bottleneck.bottleneck import KeyValueBottleneck, fetched_pairs, fetched_together
from etude.transfer.discrete_kv_bottleneck.caching import cached_embeddings, cached_indices
from etude.transfer.discrete_kv_bottleneck.classifier import BottleneckClassifier
from etude.transfer.discrete_kv_bottleneck.codebook import EMACodebook
from etude.transfer.discrete_kv_bottleneck.decoders import LinearDecoder, MLPDecoder, VotingDecoder, make_decoder
from etude.transfer.discrete_kv_bottleneck.encoders import (
    ChannelwiseEncoder,
    ConvEncoder,
    FrozenEncoder,
    hub_encoder,
    pretrain_classes,
    pretrain_contrastive,
    truncate_resnet,
)
from etude.transfer.discrete_kv_bottleneck.phases import (
    accuracy_row,
    all_at_once,
    epoch_factor,
    phases_by_column,
    rows_of_classes,
)
from etude.transfer.discrete_kv_bottleneck.plots import plot_pairs, plot_phases
from etude.transfer.discrete_kv_bottleneck.probes import NearestMean, Reservoir, learn_probe, probe
from etude.transfer.discrete_kv_bottleneck.splitters import ChunkHeads, LearnedProjectionHeads, RandomProjectionHeads
from etude.transfer.discrete_kv_bottleneck.training import learn_in_phases, train_model, train_values, value_step

if TYPE_CHECKING:
    from etude.transfer.discrete_kv_bottleneck.estimator import DKVBClassifier

__all__ = [
    "BottleneckClassifier",
    "ChannelwiseEncoder",
    "ChunkHeads",
    "ConvEncoder",
    "DKVBClassifier",
    "EMACodebook",
    "FrozenEncoder",
    "KeyValueBottleneck",
    "LearnedProjectionHeads",
    "LinearDecoder",
    "MLPDecoder",
    "NearestMean",
    "RandomProjectionHeads",
    "Reservoir",
    "VotingDecoder",
    "accuracy_row",
    "all_at_once",
    "cached_embeddings",
    "cached_indices",
    "epoch_factor",
    "fetched_pairs",
    "fetched_together",
    "hub_encoder",
    "learn_in_phases",
    "learn_probe",
    "make_decoder",
    "phases_by_column",
    "plot_pairs",
    "plot_phases",
    "pretrain_classes",
    "pretrain_contrastive",
    "probe",
    "rows_of_classes",
    "train_model",
    "train_values",
    "truncate_resnet",
    "value_step",
]


def __getattr__(name: str) -> Any:
    if name == "DKVBClassifier":
        from etude.transfer.discrete_kv_bottleneck.estimator import DKVBClassifier

        return DKVBClassifier
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
