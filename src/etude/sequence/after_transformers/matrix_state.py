"""Recurrences of matrices with a scalar gate, in chunks: the core of linear attention, Mamba-2 and mLSTM.

    S_t = exp(f_t) S_{t-1} + exp(i_t) k_t v_t^T,     y_t = q_t^T S_t                                              (1)

Within a chunk y is an attention with weights exp(f_{s+1} + ... + f_t + i_s); between chunks S is carried by a scan.
All of it is products of matrices, in O(length * chunk), without a loop over time (Dao & Gu, "Transformers are SSMs",
2024, arXiv:2405.21060, section 6). If i is given, S and y are kept divided by exp(m_t), m_t = max(f_t + m_{t-1}, i_t),
so that no exponent is positive (Beck et al., "xLSTM", 2024, arXiv:2405.04517, Eq. 15-17).
"""

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from etude.nn.scan import scan
from etude.sequence.after_transformers.stateful import check_chunk, wide

__all__ = ["LOWEST", "matrix_scan"]

LOWEST = -1e30
"""Logarithm of what is nothing, as a number: infinities would subtract to NaN."""


def matrix_scan(
    q: Float[Tensor, "batch heads length width"],
    k: Float[Tensor, "batch heads length width"],
    v: Float[Tensor, "batch heads length value"],
    log_decay: Float[Tensor, "batch heads length"],
    log_input: Float[Tensor, "batch heads length"] | None = None,
    *,
    chunk: int = 64,
    state: tuple[Tensor, Tensor] | None = None,
) -> tuple[
    Float[Tensor, "batch heads length value"],
    Float[Tensor, "batch heads length"],
    tuple[Float[Tensor, "batch heads width value"], Float[Tensor, "batch heads"]],
]:
    """Eq. (1) over a sequence.

    Args:
        q, k, v: queries, keys, values.
        log_decay: f; without `log_input` none may be positive.
        log_input: i; 0, and nothing divided, if None.
        chunk: tokens between which weights are formed; only speed and memory depend on it.
        state: (S, m) after the tokens before; nothing was read if None.

    Returns:
        y_t / exp(m_t); m_t; and (S / exp(m), m) after the last token. m carries no gradient: whatever is invariant to
        it has the right one.

    Raises:
        ValueError: if `chunk` is not positive.
    """
    check_chunk(chunk)
    length = k.shape[2]
    chunk = min(chunk, length)
    f = wide(log_decay)
    i = torch.zeros_like(f) if log_input is None else wide(log_input)
    if state is None:
        before = v.new_zeros(*k.shape[:2], k.shape[-1], v.shape[-1])
        m_before = torch.full_like(f[..., 0], 0.0 if log_input is None else LOWEST)
    else:
        before, m_before = state
    short = -length % chunk
    if short:
        q, k, v = (F.pad(part, (0, 0, 0, short)) for part in (q, k, v))
        f, i = F.pad(f, (0, short)), F.pad(i, (0, short), value=0.0 if log_input is None else LOWEST)
    q, k, v, f, i = (part.unflatten(2, (-1, chunk)) for part in (q, k, v, f, i))
    since = f.cumsum(-1)  # logarithm of what is left of the chunk's first state, (batch, heads, chunks, chunk)
    total = since[..., -1]
    if log_input is None:
        m, m_end, m_start = torch.zeros_like(since), torch.zeros_like(total), torch.zeros_like(total)
    else:
        m, m_end, m_start = _maxima(since.detach(), i.detach(), m_before)
    later = torch.ones(chunk, chunk, dtype=torch.bool, device=k.device).triu(1)
    pair = since[..., :, None] - since[..., None, :] + i[..., None, :] - m[..., :, None]
    y = (q @ k.transpose(-2, -1) * pair.masked_fill(later, -torch.inf).exp().to(q.dtype)) @ v
    kept = k * torch.exp(total[..., None] - since + i - m_end[..., None])[..., None].to(k.dtype)
    added = (kept.transpose(-2, -1) @ v).transpose(1, 2)  # (batch, chunks, heads, width, value)
    left = torch.exp(total + m_start - m_end).transpose(1, 2)[..., None, None].to(k.dtype)
    states = scan(left, added, before)
    earlier = torch.cat([before[:, None], states[:, :-1]], dim=1).transpose(1, 2)
    y = y + (q * torch.exp(since + m_start[..., None] - m)[..., None].to(q.dtype)) @ earlier
    return y.flatten(2, 3)[:, :, :length], m.flatten(2, 3)[..., :length], (states[:, -1], m_end[..., -1])


def _maxima(since: Tensor, i: Tensor, before: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """m of every token, and of the last token of every chunk and of the chunk before it."""
    within = since + (i - since).cummax(-1).values
    total = since[..., -1].cumsum(-1)
    end = total + torch.maximum((within[..., -1] - total).cummax(-1).values, before[..., None])
    start = torch.cat([before[..., None], end[..., :-1]], dim=-1)
    return torch.maximum(within, since + start[..., None]), end, start
