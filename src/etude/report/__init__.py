"""The report: the static site, the README's verdict table, and the numbers as the terminal shows them.

It reads cards and evidence as plain data and knows no paper by name. Importing it needs nothing but Python;
building the site needs jinja2 (`pip install 'etude[run]'`).
"""

from etude.report.catalogue import Catalogue, ClaimLine, PaperLine, catalogue
from etude.report.formatting import (
    STATUSES,
    format_effect,
    format_interval,
    format_mean,
    format_number,
    format_p,
    format_seconds,
    format_status,
    format_value,
)
from etude.report.readme import claims_page, readme_in_sync, update_readme, verdict_table
from etude.report.site import Renderer, build_site

__all__ = [
    "STATUSES",
    "Catalogue",
    "ClaimLine",
    "PaperLine",
    "Renderer",
    "build_site",
    "catalogue",
    "claims_page",
    "format_effect",
    "format_interval",
    "format_mean",
    "format_number",
    "format_p",
    "format_seconds",
    "format_status",
    "format_value",
    "readme_in_sync",
    "update_readme",
    "verdict_table",
]
