"""What a decoded token costs: bytes read and operations by the sizes, and seconds by the clock.

Lin et al., arXiv:2501.13629, section 2.3 and appendix F: storing keys and values, attention, and augmented queries are
timed apart, against the same model with as many key heads as value heads and plain queries.
"""

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import median

import torch
from torch import Tensor

from etude.sequence.sigma.attention import DiffQKVAttention
from etude.sequence.sigma.functional import diff_attention
from etude.sequence.sigma.model import SigmaConfig

__all__ = ["AttentionCost", "DecodeTimes", "attention_cost", "crossover", "decode_bench"]


@dataclass(frozen=True)
class AttentionCost:
    """Of the attention of all layers, for one token decoded after others, one sequence.

    Args:
        key_bytes, value_bytes: cached, all of which are read.
        weight_bytes: of the attention's parameters, which are read, too.
        projection_flops: of the maps to queries, keys and values, of the output map, and of augmented queries.
        augmentation_flops: of the augmented queries alone.
        score_flops, value_flops: of the products with keys and with values; they grow with the tokens before.
        expansion_flops: of narrow keys that are expanded when they are read.
    """

    key_bytes: int
    value_bytes: int
    weight_bytes: int
    projection_flops: int
    augmentation_flops: int
    score_flops: int
    value_flops: int
    expansion_flops: int

    @property
    def cache_bytes(self) -> int:
        """Of keys and values together."""
        return self.key_bytes + self.value_bytes

    @property
    def flops(self) -> int:
        """All of them."""
        return self.projection_flops + self.score_flops + self.value_flops + self.expansion_flops


def attention_cost(config: SigmaConfig, tokens: int, *, itemsize: int = 2) -> AttentionCost:
    """Costs of decoding a token when `tokens` are cached.

    Args:
        config: sizes of the model.
        tokens: cached ones, its own included.
        itemsize: bytes of a number: 2 in half precision.

    Raises:
        ValueError: if there is no token.
    """
    if tokens < 1 or itemsize < 1:
        raise ValueError(f"tokens and itemsize must be positive, got {tokens} and {itemsize}")
    with torch.device("meta"):
        layer = config.attention()
    sizes = {name: p.numel() for name, p in layer.named_parameters()}
    maps = sum(size for name, size in sizes.items() if name.endswith("proj.weight"))
    aug = sum(size for name, size in sizes.items() if name.startswith(("q_gate", "q_up", "q_down")))
    expand = sum(size for name, size in sizes.items() if name.startswith("k_expand"))
    n = config.num_layers
    return AttentionCost(
        key_bytes=n * tokens * layer.num_k_heads * layer.k_head_dim * itemsize,
        value_bytes=n * tokens * layer.num_v_heads * layer.v_head_dim * itemsize,
        weight_bytes=n * sum(sizes.values()) * itemsize,
        projection_flops=2 * n * maps,
        augmentation_flops=2 * n * aug,
        score_flops=2 * n * tokens * layer.num_q_heads * layer.head_dim,
        value_flops=2 * n * tokens * layer.num_q_heads * layer.v_head_dim,
        expansion_flops=2 * n * tokens * layer.num_k_heads * expand,
    )


@dataclass(frozen=True)
class DecodeTimes:
    """Median seconds of one layer's decoding step after `tokens` others.

    Args:
        tokens: in the cache before.
        store: making keys and values and storing them.
        attend: queries, scores, values and the output map, without augmentation.
        augment: augmenting the query; 0 for a layer without.
        total: of a whole step, timed apart.
    """

    tokens: int
    store: float
    attend: float
    augment: float
    total: float


