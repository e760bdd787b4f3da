"""The structure prior: a bottleneck read out of documents (section 3.1).

Queries begin with the class names. For each, the retriever is asked "MODALITY QUERY diagnosis criteria"; documents
that were used before are dropped, the best ten kept, and a language model turns them into concepts. Each concept that
passes the gates becomes a query of a later round.
"""

from collections import deque
from collections.abc import Sequence

from etude.science.knobo.concepts import Bottleneck, Concept, GenerationReport
from etude.science.knobo.gates import Gate
from etude.science.knobo.language import LanguageModel, parse_concepts, propose_prompt
from etude.science.knobo.retrieval import Retriever

__all__ = ["generate_bottleneck", "prompted_bottleneck"]


def generate_bottleneck(
    classes: Sequence[str],
    retriever: Retriever,
    proposer: LanguageModel,
    gates: Sequence[Gate],
    *,
    modality: str,
    subject: str = "lesion",
    num_concepts: int = 200,
    max_rounds: int = 2000,
    depth: int = 50,
    keep: int = 10,
) -> Bottleneck:
    """Concepts with provenance; fewer than asked for if the documents run out.

    Args:
        classes: names of the diagnoses, at least one: the first queries.
        retriever: finds documents.
        proposer: any callable from prompt to text, asked for lines `question | document id | reference sentence`.
        gates: all must let a question through; a question is filed under the first that does not.
        modality: what the pictures are, as "chest X-ray". subject: what is looked at in them.
        num_concepts, max_rounds: when to stop.
        depth: documents retrieved a query. keep: of these, the best not used before.

    Raises:
        ValueError: for no class, counts below 1, or if no concept at all passes.
    """
    _check(classes, num_concepts=num_concepts, max_rounds=max_rounds, depth=depth, keep=keep)
    queries, accepted = deque(classes), _Accepted(gates, num_concepts)
    used: set[str] = set()
    rounds = 0
    while queries and rounds < max_rounds and not accepted.full:
        query = queries.popleft()
        rounds += 1
        hits = retriever.retrieve(f"{modality} {query} diagnosis criteria", depth)
        documents = [hit.document for hit in hits if hit.document.id not in used][:keep]
        if not documents:
            continue
        used.update(document.id for document in documents)
        answer = proposer(propose_prompt(modality, subject, query, documents))
        queries.extend(accepted.add(*parse_concepts(answer, documents, query)))
    return accepted.bottleneck("retrieved", rounds)


def prompted_bottleneck(
    classes: Sequence[str],
    proposer: LanguageModel,
    gates: Sequence[Gate],
    *,
    modality: str,
    subject: str = "lesion",
    num_concepts: int = 200,
) -> Bottleneck:
    """The baseline without documents: the model is asked once a class for what it knows (no provenance)."""
    _check(classes, num_concepts=num_concepts)
    accepted = _Accepted(gates, num_concepts)
    for name in classes:
        accepted.add(*parse_concepts(proposer(propose_prompt(modality, subject, name, ())), (), name))
    return accepted.bottleneck("prompted", len(classes))


def _check(classes: Sequence[str], **counts: int) -> None:
    if isinstance(classes, str) or not classes:
        raise ValueError(f"classes must be a list of at least one name, got {classes!r}")
    for name, value in counts.items():
        if value < 1:
            raise ValueError(f"{name} must be positive, got {value}")


class _Accepted:
    """Concepts that passed, and what happened to the others."""

    def __init__(self, gates: Sequence[Gate], limit: int):
        self.gates, self.limit = gates, limit
        self.concepts: list[Concept] = []
        self.rejected: dict[str, list[str]] = {gate.name: [] for gate in gates}
        self.proposed = self.dropped = 0

    @property
    def full(self) -> bool:
        return len(self.concepts) >= self.limit

    def add(self, candidates: Sequence[Concept], dropped: int) -> list[str]:
        """The questions that passed."""
        self.dropped += dropped
        self.proposed += len(candidates)
        passed = []
        for concept in candidates:
            if self.full:
                break
            questions = [other.question for other in self.concepts]
            stopped = next((gate for gate in self.gates if not gate(concept.question, questions)), None)
            if stopped is not None:
                self.rejected[stopped.name].append(concept.question)
            elif concept.question not in questions:
                self.concepts.append(concept)
                passed.append(concept.question)
        return passed

    def bottleneck(self, name: str, rounds: int) -> Bottleneck:
        report = GenerationReport(rounds, self.proposed, self.dropped, self.rejected)
        if not self.concepts:
            raise ValueError(f"no concept passed the gates: {report}")
        return Bottleneck(tuple(self.concepts), name, report)
