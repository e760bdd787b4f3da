"""The four gates that a proposed concept passes, in their order.

1. visible: such a picture can answer it; 2. unique: it paraphrases no accepted concept; 3. it names no class;
4. groundable: on a sample of reports the rarer of the answers yes and no makes up at least a tenth of both.
"""

from abc import ABC, abstractmethod
from collections.abc import Sequence

from etude.science.knobo.annotation import Annotator, annotate_reports
from etude.science.knobo.language import LanguageModel, answer_of, unique_prompt, visual_prompt
from etude.science.knobo.text import content

__all__ = ["ClassNameGate", "Gate", "GroundableGate", "UniqueGate", "VisibleGate", "standard_gates"]


class Gate(ABC):
    """Lets a question through or not; `name` is what rejections are filed under."""

    name: str

    @abstractmethod
    def __call__(self, question: str, accepted: Sequence[str]) -> bool:
        """Whether the question may join those accepted before it."""


class VisibleGate(Gate):
    """A language model says whether a picture of the modality can answer the question."""

    name = "visible"

    def __init__(self, model: LanguageModel, modality: str):
        self.model, self.modality = model, modality

    def __call__(self, question: str, accepted: Sequence[str]) -> bool:
        return answer_of(self.model(visual_prompt(self.modality, question))) == "yes"


class UniqueGate(Gate):
    """A language model says whether the question differs from those accepted; the same words never pass twice."""

    name = "unique"

    def __init__(self, model: LanguageModel):
        self.model = model

    def __call__(self, question: str, accepted: Sequence[str]) -> bool:
        if not accepted:
            return True
        if question in accepted:
            return False
        return answer_of(self.model(unique_prompt(question, accepted))) == "yes"


class ClassNameGate(Gate):
    """Turns away a question with all the words of a class's name.

    The paper asks the language model to avoid them; its code has a check that the loop does not call.
    """

    name = "class name"

    def __init__(self, classes: Sequence[str]):
        self.names = [frozenset(content(name)) for name in classes]

    def __call__(self, question: str, accepted: Sequence[str]) -> bool:
        words = frozenset(content(question))
        return not any(name and name <= words for name in self.names)


class GroundableGate(Gate):
    """The reports must answer the question both ways often enough to learn it.

    With `share` = min(yes, no) / (yes + no), a question passes if share >= `min_share`; unknown answers do not count,
    and a question that no report answers is turned away.

    Args:
        reports: a sample (the paper takes 100), at least one.
        annotator: reads them.
        min_share: in (0, 0.5].
    """

    name = "groundable"

    def __init__(
        self,
        reports: Sequence[str],
        annotator: Annotator | None = None,
        min_share: float | int = 0.1,
    ):
        if not reports:
            raise ValueError("the gate needs at least one report")
        if not 0 < min_share <= 0.5:
            raise ValueError(f"min_share must lie in (0, 0.5], got {min_share}")
        self.reports, self.annotator, self.min_share = tuple(reports), annotator, min_share

    def share(self, question: str) -> float:
        """The rarer answer's share; 0 if no report answers."""
        answers = annotate_reports(self.reports, [question], self.annotator)
        yes, no = int((answers == 1).sum()), int((answers == -1).sum())
        return min(yes, no) / (yes + no) if yes + no else 0.0

    def __call__(self, question: str, accepted: Sequence[str]) -> bool:
        return self.share(question) >= self.min_share


def standard_gates(
    model: LanguageModel,
    classes: Sequence[str],
    reports: Sequence[str],
    *,
    modality: str,
    annotator: Annotator | None = None,
) -> tuple[Gate, ...]:
    """The paper's four gates in its order."""
    return (VisibleGate(model, modality), UniqueGate(model), ClassNameGate(classes), GroundableGate(reports, annotator))
