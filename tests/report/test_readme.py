from pathlib import Path

import pytest

from etude.report import claims_page, readme_in_sync, update_readme, verdict_table
from etude.report.readme import BEGIN, END


@pytest.fixture
def readme(tmp_path: Path) -> Path:
    path = tmp_path / "README.md"
    path.write_text(f"# etude\n\n{BEGIN}\nbefore\n{END}\n\nThe end.\n", encoding="utf-8")
    return path


def test_the_table_has_a_row_for_each_paper_with_its_verdicts(registry: list, evidence: dict, freshness: dict):
    lines = verdict_table(registry, evidence, freshness).splitlines()
    rows = [line for line in lines if line.startswith("| ") and "---" not in line and "What it does" not in line]
    assert len(rows) == len(registry)
    assert all(row.count("|") == 6 for row in rows)
    row = next(row for row in rows if "#gradient_noise" in row)
    cells = [cell.strip() for cell in row.strip("|").split("|")]
    assert cells[1] == "2015"
    assert cells[3].startswith("[✓ ")
    assert "docs/verdicts.md#gradient_noise" in cells[3]
    assert any(line == "### Training" for line in lines)


def test_the_page_has_a_row_for_each_claim(registry: list, evidence: dict, freshness: dict):
    lines = claims_page(registry, evidence, freshness).splitlines()
    rows = [line for line in lines if line.startswith("| ") and "---" not in line and "| Verdict |" not in line]
    assert len(rows) == 7
    assert all(row.count("|") == 6 for row in rows)
    row = next(line for line in rows if "badly" in line or "bad initialisation" in line)
    cells = [cell.strip() for cell in row.strip("|").split("|")]
    assert cells[1] == "✓ holds"
    assert cells[2].startswith("+0.8")
    assert cells[2].endswith("(1 of 2)")
    assert cells[3] == "6"
    assert any("✗ fails (stale)" in line for line in rows)
    assert any("– not run | – | – | –" in line for line in rows)
    assert '<a id="gradient_noise"></a>' in lines


def test_the_deciding_contrast_is_the_one_with_the_verdict(registry: list, evidence: dict, freshness: dict):
    record = evidence["gradient_noise"]["claims"]["gradient_noise/poor_initialisation"]
    record["status"] = record["contrasts"][1]["status"] = "fails"
    record["contrasts"][1].update(effect=-0.5, low=-0.6, high=-0.4)
    assert "-0.50 [-0.60, -0.40] (1 of 2)" in claims_page(registry, evidence, freshness)


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
    registry[0]["summary"] = registry[0]["claims"][0]["says"]
    for text in (claims_page(registry, {}, {}), verdict_table(registry, {}, {})):
        _harmless(next(line for line in text.splitlines() if "javascript" in line))


def _harmless(line: str):
    assert END not in line
    assert "<script>" not in line
    assert r"a \| b" in line
    assert r"\[x\]" in line
