"""One network around any mixer: for language, or for classes and numbers; with decoding token by token.

model = SequenceModel("mamba", 64, 4, vocab=256)
logits = model(ids)                                     # (batch, length, 256)
longer = model.generate(ids, 100, temperature=0.8)      # by `step` where the mixer has one
"""

import inspect
import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from huggingface_hub import PyTorchModelHubMixin
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from etude.loop.evaluation import mode
from etude.nn.mixers import Mixer, build_mixer
from etude.sequence.after_transformers.channels import build_channel
from etude.sequence.after_transformers.stateful import StatefulMixer

__all__ = ["Block", "SequenceModel", "match_parameters", "parameter_groups"]

MixerSpec = str | Mapping[str, Any] | Sequence[str | Mapping[str, Any]]
"""A mixer's name; or {"name": ..., options}; or a list of these, of which layer i takes entry i, around again."""
_RESIDUALS = ("pre", "post", "rezero")


class Block(nn.Module):
    """x + mixer(norm(x)), then x + channel(norm(x)).

    Args:
        dim: features of a token.
        mixer: of tokens.
        channel: of features; None: none.
        residual: "pre": as above; "post": norm(x + mixer(x)); "rezero": x + a mixer(x), a = 0 at first, no norm
            (Bachlechner et al., arXiv:2003.04887).
        dropout: of both branches.

    Raises:
        ValueError: for another kind of residual.
    """

    def __init__(
        self, dim: int, mixer: Mixer, channel: nn.Module | None, *, residual: str = "pre", dropout: float | int = 0.0
    ):
        super().__init__()
        if residual not in _RESIDUALS:
            raise ValueError(f"residual must be one of {', '.join(_RESIDUALS)}, got {residual!r}")
        self.residual, self.mixer, self.channel = residual, mixer, channel
        self.dropout = nn.Dropout(dropout)
        branches = 1 if channel is None else 2
        self.norms = nn.ModuleList(nn.RMSNorm(dim, eps=1e-6) for _ in range(0 if residual == "rezero" else branches))
        self.gains = nn.Parameter(torch.zeros(branches)) if residual == "rezero" else None

    def _add(self, x: Tensor, branch: int, mix: Any) -> Tensor:
        if self.residual == "pre":
            return x + self.dropout(mix(self.norms[branch](x)))  # type: ignore[no-any-return]
        if self.residual == "post":
            return self.norms[branch](x + self.dropout(mix(x)))  # type: ignore[no-any-return]
        assert self.gains is not None
        return x + self.gains[branch] * self.dropout(mix(x))  # type: ignore[no-any-return]

    def forward(
        self, x: Float[Tensor, "batch length dim"], *, mask: Bool[Tensor, "batch length"] | None = None
    ) -> Float[Tensor, "batch length dim"]:
        x = self._add(x, 0, lambda given: self.mixer(given, mask=mask))
        return x if self.channel is None else self._add(x, 1, self.channel)

    def init_state(self, batch: int) -> list[Any]:
        """The mixer's state, and the channel mixer's if it looks back, too."""
        start = getattr(self.channel, "init_state", None)
        return [self.mixer.init_state(batch), None if start is None else start(batch)]

    def step(self, x: Float[Tensor, "batch dim"], state: list[Any]) -> tuple[Float[Tensor, "batch dim"], list[Any]]:
        """The next token's output, and the state after it."""
        state = list(state)

        def mixed(given: Tensor) -> Tensor:
            y, state[0] = self.mixer.step(given, state[0])
            return y

        def channelled(given: Tensor) -> Tensor:
            assert self.channel is not None
            if state[1] is None:
                return self.channel(given)  # type: ignore[no-any-return]
            y, state[1] = self.channel.step(given, state[1])  # type: ignore[operator]
            return y  # type: ignore[no-any-return]

        x = self._add(x, 0, mixed)
        if self.channel is not None:
            x = self._add(x, 1, channelled)
        return x, state

    def read(self, x: Float[Tensor, "batch length dim"], state: list[Any]) -> tuple[Tensor, list[Any]]:
        """Many tokens at once where mixer and channel mixer allow it, else step by step."""
        if isinstance(self.mixer, StatefulMixer) and state[1] is None:
            state = list(state)

            def mixed(given: Tensor) -> Tensor:
                y, state[0] = self.mixer.read(given, state[0])  # type: ignore[operator]
                return y  # type: ignore[no-any-return]

            x = self._add(x, 0, mixed)
            return (x if self.channel is None else self._add(x, 1, self.channel)), state
        outputs = []
        for token in x.unbind(1):
            y, state = self.step(token, state)
            outputs.append(y)
        return torch.stack(outputs, dim=1), state


