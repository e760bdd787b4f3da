"""BatchFormer: attention over the batch during training, none of it at test.

Hou, Yu & Tao, "BatchFormer: Learning to Explore Sample Relationships for Robust Representation Learning", CVPR 2022,
arXiv:2203.01522; Hou, Yu, Wang, Zhan & Tao, "BatchFormerV2: Exploring Sample Relationships for Dense Representation
Learning", arXiv:2204.01254, 2022.

In your own model, between the pooled features and the classifier:

    self.batchformer = BatchFormer(dim=512)
    ...
    return self.classifier(self.batchformer(features))     # 2N rows in training, N at test
    loss = two_stream_loss(logits, labels)                 # the labels are doubled to fit

In a model that you would rather not touch, `attach_batchformer`; between the blocks of a transformer,
`BatchFormerStream`. The other modules hold what the paper's long-tailed experiments need.
"""

from etude.training.batchformer.attach import (
    BatchFormerHandle,
    attach_batchformer,
    param_groups_with_batchformer,
)
from etude.training.batchformer.long_tail import (
    BalancedSoftmaxLoss,
    long_tailed_counts,
    long_tailed_indices,
    shot_accuracy,
)
from etude.training.batchformer.mixing import BatchFormer
from etude.training.batchformer.streams import BatchFormerStream, BatchFormerV2
from etude.training.batchformer.targets import repeat_targets, split_streams, two_stream_loss

__all__ = [
    "BalancedSoftmaxLoss",
    "BatchFormer",
    "BatchFormerHandle",
    "BatchFormerStream",
    "BatchFormerV2",
    "attach_batchformer",
    "long_tailed_counts",
    "long_tailed_indices",
    "param_groups_with_batchformer",
    "repeat_targets",
    "shot_accuracy",
    "split_streams",
    "two_stream_loss",
]
