"""The exceptions that users see: a single line that names what is wrong and how to mend it, or how to go on."""


def printable(text: str, keep: str = "") -> str:
    """Text with control characters and lone surrogates escaped, `keep` excepted: files are not to be trusted."""
    return "".join(
        each if each in keep or each.isprintable() or each == " " else each.encode("unicode_escape").decode()
        for each in text
    )


class UserError(Exception):
    """Bad input; the command line prints it as one line and exits with code 2."""

    def __init__(self, message: str):
        super().__init__(printable(" ".join(message.split())))


class HostLost(Exception):
    """Another host is gone or stands still, or this one does; the command line prints it and exits with code 3."""

    def __init__(self, message: str):
        super().__init__(printable(" ".join(f"{message}; start the same command again on all hosts".split())))


class Terminated(Exception):
    """A run was asked to end and has saved where it is; the command line prints it and exits with code 143."""