class SequenceModel(
    nn.Module, PyTorchModelHubMixin, library_name="etude", paper_url="https://arxiv.org/abs/2408.00386"
):
    """Embedding, blocks, a last norm, and a head.

    Args:
        mixer: name, name with options, or a list that layers take in turn (`MixerSpec`).
        dim: features of a token.
        depth: blocks.
        vocab: tokens, if inputs are tokens.
        input_dim: features, if inputs are vectors; one of the two is given.
        channel: name of the channel mixer (`build_channel`), or {"name": ..., options}; None: none.
        mlp_ratio: hidden features of the channel mixer over `dim`.
        head: "lm": logits of tokens at every place, tied to the embedding; "tag": `num_outputs` numbers at every place;
            "classify": `num_outputs` numbers of the mean over real tokens.
        num_outputs: of "tag" and "classify".
        max_len: longest sequence of mixers and positions that have a bound.
        positions: "none" or "learned".
        residual, dropout: as for `Block`.

    Raises:
        ValueError: for sizes below 1, unknown names, or a head "lm" on a mixer that sees later tokens.
    """

    def __init__(
        self,
        mixer: MixerSpec,
        dim: int = 64,
        depth: int = 2,
        *,
        vocab: int | None = None,
        input_dim: int | None = None,
        channel: str | Mapping[str, Any] | None = "swiglu",
        mlp_ratio: float | int = 8 / 3,
        head: str = "lm",
        num_outputs: int | None = None,
        max_len: int = 1024,
        positions: str = "none",
        residual: str = "pre",
        dropout: float | int = 0.0,
    ):
        super().__init__()
        if min(dim, depth, max_len) < 1:
            raise ValueError(f"dim, depth and max_len must be positive, got {dim}, {depth} and {max_len}")
        if (vocab is None) == (input_dim is None) or min(vocab or 1, input_dim or 1) < 1:
            raise ValueError(f"give one of vocab and input_dim, positive, got {vocab} and {input_dim}")
        if head not in ("lm", "tag", "classify"):
            raise ValueError(f"head must be lm, tag or classify, got {head!r}")
        if head == "lm" and vocab is None:
            raise ValueError("a head lm needs a vocabulary")
        if head != "lm" and (num_outputs is None or num_outputs < 1):
            raise ValueError(f"head {head} needs a positive num_outputs, got {num_outputs}")
        if positions not in ("none", "learned"):
            raise ValueError(f"positions must be none or learned, got {positions!r}")
        self.max_len, self.head = max_len, head
        self.embedding = nn.Embedding(vocab, dim) if vocab is not None else nn.Linear(input_dim or 1, dim)
        self.positions = nn.Embedding(max_len, dim) if positions == "learned" else None
        self.dropout = nn.Dropout(dropout)
        self.blocks = nn.ModuleList(
            Block(
                dim, _made(mixer, dim, max_len, layer), _channel(channel, dim, mlp_ratio, layer, depth),
                residual=residual, dropout=dropout,
            )
            for layer in range(depth)
        )  # fmt: skip
        self.norm = nn.Identity() if residual == "post" else nn.RMSNorm(dim, eps=1e-6)
        self.output = None if head == "lm" else nn.Linear(dim, num_outputs or 1)
        # Positions start at the scale of the tokens: at .02 beside larger ones attention takes long to see them.
        scale = 0.5 if vocab is None else 0.02 if head == "lm" else dim**-0.5
        if vocab is not None:
            nn.init.normal_(self.embedding.weight, std=scale)
        if self.positions is not None:
            nn.init.normal_(self.positions.weight, std=scale)
        blind = [type(part).__name__ for part in self.mixers() if not part.causal]
        if head == "lm" and blind:
            raise ValueError(f"a language model must not see later tokens, {blind[0]} does")

    def mixers(self) -> list[Mixer]:
        """Of the layers, in order."""
        return [block.mixer for block in self.blocks]  # type: ignore[misc]

    @property
    def has_step(self) -> bool:
        """Whether every mixer can go on token by token."""
        return all(mixer.has_step for mixer in self.mixers())

    def _embedded(self, x: Tensor, start: int = 0) -> Tensor:
        """Of (batch, length) or (batch, length, input_dim), whose first token stands at `start`."""
        y = self.embedding(x)
        if self.positions is not None:
            end = start + x.shape[1]
            if end > self.max_len:
                raise ValueError(f"there are positions for {self.max_len} tokens, got {end}")
            y = y + self.positions.weight[start:end]
        return self.dropout(y)  # type: ignore[no-any-return]

    def _headed(self, y: Tensor) -> Tensor:
        y = self.norm(y)
        return y @ self.embedding.weight.T if self.output is None else self.output(y)  # type: ignore[no-any-return]

    def forward(
        self,
        x: Int[Tensor, "batch length"] | Float[Tensor, "batch length features"],
        *,
        mask: Bool[Tensor, "batch length"] | None = None,
    ) -> Tensor:
        """(batch, length, vocab or num_outputs), or (batch, num_outputs) with the head "classify".

        Args:
            x: tokens, or vectors.
            mask: true for real tokens; None: all are real.

        Raises:
            ValueError: if a sequence is longer than learned positions or a mixer allow.
        """
        y = self._embedded(x)
        for block in self.blocks:
            y = block(y, mask=mask)
        if self.head != "classify":
            return self._headed(y)
        y = self.norm(y)
        assert self.output is not None
        if mask is None:
            return self.output(y.mean(1))  # type: ignore[no-any-return]
        real = mask[..., None].to(y.dtype)
        return self.output((y * real).sum(1) / real.sum(1).clamp(min=1))  # type: ignore[no-any-return]

    def init_state(self, batch: int) -> dict[str, Any]:
        """The state before the first token.

        Raises:
            TypeError: if a mixer has no step form, or the head needs the whole sequence.
        """
        if self.head == "classify":
            raise TypeError("a classifier reads whole sequences")
        return {"read": 0, "blocks": [block.init_state(batch) for block in self.blocks]}  # type: ignore[operator]

    def read(self, x: Tensor, state: dict[str, Any]) -> tuple[Tensor, dict[str, Any]]:
        """The outputs of the next tokens, as `forward` gives them, and the state after the last."""
        y, states = self._embedded(x, state["read"]), []
        for block, one in zip(self.blocks, state["blocks"]):
            y, one = block.read(y, one)  # type: ignore[operator]
            states.append(one)
        return self._headed(y), {"read": state["read"] + x.shape[1], "blocks": states}

    def step(self, x: Tensor, state: dict[str, Any]) -> tuple[Tensor, dict[str, Any]]:
        """The output of the next token, (batch,) or (batch, input_dim), and the state after it."""
        y, states = self._embedded(x[:, None], state["read"])[:, 0], []
        for block, one in zip(self.blocks, state["blocks"]):
            y, one = block.step(y, one)  # type: ignore[operator]
            states.append(one)
        return self._headed(y), {"read": state["read"] + 1, "blocks": states}

    @torch.no_grad()
    def generate(
        self,
        ids: Int[Tensor, "batch length"],
        new_tokens: int,
        *,
        temperature: float | int = 1.0,
        top_k: int | None = None,
        generator: torch.Generator | None = None,
    ) -> Int[Tensor, "batch longer"]:
        """The prompt and what follows it, in evaluation mode.

        Reads the prompt once and goes on with `step` where all mixers have one, with keys and values kept for
        attention; the others read everything again for every token.

        Args:
            ids: prompts of one length, at least 1.
            new_tokens: how many to add.
            temperature: divides the logits; 0 takes the likeliest token.
            top_k: only the likeliest k are drawn from; None: all.
            generator: of the draws.

        Raises:
            ValueError: for an empty prompt, another head, or numbers out of range.
        """
        if self.head != "lm":
            raise ValueError(f"a model with head {self.head} does not generate")
        if 0 in ids.shape or new_tokens < 0 or temperature < 0 or (top_k is not None and top_k < 1):
            raise ValueError(
                f"need a prompt, new_tokens >= 0, temperature >= 0 and top_k >= 1, got shape {tuple(ids.shape)}, "
                f"{new_tokens}, {temperature} and {top_k}"
            )
        with mode(self, training=False):
            state = None
            logits = None
            for _ in range(new_tokens):
                if not self.has_step:
                    logits = self(ids)[:, -1]
                elif state is None:
                    read, state = self.read(ids, self.init_state(len(ids)))
                    logits = read[:, -1]
                else:
                    logits, state = self.step(ids[:, -1], state)
                ids = torch.cat([ids, _drawn(logits, temperature, top_k, generator)[:, None]], dim=1)
        return ids

    def state_size(self, length: int) -> int:
        """Numbers that all layers keep of a sequence."""
        return sum(mixer.state_size(length) for mixer in self.mixers())

    def flops(self, length: int) -> int:
        """Of the mixers, for one sequence."""
        return sum(mixer.flops(length) for mixer in self.mixers())


