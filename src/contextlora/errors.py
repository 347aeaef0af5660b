"""Errors that a user can mend, and errors of others in one line."""


class UserError(ValueError):
    """A mistake the user can mend; the CLI prints it in one line and exits with 2."""


class ConfigError(UserError):
    """A configuration key or value that does not fit the schema."""


def first_line(error: BaseException) -> str:
    """What an error says in its first line that is not blank; its type where it says nothing."""
    return next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)
