"""`etude new`: the files of a paper, with what goes where."""

from __future__ import annotations

import keyword
import re
from pathlib import Path

from etude.commands.parsing import BadUsage
from etude.lab.registry import load_registry

__all__ = ["create"]

_NAME = re.compile(r"[a-z][a-z0-9_]*")

_METHOD = '''\
"""What the method is, in one line.

Authors, "Title", venue or arXiv number, year.

What it computes, with the equations that the code points back to:

    y = x                                                                                               (1)
"""

from jaxtyping import Float
from torch import Tensor, nn

__all__ = ["{name}"]


class {name}(nn.Module):
    """What it does to its input, and how it composes with a model of the user's.

    Args:
        dim: number of features, > 0.

    Raises:
        ValueError: if `dim` is not positive.
    """

    def __init__(self, dim: int):
        super().__init__()
        if dim <= 0:
            raise ValueError(f"dim must be positive, got {{dim}}")
        self.dim = dim

    def forward(self, x: Float[Tensor, "batch dim"]) -> Float[Tensor, "batch dim"]:
        """Eq. (1)."""
        return x
'''

_CLAIMS = '''\
"""Claims of "Title"."""

import torch
from torch import nn

from etude.lab import Paper, Setup, Trial, higher
from {method} import {name}

__all__ = ["PAPER"]

PAPER = Paper(
    slug="{slug}",
    domain="{domain}",
    title="Title",
    authors="Authors",
    year=2000,
    arxiv="",  # or venue=
    summary="",  # one sentence in plain words: what the method does
    methods=("{method}",),
    usage="""\\
import torch
from {method} import {name}
print({name}(8)(torch.randn(4, 8)).shape)
""",
    notes="",  # what a user must know; what `small` cannot decide
    extra="run",
)


@PAPER.claim(
    "One sentence that asserts something of the method",
    arms=("plain", "{slug}"),
    expect=[higher("{slug}", than="plain", metric="accuracy")],
    setup={{
        "smoke": Setup(steps=3, dim=8),
        "small": Setup(steps=1_000, dim=8),
        "full": Setup(steps=100_000, dim=8),
    }},
    tune={{"lr": [0.01, 0.1, 1.0]}},
    tune_by="val_accuracy",
    reported="",  # the paper's own figure, and where it stands
)
def headline(trial: Trial) -> dict[str, float]:
    dim = trial.setup.dim
    with trial.stream("data"):
        inputs = torch.randn(3 * 200, dim)
        targets = (inputs.square().sum(dim=1) > dim).float()
    with trial.stream("init"):
        parts = [nn.Linear(dim, 32), nn.ReLU(), nn.Linear(32, 1)]
    model = nn.Sequential(*parts) if trial.arm == "plain" else nn.Sequential({name}(dim), *parts)
    optimizer = torch.optim.SGD(model.parameters(), lr=trial.tuned.lr)
    train, val, test = (slice(start, start + 200) for start in (0, 200, 400))
    for step in range(trial.setup.steps):
        optimizer.zero_grad()
        loss = nn.functional.binary_cross_entropy_with_logits(model(inputs[train]).squeeze(1), targets[train])
        loss.backward()
        optimizer.step()
        trial.progress(step, trial.setup.steps)

    def accuracy(part: slice) -> float:
        with torch.no_grad():
            return ((model(inputs[part]).squeeze(1) > 0) == targets[part].bool()).float().mean().item()

    return {{"accuracy": accuracy(test), "val_accuracy": accuracy(val)}}
'''

_TESTS = '''\
"""Properties of {name}: one test for each that shows the method right."""

import pytest
import torch

from etude.testing import check_paper
from {method} import {name}


def test_it_equals_a_naive_reference():
    pytest.fail("write the equations as plain loops here, and compare")


def test_it_becomes_something_known_in_a_limit():
    pytest.fail("which value of which argument makes it the identity, a convolution, a mean?")


def test_gradients_match_finite_differences():
    module, x = {name}(3).double(), torch.randn(2, 3, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(module, x)
    pytest.fail("does this reach every parameter and every branch?")


def test_a_dim_that_is_not_positive_is_refused():
    with pytest.raises(ValueError, match="got 0"):
        {name}(0)


def test_the_paper_conforms():
    check_paper("{slug}")
'''

