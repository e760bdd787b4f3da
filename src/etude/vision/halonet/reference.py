"""Halo attention written as the definition reads: one query at a time, one key at a time."""

import torch
from jaxtyping import Float
from torch import Tensor

__all__ = ["local_attention_reference"]


def local_attention_reference(
    q: Float[Tensor, "batch heads dim query_height query_width"],
    k: Float[Tensor, "batch heads dim height width"],
    v: Float[Tensor, "batch heads dim_value height width"],
    *,
    block_size: int,
    halo_size: int,
    rel_h: Float[Tensor, "offsets dim"] | None = None,
    rel_w: Float[Tensor, "offsets dim"] | None = None,
    stride: int = 1,
    mask_padding: bool = True,
    scale_rel: bool = False,
    dense_offsets: bool = False,
) -> Float[Tensor, "batch channels query_height query_width"]:
    """`halo_attention` by a double loop over queries and keys: slow, and plain enough to be checked by eye.

    The arguments are those of `halo_attention`, which is tested against this function; it checks none of them.
    """
    batch, heads, dim, query_height, query_width = q.shape
    height, width = k.shape[3:]
    window = block_size + 2 * halo_size
    filled_height = -(-height // block_size) * block_size
    filled_width = -(-width // block_size) * block_size
    scale = dim**-0.5
    out = q.new_zeros(batch, heads, v.shape[2], query_height, query_width)
    for query_row in range(query_height):
        for query_column in range(query_width):
            row, column = stride * query_row, stride * query_column
            top = row // block_size * block_size - halo_size
            left = column // block_size * block_size - halo_size
            query = q[:, :, :, query_row, query_column]
            logits, values = [], []
            for key_row in range(top, top + window):
                for key_column in range(left, left + window):
                    inside = 0 <= key_row < height and 0 <= key_column < width
                    filled_up = 0 <= key_row < filled_height and height <= key_row
                    filled_up |= 0 <= key_column < filled_width and width <= key_column
                    if not inside and (mask_padding or filled_up):
                        continue
                    zero = q.new_zeros(batch, heads)
                    logit = scale * (query * k[:, :, :, key_row, key_column]).sum(2) if inside else zero
                    if rel_h is not None and rel_w is not None:
                        dy, dx = key_row - row, key_column - column
                        if dense_offsets:
                            dy += (stride - 1) * (query_row % (block_size // stride))
                            dx += (stride - 1) * (query_column % (block_size // stride))
                        relative = query @ rel_h[dy + window - 1] + query @ rel_w[dx + window - 1]
                        logit = logit + (scale if scale_rel else 1.0) * relative
                    logits.append(logit)
                    values.append(v[:, :, :, key_row, key_column] if inside else torch.zeros_like(out[..., 0, 0]))
            weights = torch.stack(logits).softmax(0)
            out[..., query_row, query_column] = (weights.unsqueeze(-1) * torch.stack(values)).sum(0)
    return out.flatten(1, 2)
