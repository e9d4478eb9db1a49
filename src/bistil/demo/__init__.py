"""The demo: a bilingual model out of real data that installs from package registries."""

from bistil.demo.data import DemoData, prepare_demo_data

__all__ = ["DemoData", "prepare_demo_data"]
