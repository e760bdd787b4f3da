"""Pictures from evidence, made safe: rewritten from an allow-list, so that nothing in them can run or load."""

import hashlib
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any
from xml.etree import ElementTree

__all__ = ["Figure", "claim_figures", "safe_svg"]

SVG = "http://www.w3.org/2000/svg"
XLINK = "http://www.w3.org/1999/xlink"
ELEMENTS = frozenset(
    [
        *("svg", "g", "defs", "symbol", "use", "title", "desc", "style"),
        *("path", "rect", "circle", "ellipse", "line", "polyline", "polygon", "text", "tspan", "image"),
        *("clipPath", "mask", "marker", "pattern", "linearGradient", "radialGradient", "stop"),
    ]
)
_DOCTYPE = re.compile(r"<!DOCTYPE[^\[>]*>", re.IGNORECASE)
_PICTURE = re.compile(r"data:image/(png|jpeg|gif|webp);base64,[A-Za-z0-9+/=\s]*")
_LOADS = re.compile(r"@import|url\s*\(\s*(?![\"']?#)|image-set|image\s*\(|javascript:|//|\\", re.IGNORECASE)


def safe_svg(text: str) -> str:
    """`text` with only drawing elements and inert attributes left in it.

    Raises:
        ValueError: if `text` is no SVG, declares entities, or is not well-formed.
    """
    bare = _DOCTYPE.sub("", text, count=1).strip()
    if "<!DOCTYPE" in bare.upper() or "<!ENTITY" in bare.upper():
        raise ValueError("a figure must not declare entities")
    try:
        root = ElementTree.fromstring(bare)
        if _name(root) != "svg":
            raise ValueError(f"a figure must be an <svg>, got <{str(root.tag)[:80]}>")
        for element in root.iter():
            for child in [child for child in element if not _drawable(child)]:
                element.remove(child)
            element.attrib = dict(filter(None, (_inert(*item) for item in element.attrib.items())))
            element.tag = _name(element)
        root.set("xmlns", SVG)
        return ElementTree.tostring(root, encoding="unicode")
    except (ElementTree.ParseError, RecursionError) as error:
        raise ValueError(f"a figure is not well-formed SVG: {error}") from None


@dataclass(frozen=True)
class Figure:
    """A picture that a trial kept.

    Attributes:
        name, arm, seed: what it shows.
        path: where it lies in the site; its content decides the name.
        svg: its safe text, empty if it was refused.
    """

    name: str
    arm: str
    seed: str
    path: str
    svg: str


def claim_figures(slug: str, record: Mapping[str, Any]) -> list[Figure]:
    """The figures of a claim's evidence by name; a refused one has no `svg`."""
    found = []
    for name, figure in sorted((record.get("figures") or {}).items()):
        try:
            svg = safe_svg(str(figure.get("svg") or ""))
        except ValueError:
            svg = ""
        digest = hashlib.sha256(svg.encode()).hexdigest()[:12]
        found.append(
            Figure(name, str(figure.get("arm", "")), str(figure.get("seed", "")), f"figures/{slug}-{digest}.svg", svg)
        )
    return found


def _name(element: ElementTree.Element) -> str:
    """The element's name without its namespace; empty if that is not SVG's."""
    space, _, name = str(element.tag).rpartition("}")
    return name if space in ("", f"{{{SVG}") else ""


def _drawable(element: ElementTree.Element) -> bool:
    name = _name(element)
    return name in ELEMENTS and not (name == "style" and _LOADS.search("".join(element.itertext())))


def _inert(name: str, value: str) -> tuple[str, str] | None:
    """The attribute if it neither runs nor loads anything, else None; `xlink:href` becomes `href`."""
    if name in ("href", f"{{{XLINK}}}href"):
        return ("href", value) if value.startswith("#") or _PICTURE.fullmatch(value) else None
    if name.startswith(("{", "xmlns")) or name.lower().startswith("on") or _LOADS.search(value):
        return None
    return name, value
