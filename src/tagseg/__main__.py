"""`python -m tagseg` is the command `tagseg`."""

from tagseg.cli import main

if __name__ == "__main__":
    main()
