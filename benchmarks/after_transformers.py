"""Mixers of the survey beside Hugging Face transformers' and PyTorch's own, with the same weights.

`pip install transformers`; where it is missing, its lines are left out. Its Mamba and RWKV run their slow paths, loops
over time in Python, without the CUDA kernels. Forward and backward passes of single layers.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.compare import Comparison
from etude.nn.mixers import build_mixer
from etude.sequence import load_mixers
from etude.sequence.after_transformers import RWKV, FNet, LinearAttention, Mamba, Mamba2, selective_scan

_DIM = 64


def _training(layer: Callable[[Tensor], Tensor], x: Tensor) -> Callable[[], Any]:
    x = x.clone().requires_grad_()

    def run() -> None:
        x.grad = None
        layer(x).sum().backward()

    return run


def _token_by_token(layer: Any) -> Callable[[Tensor], Tensor]:
    """The recurrence as its definition has it."""

    def run(x: Tensor) -> Tensor:
        state, outputs = layer.init_state(len(x)), []
        for token in x.unbind(1):
            y, state = layer.step(token, state)
            outputs.append(y)
        return torch.stack(outputs, dim=1)

    return run


def _reference_scan(u: Tensor, dt: Tensor, a: Tensor, b: Tensor, c: Tensor) -> Tensor:
    decay, inputs = torch.exp(dt[..., None] * a), (dt * u)[..., None] * b[:, :, None]
    h, outputs = torch.zeros_like(inputs[:, 0]), []
    for t in range(u.shape[1]):
        h = decay[:, t] * h + inputs[:, t]
        outputs.append((h * c[:, t, None]).sum(-1))
    return torch.stack(outputs, dim=1)


def comparisons() -> list[Comparison]:
    load_mixers()
    torch.manual_seed(0)
    x = torch.randn(4, 256, _DIM)
    listed = []
    for name, layer in (
        ("linear attention", LinearAttention(_DIM, 2)), ("Mamba-2", Mamba2(_DIM, 16)), ("Mamba", Mamba(_DIM)),
        ("RWKV", RWKV(_DIM)), ("mLSTM", build_mixer("mlstm", _DIM, max_len=256)),
    ):  # fmt: skip
        loop = _token_by_token(layer)
        torch.testing.assert_close(layer(x), loop(x), atol=1e-4, rtol=1e-3)
        listed.append(
            Comparison(f"{name}, 4 x 256", _training(layer, x), _training(loop, x), "PyTorch, a loop over time")
        )
    u, dt = torch.randn(4, 256, 2 * _DIM), torch.rand(4, 256, 2 * _DIM) / 10
    a, (b, c) = -torch.rand(2 * _DIM, 16) - 0.5, torch.randn(2, 4, 256, 16)
    torch.testing.assert_close(selective_scan(u, dt, a, b, c)[0], _reference_scan(u, dt, a, b, c), atol=1e-4, rtol=1e-3)
    listed.append(
        Comparison(
            "selective scan, 4 x 256 x 128 x 16", _training(lambda u: selective_scan(u, dt, a, b, c)[0], u),
            _training(lambda u: _reference_scan(u, dt, a, b, c), u), "PyTorch, the authors' reference loop",
        )
    )  # fmt: skip
    return listed + _transformers(x)


def mamba_like(theirs: nn.Module, state: int) -> Mamba:
    """Our Mamba layer with the weights of transformers' `MambaMixer`."""
    ours = Mamba(theirs.hidden_size, state)
    with torch.no_grad():
        ours.enter.weight.copy_(theirs.in_proj.weight)
        ours.conv.conv.weight.copy_(theirs.conv1d.weight)
        ours.conv.conv.bias.copy_(theirs.conv1d.bias)
        ours.select.weight.copy_(theirs.x_proj.weight)
        ours.dt.weight.copy_(theirs.dt_proj.weight)
        ours.dt.bias.copy_(theirs.dt_proj.bias)
        ours.a_log.copy_(theirs.A_log)
        ours.skip.copy_(theirs.D)
        ours.out.weight.copy_(theirs.out_proj.weight)
    return ours


def rwkv_like(theirs: nn.Module, dim: int) -> RWKV:
    """Our RWKV layer with the weights of transformers' `RwkvSelfAttention`."""
    ours = RWKV(dim)
    with torch.no_grad():
        for mine, name in ((ours.r, "receptance"), (ours.k, "key"), (ours.v, "value"), (ours.out, "output")):
            mine.weight.copy_(getattr(theirs, name).weight)
        ours.log_decay.copy_(theirs.time_decay)
        ours.bonus.copy_(theirs.time_first)
        for mine, name in ((ours.mu_r, "receptance"), (ours.mu_k, "key"), (ours.mu_v, "value")):
            mine.copy_(getattr(theirs, f"time_mix_{name}")[0, 0])
    return ours


def _transformers(x: Tensor) -> list[Comparison]:
    try:
        from transformers import MambaConfig, RwkvConfig
        from transformers.models.fnet.modeling_fnet import FNetBasicFourierTransform
        from transformers.models.mamba.modeling_mamba import MambaMixer
        from transformers.models.rwkv.modeling_rwkv import RwkvSelfAttention
    except ImportError:
        return []
    config = MambaConfig(hidden_size=_DIM, state_size=16, num_hidden_layers=1, vocab_size=8)
    mamba = MambaMixer(config, layer_idx=0)
    nn.init.normal_(mamba.dt_proj.bias, -3.0, 1.0)
    rwkv = RwkvSelfAttention(RwkvConfig(hidden_size=_DIM, num_hidden_layers=2, vocab_size=8), layer_id=0)
    with torch.no_grad():
        rwkv.time_decay.copy_(torch.linspace(-5, 3, _DIM))
        rwkv.time_first.normal_()
        for name in ("key", "value", "receptance"):
            getattr(rwkv, f"time_mix_{name}").uniform_()
    listed = []
    for name, ours, theirs in (
        ("Mamba", mamba_like(mamba, 16), mamba), ("RWKV", rwkv_like(rwkv, _DIM), lambda x: rwkv(x)[0]),
    ):  # fmt: skip
        torch.testing.assert_close(ours(x), theirs(x), atol=1e-4, rtol=1e-3)
        listed.append(
            Comparison(f"{name}, 4 x 256", _training(ours, x), _training(theirs, x), "transformers, slow path")
        )
    fourier, theirs = FNet(_DIM), FNetBasicFourierTransform(_fnet())
    torch.testing.assert_close(fourier(x), theirs(x)[0], atol=1e-3, rtol=1e-3)
    listed.append(
        Comparison("FNet, 4 x 256", _training(fourier, x), _training(lambda x: theirs(x)[0], x), "transformers")
    )
    return listed


def _fnet() -> Any:
    from transformers import FNetConfig

    return FNetConfig(hidden_size=_DIM, max_position_embeddings=256)
