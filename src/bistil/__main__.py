"""`python -m bistil`."""

from bistil.cli import main

if __name__ == "__main__":
    main()
