"""Episodes: small classification problems drawn from many classes, and the pseudo-episodes of a few-shot task.

An episode has `n_way` classes with `k_shot` support and `n_query` query examples each; its loss is the cross-entropy
of the queries among the prototypes of the supports (Snell et al., arXiv:1703.05175). A task of K shots has no queries
of its own: its pseudo-episode splits the shots, and every example is seen through a random augmentation.
"""

from collections.abc import Callable, Iterator

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int64
from torch import Tensor
from torch.utils.data import Sampler

from etude.transfer.fewshot_continual.prototypes import PrototypeClassifier

__all__ = ["Augmentation", "EpisodeSampler", "class_rows", "episode_accuracy", "episode_loss", "pseudo_episode",
           "random_affine"]  # fmt: skip

Augmentation = Callable[[Tensor, torch.Generator | None], Tensor]
"""(examples, generator) -> as many augmented examples."""


def class_rows(labels: Int64[Tensor, "n"]) -> tuple[Int64[Tensor, "classes"], list[Int64[Tensor, "_"]]]:
    """The classes in ascending order and the rows of each, in their order."""
    classes, counts = labels.unique(return_counts=True)
    return classes, list(labels.argsort(stable=True).split(counts.tolist()))


class EpisodeSampler(Sampler[list[int]]):
    """Yields the rows of one episode after the other; the `batch_sampler` of a plain `DataLoader`.

        sampler = EpisodeSampler(labels, n_way=5, k_shot=1, n_query=15, n_episodes=600, seed=0)
        loader = DataLoader(dataset, batch_sampler=sampler)

    A batch holds the classes one after the other, `k_shot` supports and then `n_query` queries of each, so that
    `batch.unflatten(0, (n_way, k_shot + n_query))` is what `episode_loss` takes. Every pass yields the same episodes.

    Args:
        labels: class of each row.
        n_way: classes of an episode, >= 2.
        k_shot, n_query: examples of each class, >= 1.
        n_episodes: of one pass.
        seed: of the draws.

    Raises:
        ValueError: if a number is too small, there are fewer classes than `n_way`, or a class has fewer rows than
            `k_shot + n_query`.
    """

    def __init__(
        self, labels: Int64[Tensor, "n"], n_way: int, k_shot: int, n_query: int, n_episodes: int, seed: int = 0
    ):
        for name, value, least in (("n_way", n_way, 2), ("k_shot", k_shot, 1), ("n_query", n_query, 1),
                                   ("n_episodes", n_episodes, 1)):  # fmt: skip
            if value < least:
                raise ValueError(f"{name} must be at least {least}, got {value}")
        classes, rows = class_rows(labels)
        if len(classes) < n_way:
            raise ValueError(f"episodes of {n_way} classes need as many, the labels have {len(classes)}")
        counts = torch.tensor([len(of_class) for of_class in rows])
        if int(counts.min()) < k_shot + n_query:
            raise ValueError(
                f"class {int(classes[counts.argmin()])} has {int(counts.min())} examples, "
                f"fewer than {k_shot} supports and {n_query} queries"
            )
        self.n_way, self.k_shot, self.n_query = n_way, k_shot, n_query
        self.n_episodes, self.seed = n_episodes, seed
        self._rows = torch.nn.utils.rnn.pad_sequence(rows, batch_first=True, padding_value=-1)

    def __len__(self) -> int:
        return self.n_episodes

    def __iter__(self) -> Iterator[list[int]]:
        generator = torch.Generator().manual_seed(self.seed)
        for _ in range(self.n_episodes):
            yield self._draw(generator).flatten().tolist()

    def episodes(self) -> Int64[Tensor, "episodes way shots"]:
        """All episodes of a pass in one tensor of rows."""
        generator = torch.Generator().manual_seed(self.seed)
        return torch.stack([self._draw(generator) for _ in range(self.n_episodes)])

    def _draw(self, generator: torch.Generator) -> Tensor:
        chosen = self._rows[torch.randperm(len(self._rows), generator=generator)[: self.n_way]]
        keys = torch.rand(chosen.shape, generator=generator).masked_fill(chosen < 0, 2.0)
        return chosen.gather(1, keys.argsort(dim=1)[:, : self.k_shot + self.n_query])


