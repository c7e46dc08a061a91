"""A file of the user's own: run it, find the class that it defines, describe its mistakes."""

from __future__ import annotations

import contextlib
import hashlib
import importlib.util
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import TypeVar

from shardmark.errors import UserError

Base = TypeVar("Base")
Result = TypeVar("Result")


def load_class(file: str, base: type[Base]) -> type[Base]:
    """Return the one subclass of ``base`` that a file defines.

    Raises:
        UserError: if the file cannot be run, or does not define one complete subclass.
    """
    module = _run(Path(file))
    defined = [
        kind
        for kind in vars(module).values()
        if isinstance(kind, type) and issubclass(kind, base) and kind.__module__ == module.__name__
    ]
    if len(defined) != 1:
        names = ", ".join(kind.__name__ for kind in defined) or "none"
        raise UserError(
            f"{file}: must define one subclass of {base.__module__}.{base.__name__}; it defines "
            f"{names}"
        )
    (kind,) = defined
    if missing := sorted(getattr(kind, "__abstractmethods__", ())):
        raise UserError(f"{file}: {kind.__name__} lacks {', '.join(missing)}")
    return kind


def _run(path: Path) -> ModuleType:
    name = f"shardmark_own_{hashlib.sha256(str(path.absolute()).encode()).hexdigest()[:12]}"
    if name in sys.modules:
        return sys.modules[name]
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    folder = str(path.absolute().parent)
    if folder not in sys.path:
        sys.path.append(folder)  # so that the file can import what is beside it
    sys.modules[name] = module
    try:
        with contextlib.chdir(Path.cwd()):  # the file may change it, and paths may be relative
            spec.loader.exec_module(module)
    except (Exception, SystemExit) as error:
        del sys.modules[name]
        raise UserError(describe_failure(str(path), "the file", error)) from error
    return module


def call_own(file: str, name: str, work: Callable[[], Result]) -> Result:
    """Run code of the user's file, and return its result.

    Args:
        file: the file.
        name: the function, for the message.
        work: calls it.

    Raises:
        UserError: with the function and its line, if it raises.
    """
    try:
        return work()
    except UserError:
        raise
    except (Exception, SystemExit) as error:
        raise UserError(describe_failure(file, name, error)) from error


def describe_failure(file: str, what: str, error: BaseException) -> str:
    """Return what the user's own code raised, with its line."""
    lines = [
        frame.lineno
        for frame in traceback.extract_tb(error.__traceback__)
        if _is_same(frame.filename, file)
    ]
    try:
        text = str(error)
    except Exception:
        text = "(an exception that cannot be printed)"
    if isinstance(error, SyntaxError) and error.filename and _is_same(error.filename, file):
        lines.append(error.lineno)
        text = error.msg
    where = f"line {lines[-1]}: " if lines else ""
    return f"{file}: {where}{what} raised {type(error).__name__}: {text}"


def _is_same(one: str, other: str) -> bool:
    return Path(one).resolve() == Path(other).resolve()
