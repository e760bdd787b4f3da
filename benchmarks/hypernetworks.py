"""Generation and the regulariser beside hypnettorch's on the same weights, and chunks in one pass beside a loop."""

import importlib.util
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.compare import Comparison
from etude.transfer.hypernetworks import HypernetDesign, HypernetSnapshot, Hypernetwork, output_regularizer

_WIDTHS, _HIDDEN, _CHUNK, _CONDITIONS = (784, 100, 10), (50, 50), 2_000, 5
_SHAPES = [[100], [100, 784], [10], [10, 100]]


def _made(generation: str) -> Hypernetwork:
    torch.manual_seed(0)
    target = nn.Sequential(nn.Linear(784, 100), nn.ReLU(), nn.Linear(100, 10))
    return Hypernetwork(
        target, HypernetDesign("task", generation), num_conditions=_CONDITIONS, hidden=_HIDDEN, init="default",
        chunk_size=_CHUNK if generation == "chunk" else None,
    )  # fmt: skip


@torch.no_grad()
def _share_weights(ours: Hypernetwork, theirs: Any) -> None:
    """Gives hypnettorch's hypernetwork our weights, so that both generate the same."""
    layers = [part for part in [*ours.trunk.layers, ours.head.out] if isinstance(part, nn.Linear)]
    for layer, weight, bias in zip(layers, theirs.layer_weight_tensors, theirs.layer_bias_vectors):
        # Theirs reads the embedding of the chunk before that of the task.
        swapped = layer is layers[0] and ours.design.piecewise
        weight.copy_(layer.weight.roll(ours.conditions.size, dims=1) if swapped else layer.weight)
        bias.copy_(layer.bias)
    for mine, other in zip(ours.conditions.learned, theirs.conditional_params):
        other.copy_(mine)
    for table in ours.places.tables:
        theirs.unconditional_params[-1].copy_(table)
    found = torch.cat([weight.flatten() for weight in theirs(cond_id=1)])
    if not torch.allclose(found, ours.flat(1)[0], atol=1e-5):
        raise RuntimeError(f"the weights generated differ by {float((found - ours.flat(1)[0]).abs().max()):.1e}")


def _looped(net: Hypernetwork) -> Callable[[], Tensor]:
    """The generator called once for each chunk."""

    def generate() -> Tensor:
        embedding = net.conditions.learned[0]
        pieces = [net.head(net.trunk.layers(torch.cat([embedding, place]))) for place in net.places.tables[0]]
        return torch.cat(pieces)[: net.spec.numel]

    return generate


def _with_gradient(generate: Callable[[], Tensor | list[Tensor]]) -> Callable[[], None]:
    def step() -> None:
        out = generate()
        loss = out.square().sum() if isinstance(out, Tensor) else torch.stack([w.square().sum() for w in out]).sum()
        loss.backward()

    return step


def comparisons() -> list[Comparison]:
    size = "-".join(map(str, _WIDTHS))
    nets = {generation: _made(generation) for generation in ("once", "chunk")}
    chunk = nets["chunk"]
    found = [
        Comparison(
            f"generate and differentiate MLP {size}, chunks of {_CHUNK:,}",
            _with_gradient(lambda: chunk.flat(0)), _with_gradient(_looped(chunk)), "a loop over the chunks",
        )
    ]  # fmt: skip
    if importlib.util.find_spec("hypnettorch") is None:
        return found
    from hypnettorch.hnets import HMLP, ChunkedHMLP
    from hypnettorch.utils.hnet_regularizer import calc_fix_target_reg, get_current_targets

    options = {"layers": _HIDDEN, "num_cond_embs": _CONDITIONS, "cond_in_size": 8, "verbose": False}
    peers = {"once": HMLP(_SHAPES, **options), "chunk": ChunkedHMLP(_SHAPES, _CHUNK, chunk_emb_size=8, **options)}
    for name, ours in nets.items():
        peer, earlier = peers[name], list(range(_CONDITIONS - 1))
        _share_weights(ours, peer)
        found.append(
            Comparison(
                f"generate and differentiate MLP {size}, {name}",
                _with_gradient(lambda ours=ours: ours.flat(0)),
                _with_gradient(lambda peer=peer: peer(cond_id=0)),
                f"hypnettorch {type(peer).__name__}",
                "the same weights, checked to generate the same",
            )
        )
        snapshot, targets = HypernetSnapshot(ours), get_current_targets(len(earlier), peer)
        with torch.no_grad():
            ours.head.out.weight.mul_(1.1)
        _share_weights(ours, peer)

        def mine(ours: Hypernetwork = ours, snapshot: HypernetSnapshot = snapshot, numbers: Any = earlier) -> Tensor:
            return output_regularizer(ours, snapshot, numbers)

        def theirs(peer: Any = peer, targets: Any = targets, count: int = len(earlier)) -> Tensor:
            return calc_fix_target_reg(peer, count, targets=targets)

        if not torch.allclose(mine(), theirs(), rtol=1e-4):
            raise RuntimeError(f"the regularisers differ: {float(mine())} and {float(theirs())}")
        found.append(
            Comparison(
                f"regularise the outputs for {len(earlier)} earlier tasks, {name}",
                lambda mine=mine: mine().backward(), lambda theirs=theirs: theirs().backward(),
                "hypnettorch calc_fix_target_reg", "the same weights, checked to give the same value",
            )
        )  # fmt: skip
    return found
