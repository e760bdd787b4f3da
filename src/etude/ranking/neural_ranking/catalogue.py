"""The models by name, made ready for a collection; and where each stands in the survey's taxonomy."""

from typing import Any

from torch import Tensor

from etude.ranking.neural_ranking.base import MatchingModel
from etude.ranking.neural_ranking.candidates import EncodedTexts
from etude.ranking.neural_ranking.duet import Duet
from etude.ranking.neural_ranking.embeddings import train_embeddings
from etude.ranking.neural_ranking.interaction import ARCII, DRMM, KNRM, ConvKNRM, MatchPyramid
from etude.ranking.neural_ranking.representation import ARCI, CDSSM, DSSM, _Towers
from etude.ranking.neural_ranking.text import trigram_table

__all__ = ["MODELS", "build_model", "taxonomy"]

MODELS: dict[str, type[MatchingModel]] = {
    "dssm": DSSM, "cdssm": CDSSM, "arci": ARCI, "arcii": ARCII, "matchpyramid": MatchPyramid, "drmm": DRMM,
    "knrm": KNRM, "convknrm": ConvKNRM, "duet": Duet,
}  # fmt: skip


def build_model(name: str, texts: EncodedTexts, *, vectors: Tensor | None = None, **options: Any) -> MatchingModel:
    """A model of these texts, with word vectors or trigrams in place.

    Args:
        name: in `MODELS`.
        texts: the documents.
        vectors: word vectors (V, d); PPMI-SVD of the documents if None and the model needs some.
        options: of the model's class.

    Raises:
        ValueError: for an unknown name.
    """
    if name not in MODELS:
        raise ValueError(f"model must be one of {', '.join(MODELS)}, got {name!r}")
    make = MODELS[name]
    words = len(texts.vocabulary)
    if issubclass(make, _Towers) and options.get("inputs", "trigrams") == "trigrams":
        table = trigram_table(texts.vocabulary.tokens, size=options.get("num_trigrams", 30_000))
        return make(words, most_trigrams=table.shape[1], **options).with_trigrams(table)  # type: ignore[call-arg, attr-defined]
    if vectors is None:
        vectors = train_embeddings(texts.tokens, texts.vocabulary, dim=options.get("dim", 100))
    options = {"dim": vectors.shape[1]} | options
    if make is Duet:
        options = {"query_length": texts.query_length, "doc_length": texts.doc_length} | options
    return make(words, **options).with_embeddings(vectors)


def taxonomy() -> dict[str, dict[str, str]]:
    """Model -> focus (representation, interaction, hybrid), symmetry, granularity: sections 4.1 to 4.3 of the survey.

    Symmetric models could swap query and document without a change of structure; asymmetric ones weigh or sum by
    the query's words. `pandas.DataFrame.from_dict(taxonomy(), orient="index")` is the survey's table.
    """
    return {
        name: {"focus": model.focus, "symmetry": model.symmetry, "granularity": model.granularity}
        for name, model in MODELS.items()
    }
