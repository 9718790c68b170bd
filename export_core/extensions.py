"""Extensions: a user's own backbones, necks, heads and meta architectures, added by importing their module.

An extension registers modules (:mod:`zooport.export_core.modeling.registry`) and declares config keys
(:func:`zooport.export_core.config.declare_defaults`) when it is imported. Only two kinds are ever imported:
those that the user names, on the command line or in a manifest, and those that an installed distribution
announces under the entry point group ``zooport.extensions``. Nothing that a checkpoint or a config says is
imported. They are imported in the disposable process that needs them, and nowhere else.
"""

from __future__ import annotations

import hashlib
import importlib
import importlib.machinery
import importlib.util
import sys
import traceback
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from importlib.metadata import EntryPoint, PackageNotFoundError, entry_points, packages_distributions, version
from pathlib import Path
from types import ModuleType
from typing import Any

from zooport.export_core.artifacts import file_sha256
from zooport.export_core.diagnosis import diagnose, one_line
from zooport.export_core.failures import Failure, Stage
from zooport.export_core.places import expanded

GROUP = "zooport.extensions"

_CODE_SUFFIXES = (*importlib.machinery.SOURCE_SUFFIXES, *importlib.machinery.EXTENSION_SUFFIXES)
_loaded: set[Path] = set()  # folders and files with the code of extensions in this process


def locate(name: str, base: Path) -> str:
    """Return an extension's name in the form that every process of a run understands.

    Args:
        name: a module (``my_package`` or ``my_package.vision``) that can be imported or that lies in
            ``base``; or a path to one (``./my_package``, ``code/backbone.py``), relative to ``base``.
        base: an absolute directory: that of the manifest, or the current one.

    Returns:
        The module's name if the environment has it, else an absolute path whose last part is that name.

    Raises:
        Failure: ``extension.invalid`` when there is no such module; nothing is imported to find out.
    """
    is_path = "/" in name or name.endswith(".py")
    path = base / expanded(name) if is_path else base / name
    if is_path and path.suffix == ".py":
        path = path.with_suffix("")
    if not name or not all(part.isidentifier() for part in path.name.split(".")):
        raise _invalid(name, "this is not the name of a module", "name a package, or the path of one")
    path = path.parent.resolve() / path.name
    source = _source(path)
    if not is_path and _is_installed(name, source):
        return name
    if source is not None:
        return str(path)
    where = f"{path.parent} holds no module {path.name.split('.')[0]!r}"
    if is_path:
        raise _invalid(name, where, "name a .py file or a folder with __init__.py")
    raise _invalid(
        name, f"it is not installed, and {where}", "install it, or name its path, such as ./my_package"
    )


def load(imports: Iterable[str] = ()) -> None:
    """Import the installed extensions, then those named, each once.

    Args:
        imports: what :func:`locate` returned.

    Raises:
        Failure: ``extension.invalid`` naming the extension, the error and the line that raised it.
    """
    for point in _points():
        named = f"{point.name} of {_distribution(point)}"
        with _importing(named, "repair or uninstall it: it is announced as an extension of zooport"):
            point.load()
        _remember(sys.modules.get(point.module.split(".")[0]))
    for name in imports:
        with _importing(name, "repair it, or leave it out"):
            _remember(_import(name))


@contextmanager
def active(imports: Iterable[str] = ()) -> Iterator[None]:
    """Load extensions; within, an exception that their code raises is ``extension.invalid`` with its line."""
    load(imports)
    try:
        yield
    except Failure:
        raise
    except Exception as error:
        place = raised_by_extension(error)
        if place is None or diagnose(error, None).code.startswith("resource."):
            raise
        raise Failure(
            "extension.invalid",
            f"{one_line(error)}, at {place}",
            hint="the extension's own code raised this; the log holds the stack trace",
        ) from error


def raised_by_extension(error: BaseException) -> str | None:
    """Return "file:line" of the innermost step of an exception that is in an extension, None without one."""
    for frame in reversed(traceback.extract_tb(error.__traceback__)):
        path = Path(frame.filename)
        if any(path == root or path.is_relative_to(root) for root in _loaded):
            return f"{frame.filename}:{frame.lineno}"
    return None


def identities(imports: Sequence[str] = ()) -> dict[str, str]:
    """Return the code of the installed and the named extensions: top-level module -> sha256 of its files.

    Nothing is imported. Equal digests mean that the extensions do the same, as far as their own files say.
    """
    names = [point.module for point in _points()]
    return {
        **{_top(name): _digest(name) for name in names},
        **{_top(name): _digest(name) for name in imports},
    }


def describe(imports: Sequence[str] = ()) -> list[dict[str, Any]]:
    """Return entries for model.json: module, sha256 of its code, and version where it is installed."""
    found = identities(imports)
    installed = packages_distributions() if found else {}
    return [
        {"module": name, "version": _version(installed.get(name, [])), "sha256": digest}
        for name, digest in found.items()
    ]