class _Step:
    """A layer whose cache holds random keys and values, and the parts of its decoding step."""

    def __init__(self, layer: DiffQKVAttention, tokens: int, batch: int, generator: torch.Generator):
        self.layer, self.tokens = layer.eval(), tokens
        weight = layer.k_proj.weight
        self.cache = layer.make_cache(batch, tokens + 1)

        def draw(*shape: int) -> Tensor:
            return torch.randn(shape, generator=generator).to(weight)

        self.cache.append(
            draw(batch, layer.num_k_heads, tokens, layer.k_head_dim),
            draw(batch, layer.num_v_heads, tokens, layer.v_head_dim),
        )
        self.x = draw(batch, 1, layer.dim)
        self.place = torch.tensor([tokens], device=weight.device)
        self.places = torch.arange(tokens + 1, device=weight.device)

    def store(self) -> None:
        self.cache.crop(self.tokens)
        k, v = self.layer.keys_values(self.x)
        self.cache.append(self.layer.stored(k, self.place), v)

    def attend(self) -> None:
        layer = self.layer
        q = layer.q_proj(self.x).unflatten(-1, (layer.num_q_heads, layer.head_dim)).transpose(1, 2)
        q = layer._turned(q if layer.q_norm is None else layer.q_norm(q), self.place)
        y = diff_attention(q, layer.read(self.cache.keys, self.places), self.cache.values)
        layer.o_proj(y.transpose(1, 2).flatten(2))

    def augment(self) -> None:
        if self.layer.q_aug_dim is not None:
            self.layer.queries(self.x)

    def total(self) -> None:
        self.cache.crop(self.tokens)
        self.layer(self.x, cache=self.cache)


def _clock(device: torch.device) -> Callable[[Callable[[], None]], float]:
    """Seconds of a call: CUDA events on a GPU, the performance counter elsewhere."""
    if device.type == "cuda":

        def on_gpu(run: Callable[[], None]) -> float:
            first, last = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            first.record()
            run()
            last.record()
            torch.cuda.synchronize(device)
            return first.elapsed_time(last) / 1000

        return on_gpu

    def on_cpu(run: Callable[[], None]) -> float:
        started = time.perf_counter()
        run()
        return time.perf_counter() - started

    return on_cpu


@torch.no_grad()
def decode_bench(
    layers: dict[str, DiffQKVAttention],
    tokens: Sequence[int],
    *,
    batch: int = 1,
    repeats: int = 50,
    generator: torch.Generator | None = None,
) -> dict[str, list[DecodeTimes]]:
    """Times one decoding step of several layers, taking turns, so that the machine's moods meet all alike.

        layers = {"standard": config.standard().attention(), "sigma": config.attention()}
        times = decode_bench(layers, [1024, 4096, 16_384])

    Args:
        layers: by name, on the device and in the type that is to be timed.
        tokens: in the cache before the step.
        batch: sequences.
        repeats: of every part, at least 1; medians are returned. One more goes before.
        generator: CPU generator of the caches' content.

    Returns:
        For each layer the times at each number of tokens.
    """
    if repeats < 1 or not layers or min(tokens, default=0) < 1:
        raise ValueError(f"need layers, tokens >= 1 and repeats >= 1, got {list(layers)}, {list(tokens)}, {repeats}")
    generator = torch.Generator().manual_seed(0) if generator is None else generator
    found: dict[str, list[DecodeTimes]] = {name: [] for name in layers}
    clock = _clock(next(iter(layers.values())).k_proj.weight.device)
    for count in tokens:
        steps = {name: _Step(layer, count, batch, generator) for name, layer in layers.items()}
        seconds: dict[tuple[str, str], list[float]] = {}
        for repeat in range(repeats + 1):
            for name, step in steps.items():
                for part in ("store", "attend", "augment", "total"):
                    taken = clock(getattr(step, part))
                    if repeat:
                        seconds.setdefault((name, part), []).append(taken)
        for name in layers:
            parts = {part: median(seconds[name, part]) for part in ("store", "attend", "augment", "total")}
            if layers[name].q_aug_dim is None:
                parts["augment"] = 0.0
            found[name].append(DecodeTimes(tokens=count, **parts))
    return found


def crossover(one: Sequence[DecodeTimes], other: Sequence[DecodeTimes]) -> float:
    """Tokens from which `one` takes less time than `other`: between measured ones on the logarithmic scale.

    The first of the measured ones if it is faster from there on, infinity if it never is.
    """
    if [time.tokens for time in one] != [time.tokens for time in other] or not one:
        raise ValueError("both must have been timed at the same numbers of tokens")
    gaps = [math.log(a.total / b.total) for a, b in zip(one, other)]
    if gaps[-1] >= 0:
        return math.inf
    last = max((index for index, gap in enumerate(gaps) if gap >= 0), default=-1)
    if last < 0:
        return float(one[0].tokens)
    share = gaps[last] / (gaps[last] - gaps[last + 1])
    low, high = math.log(one[last].tokens), math.log(one[last + 1].tokens)
    return math.exp(low + share * (high - low))
