"""Claims of "NoProp: Training Neural Networks without Back-propagation or Forward-propagation"."""

import math
from collections.abc import Callable, Iterable
from dataclasses import replace
from functools import partial
from statistics import fmean, pstdev
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from etude.data import images
from etude.data.kinds import Examples, ImageData
from etude.lab import Paper, Setup, Source, Trial, higher, lower, not_worse, shown, threshold, trend
from etude.loop import fit
from etude.training.noprop import (
    BackpropChain,
    ImageClassifier,
    LabelEmbedding,
    Minibatches,
    NoPropBlock,
    NoPropCT,
    NoPropDT,
    NoPropFM,
    aligned_head,
    block_optimizers,
    saved_tensor_bytes,
    train_noprop_epoch,
)

__all__ = ["PAPER"]

PAPER = Paper(
    slug="noprop",
    domain="training",
    title="NoProp: Training Neural Networks without Back-propagation or Forward-propagation",
    authors="Li, Teh & Pascanu",
    year=2025,
    arxiv="2503.24322",
    summary="Each block learns by itself to denoise the label given the image; inference runs the blocks as a chain.",
    methods=("etude.training.noprop",),
    usage="""\
import torch
from etude.training.noprop import LabelEmbedding, NoPropBlock, NoPropDT, block_optimizers
blocks = [NoPropBlock(1, 8, num_classes=10, embed_dim=10, hidden=32, channels=(8, 16)) for _ in range(3)]
model = NoPropDT(blocks, LabelEmbedding(10))
optimizers = block_optimizers(model)
x, y = torch.rand(16, 1, 8, 8), torch.randint(10, (16,))
for t in (1, 2, 3):
    model.loss(x, y, t)["total"].backward()  # gradients in block t and the head only
    for optimizer in optimizers.of(t):
        optimizer.step()
        optimizer.zero_grad()
labels = model.predict(x)
""",
    notes=(
        "There is no official code. Of what the paper leaves open we chose: the offsets of the cosine schedule and "
        "its range, padding 1, the start of the learned schedule, no noise about the path of flow matching, alpha = "
        "tanh(0.5) at the start of the backpropagated chain. Blocks learn by backpropagation inside each block; none "
        "passes between blocks. The squared norm is summed over the dimensions of the embedding and eta is 0.1: a "
        "mean in its place would change eta by as many. `small` tests on 8 x 8 digits that nothing is lost by "
        "training blocks apart; that a chain of denoising blocks gains anything over one plain block it does not "
        "show, because digits need no chain. Accuracy on CIFAR-10 and CIFAR-100 takes `full` and a GPU."
    ),
    extra="run",
)

_INFERENCE_BATCH = 500


def _fitted(data: ImageData, setup: Setup, device: str) -> ImageData:
    """The first images of each split, scaled down where they are larger than the setup's blocks are made for."""

    def part(name: str, most: int | None) -> Examples:
        split: Any = getattr(data, name)
        if not isinstance(split, Examples):
            pairs = [split[index] for index in range(len(split))]
            split = Examples(torch.stack([x for x, _ in pairs]), torch.tensor([int(y) for _, y in pairs]))
        split = split if most is None or most >= len(split) else split.take(most)
        largest = setup.largest
        if largest is not None and max(split.inputs.shape[2:]) > largest:
            side = max(split.inputs.shape[2:])
            shape = [max(4, round(length * largest / side)) for length in split.inputs.shape[2:]]
            scaled = F.interpolate(split.inputs, size=shape, mode="bilinear", antialias=True, align_corners=False)
            split = Examples(scaled, split.targets)
        return split.to(device)

    return replace(data, train=part("train", setup.train), val=part("val", setup.val), test=part("test", setup.test))


def _embedding(kind: str, data: ImageData, dim: int) -> LabelEmbedding:
    dims = {"one_hot": None, "learned": dim, "prototype": data.channels * math.prod(data.size)}
    embedding = LabelEmbedding(data.num_classes, dims[kind], kind)
    if kind == "prototype":
        assert isinstance(data.train, Examples)
        embedding.init_prototypes(data.train.inputs.cpu(), data.train.targets.cpu())
    return embedding


