"""Teachers that install from a package, where no model hub can be reached."""

from bistil.pretrained.e5_small import e5_small_folder

__all__ = ["e5_small_folder"]
