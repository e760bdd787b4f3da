"""A collection as tensors: texts as ids, and of each query the documents that the first stage found."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from etude.ranking.neural_ranking.retrieval import Run
from etude.ranking.neural_ranking.text import Tokenizer, Vocabulary, pad

__all__ = ["Candidates", "EncodedTexts", "GroupSampler"]

Pairs = tuple[Tensor, Tensor, Tensor, Tensor, Tensor]


class EncodedTexts:
    """Documents as padded ids under the vocabulary of the documents, and queries made ready for them.

    Args:
        documents: id -> text.
        tokenizer: text -> tokens.
        query_length, doc_length: longer texts are cut.
        min_df: documents in which a word must occur to be known.
        vocabulary: that of other documents instead, under which these are read.

    Attributes:
        vocabulary: of the documents.
        tokens: of each document, uncut.
        truncated: share of the documents that were cut.
    """

    def __init__(
        self,
        documents: Mapping[str, str],
        *,
        tokenizer: Callable[[str], list[str]] | None = None,
        query_length: int = 30,
        doc_length: int = 500,
        min_df: int = 1,
        vocabulary: Vocabulary | None = None,
    ):
        self.tokenizer = Tokenizer() if tokenizer is None else tokenizer
        self.query_length, self.doc_length = query_length, doc_length
        self.document_ids = tuple(documents)
        self.rows = {document: row for row, document in enumerate(self.document_ids)}
        self.tokens = [self.tokenizer(text) for text in documents.values()]
        self.vocabulary = Vocabulary(self.tokens, min_df=min_df) if vocabulary is None else vocabulary
        self.doc_ids, self.doc_mask, self.truncated = pad([self.vocabulary.ids(row) for row in self.tokens], doc_length)
        self.idf = torch.from_numpy(self.vocabulary.idf).float()

    def encode(
        self, queries: Sequence[str]
    ) -> tuple[Int[Tensor, "queries length"], Bool[Tensor, "queries length"], Float[Tensor, "queries length"]]:
        """Ids, mask and idf of query texts."""
        ids, mask, _ = pad([self.vocabulary.ids(self.tokenizer(query)) for query in queries], self.query_length)
        return ids, mask, self.idf[ids]

    def to(self, device: torch.device | str) -> "EncodedTexts":
        self.doc_ids, self.doc_mask, self.idf = (x.to(device) for x in (self.doc_ids, self.doc_mask, self.idf))
        return self


@dataclass(eq=False)
class Candidates:
    """Of each query the documents to be put in order.

    Args:
        queries: ids.
        texts: the documents.
        query_ids, query_mask, idf: (queries, length).
        docs: (queries, K) rows of documents, best first; 0 where there is none.
        mask: (queries, K) where there is one.
        labels: (queries, K) grades; 0 if not judged.
        first: (queries, K) scores of the first stage, float64.
    """

    queries: list[str]
    texts: EncodedTexts
    query_ids: Tensor
    query_mask: Tensor
    idf: Tensor
    docs: Tensor
    mask: Tensor
    labels: Tensor
    first: Tensor

    @classmethod
    def from_run(
        cls,
        run: Run,
        queries: Mapping[str, str],
        texts: EncodedTexts,
        judgements: Mapping[str, Mapping[str, int]] | None = None,
    ) -> "Candidates":
        """The documents of a run, in its order.

        Raises:
            ValueError: if the run names a query or document that is not there.
        """
        names = list(run)
        most = max([1, *(len(row) for row in run.values())])
        docs, mask = np.zeros((len(names), most), dtype=np.int64), np.zeros((len(names), most), dtype=bool)
        labels, first = np.zeros((len(names), most), dtype=np.float32), np.zeros((len(names), most))
        for place, name in enumerate(names):
            if name not in queries:
                raise ValueError(f"the run names the query {name!r}, which is not there")
            unknown = [document for document in run[name] if document not in texts.rows]
            if unknown:
                raise ValueError(f"the run of query {name!r} names the document {unknown[0]!r}, which is not there")
            ordered = sorted(run[name], key=lambda document: (-run[name][document], document))
            grades = {} if judgements is None else judgements.get(name, {})
            docs[place, : len(ordered)] = [texts.rows[document] for document in ordered]
            mask[place, : len(ordered)] = True
            labels[place, : len(ordered)] = [max(grades.get(document, 0), 0) for document in ordered]
            first[place, : len(ordered)] = [run[name][document] for document in ordered]
        query_ids, query_mask, idf = texts.encode([queries[name] for name in names])
        device = texts.doc_ids.device
        tensors = (query_ids, query_mask, idf, *(torch.from_numpy(x) for x in (docs, mask, labels, first)))
        return cls(names, texts, *(tensor.to(device) for tensor in tensors))

    def rows(self, queries: Sequence[str]) -> Int[Tensor, " chosen"]:
        """Where these queries stand.

        Raises:
            ValueError: if one is not there; the message names it.
        """
        places = {name: row for row, name in enumerate(self.queries)}
        for name in queries:
            if name not in places:
                raise ValueError(f"there are no candidates of the query {name!r}")
        return torch.tensor([places[name] for name in queries], dtype=torch.int64, device=self.docs.device)

    def pairs(self, rows: Int[Tensor, " pairs"], columns: Int[Tensor, " pairs"], *, whole: bool = False) -> Pairs:
        """What a model's forward takes, for these entries of `docs`; no longer than the longest text of them.

        With `whole` queries keep their full length.
        """
        docs = self.docs[rows, columns]
        query_mask, doc_mask = self.query_mask[rows], self.texts.doc_mask[docs]
        query = query_mask.shape[1] if whole else max(int(query_mask.sum(dim=1).max()), 1)
        doc = max(int(doc_mask.sum(dim=1).max()), 1)
        return (
            self.query_ids[rows, :query], self.texts.doc_ids[docs, :doc], query_mask[:, :query], doc_mask[:, :doc],
            self.idf[rows, :query],
        )  # fmt: skip

    def to_run(self, scores: Float[Tensor, "chosen K"], rows: Int[Tensor, " chosen"]) -> Run:
        """Scores of the candidates of these queries, by id."""
        run: Run = {}
        found, docs, mask = scores.double().cpu().numpy(), self.docs[rows].cpu().numpy(), self.mask[rows].cpu().numpy()
        for place, row in enumerate(rows.tolist()):
            run[self.queries[row]] = {
                self.texts.document_ids[docs[place, k]]: float(found[place, k]) for k in np.flatnonzero(mask[place])
            }
        return run


class GroupSampler:
    """Draws groups of one relevant candidate and several that are not, from the first stage's own list.

    Negatives come from where the ranker will have to tell documents apart, and are judged irrelevant or not judged.

    Args:
        candidates: with labels.
        rows: queries to draw from; those without a relevant or without another candidate are left out.
        negatives: n, in a group.
        generator: of the draws; the default generator if None.

    Raises:
        ValueError: if n is below 1 or no query is left.
    """

    def __init__(
        self,
        candidates: Candidates,
        rows: Int[Tensor, " chosen"],
        *,
        negatives: int = 4,
        generator: torch.Generator | None = None,
    ):
        if negatives < 1:
            raise ValueError(f"negatives must be at least 1, got {negatives}")
        relevant = (candidates.labels > 0) & candidates.mask
        others = candidates.mask & ~relevant
        usable = relevant[rows].any(dim=1) & others[rows].any(dim=1)
        if not bool(usable.any()):
            raise ValueError(
                f"none of the {len(rows)} queries has a relevant and another document among its candidates: "
                "there is nothing to learn from"
            )
        self.rows = rows[usable].cpu()
        self.relevant, self.others = relevant[rows[usable]].cpu().float(), others[rows[usable]].cpu().float()
        # Too few others: with replacement, in all groups alike.
        self.replace = int(self.others.sum(dim=1).min()) < negatives
        self.negatives, self.generator = negatives, generator

    def draw(self, batch: int) -> tuple[Int[Tensor, " batch"], Int[Tensor, "batch group"]]:
        """Queries, each as likely as any other, and columns of their candidates, the relevant one first."""
        chosen = torch.randint(len(self.rows), (batch,), generator=self.generator)
        first = torch.multinomial(self.relevant[chosen], 1, generator=self.generator)
        rest = torch.multinomial(
            self.others[chosen], self.negatives, replacement=self.replace, generator=self.generator
        )
        return self.rows[chosen], torch.cat([first, rest], dim=1)
