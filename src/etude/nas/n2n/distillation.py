"""Training a student by its teacher's logits (paper, section 3.3; Ba & Caruana, arXiv:1312.6184)."""

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from etude.data.kinds import Examples
from etude.loop import accuracy, fit, outputs_of, seeded
from etude.loop.evaluation import device_of, mode
from etude.nas.n2n.students import digest, initialise

__all__ = ["LOSSES", "Distillation", "distill", "distillation_loss"]

LOSSES = ("mse_logits", "kd", "labels")


def distillation_loss(
    student: Float[Tensor, "rows classes"],
    teacher: Float[Tensor, "rows classes"],
    labels: Int[Tensor, "rows"],
    *,
    loss: str = "mse_logits",
    scale: float | int = 1.0,
    temperature: float | int = 3.0,
    hard: float | int = 0.3,
) -> Float[Tensor, ""]:
    """The mean loss of a student's logits.

    Args:
        student, teacher: logits, before any softmax.
        labels: classes.
        loss: "mse_logits", the mean squared difference of the logits; "kd", (1 - hard) T^2 KL(teacher || student) of
            the softmaxes at temperature T plus `hard` times the cross-entropy with the labels (Hinton et al.,
            arXiv:1503.02531); "labels", that cross-entropy alone.
        scale: both logits are divided by it before they are squared.
        temperature, hard: of "kd".

    Raises:
        ValueError: for an unknown loss.
    """
    if loss == "mse_logits":
        return F.mse_loss(student / scale, teacher / scale)
    if loss == "labels":
        return F.cross_entropy(student, labels)
    if loss == "kd":
        soft = F.kl_div(
            (student / temperature).log_softmax(-1), (teacher / temperature).log_softmax(-1), reduction="batchmean",
            log_target=True,
        )  # fmt: skip
        return (1 - hard) * temperature**2 * soft + hard * F.cross_entropy(student, labels)
    raise ValueError(f"loss must be one of {', '.join(LOSSES)}, got {loss!r}")


def distill(
    student: nn.Module,
    teacher: nn.Module,
    loader: Any,
    *,
    loss: str = "mse_logits",
    lr: float | int = 5e-4,
    weight_decay: float | int = 5e-4,
    epochs: int = 5,
    batch_size: int = 200,
    scale: float | int | None = 1.0,
    generator: torch.Generator | None = None,
    transform: Callable[[tuple[Any, Any]], tuple[Any, Any]] | None = None,
) -> nn.Module:
    """Trains the student in place by Adam; the teacher stays as it is.

    Args:
        student: maps a batch of images to logits.
        teacher: as well; used in evaluation mode and without gradients.
        loader: `Examples`, a dataset of pairs (image, class), or a `DataLoader`.
        loss: as for `distillation_loss`.
        lr, weight_decay, epochs, batch_size: the paper's, but for `epochs` where a final student is trained.
        scale: as for `distillation_loss`; None for the standard deviation of the teacher's logits on these data.
        generator: of the order of the examples; one seeded with 0 if None.
        transform: augmentation of batches; the teacher sees the same views.

    Returns:
        The student.
    """
    return Distillation(
        teacher, loader, None, loss=loss, lr=lr, weight_decay=weight_decay, epochs=epochs, batch_size=batch_size,
        scale=scale, transform=transform,
    ).train(student, generator=generator)  # fmt: skip


@dataclass
class Distillation:
    """Trains students and gives their validation accuracy: what a search calls an evaluation.

        evaluate = Distillation(teacher, data.train, data.val, epochs=5)
        evaluate(student)

    The teacher's logits are computed once, unless batches are augmented. A student's weights, order and dropout depend
    on its architecture and `seed`: equal networks score equally.

    Args:
        teacher: gives logits.
        train_on: what students learn from. val: what they are scored on.
        loss, lr, weight_decay, epochs, batch_size, scale, transform: as for `distill`.
        seed: of the run.

    Raises:
        ValueError: for an unknown loss, or numbers out of range.
    """

    teacher: nn.Module
    train_on: Any
    val: Any
    loss: str = "mse_logits"
    lr: float | int = 5e-4
    weight_decay: float | int = 5e-4
    epochs: int = 5
    batch_size: int = 200
    scale: float | int | None = 1.0
    transform: Callable[[tuple[Any, Any]], tuple[Any, Any]] | None = None
    seed: int = 0
    _prepared: tuple[Any, float] | None = field(default=None, repr=False)

    def __post_init__(self) -> None:
        if self.loss not in LOSSES:
            raise ValueError(f"loss must be one of {', '.join(LOSSES)}, got {self.loss!r}")
        if self.epochs < 0 or self.batch_size < 1 or self.lr <= 0:
            raise ValueError(
                f"epochs must not be negative, batch_size and lr positive, got {self.epochs}, {self.batch_size} and "
                f"{self.lr}"
            )
        if self.scale is not None and self.scale <= 0:
            raise ValueError(f"scale must be positive, got {self.scale}")

    def __call__(self, student: nn.Module) -> float:
        self.fresh(student)
        return accuracy(student, self.val)

    def fresh(self, student: nn.Module, epochs: int | None = None) -> nn.Module:
        """Draws the student's weights by its architecture and `seed`, and trains it."""
        seed = digest(student, self.seed)
        initialise(student, seed)
        with seeded(seed):
            return self.train(student, epochs=epochs, generator=torch.Generator().manual_seed(seed))

    def train(
        self, student: nn.Module, *, epochs: int | None = None, generator: torch.Generator | None = None
    ) -> nn.Module:
        """Trains the student from the weights that it has."""
        examples, scale = self._data()
        parameters = [parameter for parameter in student.parameters() if parameter.requires_grad]
        device = device_of(self.teacher)
        student.to(device)
        fused = device.type in ("cpu", "cuda")
        optimizer = torch.optim.Adam(parameters, lr=self.lr, weight_decay=self.weight_decay, fused=fused)
        fit(
            student, examples, optimizer, loss=partial(self._loss, scale=scale),
            epochs=self.epochs if epochs is None else epochs, batch_size=self.batch_size, generator=generator,
            transform=None if self._ahead else self._views, device=device,
        )  # fmt: skip
        return student

    @property
    def _ahead(self) -> bool:
        return self.transform is None and isinstance(self.train_on, Examples)

    def _data(self) -> tuple[Any, float]:
        """What to train on, with the logits in front of the labels where that can be done once, and the scale."""
        if self._prepared is None:
            scale = self.scale
            examples = self.train_on
            if self._ahead or scale is None:
                logits, labels = outputs_of(self.teacher, self.train_on)
                scale = float(logits.std()) if scale is None else scale
                if self._ahead:
                    targets = torch.cat([logits, labels[:, None].to(logits.dtype)], 1)
                    examples = Examples(self.train_on.inputs, targets.to(self.train_on.inputs.device))
            assert scale is not None
            self._prepared = examples, float(scale)
        return self._prepared

    def _views(self, batch: tuple[Any, Any]) -> tuple[Any, Any]:
        images, labels = batch if self.transform is None else self.transform(batch)
        with mode(self.teacher, training=False), torch.no_grad():
            logits = self.teacher(images)
        return images, torch.cat([logits, labels[:, None].to(logits.dtype)], 1)

    def _loss(self, outputs: Tensor, targets: Tensor, scale: float) -> Tensor:
        return distillation_loss(outputs, targets[:, :-1], targets[:, -1].long(), loss=self.loss, scale=scale)