def _block(data: ImageData, setup: Setup, dim: int, time_embed: int | None = None) -> NoPropBlock:
    return NoPropBlock(data.channels, data.size, data.num_classes, dim, time_embed=time_embed, **setup.block)


class _Judge:
    """Accuracies over the setup's runs of inference, each from noise of its own."""

    def __init__(self, trial: Trial, predict: Callable[..., Tensor], runs: int):
        self.trial, self.predict, self.runs = trial, predict, runs

    def __call__(self, split: Any, runs: int | None = None) -> list[float]:
        generator = torch.Generator().manual_seed(self.trial.stream_seed("inference"))
        found = []
        for _ in range(runs or self.runs):
            labels = torch.cat([self.predict(x, generator=generator) for x in split.inputs.split(_INFERENCE_BATCH)])
            found.append((labels == split.targets).double().mean().item())
        return found


def _scores(judge: _Judge, data: ImageData, tuning: bool) -> dict[str, float]:
    validation = {"val_accuracy": fmean(judge(data.val))}
    if tuning:
        return validation
    runs = judge(data.test)
    mean = fmean(runs)
    return validation | {"accuracy": mean, "inference_sd": pstdev(runs), "trained": float(mean > 0.95)}


def _train_noprop(trial: Trial, model: Any, data: ImageData, epochs: int, kind: Any) -> None:
    """The paper's loop, with a curve of the validation accuracy."""
    setup = trial.setup
    assert isinstance(data.train, Examples)
    optimizers = block_optimizers(model, partial(kind, lr=trial.tuned.lr, weight_decay=setup.weight_decay))
    batches = Minibatches(data.train, setup.batch, trial.generator("order"))
    for epoch in range(1, epochs + 1):
        with trial.stream("dropout"):
            terms = train_noprop_epoch(model, batches, optimizers, generator=trial.generator("method"))
        trial.log(epoch, **{f"{name}_loss": value for name, value in terms.items()})
        trial.progress(epoch, epochs, loss=terms["total"])


_SMALL_BLOCK = {"hidden": 64, "channels": [16, 32], "fusion": [64], "dropout": 0.2}
_PAPER_BLOCK: dict[str, Any] = {"hidden": 256, "channels": [32, 64, 128], "fusion": [256, 128], "dropout": 0.2}


def mnist() -> ImageData:
    return images.hub("ylecun/mnist", in_memory=True)


def cifar10() -> ImageData:
    return images.hub("uoft-cs/cifar10", in_memory=True)


def cifar100() -> ImageData:
    return images.hub("uoft-cs/cifar100", label="fine_label", in_memory=True)


DATA = {
    "digits": Source(images.digits, scales=("smoke", "small")),
    "mnist": Source(mnist, scales=("full",)),
    "cifar10": Source(cifar10, scales=("full",)),
    "cifar100": Source(cifar100, scales=("full",)),
}

_DT_SMALL = {
    "block": _SMALL_BLOCK, "blocks": 5, "embeddings": ["one_hot"], "dim": 20, "eta": 0.1, "batch": 128,
    "weight_decay": 1e-3, "largest": 16, "runs": 5, "w": 0.5, "head_scale": 5.0,
}  # fmt: skip


