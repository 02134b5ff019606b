"""Compile a text for lanes: its functions are rebound so that the name `lanes` means the lanes wanted.

A text function that calls another text function gets that one bound as well. Nothing is generated or parsed: a bound
function is the same code object with other globals, so line numbers in numba's errors are those of the text.
"""

from __future__ import annotations

from types import CodeType, FunctionType, ModuleType
from typing import TYPE_CHECKING, Any, NoReturn

from gguf_mla import lanes

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

Text = Any
"""A plain function; typing's Callable has no __code__."""

TEXT_PACKAGES = ("gguf_mla.ggtypes", "gguf_mla.codec.feed")


class Unbound:
    """What stands for a name that has no value yet. It refuses every use, so that a forgotten one is noticed."""

    def __init__(self, name: str) -> None:
        self.name = name

    def __repr__(self) -> str:
        return f"unbound({self.name!r})"

    def refuse(self, *_: Any) -> NoReturn:
        """Say its name: TypeError."""
        raise TypeError(f"{self.name} has no value yet: `variant` or a Binder gives it one")


REFUSED = (
    "add", "radd", "sub", "rsub", "mul", "rmul", "truediv", "rtruediv", "floordiv", "rfloordiv", "mod", "rmod", "pow",
    "rpow", "neg", "pos", "abs", "invert", "lshift", "rlshift", "rshift", "rrshift", "and", "rand", "or", "ror", "xor",
    "rxor", "eq", "ne", "lt", "le", "gt", "ge", "bool", "int", "float", "index", "len", "iter", "getitem", "setitem",
    "call",
)  # fmt: skip
for _operation in REFUSED:
    setattr(Unbound, f"__{_operation}__", Unbound.refuse)


def unbound(name: str) -> Any:
    """Return what stands for the global `name` until `variant` or `Binder.rebind` gives it a value."""
    return Unbound(name)


class Binder:
    """Binds texts to the operations of one kind of lanes and compiles every function it meets once."""

    def __init__(self, operations: ModuleType, compile_function: Callable[[FunctionType], Any]) -> None:
        self.operations, self.compile_function = operations, compile_function
        self._bound: dict[Text, Any] = {}

    def helper(self, function: Text) -> Any:
        """Return `function`, compiled for these lanes; the same object for every text that calls it."""
        if function not in self._bound:
            self._bound[function] = self.compile_function(self.rebind(function, {}))
        return self._bound[function]

    def rebind(self, function: Text, names: Mapping[str, Any], label: str | None = None) -> FunctionType:
        """Return `function` with `names` and its own helpers in its globals, called `label` from then on."""
        used = {name: function.__globals__[name] for name in _names(function.__code__) if name in function.__globals__}
        bound = {name: self._bound_value(value) for name, value in used.items() if name not in names}
        scope = {**function.__globals__, **bound, **names}
        copy = _copy(function, scope)
        copy.__qualname__ = label or function.__qualname__
        return copy

    def _bound_value(self, value: Any) -> Any:
        if value is lanes:
            return self.operations
        if isinstance(value, FunctionType) and value.__module__.startswith(TEXT_PACKAGES):
            return self.helper(value)
        return value


def variant(function: Text, **names: Any) -> Any:
    """Return `function` with other globals, in its helpers of the same module too: one search, several rules.

    Functions given as arguments would do, but numba cannot keep kernels on disk that pass functions around.
    """
    scope = {**function.__globals__, **names}
    for name in _names(function.__code__):
        value = function.__globals__.get(name)
        if name not in names and isinstance(value, FunctionType) and _depends(value, function.__module__, names):
            scope[name] = variant(value, **names)
    copy = _copy(function, scope)
    copy.__doc__ = function.__doc__
    # Machine code is linked by qualified name: two variants of one name would be taken for the same function.
    choices = "_".join(f"{name}_{getattr(value, '__name__', value)}" for name, value in sorted(names.items()))
    copy.__qualname__ = f"{function.__qualname__}_with_{choices}"
    return copy


def _copy(function: Text, scope: dict[str, Any]) -> FunctionType:
    return FunctionType(function.__code__, scope, function.__name__, function.__defaults__, function.__closure__)


def _depends(function: Text, module: str, names: Mapping[str, Any]) -> bool:
    """Tell whether a function of `module` uses any of `names`, itself or through its helpers."""
    if function.__module__ != module:
        return False
    used = set(_names(function.__code__))
    helpers = (function.__globals__.get(name) for name in used - set(names))
    return bool(used & set(names)) or any(_depends(h, module, names) for h in helpers if isinstance(h, FunctionType))


def _names(code: CodeType) -> Iterator[str]:
    """Every global name a function uses, also in its comprehensions."""
    yield from code.co_names
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            yield from _names(constant)
