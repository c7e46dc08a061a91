"""The errors a user can cause. They are shown as one message, never as a traceback."""

from shardmark.escaping import for_terminal


class UserError(Exception):
    """What was wrong, where (config path or cell), and what to do about it."""

    def __str__(self) -> str:
        """The message, in which names and values may come from files of others."""
        return for_terminal(super().__str__())


class ConfigError(UserError):
    """One or more mistakes in the configuration; the message lists every one by its path."""