def episode_loss(
    encoder: Callable[[Tensor], Tensor],
    episode: Float[Tensor, "way shots ..."],
    k_shot: int,
    classifier: PrototypeClassifier,
    others: Float[Tensor, "others dim"] | None = None,
) -> Float[Tensor, ""]:
    """Cross-entropy of an episode's queries among the prototypes of its supports.

    Args:
        encoder: (batch, ...) -> embeddings (batch, dim); it sees supports and queries in one batch.
        episode: `k_shot` supports and then the queries of each class.
        k_shot: supports of each class.
        classifier: gives the logits.
        others: prototypes of further classes that stand in the softmax.

    Raises:
        ValueError: if no query is left.
    """
    way, shots = episode.shape[:2]
    if not 1 <= k_shot < shots:
        raise ValueError(f"k_shot must leave a query among the {shots} examples of a class, got {k_shot}")
    z = encoder(episode.flatten(0, 1)).unflatten(0, (way, shots))
    prototypes = z[:, :k_shot].mean(dim=1)
    if others is not None:
        prototypes = torch.cat([prototypes, others])
    targets = torch.arange(way, device=z.device).repeat_interleave(shots - k_shot)
    return F.cross_entropy(classifier(z[:, k_shot:].flatten(0, 1), prototypes), targets)


def episode_accuracy(
    z: Float[Tensor, "n dim"],
    episodes: Int64[Tensor, "episodes way shots"],
    k_shot: int,
    classifier: PrototypeClassifier,
) -> Float[Tensor, "episodes"]:
    """Accuracy of the queries of each episode, from the embeddings of all examples."""
    way = episodes.shape[1]
    grouped = z[episodes.to(z.device)]
    queries = grouped[:, :, k_shot:]
    logits = classifier(queries.flatten(1, 2), grouped[:, :, :k_shot].mean(dim=2))
    targets = torch.arange(way, device=z.device).repeat_interleave(queries.shape[2])
    return (logits.argmax(dim=-1) == targets).float().mean(dim=1)


def pseudo_episode(
    inputs: Float[Tensor, "n ..."],
    labels: Int64[Tensor, "n"],
    k_support: int,
    n_query: int,
    *,
    augment: Augmentation | None = None,
    generator: torch.Generator | None = None,
) -> Float[Tensor, "way shots ..."]:
    """An episode of all classes of a task, from their shots alone.

    The shots of each class are shuffled, the first `k_support` support and the next `n_query` query; a class with fewer
    shots than that, down to one, uses them again. A shot that stands on both sides is then told apart only by its
    augmentation, which is why such a class needs one.

    Raises:
        ValueError: if a class has too few shots and there is no augmentation.
    """
    _, rows = class_rows(labels)
    counts = torch.tensor([len(of_class) for of_class in rows])
    need, fewest = k_support + n_query, int(counts.min())
    if fewest < need and augment is None:
        raise ValueError(
            f"a class has {fewest} shots, fewer than {k_support} supports and {n_query} queries: "
            "an augmentation must tell their copies apart"
        )
    padded = torch.nn.utils.rnn.pad_sequence(rows, batch_first=True, padding_value=-1)
    keys = torch.rand(padded.shape, generator=generator).masked_fill(padded.cpu() < 0, 2.0)
    turn = torch.arange(need) % counts[:, None]  # a class with too few shots begins again
    episode = inputs[padded.gather(1, keys.argsort(dim=1).gather(1, turn).to(padded.device))]
    if augment is None:
        return episode
    return augment(episode.flatten(0, 1), generator).unflatten(0, (len(rows), need))


def random_affine(
    images: Float[Tensor, "batch channels height width"],
    generator: torch.Generator | None = None,
    *,
    degrees: float | int = 14.0,
    scale: float | int = 0.15,
    shift: float | int = 0.12,
    padding: str = "zeros",
) -> Float[Tensor, "batch channels height width"]:
    """Each image turned, scaled and shifted at random, by bilinear interpolation.

    Args:
        images: any values.
        generator: CPU generator of all draws; the default generator if None.
        degrees: largest turn to either side.
        scale: largest relative change of size.
        shift: largest shift as a share of the side.
        padding: what lies outside: "zeros", "border" or "reflection".

    Raises:
        ValueError: if a range is negative, or the scale does not stay below 1.
    """
    if min(degrees, scale, shift) < 0 or scale >= 1:
        raise ValueError(
            f"degrees and shift must be >= 0 and scale in [0, 1), got degrees={degrees}, scale={scale}, shift={shift}"
        )
    draws = 2 * torch.rand(4, len(images), generator=generator) - 1
    angle = draws[0] * (degrees * torch.pi / 180)
    size = 1 + scale * draws[1]
    cos, sin = angle.cos() / size, angle.sin() / size
    # The grid spans [-1, 1]: a share of the side is twice as much there.
    rows = [torch.stack([cos, -sin, 2 * shift * draws[2]], dim=1), torch.stack([sin, cos, 2 * shift * draws[3]], dim=1)]
    theta = torch.stack(rows, dim=1).to(images)
    grid = F.affine_grid(theta, list(images.shape), align_corners=False)
    return F.grid_sample(images, grid, padding_mode=padding, align_corners=False)
