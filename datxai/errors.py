"""The one exception a user is meant to read, and how it is put on a screen."""


class InputError(ValueError):
    """Something the user gave cannot be used.

    The message is one sentence: which file or setting, what is wrong, what was expected, what to do.
    The command prints it without a traceback and ends with exit status 2.
    """


def escape(text: str) -> str:
    """Text from anywhere, such as a header or the name of a file, as a terminal may show it.

    Control characters, those that turn the direction of writing, and others that are not printable become escapes.
    """
    return "".join(c if c.isprintable() or c == "\n" else c.encode("unicode_escape").decode() for c in text)
