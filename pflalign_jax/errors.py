"""The base of every error whose message is for the user."""


class UserError(Exception):
    """Something that the user can mend; the message names it, its value and what to do.

    Commands print the message of such an error as one line; any other error is a bug and keeps its
    traceback.
    """
