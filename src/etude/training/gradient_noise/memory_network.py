"""The end-to-end memory network, which the paper trains with and without gradient noise on bAbI.

Sukhbaatar, Szlam, Weston & Fergus, "End-To-End Memory Networks", arXiv:1503.08895, 2015. With u the state (first the
question), each hop k reads memories m_i and outputs c_i of the sentences x_i, embedded as bags of words with
position weights l_j and a time vector T:

    m_i = sum_j l_j * A^k x_ij + T_A^k(i),    c_i = sum_j l_j * C^k x_ij + T_C^k(i)                        (1)
    p = softmax(u . m_i),    o = sum_i p_i c_i,    u <- u + o                                              (2)

and the answer is softmax(W u). The first stage of two-stage training ("linear start") leaves the softmax of (2) out.
"""

import torch
import torch.nn.functional as F
from huggingface_hub import PyTorchModelHubMixin
from jaxtyping import Bool, Float, Int64
from torch import Tensor, nn

__all__ = ["MemN2N", "position_encoding", "random_times"]

_TYINGS = ("adjacent", "rnn")
_INIT_STD = 0.1


class MemN2N(nn.Module, PyTorchModelHubMixin, library_name="etude", paper_url="https://arxiv.org/abs/1503.08895"):
    """An end-to-end memory network over word indices, where index 0 is the null word.

        model = MemN2N(vocab=len(vocab) + 1)
        logits = model(batch.stories, batch.questions)

    The null word stands for nothing: its embedding is zero whatever an optimizer or its noise does to the table,
    and a sentence of null words is an empty memory, which receives no attention.

    Args:
        vocab: number of words, the null word included.
        dim: size of the embeddings.
        hops: number of times the memory is read.
        memory: number of memories.
        tying: "adjacent" shares A^{k+1} = C^k, B = A^1 and W = C^K; "rnn" shares A and C among all hops, keeps B and
            W apart, and maps the state linearly between hops: u <- H u + o.
        position_encoding: weight the words of a sentence by `position_encoding`; all alike if False.
        linear_start: start without the softmax in the hops; `set_linear(False)` puts it back.

    Raises:
        ValueError: if a size is not positive, or `tying` is unknown.
    """

    _not_null: Tensor

    def __init__(
        self,
        vocab: int,
        *,
        dim: int = 20,
        hops: int = 3,
        memory: int = 50,
        tying: str = "adjacent",
        position_encoding: bool = True,
        linear_start: bool = False,
    ):
        super().__init__()
        for name, size in (("vocab", vocab), ("dim", dim), ("hops", hops), ("memory", memory)):
            if size < 1:
                raise ValueError(f"{name} must be at least 1, got {size}")
        if tying not in _TYINGS:
            raise ValueError(f"tying must be one of {', '.join(_TYINGS)}, got {tying!r}")
        self.dim, self.hops, self.memory, self.tying = dim, hops, memory, tying
        self.position_encoding = position_encoding
        self.linear = linear_start
        # Adjacent: words[k] is A^{k+1} and C^k. RNN-like: words holds A, C, B and W.
        self.words = _tables(hops + 1 if tying == "adjacent" else 4, vocab, dim)
        self.times = _tables(hops + 1 if tying == "adjacent" else 2, memory, dim)
        self.between_hops = nn.Linear(dim, dim, bias=False) if tying == "rnn" else nn.Identity()
        if isinstance(self.between_hops, nn.Linear):
            nn.init.normal_(self.between_hops.weight, std=_INIT_STD)
        self.register_buffer("_not_null", torch.ones(vocab, 1).index_fill_(0, torch.tensor([0]), 0), persistent=False)

    def set_linear(self, linear: bool) -> None:
        """Leaves the softmax of the hops out (True) or puts it in (False)."""
        self.linear = linear

    def input_table(self, hop: int) -> nn.Parameter:
        """A of a hop, counted from 0."""
        return self.words[hop if self.tying == "adjacent" else 0]

    def output_table(self, hop: int) -> nn.Parameter:
        """C of a hop, counted from 0."""
        return self.words[hop + 1 if self.tying == "adjacent" else 1]

    @property
    def question_table(self) -> nn.Parameter:
        """B."""
        return self.words[0 if self.tying == "adjacent" else 2]

    @property
    def answer_table(self) -> nn.Parameter:
        """W, one row a word."""
        return self.words[-1]

    def forward(
        self,
        stories: Int64[Tensor, "batch memory words"],
        questions: Int64[Tensor, "batch words"],
        times: Int64[Tensor, "batch memory"] | None = None,
    ) -> Float[Tensor, "batch vocab"]:
        """Logits of the answer.

        Args:
            stories: words of the memories, the latest first; null where empty.
            questions: words of the questions.
            times: row of the time tables that each memory takes; 0, 1, 2, ... if None.

        Raises:
            ValueError: if there are more memories than the network has.
        """
        state, _ = self._read(stories, questions, times)
        return state @ self._embeddable(self.answer_table).T

    def attention(
        self,
        stories: Int64[Tensor, "batch memory words"],
        questions: Int64[Tensor, "batch words"],
        times: Int64[Tensor, "batch memory"] | None = None,
    ) -> Float[Tensor, "hops batch memory"]:
        """The weights p of every hop, Eq. (2)."""
        _, weights = self._read(stories, questions, times)
        return torch.stack(weights)

    def _read(self, stories: Tensor, questions: Tensor, times: Tensor | None) -> tuple[Tensor, list[Tensor]]:
        if stories.shape[1] > self.memory:
            raise ValueError(f"the network has {self.memory} memories, the stories have {stories.shape[1]} sentences")
        if times is None:
            times = torch.arange(stories.shape[1], device=stories.device)
        filled = stories.ne(0).any(dim=-1)
        # One reading of the stories per table: with adjacent tying, a hop's outputs are the next hop's memories.
        readings = [self._bag(words, stories) + F.embedding(times, rows) for words, rows in zip(self.words, self.times)]
        state = self._bag(self.question_table, questions)
        weights = []
        for hop in range(self.hops):
            memories, outputs = readings[hop : hop + 2] if self.tying == "adjacent" else readings
            attention = self._attend(torch.einsum("bd,bmd->bm", state, memories), filled)
            state = self.between_hops(state) + torch.einsum("bm,bmd->bd", attention, outputs)
            weights.append(attention)
        return state, weights

    def _attend(
        self, scores: Float[Tensor, "batch memory"], filled: Bool[Tensor, "batch memory"]
    ) -> Float[Tensor, "batch memory"]:
        if not self.linear:
            # The lowest finite score, not -inf: a story without a sentence would give NaN instead of nothing.
            scores = scores.masked_fill(~filled, torch.finfo(scores.dtype).min).softmax(dim=-1)
        return scores * filled

    def _bag(
        self, table: Float[Tensor, "vocab dim"], sentences: Int64[Tensor, "*batch words"]
    ) -> Float[Tensor, "*batch dim"]:
        """The weighted sum of a sentence's word embeddings, Eq. (1) without the time."""
        embedded = F.embedding(sentences, self._embeddable(table))
        if not self.position_encoding:
            return embedded.sum(dim=-2)
        weights = position_encoding(sentences.shape[-1], self.dim).to(embedded)
        return (embedded * weights).sum(dim=-2)

    def _embeddable(self, table: Float[Tensor, "vocab dim"]) -> Float[Tensor, "vocab dim"]:
        return table * self._not_null


