"""Distillation: phase 1 from plain text (`general`), phase 2 from labelled text (`task`)."""
