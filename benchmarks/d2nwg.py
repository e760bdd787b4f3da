"""A zoo trained in one optimisation beside the usual loop over networks; sampling beside diffusers' scheduler."""

import torch
import torch.nn.functional as F
from torch import nn

from benchmarks.compare import Comparison
from etude.transfer.d2nwg import (
    MLPDenoiser,
    WeightCodec,
    batched_logits,
    ddim,
    initial_weights,
    sample,
    train_networks,
)

NETS, ROWS, FEATURES, STEPS = 50, 30, 20, 10


def _zoo() -> Comparison:
    generator = torch.Generator().manual_seed(0)
    head = nn.Linear(FEATURES, 2)
    codec = WeightCodec(head)
    x = torch.randn(NETS, ROWS, FEATURES, generator=generator)
    y = torch.randint(2, (NETS, ROWS), generator=generator)
    start = initial_weights(head, codec, NETS, kind="zero", generator=generator)

    def ours() -> torch.Tensor:
        return train_networks(head, codec, start, x, y, steps=STEPS, lr=0.05)

    def loop() -> torch.Tensor:
        trained = []
        for index in range(NETS):
            net = codec.load(nn.Linear(FEATURES, 2), start[index])
            optimizer = torch.optim.Adam(net.parameters(), lr=0.05)
            for _ in range(STEPS):
                optimizer.zero_grad()
                F.cross_entropy(net(x[index]), y[index]).backward()
                optimizer.step()
            trained.append(codec.flatten(net))
        return torch.stack(trained)

    torch.testing.assert_close(ours(), loop(), rtol=1e-3, atol=1e-4)
    return Comparison(
        name=f"{NETS} heads of {codec.num_params} weights, {STEPS} Adam steps each",
        ours=ours,
        peer=loop,
        peer_name="torch, network by network",
        note="the same weights to 1e-4",
    )


def _evaluation() -> Comparison:
    generator = torch.Generator().manual_seed(0)
    net = nn.Sequential(nn.Linear(196, 16), nn.ReLU(), nn.Linear(16, 5))
    codec = WeightCodec(net)
    vectors = initial_weights(net, codec, 200, kind="random", generator=generator)
    x = torch.randn(200, 25, 196, generator=generator)

    @torch.no_grad()
    def loop() -> torch.Tensor:
        return torch.stack([codec.load(net, vector)(rows) for vector, rows in zip(vectors, x)])

    torch.testing.assert_close(batched_logits(net, codec, vectors, x), loop(), rtol=1e-4, atol=1e-5)
    return Comparison(
        name="outputs of 200 generated perceptrons of 3,237 weights",
        ours=lambda: batched_logits(net, codec, vectors, x),
        peer=loop,
        peer_name="torch, loading each",
        note="the same outputs",
    )


def _sampling() -> Comparison:
    from diffusers import DDIMScheduler

    torch.manual_seed(0)
    denoiser = MLPDenoiser(24, 24).eval()
    cond = torch.randn(100, 24)
    scheduler = ddim()
    plain = DDIMScheduler.from_config(scheduler.config)

    @torch.no_grad()
    def pipeline() -> torch.Tensor:
        plain.set_timesteps(64)
        z = torch.randn((100, 24), generator=torch.Generator().manual_seed(0))
        for t in plain.timesteps:
            z = plain.step(denoiser(z, t.expand(100), cond), t, z).prev_sample
        return z

    def ours() -> torch.Tensor:
        return sample(denoiser, scheduler, (24,), cond, steps=64, generator=torch.Generator().manual_seed(0))

    torch.testing.assert_close(ours(), pipeline(), rtol=1e-4, atol=1e-4)
    return Comparison(
        name="100 latents of 24 by DDIM in 64 steps",
        ours=ours,
        peer=pipeline,
        peer_name="diffusers, DDIMScheduler",
        note="the same scheduler and denoiser: what the checks around them cost",
    )


def comparisons() -> list[Comparison]:
    return [_zoo(), _evaluation(), _sampling()]
