"""A consolidation of slow weights beside torch's own moving average; few-shot evaluation beside its usual loop."""

from collections.abc import Callable

import torch
from torch import Tensor
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from benchmarks.compare import Comparison
from etude.nn.resnet import ResNet
from etude.transfer.fewshot_continual import (
    ConvEmbedding,
    EpisodeSampler,
    FastSlow,
    FewShotContinualLearner,
)


def _consolidation() -> Comparison:
    torch.manual_seed(0)
    pair = FastSlow(ResNet(18, num_classes=64, small_images=True), eta=0.1)
    averaged = AveragedModel(pair.fast, multi_avg_fn=get_ema_multi_avg_fn(0.9), use_buffers=True)
    with torch.no_grad():
        for weight in pair.fast.parameters():
            weight.add_(0.1)
    averaged.update_parameters(pair.fast)  # the first call copies
    pair.eta = 1.0
    pair.consolidate()
    pair.eta = 0.1
    for ours, theirs in zip(pair.slow.parameters(), averaged.module.parameters()):
        torch.testing.assert_close(ours, theirs)
    return Comparison(
        name="a consolidation of ResNet-18, 11 million weights",
        ours=pair.consolidate,
        peer=lambda: averaged.update_parameters(pair.fast),
        peer_name="torch AveragedModel, EMA",
        note="the same average, buffers included",
    )


def _by_episode(learner: FewShotContinualLearner, x: Tensor, sampler: EpisodeSampler) -> Callable[[], float]:
    shots = sampler.k_shot + sampler.n_query

    @torch.no_grad()
    def evaluate() -> float:
        right = []
        for rows in sampler:
            z = learner.pair.slow(x[torch.tensor(rows)]).view(sampler.n_way, shots, -1)
            prototypes = z[:, : sampler.k_shot].mean(dim=1)
            distances = torch.cdist(z[:, sampler.k_shot :].flatten(0, 1), prototypes)
            targets = torch.arange(sampler.n_way).repeat_interleave(sampler.n_query)
            right.append((distances.argmin(dim=1) == targets).double().mean())
        return torch.stack(right).mean().item()

    return evaluate


def _evaluation() -> Comparison:
    torch.manual_seed(0)
    labels = torch.arange(60).repeat_interleave(7)
    x = torch.rand(len(labels), 1, 28, 28)
    learner = FewShotContinualLearner(ConvEmbedding(1, 28))
    sampler = EpisodeSampler(labels, 10, 1, 5, 50)
    peer = _by_episode(learner, x, sampler)
    assert abs(learner.few_shot_accuracy(x, sampler) - peer()) < 1e-3
    return Comparison(
        name="few-shot accuracy over 50 episodes, 10-way 1-shot, 420 images of 28 x 28",
        ours=lambda: learner.few_shot_accuracy(x, sampler),
        peer=peer,
        peer_name="the usual loop over episodes",
        note="every image is embedded once, not once for each episode it stands in; the same accuracy",
    )


def comparisons() -> list[Comparison]:
    return [_consolidation(), _evaluation()]