@PAPER.claim(
    "Blocks trained apart by NoProp-DT reach the accuracy of end-to-end backpropagation through the same blocks",
    arms=("backprop", "aligned_backprop", "noprop_dt", "single_block"),
    expect=[
        not_worse("noprop_dt", than="backprop", metric="accuracy", margin=0.015),
        not_worse("noprop_dt", than="aligned_backprop", metric="accuracy", margin=0.015),
        not_worse("noprop_dt", than="single_block", metric="accuracy", margin=0.015),
        shown(higher("noprop_dt", than="backprop", metric="accuracy_equal_epochs")),
    ],
    setup={
        "smoke": Setup(
            **_DT_SMALL | {"embeddings": ["one_hot", "learned", "prototype"], "blocks": 2, "batch": 30, "runs": 2},
            epochs={"noprop_dt": 1, "backprop": 2, "aligned_backprop": 1, "single_block": 1}, train=60, val=20, test=40,
        ),
        "small": Setup(
            **_DT_SMALL, epochs={"noprop_dt": 30, "backprop": 40, "aligned_backprop": 30, "single_block": 30},
            train=1000, val=200, test=1000,
        ),
        "full": Setup(
            **_DT_SMALL
            | {
                "block": _PAPER_BLOCK, "blocks": 10, "embeddings": ["one_hot", "learned", "prototype"], "largest": None,
            },
            epochs={"noprop_dt": 150, "backprop": 150, "aligned_backprop": 150, "single_block": 150},
            train=None, val=None, test=None,
        ),
    },
    data=DATA,
    tune={"lr": [3e-4, 1e-3, 3e-3, 1e-2, 3e-2]},
    tune_by="val_accuracy",
    tune_seeds=1,
    seeds={"smoke": 1, "small": range(10, 20), "full": 3},
    version=2,
    worst={"accuracy": 0.0},
    timeout=1800,
    reported=(
        "Table 1, one-hot: MNIST 99.47 beside backprop's 99.46, CIFAR-10 79.25 beside 79.92, CIFAR-100 45.93 beside "
        "45.85; 20 learned dimensions 99.49 / 99.43, 79.12 / 79.30, 45.19 / 46.57; prototypes 99.54 / 99.44, "
        "80.54 / 79.58, 46.06 / 47.80"
    ),
    notes=(
        "An epoch of NoProp-DT trains every block on all examples and costs what an epoch of backpropagation through "
        "all blocks costs. The paper's chain, `backprop`, starts from a head of random weights, which prefers one "
        "embedding for several classes; the chain then merges these classes and stayed at 0.48 to 0.79 on "
        "exploratory seeds at w = 0, 0.1, 0.5 and 2, rates from 1e-3 to 3e-3, batches of 32 and 128, with and "
        "without dropout, up to 120 epochs. Beating it alone would be beating a cripple. `aligned_backprop` is the "
        "same chain with a head that starts by reading each class off its own embedding (`aligned_head`): at equal "
        "epochs it learns the digits to 0.985, so that backpropagation through softmaxes is not what fails. "
        "`single_block`, one block without label path, needs neither chain nor noise and does as well as either: "
        "this claim says that training apart loses at most 1.5 points, not that it gains any. `backprop` has 40 "
        "epochs, the others 30; `accuracy_equal_epochs` is its accuracy after 30. `trained` is 1 above 0.95, so its "
        "mean is the fraction of seeds that trained; `inference_sd` is the scatter over the five runs of inference. "
        "lr is chosen on 200 validation images by every arm from one grid, where the paper fixes 1e-3: 30 epochs of "
        "7 batches need larger steps. At `full` all arms have 150 epochs, the paper 100 on MNIST. Version 1 had five "
        "seeds, too few: it held on one processor and was undecided on another, where rounding alone chose another "
        "rate for `single_block`. With ten, training apart costs 0.8 points, within the margin."
    ),
    helps=not_worse("noprop_dt", than="backprop", metric="accuracy", margin=0.015),
)  # fmt: skip
def dt_matches_backprop(trial: Trial, data: ImageData) -> dict[str, float]:
    setup = trial.setup
    data = _fitted(data, setup, trial.device)
    found = {kind: _train_dt_arm(trial, data, kind) for kind in setup.embeddings}
    mean = {name: fmean(scores[name] for scores in found.values()) for name in next(iter(found.values()))}
    if len(found) > 1:
        mean |= {f"{name}_{kind}": found[kind][name] for kind in found for name in found[kind]}
    return mean


