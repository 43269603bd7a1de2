"""The one exception whose message is meant for the user."""


class UserError(Exception):
    """Something that the user can mend; the message is one sentence.

    It names the file, the key or the argument, what was found, what was expected and how to mend
    it. Commands print it after "error: " and exit with status 1; a traceback means a bug.
    """
