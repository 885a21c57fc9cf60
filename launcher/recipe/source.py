"""What a file is, found by reading it and what it imports: it is never run to find out.

A recipe is a file with a class that descends from `Recipe`, or one that has two of a recipe's
required methods: whoever writes those has meant one. All else is a script.
"""

import ast
import builtins
import itertools
import warnings
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import launcher
from launcher.errors import RecipeError
from launcher.recipe import base as recipe
from launcher.recipe.base import REQUIRED_METHODS

_HOUSE = Path(launcher.__file__).parent
_MAKERS = {"type", "new_class", "make_dataclass"}  # make classes without a `class` statement
_MOST_NAMES = 2000  # followed before giving up: `a = a.b` leads to a.b.b.b…


class _Imported(NamedTuple):
    """A name that comes from a module."""

    level: int  # dots in front of it
    module: str
    name: str  # '' for the module itself


class _Place(NamedTuple):
    """A dotted name, and the file where it means something."""

    path: Path
    name: str


class _Class(NamedTuple):
    """A class of a file."""

    bases: list[str]
    name: str
    methods: set[str]
    lent: set[str]  # what is assigned, and may be a method from elsewhere
    fields: set[str]  # what else is assigned

    @property
    def likely(self) -> bool:
        """Whether it has two of the methods of a recipe, or names for them."""
        return _are_two(self.methods | self.lent | self.fields)


class _Ancestry(NamedTuple):
    """What a class descends from."""

    recipe: bool  # whether it is `Recipe`, among others
    unread: set[str]  # what cannot be read: modules that the file imports, '' for all else


class _Module(NamedTuple):
    """What the names of a file may be."""

    path: Path
    imported: dict[str, set[_Imported]]
    derived: dict[str, set[str]]  # from a class: its bases; from a function: what it returns
    stars: set[_Imported]


_RECIPE = _Place(Path(recipe.__file__), "Recipe")


class Source:
    """A file as it reads, with the files that it imports from `roots`, the first root first."""

    def __init__(self, path: Path, tree: ast.Module, roots: Sequence[Path]) -> None:
        self._path, self._tree, self._roots = path, tree, roots
        self._modules: dict[Path, _Module | None] = {path: _module(path, tree)}

    def is_script(self) -> bool:
        """Whether the file is a script: a configuration with fields for model and loss is none."""
        for one in _classes(self._tree):
            ancestry = self._ancestry(one.bases)
            if ancestry.recipe or _are_two(one.methods):
                return False
            if ancestry.unread and _are_two(one.methods | one.lent):
                return False
        return True

    def refuse_script(self) -> None:
        """Raise RecipeError where the file holds no recipe, as far as can be read."""
        unread: set[str] = set()
        why = ""
        for one in _classes(self._tree):
            if self._may_be_recipe(one):
                return
            unread |= self._ancestry(one.bases).unread - {""}
            why = why or (f": `{one.name}` does not inherit from `Recipe`" if one.likely else "")
        where = f"; `{min(unread)}`, which it imports, cannot be read" if unread else ""
        script = "it is a script, for `launcher run`; " if self.is_script() else ""
        raise RecipeError(
            f"{self._path} has no recipe{why}",
            hint=f"{script}a recipe is a class that inherits from `Recipe`{where}",
        )

    def _may_be_recipe(self, one: _Class) -> bool:
        """Whether a class descends from `Recipe`, or looks like it and cannot be read."""
        ancestry = self._ancestry(one.bases)
        return ancestry.recipe or (one.likely and bool(ancestry.unread))

    def is_recipe(self, statement: ast.ClassDef) -> bool:
        """Whether a class of the file descends from `Recipe`."""
        return self._ancestry(_names(*statement.bases)).recipe

    def _ancestry(self, names: Iterable[str]) -> _Ancestry:
        """Follow names of the file to where they come from."""
        unread: set[str] = set()
        seen: set[_Place] = set()
        todo = [_Place(self._path, name) for name in names]
        while todo and len(seen) < _MOST_NAMES:
            place = todo.pop()
            if place == _RECIPE:
                return _Ancestry(recipe=True, unread=unread)
            if place not in seen:
                seen.add(place)
                for origin in self._origins(place):
                    if isinstance(origin, _Place):
                        todo.append(origin)
                    else:
                        unread.add(origin)
        return _Ancestry(recipe=False, unread=unread | ({""} if todo else set()))

    def _origins(self, place: _Place) -> Iterator[_Place | str]:
        """Give where a dotted name may come from, or what of it cannot be read."""
        module = self._read(place.path)
        first, _, rest = place.name.partition(".")
        if module is None:
            yield str(place.path)
            return
        if first in module.derived:
            names = module.derived[first]
            inner = [*(f"{name}.{rest}" for name in names), rest] if rest else names
            yield from (_Place(place.path, name) for name in inner)
        origins = module.imported.get(first, set())
        if first not in module.derived and not origins:
            origins, rest = module.stars, place.name
            if not origins and not hasattr(builtins, first):
                yield ""
        for origin in origins:
            yield self._imported(module.path, origin, f"{origin.name}.{rest}".strip("."))

    def _imported(self, importer: Path, origin: _Imported, name: str) -> _Place | str:
        """Return where a name in a module is: the longest part of it that is a file is one."""
        start = origin.module.split(".") if origin.module else []
        parts = name.split(".")
        for cut in range(len(parts) - 1, -1, -1):
            if found := self._find(importer, origin.level, [*start, *parts[:cut]]):
                return _Place(found, ".".join(parts[cut:]))
        named = "." * origin.level + ".".join(start or parts[:1])
        return named if importer == self._path else ""

    def _find(self, importer: Path, level: int, parts: list[str]) -> Path | None:
        """Return the file of a module, None where there is none that can be read."""
        roots: Sequence[Path] = self._roots
        if level:
            roots = [importer.parents[level - 1]] if level <= len(importer.parents) else []
        elif parts[:1] == [_HOUSE.name]:
            roots = [_HOUSE.parent]
        for root in roots:
            folder = root.joinpath(*parts)
            for file in (folder / "__init__.py", folder.with_suffix(".py") if parts else folder):
                if file.is_file():
                    return file
        return None

    def _read(self, path: Path) -> _Module | None:
        if path not in self._modules:
            try:
                with warnings.catch_warnings(action="ignore"):  # of other people's files
                    self._modules[path] = _module(path, ast.parse(path.read_bytes()))
            except (OSError, SyntaxError, ValueError, RecursionError):
                self._modules[path] = None
        return self._modules[path]