def _made(spec: MixerSpec, dim: int, max_len: int, layer: int) -> Mixer:
    if not isinstance(spec, str | Mapping):
        if not spec:
            raise ValueError("a list of mixers must not be empty")
        spec = spec[layer % len(spec)]
    options = {"name": spec} if isinstance(spec, str) else dict(spec)
    if "name" not in options:
        raise ValueError(f"a mixer needs a name, got {options}")
    mixer = build_mixer(options.pop("name"), dim, max_len=max_len, layer=layer, **options)
    if "ids" in inspect.signature(mixer.forward).parameters:
        raise ValueError(f"{type(mixer).__name__} asks for tokens beside features, which this model does not hand on")
    return mixer


def _channel(
    spec: str | Mapping[str, Any] | None, dim: int, ratio: float | int, layer: int, depth: int
) -> nn.Module | None:
    if spec is None:
        return None
    options = {"name": spec} if isinstance(spec, str) else dict(spec)
    return build_channel(options.pop("name"), dim, max(1, round(ratio * dim)), layer=layer, depth=depth, **options)


def _drawn(logits: Tensor, temperature: float | int, top_k: int | None, generator: torch.Generator | None) -> Tensor:
    if temperature == 0:
        return logits.argmax(-1)
    logits = logits / temperature
    if top_k is not None and top_k < logits.shape[-1]:
        least = logits.topk(top_k, dim=-1).values[:, -1:]
        logits = logits.masked_fill(logits < least, -math.inf)
    return torch.multinomial(logits.softmax(-1), 1, generator=generator)[:, 0]


