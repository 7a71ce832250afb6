"""Names of extensions: registered, from installed packages, or ``module:Class``.

There is one registry for each kind of extension: routing policies, node schedulers, performance
models, engines, trace formats. A name is resolved

1. among the extensions registered in this process (:meth:`Registry.register`),
2. among the shipped extensions,
3. among the entry points of installed packages,
4. and, if it has a colon, as ``module:attribute`` on the import path or in the current directory.
"""

from __future__ import annotations

import re
import sys
import sysconfig
from collections.abc import Callable, Iterator, Mapping, Sequence
from importlib import import_module, invalidate_caches
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path
from traceback import extract_tb
from typing import Any, Generic, TypeVar, cast

from helixsim.errors import HelixError, InputError

Factory = TypeVar("Factory")

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
_PATH = re.compile(r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)*:[A-Za-z_]\w*")

_LIBRARIES = (*(f"{sysconfig.get_path(name)}/" for name in ("stdlib", "purelib")), __file__)
_registries: dict[str, Registry[Any]] = {}


class UnknownNameError(InputError):
    """No extension has that name, or what the name stands for cannot be imported."""


class Registry(Generic[Factory]):
    """The extensions of one kind by their names.

    Parameters
    ----------
    kind
        Kind of extension, for messages: ``routing policy``.
    group
        Entry-point group of extensions in installed packages.
    shipped
        Name -> ``module:attribute`` of the shipped extensions, imported at their first use.
    attributes
        Names of the attributes that every extension must have; ``__call__`` for factories.
    """

    def __init__(
        self,
        kind: str,
        group: str,
        shipped: Mapping[str, str],
        attributes: Sequence[str] = (),
    ) -> None:
        self.kind = kind
        self.group = group
        self._shipped = dict(shipped)
        self._attributes = tuple(attributes)
        self._registered: dict[str, Factory] = {}
        self._entry_points: dict[str, EntryPoint] | None = None
        _registries[group] = self

    def register(self, name: str, factory: Factory) -> None:
        """Register an extension under a name, in this process.

        Raises
        ------
        InputError
            If the name is that of a shipped extension, or contains characters other than letters,
            digits, ``.``, ``_`` and ``-``; or if the extension lacks a required attribute.
        """
        if not _NAME.fullmatch(name):
            raise InputError(
                f"'{name}' is no name for a {self.kind}: use letters, digits, '.', '_' and '-'"
            )
        if name in self._shipped:
            raise InputError(f"the {self.kind} '{name}' ships with helixsim; take another name")
        self._check_attributes(name, factory)
        self._registered[name] = factory

    def get(self, name: str) -> Factory:
        """The extension of that name.

        Raises
        ------
        UnknownNameError
            If there is none; the message lists the known names and the places searched. Or if it
            cannot be imported, or lacks an attribute that every one must have.
        """
        if name in self._registered:
            return self._registered[name]
        if name in self._shipped:
            return self._import_shipped(name)
        if (entry := self._offered().get(name)) is not None:
            return self._import(name, entry.load)
        if _PATH.fullmatch(name):
            return self._import(name, lambda: _import_path(name))
        raise UnknownNameError(
            f"no {self.kind} '{name}'; there are {', '.join(self.names())} "
            f"(searched: registered in this process, shipped with helixsim, and entry points "
            f"'{self.group}' of installed packages; name your own as module:Class)"
        )

    def make(self, name: str, inputs: object) -> Any:  # noqa: ANN401 - what the factory makes
        """Call the factory of that name.

        Raises
        ------
        InputError
            If there is none, or one that does not ship raises an error: a constructor that takes
            no inputs, for example.
        """
        factory = cast("Callable[[object], Any]", self.get(name))
        if name in self._shipped and name not in self._registered:
            return factory(inputs)
        try:
            return factory(inputs)
        except HelixError:
            raise
        except Exception as error:
            raise InputError(f"the {self.kind} '{name}' cannot be made: {_told(error)}") from error

    def check(self, name: str) -> None:
        """Check that there is an extension of that name, without importing shipped ones.

        Raises
        ------
        UnknownNameError
            As :meth:`get`.
        """
        if name not in self._shipped:
            self.get(name)

    def names(self) -> tuple[str, ...]:
        """The names that can be used: shipped ones in their order, then others, sorted."""
        others = sorted({*self._registered, *self._offered()} - set(self._shipped))
        return (*self._shipped, *others)

    def shipped_names(self) -> tuple[str, ...]:
        """The names that ship."""
        return tuple(self._shipped)

    def __iter__(self) -> Iterator[str]:
        """Iterate over the names that can be used."""
        return iter(self.names())

    def _offered(self) -> dict[str, EntryPoint]:
        if self._entry_points is None:
            found = sorted(entry_points(group=self.group), key=lambda entry: entry.name)
            self._entry_points = {entry.name: entry for entry in found}
        return self._entry_points

    def _import_shipped(self, name: str) -> Factory:
        # Its own import errors are passed on: engines need packages that may not be installed.
        return cast(Factory, by_path(self._shipped[name]))

    def _import(self, name: str, load: Callable[[], object]) -> Factory:
        """Import an extension that does not ship; whatever goes wrong is an error of the user's."""
        try:
            extension = load()
        except (Exception, SystemExit) as error:
            raise UnknownNameError(
                f"the {self.kind} '{name}' cannot be imported: {_told(error)}"
            ) from error
        self._check_attributes(name, extension)
        return cast(Factory, extension)

    def _check_attributes(self, name: str, extension: object) -> None:
        if "__call__" in self._attributes and not callable(extension):
            raise UnknownNameError(
                f"the {self.kind} '{name}' is neither a class nor a function that makes one"
            )
        missing = [each for each in self._attributes if not hasattr(extension, each)]
        if missing:
            raise UnknownNameError(f"the {self.kind} '{name}' has no {', '.join(missing)}")


