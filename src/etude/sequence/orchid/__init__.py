"""Orchid: long convolutions whose kernels are made from the sequence, in place of attention to both sides.

Karami & Ghodsi, "Orchid: Flexible and Data-Dependent Convolution for Sequence Modeling", NeurIPS 2024,
arXiv:2402.18508. Code: github.com/Karami-m/orchid.

    from etude.sequence.orchid import Orchid, OrchidClassifier, OrchidEncoder, OrchidForMaskedLM
    mixer = Orchid(64, max_len=1024)                             # (batch, length, 64) to the same shape
    encoder = OrchidEncoder(64, depth=4, max_len=1024, kind="type2")
    classifier = OrchidClassifier().fit(images, labels)          # needs the extra `run`

A masked language model on token ids of your own, (n, length):

    model = OrchidForMaskedLM(vocab_size, max_len=128)
    optimizer = torch.optim.AdamW(parameter_groups(model, lr=5e-4, weight_decay=0.01))
    masked = lambda batch: mask_tokens(batch[0], mask_id=mask_id, vocab_size=vocab_size, rate=0.3, special=(pad_id,))
    fit(model, Examples(ids, ids), optimizer, loss=masked_lm_loss, transform=masked, epochs=10)   # etude.loop
"""

from typing import Any

from etude.sequence.orchid.encoder import BlockDiagonalLinear, Encoder, EncoderBlock, OrchidEncoder
from etude.sequence.orchid.equivariance import shift_errors
from etude.sequence.orchid.kernel import KINDS, NONLINEARITIES, OrchidKernel
from etude.sequence.orchid.models import (
    OrchidForMaskedLM,
    OrchidViT,
    PatchClassifier,
    mask_tokens,
    masked_lm_loss,
)
from etude.sequence.orchid.official import load_official
from etude.sequence.orchid.operator import Orchid, parameter_groups
from etude.sequence.orchid.recall import associative_recall
from etude.sequence.orchid.transforms import dct, idct

__all__ = [
    "KINDS",
    "NONLINEARITIES",
    "BlockDiagonalLinear",
    "Encoder",
    "EncoderBlock",
    "Orchid",
    "OrchidClassifier",
    "OrchidEncoder",
    "OrchidForMaskedLM",
    "OrchidKernel",
    "OrchidViT",
    "PatchClassifier",
    "associative_recall",
    "dct",
    "idct",
    "load_official",
    "mask_tokens",
    "masked_lm_loss",
    "parameter_groups",
    "shift_errors",
]


def __getattr__(name: str) -> Any:
    if name == "OrchidClassifier":  # needs scikit-learn: loaded when asked for
        from etude.sequence.orchid.estimator import OrchidClassifier

        return OrchidClassifier
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
