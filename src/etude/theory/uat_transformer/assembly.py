"""The weights of the construction: attention that gathers the sequence, and a ReLU network with a bank per position.

A token of width d at position i of L enters the block as [x_i; 0 (L d slots); e_i; 1], with e_i a unit vector. Head r
asks every token for coordinate r of its e, with the score beta for position r and 0 elsewhere, so that it puts

    p = e^beta / (e^beta + L - 1)  on x_r,   q = 1 / (e^beta + L - 1)  on every other token                          (1)

into slot r. The slots are S vec(X), with S = (p - q) I + q 1 1^T acting on positions; they miss vec(X) by at most

    |delta| <= (L - 1) q * side,  side = the box's,   and exactly  S^-1 = (I - q 1 1^T) / (p - q)                    (2)

brings vec(X) back at any beta > 0. The ReLU network is one for all positions. Bank i has the units

    relu(p.u - t_j - M sum_(l != i) e_l)                                                                           (3)

which are silent at every position but i, since M exceeds what p.u - t_j can be; their output weights are those of the
outputs of position i, whose constant is carried by the unit relu(e_i). The hidden width is m = L sum_p m_p + L. As
sum_l e_l = 1, Eq. (3) is p.u - t_j - M (1 - e_i), written so that the bank in use adds and subtracts no M.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from etude.theory.uat_transformer.model import SingleLayerTransformer
from etude.theory.uat_transformer.splines import RidgeNetwork

__all__ = ["Box", "assemble", "attention_error", "gathered", "mixing_matrix", "required_beta"]

MAX_BETA = 80.0
"""exp(80) is still a float32."""


@dataclass(frozen=True)
class Box:
    """The sequences whose tokens lie between `low` and `high` in each of their `d` coordinates.

    Raises:
        ValueError: if a bound is not finite or not below its partner.
    """

    low: tuple[float, ...]
    high: tuple[float, ...]

    def __post_init__(self) -> None:
        for low, high in zip(self.low, self.high, strict=True):
            if not (math.isfinite(low) and math.isfinite(high) and low < high):
                raise ValueError(f"domain must be a box with finite low < high, got {low} and {high}")

    @staticmethod
    def of(domain: Sequence, d: int) -> "Box":
        """A pair (low, high) of numbers, or of d numbers each."""
        if len(domain) != 2:
            raise ValueError(
                f"domain must be a box, given as (low, high), got {len(domain)} items: map other sets into a box first"
            )
        ends = [torch.as_tensor(end, dtype=torch.float64) for end in domain]
        if any(end.ndim > 1 or (end.ndim == 1 and len(end) != d) for end in ends):
            shapes = [tuple(end.shape) for end in ends]
            raise ValueError(f"the ends of a domain must be numbers or have shape ({d},), got shapes {shapes}")
        low, high = (tuple(end.expand(d).tolist()) for end in ends)
        return Box(low, high)

    @property
    def side(self) -> float:
        """The longest."""
        return max(high - low for low, high in zip(self.low, self.high))

    def from_unit(self, u: Float[Tensor, "*shape d"]) -> Float[Tensor, "*shape d"]:
        low, high = (torch.tensor(end, dtype=u.dtype, device=u.device) for end in (self.low, self.high))
        # This form, and not low + u (high - low), meets both ends exactly.
        return low * (1 - u) + high * u


def _weights(seq_len: int, beta: float | int) -> tuple[float, float]:
    """p and q of Eq. (1)."""
    if seq_len < 1:
        raise ValueError(f"seq_len must be at least 1, got {seq_len}")
    if not 0 < beta <= MAX_BETA:
        raise ValueError(f"beta must lie in (0, {MAX_BETA:g}], beyond which float32 overflows, got {beta}")
    rest = math.exp(-beta)
    return 1 / (1 + (seq_len - 1) * rest), rest / (1 + (seq_len - 1) * rest)


def mixing_matrix(seq_len: int, beta: float | int, *, inverse: bool = False) -> Float[Tensor, "seq_len seq_len"]:
    """S, or S^-1, of Eq. (2), in double precision."""
    p, q = _weights(seq_len, beta)
    eye, ones = torch.eye(seq_len, dtype=torch.float64), torch.ones(seq_len, seq_len, dtype=torch.float64)
    return (eye - q * ones) / (p - q) if inverse else (p - q) * eye + q * ones


def attention_error(seq_len: int, beta: float | int, side: float | int = 1.0) -> float:
    """The bound of Eq. (2) on |slots - vec(X)|, at most (L - 1) e^-beta times the side of the box."""
    return (seq_len - 1) * _weights(seq_len, beta)[1] * side


def required_beta(seq_len: int, eps: float | int, lipschitz: float | int, side: float | int = 1.0) -> float:
    """beta = log((L - 1) side lipschitz / eps): attention then moves the output by at most eps.

    Args:
        lipschitz: of what reads the slots, for moves in the maximum norm.

    Returns:
        At least 1.

    Raises:
        ValueError: if the error is not positive or needs a beta above 80; the message gives the smallest error.
    """
    if not eps > 0:
        raise ValueError(f"eps must be positive, got {eps}")
    scale = max((seq_len - 1) * side * lipschitz, 0.0)
    beta = math.log(max(scale / eps, math.e))
    if beta > MAX_BETA:
        raise ValueError(
            f"eps = {eps} needs beta = {beta:.1f} > {MAX_BETA:g}; reachable is {scale * math.exp(-80):.3g}"
        )
    return beta


def assemble(
    network: RidgeNetwork,
    seq_len: int,
    in_dim: int,
    out_dim: int,
    *,
    beta: float | int = 10.0,
    exact: bool = True,
    domain: Sequence = (0.0, 1.0),
) -> SingleLayerTransformer:
    """The block of Eq. (1) to (3) around the splines of vec(X), in double precision.

    Args:
        network: splines on [0, 1]^(seq_len * in_dim) with seq_len * out_dim outputs, position by position.
        seq_len: L. in_dim: d. out_dim: outputs of a position.
        beta: sharpness of the attention, in (0, 80].
        exact: apply S^-1 in the first layer of the ReLU network, so that attention adds no error.
        domain: (low, high) of the tokens' coordinates; the embedding maps the box to the unit cube.

    Raises:
        ValueError: if the splines do not have these dimensions, or `beta` or `domain` is out of range.
    """
    L, d, units = seq_len, in_dim, len(network.knots)
    if network.directions.shape[1] != L * d or len(network.bias) != L * out_dim:
        raise ValueError(
            f"the splines must map {L * d} to {L * out_dim} numbers, got {network.directions.shape[1]} and "
            f"{len(network.bias)}"
        )
    box = Box.of(domain, d)
    inverse = mixing_matrix(L, beta, inverse=True)
    model = SingleLayerTransformer(d, d + L * d + L + 1, L, L, L * units + L, out_dim, head_dim=d, dtype="float64")
    token, slots = slice(0, d), slice(d, d + L * d)
    mark, one = d + L * d, d + L * d + L  # first coordinate of e; the constant
    assert model.positions is not None
    assert model.in_proj is not None
    assert model.out_proj is not None
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.zero_()
        low, high = torch.tensor(box.low, dtype=torch.float64), torch.tensor(box.high, dtype=torch.float64)
        model.embed.weight[token] = torch.diag(1 / (high - low))
        model.embed.bias[token] = -low / (high - low)
        model.positions[:, mark : mark + L] = torch.eye(L)
        model.positions[:, one] = 1.0
        queries, keys, values = model.in_proj.weight.view(3, L, d, -1)
        queries[:, 0, one] = math.sqrt(d) * beta
        keys[torch.arange(L), 0, mark + torch.arange(L)] = 1.0
        values[:, :, token] = torch.eye(d, dtype=torch.float64)
        model.out_proj.weight[slots] = torch.eye(L * d, dtype=torch.float64)
        # rows: banks of units, then the L units that carry the constants
        rows = torch.from_numpy(network.directions[network.group]).double()
        if exact:
            rows = torch.einsum("ab,ubc->uac", inverse, rows.unflatten(1, (L, d))).flatten(1)
        reach = (network.right - network.left)[network.group] + 1.0
        knots, bound = torch.from_numpy(network.knots), torch.from_numpy(reach)
        output = torch.from_numpy(network.weights).view(units, L, out_dim)
        constant = torch.from_numpy(network.bias).view(L, out_dim)
        for i in range(L):
            bank = slice(i * units, (i + 1) * units)
            model.ffn_in.weight[bank, slots] = rows
            model.ffn_in.weight[bank, mark : mark + L] = -bound[:, None].expand(units, L)
            model.ffn_in.weight[bank, mark + i] = 0.0
            model.ffn_in.bias[bank] = -knots
            model.ffn_in.weight[L * units + i, mark + i] = 1.0
            model.ffn_out.weight[:, bank] = output[:, i].T
            model.ffn_out.weight[:, L * units + i] = constant[i]
    return model


def gathered(model: SingleLayerTransformer, x: Float[Tensor, "batch seq in_dim"]) -> Float[Tensor, "batch seq all"]:
    """The slots of every token of a constructed block: S vec(X), of the sequence mapped to the unit cube."""
    d, L = model.in_dim, model.seq_len
    return model.attend(x)[..., d : d + L * d]