def _tables(count: int, rows: int, dim: int) -> nn.ParameterList:
    return nn.ParameterList(nn.Parameter(torch.randn(rows, dim) * _INIT_STD) for _ in range(count))


def position_encoding(words: int, dim: int) -> Float[Tensor, "words dim"]:
    """Weights of the words of a sentence: l_kj = (1 - j/J) - (k/d)(1 - 2j/J), with j = 1..J and k = 1..d.

    J is the padded length, so that a word's weight depends on its place alone.
    """
    j = torch.arange(1, words + 1)[:, None] / words
    k = torch.arange(1, dim + 1)[None, :] / dim
    return (1 - j) - k * (1 - 2 * j)


def random_times(
    stories: Int64[Tensor, "batch memory words"], fraction: float = 0.1, generator: torch.Generator | None = None
) -> Int64[Tensor, "batch memory"]:
    """Times of the memories as if up to `fraction` as many empty memories lay scattered among them.

    This is the "random noise" of Sukhbaatar et al., which keeps the time vectors from being learned by heart. A story
    of n sentences gets a number of empty memories drawn uniformly from 0..ceil(fraction * n); they leave gaps in the
    order of time, and times past the last memory count as the last.

    Args:
        stories: words of the memories, the latest first; null where empty.
        fraction: of empty memories at most, >= 0.
        generator: source of the places; the default generator if None.

    Raises:
        ValueError: if `fraction` is negative.
    """
    if fraction < 0:
        raise ValueError(f"fraction must be >= 0, got {fraction}")
    batch, memory, _ = stories.shape
    device = "cpu" if generator is None else generator.device
    sentences = stories.ne(0).any(dim=-1).sum(dim=1, keepdim=True).to(device)
    most = (fraction * sentences).ceil()
    empty = (torch.rand(batch, 1, generator=generator, device=device) * (most + 1)).floor()
    slots = torch.arange(memory + int(most.max()), device=device).expand(batch, -1)
    # A random choice of `sentences` among the first `sentences + empty` slots, in order of time.
    keys = torch.rand(slots.shape, generator=generator, device=device).masked_fill(slots >= sentences + empty, 2.0)
    chosen = keys.argsort(dim=1).argsort(dim=1) < sentences
    times = slots.masked_fill(~chosen, memory - 1).sort(dim=1).values[:, :memory]
    return times.clamp(max=memory - 1).to(stories.device)
