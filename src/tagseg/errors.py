"""Errors that a user can fix, in data, run folder or on disk."""


class DataError(ValueError):
    """The data is wrong: the message names the file and the row, and says what was expected."""


class WriteError(OSError):
    """A file cannot be written: the message names it and says what to do."""


class RunError(ValueError):
    """The run folder is not ready for this command: the message says why and what to do."""