_PROJECT = """\
[build-system]
requires = ["hatchling>=1.24"]
build-backend = "hatchling.build"

[project]
name = "etude-{dashed}"
version = "0.1.0"
requires-python = ">=3.11"
dependencies = ["etude[run]"]

[project.entry-points."etude.papers"]
{slug} = "etude_{slug}.claims:PAPER"

[tool.hatch.build.targets.wheel]
packages = ["src/etude_{slug}"]
"""


def create(slug: str, domain: str, output: Path | None) -> str:
    """Writes the files of a new paper; says which, and what to do with them.

    Args:
        slug: names the module, the claims file, the tests and the page.
        domain: the room of the method.
        output: folder for a package of its own that brings the paper as a plug-in; the checkout's rooms if None.

    Raises:
        BadUsage: for a bad or taken slug, an unknown domain, or a file that exists already; nothing is written then.
        FileNotFoundError: outside a checkout, without `output`.
    """
    _check_names(slug, domain)
    files, steps = _plug_in(slug, domain, output) if output is not None else _rooms(slug, domain, checkout())
    existing = [str(path) for path in files if path.exists()]
    if existing:
        raise BadUsage(f"{', '.join(existing)} exists already; nothing was written")
    for path, text in files.items():
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
    return "\n".join([*(f"wrote {path}" for path in files), "", "What to do next:", *(f"  {step}" for step in steps)])


def checkout() -> Path:
    """The root of the checkout that this package runs from."""
    root = Path(__file__).resolve().parents[3]
    if not (root / "pyproject.toml").is_file() or not (root / "src" / "etude").is_dir():
        raise FileNotFoundError(
            "etude new writes into a checkout of the project; with --output FOLDER it writes a plug-in"
        )
    return root


def _check_names(slug: str, domain: str) -> None:
    for what, name in (("slug", slug), ("domain", domain)):
        if not _NAME.fullmatch(name) or keyword.iskeyword(name):
            raise BadUsage(
                f"a {what} is lower-case letters, digits and underscores, and no Python keyword; got {name!r}"
            )
    taken = {row["slug"]: row["module"] for row in load_registry()}
    if slug in taken:
        raise BadUsage(f"the slug {slug} is taken by {taken[slug]}")


def _rooms(slug: str, domain: str, root: Path) -> tuple[dict[Path, str], list[str]]:
    package = root / "src" / "etude"
    rooms = sorted(path.parent.name for path in (package / "claims").glob("*/__init__.py"))
    if domain not in rooms:
        raise BadUsage(f"unknown domain {domain!r}; the domains are {', '.join(rooms)}")
    if (package / domain / slug).exists():
        raise BadUsage(f"{package / domain / slug} exists already; nothing was written")
    method = package / domain / f"{slug}.py"
    claims = package / "claims" / domain / f"{slug}.py"
    tests = root / "tests" / domain / f"test_{slug}.py"
    files = _filled(slug, domain, f"etude.{domain}.{slug}", method, claims, tests)
    return files, [
        f"1. {method.relative_to(root)}: build the method from its equations",
        f"2. {tests.relative_to(root)}: write its properties down; until then the tests fail",
        f"3. {claims.relative_to(root)}: fill in the card, and say what the paper claims",
        f"4. etude run {slug} --scale smoke, then etude run {slug}",
        "5. etude registry; CONTRIBUTING.md has the rest",
    ]


def _plug_in(slug: str, domain: str, output: Path) -> tuple[dict[Path, str], list[str]]:
    package = output / "src" / f"etude_{slug}"
    tests = output / "tests" / f"test_{slug}.py"
    files = _filled(slug, domain, f"etude_{slug}.method", package / "method.py", package / "claims.py", tests)
    files[package / "__init__.py"] = '"""A paper for etude."""\n'
    files[output / "pyproject.toml"] = _PROJECT.format(slug=slug, dashed=slug.replace("_", "-"))
    return files, [
        f"1. pip install -e {output}; `etude list` then shows {slug}",
        f"2. {package / 'method.py'}: build the method from its equations",
        f"3. {tests}: write its properties down; until then the tests fail",
        f"4. {package / 'claims.py'}: fill in the card, and say what the paper claims",
        f"5. etude run {slug} --scale smoke, then etude run {slug}",
    ]


def _filled(slug: str, domain: str, module: str, method: Path, claims: Path, tests: Path) -> dict[Path, str]:
    words = {
        "slug": slug,
        "domain": domain,
        "method": module,
        "name": "".join(part.capitalize() for part in slug.split("_")),
    }
    return {method: _METHOD.format(**words), claims: _CLAIMS.format(**words), tests: _TESTS.format(**words)}
