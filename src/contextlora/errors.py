"""Errors that a user can mend."""


class UserError(ValueError):
    """A mistake the user can mend; the CLI prints it in one line and exits with 2."""


class ConfigError(UserError):
    """A configuration key or value that does not fit the schema."""
