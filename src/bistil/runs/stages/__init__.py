"""The stages of the method, in the paper's order: what each stands on, what it leaves, and which room does the work."""

from bistil.runs.stages.adaptation import Adapt, Adapted, Headed
from bistil.runs.stages.coverage import Cover
from bistil.runs.stages.measuring import Agree, Agreed, Bare, Benchmark, Costs, Evaluate, Guess, Score, Scored
from bistil.runs.stages.phase1 import BilingualStudent, Distil, Distilled
from bistil.runs.stages.phase2 import Copied, Dressed, Exchange, FineTune, Fitted, Static, StaticFitted, Wear
from bistil.runs.stages.selection import Select
from bistil.runs.stages.vocabulary import Restore, Trim, Trimmed

# In the method's order.
__all__ = [  # noqa: RUF022
    "Trim", "Trimmed", "Cover", "Restore",
    "Adapt", "Adapted", "Headed",
    "Distil", "Distilled", "BilingualStudent",
    "Select", "FineTune", "Fitted", "Copied", "Dressed", "Wear", "Exchange", "Static", "StaticFitted",
    "Evaluate", "Scored", "Score", "Guess", "Agree", "Agreed", "Bare", "Benchmark", "Costs",
]  # fmt: skip
