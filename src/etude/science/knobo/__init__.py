"""KnoBo: a classifier through clinically named yes/no concepts, grounded on reports and pulled towards a textbook.

Yang, Gandhi, Wang, Wu, Yao, Callison-Burch, Gee & Yatskar, "A Textbook Remedy for Domain Shifts: Knowledge Priors for
Medical Image Analysis", NeurIPS 2024, arXiv:2405.14839. p(y | x) = softmax(W g(x) + b) with g(x) in [0, 1]^M.

- the structure prior, `generation`: concepts read out of documents by retrieval and a language model, through gates;
- the grounding, `annotation` and `grounding`: one small classifier a concept, trained on images with reports;
- the parameter prior, `prior` and `classifier`: W is pulled towards the signs that the documents state;
- `protocol`, `baselines`, `backbones`: the confounded evaluation and what it is compared with;
- `estimator`: all of it on images, reports and labels; `lesions` and `textbook`: a world in which all is known.
"""

from etude.science.knobo.annotation import ModelAnnotator, PhraseAnnotator, annotate_reports
from etude.science.knobo.backbones import ImageClassifier, language_shaped_encoder, untrained_feature_probe
from etude.science.knobo.baselines import (
    DotProductBottleneck,
    HybridLayer,
    LinearProbe,
    PosthocHybridCBM,
    random_grounding,
)
from etude.science.knobo.classifier import Explanation, KnoBoClassifier, Reason
from etude.science.knobo.concepts import Bottleneck, Concept, GenerationReport
from etude.science.knobo.encoders import (
    ContrastivePretrainer,
    ConvEncoder,
    OpenCLIPEncoder,
    TextEncoder,
    contrastive_loss,
    encode_images,
)
from etude.science.knobo.estimator import KnoBo
from etude.science.knobo.gates import ClassNameGate, GroundableGate, UniqueGate, VisibleGate, standard_gates
from etude.science.knobo.generation import generate_bottleneck, prompted_bottleneck
from etude.science.knobo.grounding import GroundingFunctions, unit_features
from etude.science.knobo.language import LanguageModel, parse_concepts
from etude.science.knobo.lesions import (
    CLASSES,
    FINDINGS,
    RISK,
    LesionScenes,
    Scenes,
    ceiling,
    lesion_bottleneck,
    lesion_prior,
)
from etude.science.knobo.plots import plot_domains, plot_explanation, plot_weights
from etude.science.knobo.prior import KnowledgePrior, prior_loss
from etude.science.knobo.protocol import DomainScores, confounded_split, domain_scores
from etude.science.knobo.retrieval import BM25Retriever, Corpus, DenseRetriever, Document, Hit
from etude.science.knobo.rules import RuleBasedModel
from etude.science.knobo.textbook import TEXTBOOK, textbook

__all__ = [
    "CLASSES",
    "FINDINGS",
    "RISK",
    "TEXTBOOK",
    "BM25Retriever",
    "Bottleneck",
    "ClassNameGate",
    "Concept",
    "ContrastivePretrainer",
    "ConvEncoder",
    "Corpus",
    "DenseRetriever",
    "Document",
    "DomainScores",
    "DotProductBottleneck",
    "Explanation",
    "GenerationReport",
    "GroundableGate",
    "GroundingFunctions",
    "Hit",
    "HybridLayer",
    "ImageClassifier",
    "KnoBo",
    "KnoBoClassifier",
    "KnowledgePrior",
    "LanguageModel",
    "LesionScenes",
    "LinearProbe",
    "ModelAnnotator",
    "OpenCLIPEncoder",
    "PhraseAnnotator",
    "PosthocHybridCBM",
    "Reason",
    "RuleBasedModel",
    "Scenes",
    "TextEncoder",
    "UniqueGate",
    "VisibleGate",
    "annotate_reports",
    "ceiling",
    "confounded_split",
    "contrastive_loss",
    "domain_scores",
    "encode_images",
    "generate_bottleneck",
    "language_shaped_encoder",
    "lesion_bottleneck",
    "lesion_prior",
    "parse_concepts",
    "plot_domains",
    "plot_explanation",
    "plot_weights",
    "prior_loss",
    "prompted_bottleneck",
    "random_grounding",
    "standard_gates",
    "textbook",
    "unit_features",
    "untrained_feature_probe",
]
