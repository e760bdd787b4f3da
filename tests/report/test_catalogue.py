import subprocess
import sys

import pytest

from etude.report.catalogue import anchors, catalogue, reference, zone


@pytest.mark.parametrize(
    ("contrast", "expected"),
    [
        ({"kind": "higher", "margin": 0.1}, (0.1, None)),
        ({"kind": "lower", "margin": 0.0}, (0.0, None)),
        ({"kind": "interaction", "margin": 0.2}, (0.2, None)),
        ({"kind": "not_worse", "margin": 0.02}, (-0.02, None)),
        ({"kind": "efficient", "margin": None, "spec": {"margin": 0.02}}, (-0.02, None)),
        ({"kind": "equivalent", "margin": 0.05}, (-0.05, 0.05)),
        ({"kind": "identity", "spec": {"tolerance": 1e-6}}, (-1e-6, 1e-6)),
        ({"kind": "threshold", "spec": {"above": 0.9, "below": None}}, (0.9, None)),
        ({"kind": "threshold", "spec": {"above": 0.5, "below": None, "transform": "logit"}}, (0.0, None)),
        ({"kind": "trend", "spec": {"slope": [None, -1.0]}}, (None, -1.0)),
        ({"kind": "shape"}, (0.0, None)),
        ({"kind": "of tomorrow"}, None),
    ],
)
def test_the_zone_is_where_the_kind_holds(contrast: dict, expected: tuple | None):
    assert zone(contrast) == expected


def test_only_a_threshold_has_another_reference_than_zero():
    assert reference({"kind": "threshold", "spec": {"above": None, "below": 0.4}}) == 0.4
    assert reference({"kind": "trend", "spec": {"slope": [0.5, 1.0]}}) == 0.0


def test_anchors_are_unique_and_plain():
    names = anchors("dagnn", ["dagnn/depth@cora", "dagnn/depth-cora", "dagnn/<>"])
    assert list(names.values()) == ["depth-cora", "depth-cora-", "claim"]


def test_q_is_adjusted_over_all_claims_that_have_a_p(registry: list, evidence: dict, freshness: dict):
    claims = {claim.id: claim for paper in catalogue(registry, evidence, freshness).papers for claim in paper.claims}
    rescue, memory = claims["gradient_noise/poor_initialisation"], claims["gradient_noise/memory_network"]
    known = [claim for claim in claims.values() if claim.p is not None]
    assert rescue.p is not None
    assert rescue.q == pytest.approx(rescue.p * len(known))
    assert memory.q is not None
    assert memory.q >= memory.p
    assert claims["gradient_noise/restarts"].q is None


def test_papers_come_by_domain_and_slug(registry: list):
    found = catalogue(registry[::-1], {}, {})
    assert list(found.domains) == ["graphs", "plugin", "training", "vision"]
    assert found.counts == {"none": 7}


def test_importing_the_report_needs_neither_torch_nor_jinja():
    code = "import sys, etude.report; sys.exit(bool({'torch', 'jinja2', 'numpy'} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
