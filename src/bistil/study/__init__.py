"""Studies: what a paper claims, tested: systems x languages x students x seeds, planned and made like a run."""

from bistil.report.studies import mean_gap
from bistil.study.plan import Study, study_at
from bistil.study.points import Only, Point
from bistil.study.run import forecast, make_points, measure_shapes

__all__ = ["Only", "Point", "Study", "forecast", "make_points", "mean_gap", "measure_shapes", "study_at"]
