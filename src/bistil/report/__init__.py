"""Records in, tables and one offline HTML file out."""

from bistil.report.page import write_report
from bistil.report.schema import (
    AgreementRecord,
    CurveRecord,
    DataRecord,
    ModelRecord,
    StageRecord,
    Summary,
    load_summary,
    save_summary,
    summary_from,
)
from bistil.report.table import print_benchmark, print_table

__all__ = [
    "AgreementRecord",
    "CurveRecord",
    "DataRecord",
    "ModelRecord",
    "StageRecord",
    "Summary",
    "load_summary",
    "print_benchmark",
    "print_table",
    "save_summary",
    "summary_from",
    "write_report",
]
