"""A recipe out of the files that somebody has: what each is, whose language, for what; written with its reasons."""

from bistil.drafting.draft import Draft, draft_recipe
from bistil.drafting.writing import write_draft

__all__ = ["Draft", "draft_recipe", "write_draft"]
