"""Two ways to spend less on easy inputs, as shallow sub-models share their blocks with the whole network.

Valipour et al., "SortedNet", arXiv:2309.00255, 2023: exits by confidence, and self-speculative decoding, in which a
shallow sub-model drafts tokens that the whole network then checks.
"""

from dataclasses import dataclass, replace
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from etude.loop.evaluation import mode
from etude.training.sortednet.depth import SortedModuleList, SortedSequential
from etude.training.sortednet.submodels import SubModel
from etude.training.sortednet.switching import active_submodel, set_submodel, sorted_root, space_of

__all__ = ["Decoded", "EarlyExit", "early_exit", "speculative_decode"]


@dataclass(frozen=True)
class EarlyExit:
    """What `early_exit` gives.

    Args:
        logits: of each input, at the depth where it left.
        depth: blocks that each input went through.
    """

    logits: Float[Tensor, "batch classes"]
    depth: Int[Tensor, "batch"]


@torch.no_grad()
def early_exit(model: Any, x: Tensor, threshold: float | int) -> EarlyExit:
    """Lets each input leave at the first depth whose prediction is confident: softmax maximum above `threshold`.

    Every depth of the space is an exit; an input goes on from where it is, so that no block is computed twice. Width
    and heads are those in use. The model is evaluated.

    Args:
        model: with a stack `blocks` in its space, and methods `enter` (inputs -> first hidden state) and `leave`
            (hidden state -> logits), as `SortedMLP` and `SortedTransformerEncoder` have them.
        x: a batch of inputs.
        threshold: in [0, 1]; 1 sends every input through all blocks.

    Raises:
        ValueError: if the threshold lies outside [0, 1], or depths of the model are not prefixes of one another.
        TypeError: if the model lacks one of the three.
    """
    if not 0 <= threshold <= 1:
        raise ValueError(f"threshold is a probability in [0, 1], got {threshold}")
    root = sorted_root(model)
    stack = getattr(root, "blocks", None)
    if not isinstance(stack, SortedSequential | SortedModuleList) or not (
        callable(getattr(root, "enter", None)) and callable(getattr(root, "leave", None))
    ):
        raise TypeError(f"{type(root).__name__} needs a sorted stack `blocks` and methods `enter` and `leave`")
    if stack.always:
        raise ValueError(f"every depth keeps blocks {stack.always}: a deeper exit does not go on from a shallower one")
    active = active_submodel(root)
    depths = [int(depth) for depth in space_of(root).points["depth"]]
    blocks = stack.blocks()
    with mode(root, training=False), set_submodel(root, replace(active, depth=depths[-1])):
        hidden, rows = root.enter(x), torch.arange(len(x), device=x.device)  # type: ignore[operator]
        logits, exits = None, torch.full((len(x),), depths[-1], device=x.device)
        done = 0
        for depth in depths:
            for block in blocks[done:depth]:
                hidden = block(hidden)
            done = depth
            scores = root.leave(hidden)  # type: ignore[operator]
            if scores.ndim != 2:
                raise ValueError(
                    f"early exit needs one prediction per input, got logits of shape {tuple(scores.shape)}"
                )
            if logits is None:
                logits = scores.new_empty(len(x), scores.shape[1])
            leaving = scores.softmax(dim=1).amax(dim=1) > threshold
            if depth == depths[-1]:
                leaving = torch.ones_like(leaving)
            logits[rows[leaving]] = scores[leaving]
            exits[rows[leaving]] = depth
            rows, hidden = rows[~leaving], hidden[~leaving]
            if not len(rows):
                break
    assert logits is not None
    return EarlyExit(logits, exits)


@dataclass(frozen=True)
class Decoded:
    """What `speculative_decode` gives.

    Args:
        tokens: the prompt and what follows it.
        passes: forward passes of the whole network.
        drafted: tokens proposed by the sub-model.
        accepted: proposals that the whole network would have made too.
    """

    tokens: Int[Tensor, "length"]
    passes: int
    drafted: int
    accepted: int


@torch.no_grad()
def speculative_decode(
    model: nn.Module,
    prompt: Int[Tensor, "prompt"],
    new_tokens: int,
    draft: SubModel,
    *,
    lookahead: int = 4,
    confidence: float | int = 0.0,
) -> Decoded:
    """Greedy decoding of the whole network, token for token, with fewer passes of it.

    The sub-model proposes up to `lookahead` tokens; one pass of the whole network gives its own choice after each of
    them. Those that agree are kept, and the first that does not is replaced by the whole network's. Nothing is cached
    between passes: where that would count, the passes are what to compare.

    Args:
        model: made by `sorted_`, (batch, length) tokens -> (batch, length, vocab) logits, causal.
        prompt: at least one token.
        new_tokens: how many to add.
        draft: the sub-model that proposes.
        lookahead: most tokens to propose before a check, >= 1.
        confidence: stop proposing after a token of lower probability; 0 always proposes `lookahead`.

    Raises:
        ValueError: if the prompt is empty, or a count or probability is out of range.
    """
    if prompt.numel() == 0 or new_tokens < 1 or lookahead < 1:
        raise ValueError(
            "decoding needs a prompt, new_tokens >= 1 and lookahead >= 1, got "
            f"{prompt.numel()} tokens, {new_tokens} and {lookahead}"
        )
    if not 0 <= confidence <= 1:
        raise ValueError(f"confidence is a probability in [0, 1], got {confidence}")
    tokens, end = prompt, len(prompt) + new_tokens
    passes = drafted = accepted = 0
    with mode(model, training=False):
        while len(tokens) < end:
            proposal = tokens
            with set_submodel(model, draft):
                # The whole network's pass adds a token of its own, hence one less.
                for _ in range(min(lookahead, end - len(tokens) - 1)):
                    probability, token = model(proposal[None])[0, -1].softmax(dim=-1).max(dim=-1)
                    proposal = torch.cat([proposal, token[None]])
                    if probability < confidence:
                        break
            with set_submodel(model, space_of(model).full):
                choices = model(proposal[None])[0, len(tokens) - 1 :].argmax(dim=-1)
            proposed = proposal[len(tokens) :]
            agreeing = int((proposed == choices[:-1]).cumprod(dim=0).sum())
            tokens = torch.cat([tokens, choices[: agreeing + 1].to(tokens.dtype)])
            passes, drafted, accepted = passes + 1, drafted + len(proposed), accepted + agreeing
    return Decoded(tokens, passes, drafted, accepted)
