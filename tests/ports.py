"""Ports for process groups of tests."""

from __future__ import annotations

import random
import socket


def unused_port() -> int:
    """A port that nobody listens on, and that Linux gives to nobody who asks for any port."""
    while True:
        port = random.SystemRandom().randrange(20_000, 30_000)
        with socket.socket() as listener:
            try:
                listener.bind(("127.0.0.1", port))
            except OSError:
                continue
        return port
