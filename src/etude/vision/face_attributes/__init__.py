"""Face attributes in the wild: localisation from tags alone, identity features, and linear classifiers.

Liu, Luo, Wang & Tang, "Deep Learning Face Attributes in the Wild", ICCV 2015, arXiv:1411.7766.

Two networks in a row. LNet learns the tags of whole photographs (smiling, glasses, ...); nobody tells it where the
face is, and yet the mean response of its last convolution lights up there, since that is what the tags depend on
(`LNet.response_map`, `box_from_response`). ANet learns who people are from the faces so found, then their attributes;
its later filters are shared within the parts of a face (`LocallySharedConv2d`), evaluated on all windows of an image
by interweaving (`InterweavedExtractor`). One linear SVM for each attribute decides (`AttributeSVM`).

    lnet = LNet(num_attributes=10, backbone="small", in_channels=1)
    train_tags(lnet, (images, tags), epochs=5)
    boxes, scores = CascadedLocalizer(lnet)(images)

In place of the paper's proposals of an object detector, boxes come from a rule on the map (`box_from_response`) or from
windows scored by the density of the response (`window_by_density`).
"""

from etude.vision.face_attributes.analysis import (
    SparseCombination,
    attribute_count_study,
    binarized_accuracy,
    neuron_activation,
    rank_neurons,
    sparse_combinations,
    top_images,
)
from etude.vision.face_attributes.anet import ANet, InterweavedExtractor, contrastive_loss
from etude.vision.face_attributes.boxes import (
    FoundBox,
    box_from_response,
    boxes_from_responses,
    choose_threshold,
    iou,
    localization_recall,
    non_maximum_suppression,
    sliding_windows,
    window_by_density,
)
from etude.vision.face_attributes.estimator import FaceAttributeClassifier
from etude.vision.face_attributes.localization import CascadedLocalizer, LNet, sobel_magnitude
from etude.vision.face_attributes.pictures import convert_images, crop_and_resize, flip_at_random, multi_patch
from etude.vision.face_attributes.plots import plot_attribute_counts, plot_localization, plot_sparse_combinations
from etude.vision.face_attributes.sharing import LocallySharedConv2d, dense_positions
from etude.vision.face_attributes.svm import AttributeSVM, balanced_accuracy_per_attribute
from etude.vision.face_attributes.training import (
    binary_tags,
    pretrain_classes,
    pretrain_identities,
    tag_loss,
    train_tags,
)

__all__ = [
    "ANet",
    "AttributeSVM",
    "CascadedLocalizer",
    "FaceAttributeClassifier",
    "FoundBox",
    "InterweavedExtractor",
    "LNet",
    "LocallySharedConv2d",
    "SparseCombination",
    "attribute_count_study",
    "balanced_accuracy_per_attribute",
    "binarized_accuracy",
    "binary_tags",
    "box_from_response",
    "boxes_from_responses",
    "choose_threshold",
    "contrastive_loss",
    "convert_images",
    "crop_and_resize",
    "dense_positions",
    "flip_at_random",
    "iou",
    "localization_recall",
    "multi_patch",
    "neuron_activation",
    "non_maximum_suppression",
    "plot_attribute_counts",
    "plot_localization",
    "plot_sparse_combinations",
    "pretrain_classes",
    "pretrain_identities",
    "rank_neurons",
    "sliding_windows",
    "sobel_magnitude",
    "sparse_combinations",
    "tag_loss",
    "top_images",
    "train_tags",
    "window_by_density",
]