def _classes(tree: ast.Module) -> list[_Class]:
    """Return all classes of a file, the likeliest recipes first."""
    found = []
    for node in ast.walk(tree):
        if isinstance(node, ast.ClassDef):
            methods = {getattr(member, "name", "") for member in node.body}
            lent = {t for member in node.body if _lends(member) for t in _targets(member)}
            fields = {t for member in node.body for t in _targets(member)}
            found.append(_Class(_names(*node.bases), node.name, methods, lent, fields))
        elif isinstance(node, ast.Call) and len(node.args) > 1 and _makes_a_class(node.func):
            found.append(_Class(_names(*node.args, *node.keywords), "", set(), set(), set()))
    return sorted(found, key=lambda one: not one.likely)


def _lends(member: ast.stmt) -> bool:
    """Whether a statement of a class gives it something by name that may be a method."""
    return isinstance(member, ast.Assign) and not isinstance(member.value, ast.Constant)


def _are_two(names: set[str]) -> bool:
    return len(names & set(REQUIRED_METHODS)) > 1


def _makes_a_class(function: ast.expr) -> bool:
    return any(name.rpartition(".")[2] in _MAKERS for name in _names(function))


def _module(path: Path, tree: ast.Module) -> _Module:
    """Collect what the names of a file may be, in whatever scope and under whatever condition."""
    module = _Module(path, {}, {}, set())
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                whole = alias.name if alias.asname else alias.name.partition(".")[0]
                name = alias.asname or whole
                module.imported.setdefault(name, set()).add(_Imported(0, whole, ""))
        elif isinstance(node, ast.ImportFrom):
            for alias in node.names:
                origin = _Imported(node.level, node.module or "", alias.name)
                if alias.name == "*":
                    module.stars.add(origin._replace(name=""))
                else:
                    module.imported.setdefault(alias.asname or alias.name, set()).add(origin)
        elif isinstance(node, ast.ClassDef):
            module.derived.setdefault(node.name, set()).update(_names(*node.bases))
        elif isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            returned = [n.value for n in ast.walk(node) if isinstance(n, ast.Return) and n.value]
            module.derived.setdefault(node.name, set()).update(_names(*returned))
        for name in _targets(node):
            value = getattr(node, "value", None) or getattr(node, "iter", None)
            module.derived.setdefault(name, set()).update(_names(value) if value else [])
    return module


def _targets(node: ast.AST) -> list[str]:
    """Return the names that an assignment or a loop gives."""
    targets = getattr(node, "targets", None) or [getattr(node, "target", None)]
    nodes = itertools.chain.from_iterable(ast.walk(target) for target in targets if target)
    return [n.id for n in nodes if isinstance(n, ast.Name) and isinstance(n.ctx, ast.Store)]


def _names(*nodes: ast.AST) -> list[str]:
    """Return the dotted names in expressions, each as long as it is."""
    found, todo = [], list(nodes)
    while todo:
        node = todo.pop()
        if name := _dotted(node):
            found.append(name)
        else:
            todo += ast.iter_child_nodes(node)
    return found


def _dotted(node: ast.AST) -> str:
    """Return an expression of the form `a.b.c` as text, '' for any other."""
    parts = []
    while isinstance(node, ast.Attribute):
        parts.append(node.attr)
        node = node.value
    return ".".join([node.id, *reversed(parts)]) if isinstance(node, ast.Name) else ""


def package(path: Path, tree: ast.Module | None = None) -> tuple[Path, str]:
    """Return the folder that holds the package of a file, and the package's name; '' for none.

    It is made of the folders around the file that have an `__init__.py`, and at least of as many
    as the file's relative imports go up.
    """
    tree = tree or ast.parse(path.read_bytes())
    depth = max(
        (node.level for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)), default=0
    )
    around = itertools.takewhile(lambda folder: (folder / "__init__.py").is_file(), path.parents)
    depth = min(max(depth, len(list(around))), len(path.parents) - 1)
    return path.parents[depth], ".".join(path.parts[-1 - depth : -1])
