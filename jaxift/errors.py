"""The one exception that users see: a single line that names what is wrong and how to mend it."""


class UserError(Exception):
    """Bad input; the command line prints it as one line and exits with code 2."""

    def __init__(self, message: str):
        super().__init__(" ".join(message.split()))
