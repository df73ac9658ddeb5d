"""The one exception a user is meant to read."""


class InputError(ValueError):
    """Something the user gave cannot be used.

    The message is one sentence: which file or setting, what is wrong, what was expected, what to do.
    The command prints it without a traceback and ends with exit status 2.
    """
