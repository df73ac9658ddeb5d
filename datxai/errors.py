"""The exception whose message is meant for users, and escaping of text for the terminal."""


class InputError(ValueError):
    """The user's input cannot be used.

    The message is one sentence: which file or setting, what is wrong, what was expected, what to do.
    The command prints it without a traceback and ends with exit status 2.
    """


def escape(text: str) -> str:
    """Text from an untrusted source, such as a header or a file name, made safe for a terminal.

    Control characters, those that change the writing direction, and other unprintable characters are escaped.
    """
    return "".join(c if c.isprintable() or c == "\n" else c.encode("unicode_escape").decode() for c in text)
