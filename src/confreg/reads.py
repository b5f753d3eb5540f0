"""What functions read beside their own source: globals, closures, defaults, and what those read.

A recipe in a notebook's cell has no file whose bytes say what it does. Its trace may call a
function of another cell, scale by a number of a third, or close over an array. All of that is part
of what computed a number, so all of it is hashed.
"""

from __future__ import annotations

import functools
import hashlib
import sys
import sysconfig
import types
from collections.abc import Callable, Iterator, Mapping
from typing import Any

DEEPEST = 40
LARGE = 2**26
"""Bytes of an array beyond which its sum and some of its numbers stand for all of them."""
_PLAIN = (str, bytes, int, float, complex, bool, type(None), range, type(Ellipsis))


def digest(function: Callable[..., Any]) -> str:
    """SHA-256 of a function's code and of everything that it can reach by name.

    Code of installed packages counts by its name, not by what is in it.
    """
    return _Reader().read(function)


class _Reader:
    """Reads values as texts that are equal where the values are."""

    def __init__(self) -> None:
        self.seen: dict[int, int] = {}
        self.kept: list[Any] = []  # so that no other object gets the same id meanwhile
        self.found = hashlib.sha256()

    def read(self, value: Any) -> str:
        """Hash a value and what it reaches."""
        for part in self.parts(value, 0):
            self.found.update(part if isinstance(part, bytes) else part.encode())
            self.found.update(b"\0")
        return self.found.hexdigest()

    def parts(self, value: Any, depth: int) -> Iterator[str | bytes]:
        """What a value is made of."""
        if isinstance(value, _PLAIN):
            yield f"{type(value).__name__} {value!r}"
            return
        if id(value) in self.seen:
            yield f"again {self.seen[id(value)]}"
            return
        self.seen[id(value)] = len(self.seen)
        self.kept.append(value)
        if depth > DEEPEST:
            yield f"deep {type(value).__qualname__}"
            return
        yield from self.inside(value, depth + 1)

    def inside(self, value: Any, depth: int) -> Iterator[str | bytes]:
        """What a value holds, by its kind."""
        yield type(value).__qualname__
        if isinstance(value, types.ModuleType):
            yield f"{value.__name__} {getattr(value, '__version__', '')}"
        elif isinstance(value, types.FunctionType):
            yield from self.function(value, depth)
        elif isinstance(value, types.CodeType):
            yield from self.code(value, depth)
        elif isinstance(value, functools.partial):
            yield from self.each([value.func, value.args, value.keywords], depth)
        elif isinstance(value, types.MethodType):
            yield from self.each([value.__func__, value.__self__], depth)
        elif isinstance(value, type):
            yield from self.of_class(value, depth)
        elif hasattr(value, "__array__") and hasattr(value, "dtype"):
            yield from self.array(value)
        elif isinstance(value, Mapping):
            yield from self.each([each for pair in value.items() for each in pair], depth)
        elif isinstance(value, list | tuple):
            yield from self.each(value, depth)
        elif isinstance(value, set | frozenset):
            yield from self.each(sorted(value, key=repr), depth)
        else:
            yield from self.instance(value, depth)

    def each(self, values: Any, depth: int) -> Iterator[str | bytes]:
        """Values one after the other."""
        yield str(len(values))
        for value in values:
            yield from self.parts(value, depth)

    def function(self, function: types.FunctionType, depth: int) -> Iterator[str | bytes]:
        """A function: its code, defaults, closure, and the globals that it names."""
        yield f"{function.__module__}.{function.__qualname__}"
        if _is_installed(function.__globals__.get("__file__")):
            return
        yield from self.parts(function.__code__, depth)
        yield from self.parts(function.__defaults__, depth)
        yield from self.parts(function.__kwdefaults__, depth)
        for cell in function.__closure__ or ():
            try:
                yield from self.parts(cell.cell_contents, depth)
            except ValueError:  # not filled yet
                yield "empty"
        for name in sorted(_names(function.__code__)):
            if name in function.__globals__:
                yield name
                yield from self.parts(function.__globals__[name], depth)

    def code(self, code: types.CodeType, depth: int) -> Iterator[str | bytes]:
        """What code does, whatever its file and its lines."""
        yield code.co_code
        yield " ".join([*code.co_names, *code.co_varnames])
        for constant in code.co_consts:
            yield from self.parts(constant, depth)

    def of_class(self, value: type, depth: int) -> Iterator[str | bytes]:
        """A class: of a package its name, else what stands in it."""
        yield f"{value.__module__}.{value.__qualname__}"
        module = sys.modules.get(value.__module__)
        if _is_installed(getattr(module, "__file__", None)) or value.__module__ == "builtins":
            return
        yield from self.each(list(value.__bases__), depth)
        for name, held in sorted(vars(value).items()):
            if name not in ("__dict__", "__weakref__", "__doc__", "__module__", "__annotations__"):
                yield name
                yield from self.parts(held, depth)

    def array(self, value: Any) -> Iterator[str | bytes]:
        """Numbers, by what they are."""
        import numpy as np

        held = value.detach().cpu().float() if hasattr(value, "detach") else value
        array = np.ascontiguousarray(np.asarray(held))
        yield f"{value.dtype} {array.shape}"
        if array.dtype == object:
            yield repr(array.tolist())
        elif array.nbytes <= LARGE:
            yield array.tobytes()
        else:
            flat = array.reshape(-1)
            yield f"{flat.sum(dtype=np.float64)!r}"
            yield flat[:: -(-array.nbytes // LARGE)].tobytes()

    def instance(self, value: Any, depth: int) -> Iterator[str | bytes]:
        """An object: its class, and what it holds."""
        yield from self.parts(type(value), depth)
        held = getattr(value, "__dict__", None)
        if isinstance(held, dict):
            for name, part in sorted(held.items()):
                yield str(name)
                yield from self.parts(part, depth)
        for name in getattr(type(value), "__slots__", ()):
            if hasattr(value, name):
                yield from self.parts(getattr(value, name), depth)


def _names(code: types.CodeType) -> set[str]:
    """Names that code, or code inside it, may look up among globals."""
    inner = [part for part in code.co_consts if isinstance(part, types.CodeType)]
    return set(code.co_names).union(*map(_names, inner))


def _is_installed(file: str | None) -> bool:
    """Whether a module's file is of a package, Python's own among them."""
    if not file:
        return False
    kept = {sysconfig.get_path(name) for name in ("stdlib", "platstdlib", "purelib", "platlib")}
    own = __file__.rpartition("/")[0]
    return str(file).startswith((*kept, own))
