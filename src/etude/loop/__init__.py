"""The plain training loop: fit, evaluate, checkpoints, averages, schedules.

    from etude.loop import accuracy, cosine_schedule, fit
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    fit(model, data.train, optimizer, steps=1000, schedule=cosine_schedule(optimizer, 1000, warmup=50))
    print(accuracy(model, data.test))

The functions are plain: they take a model, data and an optimizer, and know nothing of papers or trials. The same
script trains on a CPU, on one GPU, or on several under `accelerate launch`.
"""

from etude.loop.averaging import ExponentialMovingAverage
from etude.loop.evaluation import accuracy, evaluate, mean_loss, outputs_of
from etude.loop.schedule import cosine_schedule
from etude.loop.seeding import seeded
from etude.loop.training import FitResult, fit

__all__ = [
    "ExponentialMovingAverage",
    "FitResult",
    "accuracy",
    "cosine_schedule",
    "evaluate",
    "fit",
    "mean_loss",
    "outputs_of",
    "seeded",
]
