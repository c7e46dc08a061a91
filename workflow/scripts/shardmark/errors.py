"""The errors a user can cause. They are shown as one message, never as a traceback."""


class UserError(Exception):
    """What was wrong, where (config path or cell), and what to do about it."""


class ConfigError(UserError):
    """One or more mistakes in the configuration; the message lists every one by its path."""
