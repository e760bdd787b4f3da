from pathlib import Path

import pytest

from etude.report import readme_in_sync, update_readme, verdict_table
from etude.report.readme import BEGIN, END


@pytest.fixture
def readme(tmp_path: Path) -> Path:
    path = tmp_path / "README.md"
    path.write_text(f"# etude\n\n{BEGIN}\nbefore\n{END}\n\nThe end.\n", encoding="utf-8")
    return path


def test_the_table_has_a_row_for_each_claim(registry: list, evidence: dict, freshness: dict):
    lines = verdict_table(registry, evidence, freshness).splitlines()
    assert len(lines) == 2 + 7
    assert all(line.count("|") == 8 for line in lines)
    row = next(line for line in lines if "badly" in line or "bad initialisation" in line)
    cells = [cell.strip() for cell in row.strip("|").split("|")]
    assert cells[1] == "2015"
    assert cells[3] == "✓ holds"
    assert cells[4].startswith("+0.8")
    assert cells[4].endswith("(1 of 2)")
    assert cells[5] == "6"
    assert any("✗ fails (stale)" in line for line in lines)
    assert any("– not run | – | – | – |" in line for line in lines)


def test_the_deciding_contrast_is_the_one_with_the_verdict(registry: list, evidence: dict, freshness: dict):
    record = evidence["gradient_noise"]["claims"]["gradient_noise/poor_initialisation"]
    record["status"] = record["contrasts"][1]["status"] = "fails"
    record["contrasts"][1].update(effect=-0.5, low=-0.6, high=-0.4)
    assert "-0.50 [-0.60, -0.40] (1 of 2)" in verdict_table(registry, evidence, freshness)


def test_a_round_trip_through_the_readme(readme: Path, registry: list, evidence: dict, freshness: dict):
    table = verdict_table(registry, evidence, freshness)
    assert not readme_in_sync(readme, table)
    assert update_readme(readme, table)
    assert readme_in_sync(readme, table)
    assert not update_readme(readme, table)
    text = readme.read_text(encoding="utf-8")
    assert table in text
    assert text.startswith("# etude\n")
    assert text.endswith("The end.\n")
    assert "before" not in text


def test_windows_line_ends_are_kept(readme: Path):
    readme.write_bytes(f"a\r\n{BEGIN}\r\n{END}\r\n".encode())
    assert update_readme(readme, "| x |\n| - |")
    assert readme.read_bytes() == f"a\r\n{BEGIN}\r\n\r\n| x |\r\n| - |\r\n\r\n{END}\r\n".encode()


@pytest.mark.parametrize("text", ["nothing", BEGIN, f"{END}{BEGIN}", f"{BEGIN}{BEGIN}{END}"])
def test_missing_or_muddled_markers_are_refused(readme: Path, text: str):
    readme.write_text(text, encoding="utf-8")
    with pytest.raises(ValueError, match="must hold"):
        update_readme(readme, "")
    with pytest.raises(ValueError, match="must hold"):
        readme_in_sync(readme, "")


def test_hostile_text_cannot_leave_its_cell(registry: list):
    registry[0]["claims"][0]["says"] = f"a | b\n{END} <script> [x](javascript:y) `c` *d*"
    line = next(line for line in verdict_table(registry, {}, {}).splitlines() if "javascript" in line)
    assert END not in line
    assert "<script>" not in line
    assert r"a \| b" in line
    assert r"\[x\]" in line
