"""A user's module with what it imports from beside it: read once, hashed, and run as it was read."""

import ast
import builtins
import hashlib
import importlib
import importlib.util
import random
import sys
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, redirect_stdout
from dataclasses import dataclass, field
from functools import cached_property
from importlib.machinery import ModuleSpec, PathFinder
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

import numpy as np
import torch

from cifar_sweep.errors import StudyError, UsageError

INSTALLED = ("site-packages", "dist-packages")  # folders where what lies beside a module has nothing to do with it
_LOCK = threading.RLock()  # while sys.modules holds the modules of one `UserCode`
_READ: dict[tuple[str, str], "UserCode"] = {}  # by module and fingerprint
_SENT: dict[str, "UserCode"] = {}  # by module


class Source(NamedTuple):
    """A module's file as it was read; without text it is a folder that has no ``__init__.py``."""

    path: str | None
    text: bytes | None
    folders: list[str] | None  # of a package, where its modules lie


@dataclass(eq=False)
class UserCode:
    """A module and those it imports from beside it, apart from other versions of them that this process may know."""

    name: str
    root: Path  # the folder that its modules are found in
    sources: dict[str, Source] = field(default_factory=dict)  # by module
    modules: dict[str, ModuleType] = field(default_factory=dict)  # those that have been run

    def __getstate__(self) -> dict[str, Any]:
        return vars(self) | {"modules": {}}  # for another process, which runs them itself

    @property
    def path(self) -> Path:
        """The file that holds the module itself."""
        return Path(str(self.sources[self.name].path))

    @property
    def files(self) -> dict[str, bytes]:
        """The files as they were read, by their path below `root`."""
        read = ((Path(str(source.path)), source.text) for source in self.sources.values() if source.text is not None)
        return {path.relative_to(self.root).as_posix(): text for path, text in read}

    @cached_property
    def fingerprint(self) -> str:
        """16 hex digits over all files; of a file that imports nothing from beside it the hash of that file."""
        files = sorted(self.files.items())
        hashed = files[0][1] if len(files) == 1 else repr(files).encode()
        return hashlib.sha256(hashed).hexdigest()[:16]

    def module(self) -> ModuleType:
        """The module, run if it was not: what it prints goes to stderr, and what it seeds or draws changes nothing."""
        with self.current():
            if self.name in sys.modules:
                return sys.modules[self.name]
            drawn, numbers = random.getstate(), np.random.get_state()
            try:
                with torch.random.fork_rng(devices=[]), redirect_stdout(sys.stderr):
                    return importlib.import_module(self.name)
            finally:
                random.setstate(drawn)
                np.random.set_state(numbers)

    @contextmanager
    def current(self) -> Iterator[None]:
        """Inside, imports find these modules, and no other version of them."""
        with _LOCK:
            if self in sys.meta_path:
                yield
                return
            theirs = {name: sys.modules.pop(name) for name in self.sources if name in sys.modules}
            sys.modules.update(self.modules)
            sys.meta_path.insert(0, self)
            sys.path.insert(0, str(self.root))  # for compiled modules
            try:
                yield
            finally:
                sys.path.remove(str(self.root))
                sys.meta_path.remove(self)
                self.modules = {name: sys.modules.pop(name) for name in self.sources if name in sys.modules}
                sys.modules.update(theirs)

    def find_spec(self, name: str, path: Sequence[str] | None = None, _target: Any = None) -> ModuleSpec | None:
        """For Python's import: one of these modules. ImportError for another one from beside them: nobody hashed it."""
        if source := self.sources.get(name):
            loader: Any = None if source.text is None else self
            spec = ModuleSpec(name, loader, origin=source.path)
            spec.has_location, spec.submodule_search_locations = source.text is not None, source.folders
            return spec
        if (path is None or name.rpartition(".")[0] in self.sources) and (found := self._beside(name)):
            raise ImportError(f"{found[-1].origin} has to be imported by an import statement, as it is hashed, too")
        return None

    def create_module(self, _spec: ModuleSpec) -> None:
        """For Python's import: a module as all are."""

    def exec_module(self, module: ModuleType) -> None:
        """For Python's import: run a module's text, never a .pyc file, which may be of another one of equal length."""

        def import_(*arguments: Any, **named: Any) -> ModuleType:
            with self.current():  # also when a function of the module imports something, whenever that is called
                return builtins.__import__(*arguments, **named)

        source = self.sources[module.__name__]
        assert source.text is not None
        module.__dict__["__builtins__"] = vars(builtins) | {"__import__": import_}
        exec(compile(source.text, str(source.path), "exec", dont_inherit=True), module.__dict__)  # noqa: S102

    def read(self, name: str) -> None:
        """Read a module, the packages around it, and all that they import from beside them. Raises OSError."""
        for spec in self._beside(name):
            if spec.name not in self.sources:
                folders = spec.submodule_search_locations
                text = Path(spec.origin).read_bytes() if spec.origin else None
                self.sources[spec.name] = Source(spec.origin, text, None if folders is None else list(folders))
                package = spec.name.rpartition(".")[0] if folders is None else spec.name
                for imported in _imports(text or b"", package):
                    self.read(imported)

    def _beside(self, name: str) -> list[ModuleSpec]:
        """The packages around a module that lies beside this one, and the module; none where it does not."""
        parts = name.split(".")
        if parts[0] != self.name.partition(".")[0] and (
            self.root.name in INSTALLED or parts[0] in sys.stdlib_module_names or parts[0] == __name__.partition(".")[0]
        ):
            return []
        found: list[ModuleSpec] = []
        folders: Sequence[str] | None = [str(self.root)]
        for k in range(len(parts)):
            spec = PathFinder.find_spec(".".join(parts[: k + 1]), folders) if folders else None
            if spec is None or not (spec.origin is None or spec.origin.endswith(".py")):
                break
            found.append(spec)
            folders = list(spec.submodule_search_locations or ())
        while found and found[-1].origin is None:
            found.pop()
        return found