def _import_path(path: str) -> object:
    here = str(Path.cwd())
    if here not in sys.path:  # a module of the user's own, in the current directory
        sys.path.append(here)
        invalidate_caches()
    return by_path(path)


def _told(error: BaseException) -> str:
    """An error in one line, with the line of the user's module where it arose."""
    told = " ".join(str(error).split())
    if isinstance(error, SyntaxError):
        return told
    if not isinstance(error, ImportError):
        told = f"{type(error).__name__}: {told}"
    frames = [
        frame
        for frame in extract_tb(error.__traceback__)
        if Path(frame.filename).is_file() and not frame.filename.startswith(_LIBRARIES)
    ]
    return f"{told} ({frames[-1].filename}, line {frames[-1].lineno})" if frames else told


def by_path(path: str) -> Any:  # noqa: ANN401 - whatever the path names
    """What ``module:attribute`` names, imported when it is asked for.

    For the few conveniences of low values that are implemented by high modules: a picture of a
    placement, a scenario from a dictionary. Named here, imported nowhere, so that imports run one
    way.
    """
    module, _, attribute = path.partition(":")
    return getattr(import_module(module), attribute)


def registered_here() -> dict[str, dict[str, Any]]:
    """Extensions registered in this process, by entry-point group and name; for workers."""
    return {
        group: dict(registry._registered)
        for group, registry in _registries.items()
        if registry._registered
    }


def register_all(registered: Mapping[str, Mapping[str, Any]]) -> None:
    """Register the result of :func:`registered_here` of another process in this one."""
    for group, factories in registered.items():
        if group in _registries:
            _registries[group]._registered.update(factories)


EMULATED = "emulated"
"""Name of the engine that only waits, as long as the scenario's performance model says."""

ENGINES: Registry[Callable[[Any], Any]] = Registry(
    "engine",
    "helixreal.engines",
    {
        EMULATED: "helixreal.engines.emulated:EmulatedEngine",
        "torch": "helixreal.engines.torch_engine:TorchEngine",
        "vllm": "helixreal.engines.vllm_engine:VllmEngine",
    },
    attributes=("__call__",),
)
"""Makers of engines: called with a :class:`helixreal.engines.engine.EngineSpec`, they load a model
into a :class:`helixreal.engines.engine.Engine`."""


def register_engine(name: str, factory: Callable[[Any], Any]) -> None:
    """Let inventories and ``--engine`` name an engine, in this process.

    Workers are processes of their own: an engine for them comes with an installed package, or is
    named as ``module:Class``.

    Raises
    ------
    InputError
        If the name is taken, or is none.
    """
    ENGINES.register(name, factory)
