"""Few-shot tasks in sequence, by a pair of fast and slow weights and a two-step consolidation.

Wang, Li, Zhong & Zhu, "Few-shot Continual Learning: a Brain-inspired Approach", arXiv:2104.09034, 2021.

    from etude.transfer.fewshot_continual import ConvEmbedding, FewShotContinualLearner, random_affine

    learner = FewShotContinualLearner(ConvEmbedding(1, 28), augment=random_affine)
    learner.pretrain(base_images, base_labels)
    for images, labels in tasks:                       # a few shots of a few new classes each
        learner.learn_task(images, labels)
    learner.predict(new_images)                        # among all classes of all tasks

The pair, its two interdependent updates and the two steps are the paper's; only its abstract could be read, so the
losses, the rates and the importance-weighted step are a reconstruction, as the modules say where they do it. Each part
stands alone: the pair around any module (`FastSlow`), the prototypes and their memory, the episodes, the learner, the
five baselines made of the same parts, and the protocol that measures them.
"""

from etude.transfer.fewshot_continual.baselines import BASELINES, JointLearner, baseline
from etude.transfer.fewshot_continual.embedding import ConvEmbedding
from etude.transfer.fewshot_continual.episodes import (
    EpisodeSampler,
    episode_accuracy,
    episode_loss,
    pseudo_episode,
    random_affine,
)
from etude.transfer.fewshot_continual.learner import FewShotContinualLearner
from etude.transfer.fewshot_continual.plots import plot_curves
from etude.transfer.fewshot_continual.protocol import (
    FewShotStream,
    StreamResult,
    one_shot_error,
    run_stream,
    tasks_by_column,
    unseen_episodes,
)
from etude.transfer.fewshot_continual.prototypes import PrototypeClassifier, PrototypeMemory
from etude.transfer.fewshot_continual.weights import FastSlow

__all__ = [
    "BASELINES",
    "ConvEmbedding",
    "EpisodeSampler",
    "FastSlow",
    "FewShotContinualLearner",
    "FewShotStream",
    "JointLearner",
    "PrototypeClassifier",
    "PrototypeMemory",
    "StreamResult",
    "baseline",
    "episode_accuracy",
    "episode_loss",
    "one_shot_error",
    "plot_curves",
    "pseudo_episode",
    "random_affine",
    "run_stream",
    "tasks_by_column",
    "unseen_episodes",
]
