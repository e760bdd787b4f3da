"""Fingerprints: they change with what a trial depends on, and with nothing else."""
# ruff: noqa: E501

import sys
from pathlib import Path

import pytest

from etude.lab import fingerprint

FILES = {
    "__init__.py": "",
    "rooms/__init__.py": "from fp_toys.rooms.layers import Layer as Layer\nfrom fp_toys.rooms.other import Other as Other\n",
    "rooms/layers.py": "import math\n\nSCALE = 2.0\n\nclass Layer:\n    def size(self):\n        return SCALE\n\ndef unrelated():\n    return 1\n",
    "rooms/other.py": "class Other:\n    pass\n",
    "method.py": '"""A method."""\n\nfrom fp_toys.rooms import Layer\n\ndef run():\n    """Runs."""\n    return Layer().size()\n',
    "claims.py": (
        "from fp_toys import method\nfrom fp_toys.rooms import Layer\nfrom fp_toys.loaders import digits, letters\n\n"
        "LIMIT = 3\n\n"
        "@PAPER.claim('it works', data={'digits': digits})\ndef works(trial, data):\n    return method.run() + LIMIT\n\n"
        "def other_claim(trial):\n    return 0\n"
    ),
    "loaders.py": "def digits():\n    return 1\n\ndef letters():\n    return 2\n",
}


@pytest.fixture
def toys(tmp_path, monkeypatch):
    package = tmp_path / "fp_toys"
    for name, text in FILES.items():
        path = package / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setattr(fingerprint, "_OWN_PACKAGES", {"etude", "fp_toys"})
    monkeypatch.setattr(fingerprint, "_SHARED_ROOMS", ("fp_toys.rooms", "fp_toys.loaders"))
    yield package
    sys.modules.pop("fp_toys", None)
    _forget()


def _forget():
    for cached in (fingerprint._module, fingerprint._imports_of, fingerprint._canonical_statement):
        cached.cache_clear()


def fresh_print(function="works"):
    _forget()
    return fingerprint.claim_fingerprint("fp_toys.claims", function)


def edit(package: Path, name: str, old: str, new: str):
    text = (package / name).read_text()
    assert old in text
    (package / name).write_text(text.replace(old, new))


@pytest.mark.parametrize(
    ("name", "old", "new"),
    [
        ("method.py", "return Layer().size()", "return Layer().size() + 1"),
        ("rooms/layers.py", "SCALE = 2.0", "SCALE = 3.0"),
        ("rooms/layers.py", "return SCALE", "return -SCALE"),
        ("claims.py", "LIMIT = 3", "LIMIT = 4"),
        ("claims.py", "method.run() + LIMIT", "method.run() - LIMIT"),
        ("loaders.py", "return 1", "return 3"),
        ("claims.py", "{'digits': digits}", "{'digits': letters}"),
    ],
)
def test_code_that_the_claim_reaches_changes_it(toys, name, old, new):
    before = fresh_print()
    edit(toys, name, old, new)
    assert fresh_print() != before


@pytest.mark.parametrize(
    ("name", "old", "new"),
    [
        ("method.py", '"""Runs."""', '"""Runs well."""'),
        ("method.py", "return Layer", "# why not\n    return  Layer"),
        ("rooms/layers.py", "return 1", "return 2"),
        ("rooms/other.py", "pass", "size = 1"),
        ("loaders.py", "return 2", "return 4"),
        ("claims.py", "'it works'", "'it works well'"),
        ("claims.py", "return 0", "return 1"),
    ],
)
def test_words_and_code_that_it_does_not_reach_leave_it(toys, name, old, new):
    before = fresh_print()
    edit(toys, name, old, new)
    assert fresh_print() == before


def test_the_modules_behind_a_claim_are_listed(toys):
    _forget()
    assert fingerprint.claim_modules("fp_toys.claims", "works") == [
        "fp_toys.claims", "fp_toys.loaders", "fp_toys.method", "fp_toys.rooms.layers",
    ]  # fmt: skip


def test_an_unknown_function_is_named(toys):
    with pytest.raises(ValueError, match="'absent'"):
        fresh_print("absent")


def test_remembered_fingerprints_are_forgotten_when_a_file_changes(toys, tmp_path):
    cache = tmp_path / "cache.json"
    key = ("fp_toys.claims", "works")
    _forget()
    first = fingerprint.cached_fingerprints([key], cache)[key]
    assert fingerprint.cached_fingerprints([key], cache)[key] == first == fresh_print()
    edit(toys, "method.py", "return Layer().size()", "return 7 * Layer().size()")
    _forget()
    assert fingerprint.cached_fingerprints([key], cache)[key] == fresh_print() != first
