"""`python -m bistil`."""

from bistil.cli import main

main()
