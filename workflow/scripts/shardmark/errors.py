"""Errors that a user can cause. They appear as one message, never as a traceback."""

from shardmark.escaping import for_terminal


class UserError(Exception):
    """What was wrong, where (config path or cell), and what to do about it."""

    def __str__(self) -> str:
        """The message, escaped: it may contain names and values from other people's files."""
        return for_terminal(super().__str__())


class ConfigError(UserError):
    """One or more mistakes in the configuration; the message lists each one with its path."""
