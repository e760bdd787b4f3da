"""A network whose output is the weights of another: only the hypernetwork is trained, through the target's loss.

Theta = H(C; Phi),    y = F(x; Theta)                                                                        (1)
"""

import copy
import warnings
from collections.abc import Callable, Sequence
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.func import functional_call, vmap

from etude.transfer.hypernetworks.conditions import Conditions
from etude.transfer.hypernetworks.design import HypernetDesign
from etude.transfer.hypernetworks.generators import SharedHead, SplitHeads, head_sizes, make_trunk, normalise_spectra
from etude.transfer.hypernetworks.initialisation import (
    INITS,
    calibrate_heads,
    element_offset,
    element_scale,
    initialise_trunk,
    silent,
)
from etude.transfer.hypernetworks.layout import Layout, checked_piece_size, piece_layout
from etude.transfer.hypernetworks.places import Places
from etude.transfer.hypernetworks.spec import TargetSpec
from etude.transfer.hypernetworks.template import KeptStatistics, make_template, running_statistics

__all__ = ["Hypernetwork"]

_LARGEST_HEAD = 2**28
_TRUNK_DRAWS = 100


class Hypernetwork(nn.Module):
    """Generates the parameters of a target network.

        hypernet = Hypernetwork(net, HypernetDesign("task", "chunk"), num_conditions=5, chunk_size=500)
        loss = cross_entropy(hypernet.call(x, 2), y)            # the gradient reaches hypernet.parameters()
        hypernet.materialize(2)                                 # a plain copy of net, to deploy

    Args:
        target: any module, whose generated parameters are templates (names, shapes) and never train; or a
            `TargetSpec`, with which nothing can be called.
        design: the five criteria.
        num_conditions: of stored conditions; see `Conditions`.
        cond_dim: E.
        hidden: widths of the hypernetwork's hidden layers; () makes it linear (mlp only).
        chunk_size: numbers in a piece, for generation by chunks; for `component` the largest component if None.
        chunk_emb_dim: size of what a piece is told about its place: a learned embedding N(0, 1), or a linear map of
            descriptors with static_output=False.
        num_heads: K of `multiple`.
        split: of the heads: "even", ceil(P / K) weights each, the last the rest; or "layer", one for each module.
        component_embedding: "shared" by all conditions, or "per_condition".
        granularity: what a component is: "module", "block" or "channel".
        activation: makes a nonlinearity of the hypernetwork.
        init: "hyperfan", "hyperfan_out", "scaled" or "default"; see the module `initialisation`.
        output_scale: of "scaled": raw outputs are multiplied by output_scale / sqrt(fan_in). At 5, outputs of a head
            that torch initialised are about of unit scale.
        dropout: of the hypernetwork's hidden layers.
        spectral_norm: whether the weights below the heads are divided by their spectral norms; the heads' own scale
            is the initialisation's. Recurrent, attention and message weights are left as they are.
        bias: whether the heads have one.
        generate: patterns of the parameters that are generated; the others train as ordinary parameters.
        gains, tied: of `TargetSpec.from_module`.
        statistics: what becomes of running statistics in the target (batch normalisation): "batch", normalise by
            each batch, also at test; or "condition", keep them for each stored condition. None refuses such targets.
        predefined, encoder: of `Conditions`.
        largest_head: numbers that the weight of one head may have.

    Raises:
        ValueError: for an illegal design (with the reasons), sizes that do not fit, running statistics or tied
            weights that nothing was said about, or a head that would be too large.
    """

    def __init__(
        self,
        target: nn.Module | TargetSpec,
        design: HypernetDesign | None = None,
        *,
        num_conditions: int | None = None,
        cond_dim: int = 8,
        hidden: Sequence[int] = (100, 100),
        chunk_size: int | None = None,
        chunk_emb_dim: int = 8,
        num_heads: int = 2,
        split: str = "even",
        component_embedding: str = "shared",
        granularity: str = "module",
        activation: Callable[[], nn.Module] = nn.ReLU,
        init: str = "hyperfan",
        output_scale: float | int = 5.0,
        dropout: float | int = 0.0,
        spectral_norm: bool = False,
        bias: bool = True,
        generate: str | Sequence[str] = "*",
        gains: dict[str, float | int] | None = None,
        tied: str = "refuse",
        statistics: str | None = None,
        predefined: Float[Tensor, "conditions cond"] | None = None,
        encoder: nn.Module | None = None,
        largest_head: int = _LARGEST_HEAD,
    ):
        super().__init__()
        self.design = HypernetDesign() if design is None else design
        self.design.check()
        if init not in INITS:
            raise ValueError(f"init must be one of {', '.join(INITS)}, got {init!r}")
        if component_embedding not in ("shared", "per_condition"):
            raise ValueError(f"component_embedding must be 'shared' or 'per_condition', got {component_embedding!r}")
        self.init, self.output_scale, self.granularity = init, float(output_scale), granularity
        self.generate, self._gains, self._tied = generate, gains, tied
        self.conditions = Conditions(self.design, cond_dim, num_conditions, predefined=predefined, encoder=encoder)
        self.register_buffer("piece_scale", None)
        self.target: nn.Module | None = None
        self.statistics = KeptStatistics()
        if isinstance(target, TargetSpec):
            self.spec = target
        else:
            self.spec = TargetSpec.from_module(target, generate, gains=gains, tied=tied)
            if statistics == "condition" and not self.design.static_input:
                raise ValueError("statistics='condition' needs stored conditions (static_input=True)")
            self.target = make_template(target, self.spec, statistics)
        size = checked_piece_size(self.design, chunk_size)
        layout = piece_layout(self.spec, self.design, size, granularity)
        self.piece_size = layout.size
        width = hidden[-1] if hidden else self.conditions.size
        rows = width // max(num_heads, 1) if self.design.generation == "multiple" else width
        if rows * layout.size > largest_head:
            raise ValueError(
                f"a head of {rows} x {layout.size:,} weights exceeds largest_head={largest_head:,}; generation='chunk' "
                "has a head of hidden width x chunk_size"
            )
        inputs = self.conditions.size + (chunk_emb_dim if self.design.piecewise else 0)
        own = len(self.conditions.learned) if component_embedding == "per_condition" else None
        self.places = Places(self.design, layout, chunk_emb_dim, own)
        split_heads = self.design.generation == "multiple"
        if split_heads and not hidden:
            raise ValueError("multiple heads need a hidden layer, got hidden=()")
        self.trunk = make_trunk(
            self.design.architecture, inputs, hidden[:-1] if split_heads else hidden,
            activation=activation, dropout=dropout,
        )  # fmt: skip
        if split_heads:
            sizes = head_sizes(self.spec, num_heads, split)
            self.head: SharedHead | SplitHeads = SplitHeads(
                self.trunk.width, hidden[-1], sizes, activation=activation, dropout=dropout, bias=bias
            )
        else:
            self.head = SharedHead(self.trunk.width, self.piece_size, bias=bias)
        below_head = nn.ModuleList([self.trunk, *([self.head.inner] if isinstance(self.head, SplitHeads) else [])])
        if spectral_norm:
            normalise_spectra(below_head)
        self._constants: dict[TargetSpec, _Constants] = {}
        if init.startswith("hyperfan"):
            self._draw_below(below_head)
            self.calibrate()

    def flat(self, cond: Any, spec: TargetSpec | None = None) -> Float[Tensor, "batch params"]:
        """Theta for one condition (batch 1) or several.

        Args:
            cond: the number of a stored condition, int64 numbers (batch,), vectors (batch, cond_dim) or (cond_dim,),
                examples if there is an encoder, or a pair of conditions.
            spec: with static_output=False, what is to be generated instead of the target given at first.

        Raises:
            ValueError: if a condition or spec does not fit. TypeError: if `cond` is none of these.
        """
        return self._flat(cond, spec)[0]

    def forward(self, cond: Any, spec: TargetSpec | None = None) -> dict[str, Tensor]:
        """Generated tensors by name; with a leading batch dimension unless `cond` is a single condition."""
        theta, single = self._flat(cond, spec)
        return self._spec(spec).split(theta[0] if single else theta)

    def call(self, x: Any, cond: Any, *, target: nn.Module | None = None) -> Tensor:
        """The target's output with generated parameters, Eq. (1).

        Args:
            x: input of the target, (n, ...).
            cond: one condition for all of x; or n conditions, row i of x then meets the i-th.
            target: with static_output=False, a module in place of the template.

        Raises:
            ValueError: if there is neither one condition nor one a row.
        """
        module, spec = self._module(target)
        theta, single = self._flat(cond, spec)
        if single:
            return self._run(module, self._spec(spec).split(theta[0]), x, cond)
        if len(theta) != len(x):
            raise ValueError(f"there must be one condition or one for each of {len(x)} rows, got {len(theta)}")

        def one(parameters: dict[str, Tensor], row: Tensor) -> Tensor:
            return self._run(module, parameters, row[None], cond, many=True)[0]

        return vmap(one, randomness="different")(self._spec(spec).split(theta), x)

    def call_each(self, x: Any, cond: Any, *, target: nn.Module | None = None) -> Float[Tensor, "conditions n ..."]:
        """The target's output on all of x under every condition: the members of an ensemble."""
        _, spec = self._module(target)
        return self.run_each(x, self.flat(cond, spec), target=target)

    def run_each(
        self, x: Any, theta: Float[Tensor, "conditions params"], *, target: nn.Module | None = None
    ) -> Float[Tensor, "conditions n ..."]:
        """`call_each` with weights that are at hand already."""
        module, spec = self._module(target)
        parameters = self._spec(spec).split(theta)
        return vmap(lambda each: self._run(module, each, x, None, many=True), randomness="different")(parameters)

    def materialize(self, cond: Any, *, target: nn.Module | None = None) -> nn.Module:
        """A copy of the target that holds the generated values as parameters of its own.

        Raises:
            ValueError: if `cond` is not a single condition.
        """
        module, spec = self._module(target)
        with torch.no_grad():
            theta, single = self._flat(cond, spec)
        if not single and len(theta) > 1:
            raise ValueError(f"one condition makes one module, got {len(theta)} conditions")
        made = copy.deepcopy(module)
        generated = self._spec(spec).split(theta[0])
        for name, parameter in made.named_parameters():
            if name in generated:
                parameter.data = generated[name].detach().clone()
            parameter.requires_grad_(True)
        if isinstance(cond, int) and running_statistics(made):
            for name, value in self.statistics.of(cond, made).items():
                made.get_buffer(name).copy_(value)
        return made.train(self.training)

    def hidden(self, cond: Any) -> list[Tensor]:
        """What each head reads, (batch, pieces, width)."""
        vectors, numbers, _ = self.conditions(cond)
        return self.head.hidden(self._features(vectors, numbers, self._layout(self.spec)[0]))

    def draw(self, n: int, generator: torch.Generator | None = None) -> Float[Tensor, "n cond"]:
        """n >= 1 conditions of noise, N(0, I)."""
        if n < 1:
            raise ValueError(f"the number of draws must be positive, got {n}")
        device = next(self.parameters()).device
        return torch.randn(n, self.conditions.cond_dim, generator=generator).to(device)

    @property
    def num_conditions(self) -> int:
        """Stored conditions."""
        return self.conditions.count

    def condition_parameters(self, number: int) -> list[nn.Parameter]:
        """What belongs to one learned condition alone: its embedding, and those of its pieces if they have some.

        Raises:
            ValueError: if there is no such condition, or conditions are not learned.
        """
        if not 0 <= number < len(self.conditions.learned):
            raise ValueError(f"learned conditions are numbered 0..{len(self.conditions.learned) - 1}, got {number}")
        return [self.conditions.learned[number], *self.places.of(number)]

    def shared_parameters(self) -> list[nn.Parameter]:
        """Phi, all that trains and belongs to no single condition; ordinary parameters of the target too."""
        owned = {id(p) for number in range(len(self.conditions.learned)) for p in self.condition_parameters(number)}
        return [p for p in self.parameters() if p.requires_grad and id(p) not in owned]

    def add_condition(self, like: Tensor | None = None) -> int:
        """Stores one more learned condition, N(0, 1) or a copy of the vector `like`; returns its number."""
        number = self.conditions.add(like)
        self.places.add()
        return number

    @torch.no_grad()
    def calibrate(self, cond: Any = None) -> None:
        """Draws the heads anew at the scale of `init`, "hyperfan" or "hyperfan_out".

        Args:
            cond: conditions over which the second moment of the hidden units is taken; if None, the stored ones, or
                1,000 draws N(0, I) where conditions come with each call.

        Raises:
            ValueError: with another `init`.
        """
        if not self.init.startswith("hyperfan"):
            raise ValueError(f"only hyperfan is calibrated, init is {self.init!r}")
        if cond is None:
            vectors, numbers = self.conditions.at_hand(self.head.outs()[0].weight.device)
        else:
            vectors, numbers, _ = self.conditions(cond)
        training = self.training
        self.eval()
        hidden = self.head.hidden(self._features(vectors, numbers, self._layout(self.spec)[0]))
        calibrate_heads(self.head.outs(), hidden, self.spec, self.design, self.init)
        if self.design.piecewise and self.design.static_output:
            moments = hidden[0].square().mean(dim=(0, 2))
            # A piece whose hidden units are all off must not be divided by zero.
            self.piece_scale = (moments.mean() / moments.clamp(min=1e-3 * moments.mean())).sqrt()
        self.train(training)

    @torch.no_grad()
    def _draw_below(self, below_head: nn.ModuleList) -> None:
        """Draws what is below the heads, until no stored condition switches all hidden units off."""
        for _ in range(_TRUNK_DRAWS):
            for part in below_head:
                initialise_trunk(part)
            if not self.design.static_input:
                return
            off = silent(self.hidden(torch.arange(self.num_conditions)))
            if not off:
                return
        warnings.warn(
            f"{off} of {self.num_conditions} conditions switch all hidden units off and may never learn; wider "
            "hidden layers do not",
            stacklevel=3,
        )

    def _flat(self, cond: Any, spec: TargetSpec | None) -> tuple[Tensor, bool]:
        vectors, numbers, single = self.conditions(cond)
        layout, scale, offset = self._layout(self._spec(spec))
        pieces = self.head(self._features(vectors, numbers, layout))
        if self.piece_scale is not None:
            pieces = pieces * self.piece_scale[:, None]
        theta = pieces.flatten(1)
        theta = theta[:, : self._spec(spec).numel] if layout.index is None else theta[:, layout.index]
        if scale is not None:
            theta = theta * scale
        return theta if offset is None else theta + offset, single

    def _features(self, vectors: Tensor, numbers: Tensor | None, layout: Layout) -> Tensor:
        tokens = vectors[:, None, :]
        if self.design.piecewise:
            places = self.places(layout, numbers)
            tokens = torch.cat([tokens.expand(-1, layout.pieces, -1), places.expand(len(vectors), -1, -1)], dim=2)
        return self.trunk(tokens, layout.edges)

    def _spec(self, spec: TargetSpec | None) -> TargetSpec:
        if spec is None or spec is self.spec:
            return self.spec
        if self.design.static_output and spec != self.spec:
            raise ValueError("static_output=True generates the target given at first and takes no other spec")
        return spec

    def _layout(self, spec: TargetSpec) -> "_Constants":
        device = self.head.outs()[0].weight.device
        found = self._constants.get(spec)
        if found is None or found[0].descriptors.device != device:
            layout = piece_layout(spec, self.design, self.piece_size, self.granularity).to(device)
            scale = element_scale(spec, self.design, self.init, self.output_scale)
            offset = element_offset(spec)
            found = (
                layout, None if scale is None else scale.to(device), None if offset is None else offset.to(device),
            )  # fmt: skip
            if len(self._constants) >= 64:
                self._constants.clear()
            self._constants[spec] = found
        return found

    def _module(self, target: nn.Module | None) -> tuple[nn.Module, TargetSpec | None]:
        if target is not None:
            if self.design.static_output:
                raise ValueError("static_output=True generates the target given at first and takes no other")
            keepers = running_statistics(target)
            if keepers:
                raise ValueError(
                    f"a target given with a call must keep no running statistics, got those of {keepers[:3]}; "
                    "template.without_statistics turns them off"
                )
            return target, TargetSpec.from_module(target, self.generate, gains=self._gains, tied=self._tied)
        if self.target is None:
            raise ValueError("the hypernetwork was made from a TargetSpec: there is no module to call")
        return self.target, None

    def _run(
        self, module: nn.Module, parameters: dict[str, Tensor], x: Any, cond: Any, *, many: bool = False
    ) -> Tensor:
        if module is not self.target or not running_statistics(module):
            return functional_call(module, parameters, (x,))
        if many or not isinstance(cond, int):
            raise ValueError("statistics='condition' needs the number of one condition for the whole batch")
        return functional_call(module, (parameters, self.statistics.of(cond, module)), (x,))


_Constants = tuple[Layout, Tensor | None, Tensor | None]
