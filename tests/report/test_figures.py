import pytest

from etude.report.figures import claim_figures, safe_svg

OPEN = '<svg xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink" viewBox="0 0 9 9"'


@pytest.mark.parametrize(
    "attack",
    [
        "<script>alert(1)</script>",
        "<foreignObject><p>x</p></foreignObject>",
        '<path onclick="alert(1)" d="M0 0"/>',
        '<image href="https://elsewhere.example/x.png"/>',
        '<image xlink:href="//elsewhere.example/x.png"/>',
        '<use href="other.svg#x"/>',
        '<a href="javascript:alert(1)"><path d="M0 0"/></a>',
        '<set attributeName="href" to="javascript:alert(1)"/>',
        "<style>@import 'https://elsewhere.example/x.css';</style>",
        "<style>path{fill:url(https://elsewhere.example/x)}</style>",
        '<style>a<tspan/>@import "elsewhere.css";</style>',
        '<path style="fill:url(elsewhere.svg#x)" d="M0 0"/>',
        '<image href="data:image/svg+xml;base64,AAAA"/>',
        '<iframe xmlns="http://www.w3.org/1999/xhtml" src="x"/>',
    ],
)
def test_nothing_that_runs_or_loads_is_left(attack: str):
    safe = safe_svg(f'{OPEN} onload="alert(1)">{attack}<rect width="1" height="1"/></svg>')
    assert "<rect" in safe
    for trace in ("alert", "elsewhere", "javascript", "script", "foreign", "iframe", "other.svg", "svg+xml", "import"):
        assert trace not in safe


def test_a_plain_drawing_is_kept():
    picture = (
        '<?xml version="1.0"?><!DOCTYPE svg PUBLIC "-//W3C//DTD SVG 1.1//EN" "http://www.w3.org/x.dtd">'
        f"{OPEN}><metadata>who</metadata><defs><path id='p' d='M0 0'/><style>*{{stroke-linejoin: round}}</style></defs>"
        '<use xlink:href="#p"/><rect style="fill: url(#g); opacity: 0.5" width="4"/>'
        '<image href="data:image/png;base64,iVBORw0KGgo="/><text>a &lt; b</text></svg>'
    )
    safe = safe_svg(picture)
    for kept in ("viewBox", 'href="#p"', "stroke-linejoin", "url(#g)", "data:image/png", "a &lt; b"):
        assert kept in safe
    assert "who" not in safe
    assert "DOCTYPE" not in safe


def test_a_matplotlib_figure_survives():
    matplotlib = pytest.importorskip("matplotlib")
    matplotlib.use("svg")
    import io

    from matplotlib.figure import Figure

    figure, stream = Figure(figsize=(2, 1)), io.StringIO()
    figure.add_subplot().plot([0, 1, 2], [1, 3, 2])
    figure.savefig(stream, format="svg")
    safe = safe_svg(stream.getvalue())
    assert safe.count("<use") == stream.getvalue().count("<use")
    assert "purl.org" not in safe


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "well-formed"),
        ("<svg", "well-formed"),
        ("<p>text</p>", "must be an <svg>"),
        ('<!DOCTYPE svg [<!ENTITY a "aaaa">]><svg>&a;</svg>', "entities"),
        ('<html xmlns="http://www.w3.org/1999/xhtml"/>', "must be an <svg>"),
        ("<svg>" + "<g>" * 5000 + "</g>" * 5000 + "</svg>", "well-formed"),
    ],
)
def test_what_is_no_drawing_is_refused(text: str, message: str):
    with pytest.raises(ValueError, match=message):
        safe_svg(text)


def test_a_refused_figure_keeps_its_name():
    figures = claim_figures(
        "slug", {"figures": {"b": {"svg": "nonsense"}, "a": {"arm": "x", "seed": 1, "svg": f"{OPEN}/>"}}}
    )
    assert [(figure.name, bool(figure.svg)) for figure in figures] == [("a", True), ("b", False)]
    assert figures[0].path.startswith("figures/slug-")