def _train_dt_arm(trial: Trial, data: ImageData, kind: str) -> dict[str, float]:
    setup = trial.setup
    epochs, equal = _epochs(trial), setup.epochs["noprop_dt"]
    if trial.arm == "single_block":
        scores = _train_plain(trial, data)
        return scores if trial.tuning else scores | {"accuracy_equal_epochs": scores["accuracy"]}
    with trial.stream("init"):
        embedding = _embedding(kind, data, setup.dim)
        blocks = [_block(data, setup, embedding.dim) for _ in range(setup.blocks)]
        head = nn.Linear(embedding.dim, data.num_classes)
    if trial.arm == "aligned_backprop":
        head = aligned_head(embedding, setup.head_scale)
    if trial.arm == "noprop_dt":
        model = NoPropDT(blocks, embedding, head, eta=setup.eta).to(trial.device)
        _train_noprop(trial, model, data, epochs, torch.optim.AdamW)
        scores = _scores(_Judge(trial, model.predict, setup.runs), data, trial.tuning)
        return scores if trial.tuning else scores | {"accuracy_equal_epochs": scores["accuracy"]}
    chain = BackpropChain(blocks, embedding, head, w=setup.w).to(trial.device)
    judge = _Judge(trial, chain.predict, setup.runs)
    early = []
    _train_end_to_end(trial, chain, data, epochs, at={equal: lambda: early.append(fmean(judge(data.test)))})
    scores = _scores(judge, data, trial.tuning)
    return scores if trial.tuning else scores | {"accuracy_equal_epochs": early[0]}


def _epochs(trial: Trial) -> int:
    epochs = trial.setup.epochs
    return epochs[trial.arm] if isinstance(epochs, dict) else epochs


