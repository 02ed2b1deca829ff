"""`python -m tagseg` is the command `tagseg`."""

from tagseg.cli.main import main

if __name__ == "__main__":
    main()