def parameter_groups(
    model: nn.Module, *, lr: float | int, weight_decay: float | int = 0.1, slow_lr: float | int = 1e-3
) -> list[dict[str, Any]]:
    """Groups for an optimizer: matrices decay; vectors, and what mixers name `undecayed`, do not; what they name `slow`
    (the exponents of state-space models) does not and learns at min(lr, slow_lr)."""
    kinds: dict[str, list[nn.Parameter]] = {"decayed": [], "undecayed": [], "slow": []}
    special = {
        id(parameter): kind
        for part in model.modules()
        if isinstance(part, StatefulMixer)
        for kind in ("slow", "undecayed")
        for name in getattr(part, kind)
        for parameter in (getattr(part, name),)
    }
    for parameter in model.parameters():
        kind = special.get(id(parameter), "decayed" if parameter.ndim > 1 else "undecayed")
        kinds[kind].append(parameter)
    groups = [
        {"params": kinds["decayed"], "lr": float(lr), "weight_decay": float(weight_decay)},
        {"params": kinds["undecayed"], "lr": float(lr), "weight_decay": 0.0},
        {"params": kinds["slow"], "lr": float(min(lr, slow_lr)), "weight_decay": 0.0},
    ]
    return [group for group in groups if group["params"]]


def match_parameters(
    mixers: Mapping[str, MixerSpec] | Sequence[str], target: int, *, tolerance: float | int = 0.03, **options: Any
) -> dict[str, float]:
    """For each mixer, the `mlp_ratio` at which a `SequenceModel` has about `target` parameters.

    Args:
        mixers: names, or names with their specifications.
        target: parameters of the whole model.
        tolerance: by how much of it a model may be off.
        options: of `SequenceModel`, all but `mixer` and `mlp_ratio`.

    Raises:
        ValueError: if a mixer does not get there: it alone is too large, or there is no channel mixer to fill up.
    """
    specs = dict(mixers) if isinstance(mixers, Mapping) else {name: name for name in mixers}
    dim = options.get("dim", 64)
    found = {}
    for name, spec in specs.items():

        def size(hidden: int, spec: MixerSpec = spec) -> int:
            with torch.device("meta"):
                model = SequenceModel(spec, mlp_ratio=hidden / dim, **options)
            return sum(parameter.numel() for parameter in model.parameters())

        one, two = size(1), size(2)
        hidden = 1 if two == one else max(1, 1 + round((target - one) / (two - one)))
        if abs(size(hidden) - target) > tolerance * target:
            raise ValueError(
                f"{name} has {size(hidden):,} parameters at best, more than {tolerance:.0%} off {target:,}"
            )
        found[name] = hidden / dim
    return found
