"""Teachers that install from a package, where no model hub can be reached."""

from bistil.pretrained.e5_small import cache_folder, e5_small_folder

__all__ = ["cache_folder", "e5_small_folder"]