def _points() -> list[EntryPoint]:
    return sorted(entry_points(group=GROUP), key=lambda point: (point.name, point.value))


def _distribution(point: EntryPoint) -> str:
    return point.dist.name if point.dist is not None else point.value


def _import(name: str) -> ModuleType:
    path = Path(name)
    if not path.is_absolute():
        importlib.import_module(name)
        return sys.modules[_top(name)]
    # Behind everything else, so that what lies beside the extension hides no module of that name.
    if str(path.parent) not in sys.path:
        sys.path.append(str(path.parent))
        importlib.invalidate_caches()
    importlib.import_module(path.name)
    module = sys.modules[_top(name)]
    source = _source(path)
    if source is None or not any(_is_same(root, source) for root in _roots(module)):
        origin = getattr(module, "__file__", None) or "Python itself"
        raise ImportError(f"another module of this name was found first, in {origin}")
    return module


def _is_same(first: Path, second: Path) -> bool:
    return first.resolve() == second.resolve()


@contextmanager
def _importing(name: str, hint: str) -> Iterator[None]:
    try:
        yield
    except (Exception, SystemExit) as error:
        place = _place(error)
        raise _invalid(name, one_line(error) + (f", at {place}" if place else ""), hint) from error


def _place(error: BaseException) -> str:
    """Return the innermost "file:line" that is not of the import machinery."""
    if isinstance(error, SyntaxError) and error.filename:
        return f"{error.filename}:{error.lineno}"
    frames = traceback.extract_tb(error.__traceback__)
    machinery = (__file__, importlib.__file__)
    own = [
        frame
        for frame in frames
        if not frame.filename.startswith("<frozen") and frame.filename not in machinery
    ]
    ours = Path(__file__).parent
    outside = [frame for frame in own if not Path(frame.filename).is_relative_to(ours)]
    return f"{outside[-1].filename}:{outside[-1].lineno}" if outside else ""


def _invalid(name: str, problem: str, hint: str) -> Failure:
    return Failure(
        "extension.invalid",
        f"extension {name}: {problem}",
        stage=Stage.LOAD,
        hint=hint,
        details={"extension": name},
    )


def _remember(module: ModuleType | None) -> None:
    if module is not None:
        _loaded.update(_roots(module))


def _roots(module: ModuleType) -> list[Path]:
    folders = [Path(each) for each in getattr(module, "__path__", ())]
    file = getattr(module, "__file__", None)
    return folders or ([Path(file)] if file else [])


def _top(name: str) -> str:
    return Path(name).name.split(".")[0]


def _source(path: Path) -> Path | None:
    """Return the file or package folder of the module at ``path``, None when there is none."""
    top = path.with_name(path.name.split(".")[0])
    if (top / "__init__.py").is_file():
        return top
    files = (top.with_name(top.name + suffix) for suffix in _CODE_SUFFIXES)
    return next((file for file in files if file.is_file()), None)


def _is_installed(name: str, local: Path | None) -> bool:
    """Whether the environment has the module, other than by having been started beside ``local``."""
    roots = _installed_roots(name)
    return bool(roots) and not any(local is not None and _is_same(root, local) for root in roots)


def _installed_roots(name: str) -> list[Path]:
    """Return the package folder or the file of a module that can be imported; nothing is imported for it."""
    top, *rest = name.split(".")
    try:
        spec = importlib.util.find_spec(top)
    except (ImportError, ValueError):
        return []
    if spec is None:
        return []
    if spec.origin is not None:
        return [Path(each) for each in spec.submodule_search_locations or (spec.origin,)]
    # A folder without __init__.py, shared by several distributions: the part below it is meant.
    places = [Path(each, *rest[:1]) for each in spec.submodule_search_locations or () if rest]
    return [source for place in places if (source := _source(place)) is not None]


def _digest(name: str) -> str:
    path = Path(name)
    source = _source(path) if path.is_absolute() else None
    digest = hashlib.sha256()
    for root in _installed_roots(name) if source is None else [source]:
        for file in _code_files(root):
            relative = file.relative_to(root) if file != root else Path(file.name)
            digest.update(f"{relative.as_posix()}\0{_file_digest(file)}\n".encode())
    return digest.hexdigest()


def _file_digest(file: Path) -> str:
    try:
        return file_sha256(file)
    except OSError as error:  # importing it will say so
        return f"unreadable: {error.errno}"


def _code_files(root: Path) -> list[Path]:
    if root.is_file():
        return [root]
    files = (path for path in root.rglob("*") if path.name.endswith(_CODE_SUFFIXES) and path.is_file())
    return sorted(files)


def _version(distributions: Sequence[str]) -> str | None:
    for name in distributions:
        try:
            return version(name)
        except PackageNotFoundError:
            continue
    return None
