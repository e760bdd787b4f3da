"""A small textbook of the world of `LesionScenes`, and its corpus.

The sentences describe that generator and are no medical advice. They bear its eight findings, and findings that the
gates have to turn away: some that no picture shows, some that no report mentions, paraphrases, names of the classes.
"""

from etude.science.knobo.retrieval import Corpus

__all__ = ["TEXTBOOK", "textbook"]

TEXTBOOK = """
Criteria for the diagnosis of a malignant skin lesion begin with its outline and its colors.
A malignant lesion shows asymmetry, one half unlike the other.
A malignant lesion has an irregular border.
A malignant lesion displays multiple colors.
A malignant lesion often shows dark pigment.
A malignant lesion exhibits radial streaks.
A malignant lesion may be read at once by an expert, but criteria make the diagnosis teachable.
A malignant lesion contains dots.
A malignant lesion shows a blue-white veil.
A malignant lesion lacks white scale.
A malignant lesion has rapid growth over months.
A malignant lesion has a family history in one patient of ten.
A benign lesion shows white scale.
A benign lesion lacks asymmetry.
A benign lesion has no irregular border.
A benign lesion has no multiple colors.
A benign lesion lacks dark pigment.
A benign lesion shows no radial streaks.
A benign lesion is without surprise: the diagnosis holds at the next visit.
A benign lesion contains no dots.
A benign lesion displays no blue-white veil.
A benign lesion exhibits itching in dry weather.

Asymmetry is judged along two axes drawn through the middle of the photograph.
Asymmetry of a lesion shows that its parts did not grow at one pace.
A lesion with asymmetry often displays an irregular border.
An irregular border has notches and sudden ends.
The irregular border of a lesion is followed around eight segments of its rim.
A lesion with an irregular border often exhibits multiple colors.
Multiple colors are counted from a list of six: tan, two browns, red, white and black.
A lesion with multiple colors often shows dark pigment.
A single even color speaks against multiple colors.
Dark pigment sits high in the skin where it looks black.
A lesion with dark pigment may exhibit radial streaks at its rim.
A photograph taken with too little light imitates dark pigment.
Radial streaks are lines that leave the rim like spokes.
A lesion with radial streaks may contain dots.
Radial streaks all around a small lesion are known from children.
Dots are round specks much smaller than the lesion.
A lesion with dots sometimes displays a blue-white veil.
Dots in the middle weigh less than dots at the rim.
A blue-white veil is a milky patch without structure.
A lesion with a blue-white veil rarely shows white scale.
A blue-white veil is lost when the photograph is printed in gray.
White scale is dry and flakes when it is rubbed.
A lesion with white scale sometimes has ulceration.
White scale hides what lies below it from the camera.

Ulceration shows loss of the surface.
A lesion with ulceration may show branched vessels.
Branched vessels are followed with a lens and little pressure.
A lesion with branched vessels often bleeds when it is touched.
A suspicious lesion shows malignant pigment.
A settled lesion shows benign nests in the tissue that is cut out.
Tissue that was cut out has the last word on the diagnosis.
A lesion in old skin displays irregular borders.
A lesion may display asymmetry of its shape when the skin is stretched.
An itching lesion exhibits itching mostly at night.
Itching is told by the patient and seen by nobody.
Rapid growth is told by two visits, not by one photograph.
A family history is asked for at the first visit.

A camera held at an angle gives a lesion a false outline.
Hospitals differ in their lamps, and so do the tints of their photographs.
The frame of a photograph tells of the camera, not of the patient.
A warm tint of the picture comes from the lamp.
A good photograph is sharp, evenly lit and taken at a known distance.
A ruler beside the lesion makes two visits comparable.
Hair over a lesion is clipped before the photograph is taken.
Oil between the lens and the skin removes the glare.
The expert looks first at the whole and then at the parts.
A check list slows the expert down and helps the beginner.
Two readers agree more often with criteria than without.
A reader who knows the hospital may learn the hospital.
The sum of the findings counts, not any one of them.
Every finding that is absent should be reported, too.
A report names what was seen and what was looked for in vain.
Reports leave out much that was plain to see.
A second opinion costs less than a second operation.
"""


def textbook() -> Corpus:
    """Every sentence a document, with ids t0, t1, ..."""
    return Corpus.from_text(TEXTBOOK, by="sentence", prefix="t")