def _train_end_to_end(
    trial: Trial, model: nn.Module, data: ImageData, epochs: int, at: dict[int, Callable[[], Any]] | None = None
) -> None:
    """Ordinary training by cross-entropy; `at` is called after the given epochs."""
    setup = trial.setup
    optimizer = torch.optim.AdamW(model.parameters(), lr=trial.tuned.lr, weight_decay=setup.weight_decay)
    per_epoch = max(len(data.train) // setup.batch, 1)  # type: ignore[arg-type]
    actions = {epoch * per_epoch: action for epoch, action in (at or {}).items()}

    def watch(step: int, total: int, loss: float, lr: float) -> None:
        if step % per_epoch == 0:
            trial.log(step // per_epoch, loss=loss)
            trial.progress(step, total, loss=loss)
        if step in actions:
            actions[step]()

    with trial.stream("dropout"):
        fit(
            model, data.train, optimizer, epochs=epochs, batch_size=setup.batch, generator=trial.generator("order"),
            callbacks=[watch],
        )  # fmt: skip


@torch.no_grad()
def _labels(model: nn.Module, x: Tensor) -> Tensor:
    return model.eval()(x).argmax(dim=1)


@PAPER.claim(
    "NoProp-DT does as well with learned embeddings, of few dimensions or of prototypes, as with fixed one-hot ones",
    arms=("one_hot", "learned", "prototype"),
    expect=[
        not_worse("learned", than="one_hot", metric="accuracy", margin=0.015),
        not_worse("prototype", than="one_hot", metric="accuracy", margin=0.015),
    ],
    setup={
        "smoke": Setup(**_DT_SMALL | {"blocks": 2, "batch": 30, "runs": 2}, epochs=1, train=60, val=20, test=40),
        "medium": Setup(**_DT_SMALL, epochs=60, train=1000, val=200, test=1000),
        "full": Setup(
            **_DT_SMALL | {"block": _PAPER_BLOCK, "blocks": 10, "largest": None},
            epochs=150, train=None, val=None, test=None,
        ),
    },
    data=DATA | {"digits": Source(images.digits, scales=("smoke", "medium"))},
    tune={"lr": [1e-3, 3e-3, 1e-2, 3e-2, 1e-1]},
    tune_by="val_accuracy",
    tune_seeds=1,
    seeds={"smoke": 1, "small": 5, "full": 3},
    worst={"accuracy": 0.0},
    timeout=1800,
    reported=(
        "Table 1, one-hot / 20 learned dimensions / prototypes: MNIST 99.47 / 99.49 / 99.54, "
        "CIFAR-10 79.25 / 79.12 / 80.54, CIFAR-100 45.93 / 45.19 / 46.06"
    ),
    notes=(
        "The arms start alike but for W and what depends on its size. Each searches the grid of rates, because they "
        "want different ones: on exploratory seeds, after 20 epochs of 7 batches, one-hot embeddings reached 0.972 "
        "at 1e-2, prototypes 0.979 at 3e-2 and 0.874 at 3e-3, 20 learned dimensions 0.964 and 0.885 at 3e-3. Learned "
        "embeddings take longer: while the blocks are still wrong, the denoising error draws the embeddings of some "
        "classes together; the head's cross-entropy parts them again, and after 40 epochs they reached 0.980 and "
        "0.982. With enough epochs for them the claim exceeds the budget of `small`; `medium` takes a quarter of an "
        "hour of one core and has not been run."
    ),
)  # fmt: skip
def dt_embeddings(trial: Trial, data: ImageData) -> dict[str, float]:
    setup = trial.setup
    data = _fitted(data, setup, trial.device)
    with trial.stream("init"):
        embedding = _embedding(trial.arm, data, setup.dim)
        blocks = [_block(data, setup, embedding.dim) for _ in range(setup.blocks)]
        model = NoPropDT(blocks, embedding, eta=setup.eta).to(trial.device)
    _train_noprop(trial, model, data, setup.epochs, torch.optim.AdamW)
    return _scores(_Judge(trial, model.predict, setup.runs), data, trial.tuning)


_BLOCK_COUNTS = (5, 10)


@PAPER.claim(
    "A training step of one block holds about as much less for its backward pass as there are blocks",
    arms=tuple(f"{method}_{count}" for method in ("backprop", "noprop", "checkpointed") for count in _BLOCK_COUNTS),
    expect=[
        *(
            lower(f"noprop_{n}", than=f"backprop_{n}", metric="bytes", transform="log", margin=math.log(0.7 * n))
            for n in _BLOCK_COUNTS
        ),
        shown(
            *(
                lower(f"noprop_{n}", than=f"checkpointed_{n}", metric="bytes", transform="log", margin=math.log(2))
                for n in _BLOCK_COUNTS
            ),
            trend("bytes", against={"backprop_5": 5, "backprop_10": 10}, slope=(0.0, None)),
        ),
    ],
    setup={
        "smoke": Setup(block=_SMALL_BLOCK, batch=32, largest=16, train=32, val=1, test=1),
        "small": Setup(block=_SMALL_BLOCK, batch=128, largest=16, train=128, val=1, test=1),
        "full": Setup(block=_PAPER_BLOCK, batch=128, largest=None, train=128, val=1, test=1),
    },
    data=DATA,
    seeds={"smoke": 1, "small": 3, "full": 3},
    reported=(
        "Table 2, memory of the GPU in GB, one-hot: backprop 0.87 on MNIST, 1.17 on CIFAR-10, 1.73 on CIFAR-100; "
        "NoProp-DT 0.49, 0.64, 1.23, parameters and optimizer included"
    ),
    notes=(
        "Bytes of the storages that autograd keeps from the forward pass, each counted once, without parameters; the "
        "number depends on sizes alone, not on the seed. On digits 4.5 and 8.9 times less with 5 and 10 blocks. The "
        "control `checkpointed` is the same chain with a checkpoint at every block, counted as what stays from the "
        "forward pass and the largest block again: it holds only 15 to 18 % more than NoProp, for one more forward "
        "pass. So what NoProp saves in memory, checkpoints save too; what they do not give is that blocks need not "
        "wait for one another. On a GPU `gpu_peak_mb` is the peak of a step with AdamW; there parameters and moments "
        "of all blocks count, which is why the paper's ratios are below two."
    ),
)
def memory(trial: Trial, data: ImageData) -> dict[str, float]:
    setup = trial.setup
    data = _fitted(data, setup, trial.device)
    method, count = trial.arm.split("_")
    with trial.stream("init"):
        embedding = LabelEmbedding(data.num_classes)
        blocks = [_block(data, setup, embedding.dim) for _ in range(int(count))]
    assert isinstance(data.train, Examples)
    x, y = data.train.take(min(setup.batch, len(data.train)))[:]
    with trial.stream("method"):
        if method == "noprop":
            local = NoPropDT(blocks, embedding).to(trial.device)

            def local_loss(t: int) -> Tensor:
                return local.loss(x, y, t)["total"]

            losses = [partial(local_loss, t) for t in range(1, int(count) + 1)]
            kept = max(saved_tensor_bytes(loss, local.parameters()) for loss in losses)
            return {"bytes": float(kept), **_peak(trial, losses, local)}
        chain = BackpropChain(blocks, embedding, checkpointing=method == "checkpointed").to(trial.device)

        def loss() -> Tensor:
            return F.cross_entropy(chain(x), y)

        kept = saved_tensor_bytes(loss, chain.parameters())
        if method == "checkpointed":  # its backward pass runs one block after another again
            z = torch.randn(len(x), embedding.dim, device=x.device)
            kept += max(saved_tensor_bytes(partial(block, x, z), block.parameters()) for block in chain.blocks)
        return {"bytes": float(kept), **_peak(trial, [loss], chain)}


def _peak(trial: Trial, losses: Iterable[Callable[[], Tensor]], model: nn.Module) -> dict[str, float]:
    """Peak memory of the GPU over training steps with AdamW, parameters and optimizer included."""
    if not trial.device.startswith("cuda"):
        return {}
    optimizer = torch.optim.AdamW(model.parameters())
    torch.cuda.reset_peak_memory_stats()
    for loss in losses:
        optimizer.zero_grad(set_to_none=True)
        loss().backward()
        optimizer.step()
    return {"gpu_peak_mb": torch.cuda.max_memory_allocated() / 2**20}


_CONTINUOUS = {
    "block": _SMALL_BLOCK, "time_embed": 64, "dim": 20, "batch": 32, "weight_decay": 1e-3, "largest": 16, "runs": 5,
}  # fmt: skip


@PAPER.claim(
    "One block trained in continuous time, by diffusion with a learned schedule or by flow matching, learns digits",
    arms=("ct", "fm"),
    expect=[
        threshold("ct", metric="accuracy", above=0.9),
        threshold("fm", metric="accuracy", above=0.93),
        shown(higher("fm", than="ct", metric="accuracy")),
    ],
    setup={
        "smoke": Setup(**_CONTINUOUS | {"batch": 30, "runs": 2}, steps=5, epochs=1, train=60, val=20, test=40),
        "small": Setup(**_CONTINUOUS, steps=100, epochs=100, train=1000, val=200, test=1000),
        "full": Setup(
            **_CONTINUOUS | {"block": _PAPER_BLOCK, "largest": None, "batch": 128},
            steps=1000, epochs=500, train=None, val=None, test=None,
        ),
    },
    data=DATA,
    tune={"lr": {"ct": [1e-3, 3e-3, 1e-2], "fm": [3e-4, 1e-3, 3e-3]}},
    tune_by="val_accuracy",
    tune_seeds=1,
    seeds={"smoke": 1, "small": 5, "full": 3},
    timeout=1800,
    reported=(
        "Table 1, one-hot: NoProp-CT 97.84 on MNIST, 73.35 on CIFAR-10, 33.66 on CIFAR-100; NoProp-FM 99.21, 73.14, "
        "6.38; backpropagation through a neural ODE 98.62, 66.78, 25.03"
    ),
    notes=(
        "The thresholds come from a pilot: `ct` 0.937 and 0.960 on seeds 500 and 501 at lr 3e-3, `fm` 0.974 at 1e-3 "
        "and 0.979 at 3e-3. 0.93 was planned for both; 0.9 is what the pilot of `ct` supports. Batches of 32, "
        "because 40 epochs of 7 batches of 128 left `ct` at 0.64 and `fm` at 0.92. The grids differ by arm so that "
        "each holds its best rate inside. Most of the loss of `ct` lies where little noise is left, and one "
        "optimizer serves all noise levels, where NoProp-DT has one for each: presumably that is why it learns more "
        "slowly. A plain block learns the same digits to 0.99 in far fewer updates (`single_block` of "
        "`dt_matches_backprop`), and in the paper, too, both variants stay below backpropagation. `ct` is at the edge "
        "of what trains: with the same seeds its mean was 0.939 on one processor and 0.899 on another, by rounding."
    ),
)  # fmt: skip
def continuous_variants_train(trial: Trial, data: ImageData) -> dict[str, float]:
    data = _fitted(data, trial.setup, trial.device)
    return _train_continuous(trial, data, trial.arm, "one_hot")


def _train_plain(trial: Trial, data: ImageData) -> dict[str, float]:
    """The classifier of one block without label path, by cross-entropy."""
    setup = trial.setup
    with trial.stream("init"):
        plain = ImageClassifier(data.channels, data.size, data.num_classes, **setup.block).to(trial.device)
    _train_end_to_end(trial, plain, data, _epochs(trial))
    return _scores(_Judge(trial, lambda x, generator: _labels(plain, x), 1), data, trial.tuning)


def _train_continuous(trial: Trial, data: ImageData, variant: str, kind: str) -> dict[str, float]:
    setup = trial.setup
    with trial.stream("init"):
        embedding = _embedding(kind, data, setup.dim)
        block = _block(data, setup, embedding.dim, setup.time_embed)
        model = (NoPropCT if variant == "ct" else NoPropFM)(block, embedding).to(trial.device)
    _train_noprop(trial, model, data, setup.epochs, torch.optim.Adam)
    return _scores(_Judge(trial, partial(model.predict, num_steps=setup.steps), setup.runs), data, trial.tuning)


@PAPER.claim(
    "Where classes are many, flow matching needs learned embeddings: with fixed one-hot ones it hardly learns",
    arms=("one_hot", "learned", "plain"),
    expect=[
        higher("learned", than="one_hot", metric="accuracy", margin=0.05),
        shown("plain", higher("plain", than="learned", metric="accuracy")),
    ],
    setup={
        "smoke": Setup(**_CONTINUOUS | {"batch": 30, "runs": 2}, steps=5, epochs=1, train=60, val=20, test=40),
        "medium": Setup(
            **_CONTINUOUS | {"block": _PAPER_BLOCK, "largest": None, "batch": 128},
            steps=100, epochs=50, train=20_000, val=2_000, test=5_000,
        ),
        "full": Setup(
            **_CONTINUOUS | {"block": _PAPER_BLOCK, "largest": None, "batch": 128},
            steps=1000, epochs=1000, train=None, val=None, test=None,
        ),
    },
    data={
        "digits": Source(images.digits, scales=("smoke",)),
        "cifar100": Source(cifar100, scales=("medium", "full")),
    },
    tune={"lr": [3e-4, 1e-3, 3e-3]},
    tune_by="val_accuracy",
    tune_seeds=1,
    seeds={"smoke": 1, "medium": 3, "full": 3},
    worst={"accuracy": 0.0},
    timeout=6 * 3600,
    reported="Table 1, CIFAR-100: 6.38 one-hot, 31.14 with 20 learned dimensions, 37.57 with prototypes",
    notes=(
        "Ten classes show parity only, so there is no `small`. `medium` takes 20,000 images of CIFAR-100, 50 epochs "
        "and 100 steps of inference, and should take a GPU minutes a trial; it has not been run. `plain` is a block "
        "without label path trained by cross-entropy, for what these blocks can do at all. A failure of one-hot flow "
        "matching on many classes is the paper's finding, not an error of the code."
    ),
)  # fmt: skip
def fm_needs_learned_embedding(trial: Trial, data: ImageData) -> dict[str, float]:
    data = _fitted(data, trial.setup, trial.device)
    if trial.arm == "plain":
        return _train_plain(trial, data)
    return _train_continuous(trial, data, "fm", trial.arm)