def _imports(text: bytes, package: str) -> Iterator[str]:
    """The modules that the import statements of a text name, wherever they stand, and what may be one."""
    try:
        tree = ast.parse(text)
    except (SyntaxError, ValueError):  # importing it says what is wrong
        return
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            name = "." * node.level + (node.module or "")
            if not node.level or (package and node.level <= package.count(".") + 1):
                name = importlib.util.resolve_name(name, package)
                yield from [name, *(f"{name}.{alias.name}" for alias in node.names)]


def take(code: UserCode) -> None:
    """Use this version of a module in this process from now on, whatever lies on the disk here, if anything."""
    _SENT[code.name] = _READ[code.name, code.fingerprint] = code


def user_code(model: str, code: str | None = None) -> UserCode:
    """The module of the function `model` as it lies on the disk, in the current folder first; one sent here before it.

    With the fingerprint `code` the version that this process has read before, if it knows it. UsageError if there is no
    file to be read; StudyError if it is of another fingerprint.
    """
    name = model.partition(":")[0]
    if code is not None and (name, code) in _READ:
        return _READ[name, code]
    try:
        found = _SENT.get(name) or _on_disk(name)
    except OSError as error:
        raise UsageError(f"model {model!r}: {error.filename} cannot be read: {error.strerror}.") from None
    if found is None:
        raise UsageError(
            f"model {model!r}: there is no module {name} in {Path.cwd()} or among the installed ones; accepted: a "
            "Python file as my_module:build, which lies where the command is run."
        )
    if code not in (None, found.fingerprint):
        raise StudyError(f"model {model!r}: {found.path}, or a file it imports, is another one by now; restore it.")
    return found


def _on_disk(name: str) -> UserCode | None:
    """The module of this name; None where it is no Python file. Raises OSError."""
    top = name.partition(".")[0]
    importlib.invalidate_caches()  # a file may be younger than what was cached of its folder
    try:
        spec = PathFinder.find_spec(top, [str(Path.cwd())]) or importlib.util.find_spec(top)
    except ValueError:  # such as __main__, which has none
        spec = None
    place = None if spec is None else next(iter(spec.submodule_search_locations or ()), spec.origin)
    if place is None:
        return None
    code = UserCode(name, Path(place).parent)
    code.read(name)
    if code.sources.get(name, Source(None, None, None)).text is None:
        return None
    there = _READ.get((name, code.fingerprint))
    if there is None or there.root != code.root:
        _READ[name, code.fingerprint] = there = code
    return there
