"""Run folder in, `report.md` and one self-contained `report.html` out."""

from onepolicy.report.build import Report, pipeline_report, run_report, write_report
from onepolicy.report.tables import Table

__all__ = ["Report", "Table", "pipeline_report", "run_report", "write_report"]
