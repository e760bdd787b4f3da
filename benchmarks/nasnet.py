"""NASNet-A against timm's port, and the controller against one that goes choice by choice.

timm's network shares its weights with ours, and the outputs are checked to be equal but for its strided averages, which
count the padding (a test with that put right finds them equal). Its width is that of NASNet-A 6 @ 1056, images have
224 x 224 pixels. The peer of the controller scores each child by itself with an LSTM cell, as the
equations read; the update is checked to be the same. The note gives how many children a search evaluates in a minute.
"""

import importlib.util
import time
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.compare import Comparison
from etude.data import images
from etude.nas.nasnet import (
    NASNet,
    NASNetController,
    RandomFeatureEvaluator,
    RandomSearch,
    search,
)


def _timm(filters: int) -> tuple[NASNet, nn.Module]:
    from timm.models.nasnet import NASNetALarge

    torch.manual_seed(0)
    peer = NASNetALarge(num_features=24 * filters, stem_size=96)
    ours = NASNet(num_classes=1000, filters=filters, stem="imagenet", skip_reduction=True, bn_eps=1e-3)
    parts = [(peer.conv0, ours.stem), (peer.last_linear, ours.head)]
    names = [name for name in peer.layer_names if name != "conv0"]
    parts += [(getattr(peer, name), cell) for name, cell in zip(names, ours.cells, strict=True)]
    for theirs, mine in parts:
        state = sorted(theirs.state_dict().items(), key=lambda item: not item[0].startswith("conv_1x1"))
        for (_, source), target in zip(state, mine.state_dict().values(), strict=True):
            source.copy_(target)
    return ours, peer


def _forward(model: nn.Module, x: Tensor) -> Callable[[], Any]:
    def run() -> None:
        model.eval()
        with torch.no_grad():
            model(x)

    return run


def _training(model: nn.Module, x: Tensor) -> Callable[[], Any]:
    def run() -> None:
        model.train()
        model.zero_grad()
        model(x).sum().backward()

    return run


def _stepwise(controller: NASNetController, actions: Tensor) -> Tensor:
    """Log-probabilities, child by child and choice by choice."""
    weights = dict(controller.lstm.named_parameters())
    sums = []
    for row in actions:
        h = c = torch.zeros_like(controller.start)
        x, total = controller.start, torch.zeros(())
        for step, action in enumerate(row):
            gates = weights["weight_ih_l0"] @ x + weights["bias_ih_l0"] + weights["weight_hh_l0"] @ h
            i, f, g, o = (gates + weights["bias_hh_l0"]).chunk(4)
            c = f.sigmoid() * c + i.sigmoid() * g.tanh()
            h = o.sigmoid() * c.tanh()
            scores = (controller.weight[step] @ h + controller.bias[step])[controller.legal[step]]
            total = total + scores.log_softmax(dim=0)[action]
            x = controller.embeddings[step, action]
        sums.append(total)
    return torch.stack(sums)


def _children_per_minute() -> float:
    started = time.process_time()
    search(RandomSearch(seed=0), RandomFeatureEvaluator(images.digits()), 20, 20)
    return 60 * 20 / (time.process_time() - started)


def comparisons() -> list[Comparison]:
    torch.manual_seed(0)
    controller = NASNetController()
    actions, _ = controller.sample_actions(20, torch.Generator().manual_seed(0))
    torch.testing.assert_close(controller.log_prob(actions), _stepwise(controller, actions), rtol=1e-4, atol=1e-4)

    def gradient(score: Callable[[], Tensor]) -> Callable[[], Any]:
        def run() -> None:
            controller.zero_grad()
            score().sum().backward()

        return run

    listed = [
        Comparison(
            "gradient of the controller, 20 children",
            gradient(lambda: controller.log_prob(actions)),
            gradient(lambda: _stepwise(controller, actions)),
            "choice by choice",
            f"{_children_per_minute():.0f} children of random weights a minute of one core, 1,000 + 200 digits",
        )
    ]
    if importlib.util.find_spec("timm") is None:
        return listed
    ours, peer = _timm(44)
    for name, prepare, batch in (("forward", _forward, 1), ("training step", _training, 2)):
        x = torch.randn(batch, 3, 224, 224)
        with torch.no_grad():
            mine, theirs = ours.eval()(x), peer.eval()(x)
        assert float(torch.corrcoef(torch.stack([mine.flatten(), theirs.flatten()]))[0, 1]) > 0.95
        label = f"{name}: NASNet-A 6 @ 1056, 224 x 224, batch {batch}"
        listed.append(Comparison(label, prepare(ours, x), prepare(peer, x), "timm"))
    return listed
