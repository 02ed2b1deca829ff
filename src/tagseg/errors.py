"""The errors that name what the user can mend: data, run folder, disk."""


class DataError(ValueError):
    """Something in the user's data is wrong; the message names file and row and says what was expected."""


class WriteError(OSError):
    """A file could not be written; the message names it and says what to do."""


class RunError(ValueError):
    """The run folder is not in a state that allows what was asked; the message says what to do."""
