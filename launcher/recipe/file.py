"""Recipe files: find them by name or path, read their outline without torch, load them."""

import ast
import shlex
import sys
import typing
from contextlib import suppress
from importlib.util import decode_source
from pathlib import Path
from types import ModuleType
from typing import NamedTuple

from launcher.errors import RecipeError, did_you_mean
from launcher.files import assets
from launcher.recipe.base import Recipe, missing_methods
from launcher.recipe.source import Source, package

MAIN = "__main__.py"  # what `python FOLDER` runs


class RecipeFile(NamedTuple):
    """A recipe's name, where it is, and its text."""

    name: str
    path: Path
    source: str


def bundled() -> list[Path]:
    """Return the recipe files that ship with the package, by name."""
    return sorted(assets("recipes").glob("[!_]*.py"))


def find(name_or_path: str) -> RecipeFile:
    """Find a recipe by bundled name or by path; raises RecipeError with the nearest name.

    A folder stands for the `__main__.py` in it, as for Python, and gives it its name.
    """
    shipped = {path.stem: path for path in bundled()}
    path = shipped.get(name_or_path, Path(name_or_path))
    try:
        inside = (path / MAIN).is_file()
        path, name = (path / MAIN, path.resolve().name) if inside else (path, path.stem)
        source = _text(path) if path.is_file() else None
    except (OSError, UnicodeDecodeError) as error:
        raise RecipeError(f"recipe `{path}` cannot be read: {error}") from error
    if source is None and path.is_dir():
        hint = "name a file in it, or write that one; `launcher resume` goes on with a run"
        raise RecipeError(f"the folder `{path}` has no {MAIN}", hint=hint)
    if source is None:
        beside = [str(file) for file in path.parent.glob("*.py")]
        guess = did_you_mean(name_or_path, [*shipped, *beside])
        raise RecipeError(
            f"there is no recipe `{name_or_path}`",
            hint=f"{guess}`launcher recipes` lists them; any other is named by its file's path",
        )
    if path.suffix == ".ipynb":  # JSON, and so it may even run, and do nothing
        hint = f"`jupyter nbconvert --to script {shlex.quote(str(path))}` makes a program of it"
        raise RecipeError(f"`{path}` is a notebook", hint=hint)
    return RecipeFile(name, path.resolve(), source)


def _text(path: Path) -> str:
    """Return a file as UTF-8, or as what Python takes it for where it is none."""
    try:
        return path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        with suppress(SyntaxError, UnicodeDecodeError):
            return decode_source(path.read_bytes())
        raise error from None


def file_of(recipe_type: type[Recipe]) -> RecipeFile | None:
    """Return the file that a recipe was loaded from, None for one that Python itself found."""
    file: RecipeFile | None = getattr(sys.modules[recipe_type.__module__], "__recipe__", None)
    return file


def is_script(file: RecipeFile) -> bool:
    """Whether a file is a script and no recipe, found by reading it and what it imports.

    Raises RecipeError where it is no Python file.
    """
    tree = _parse(file)
    return _source(file, tree).is_script()


def one_line(file: RecipeFile) -> str:
    """Return the first line of the docstring of the recipe, or of its file; '' without any."""
    tree = _parse(file)
    family = _recipe_family(tree, _source(file, tree))
    text = (family and ast.get_docstring(family[-1])) or ast.get_docstring(tree) or ""
    return text.partition("\n")[0]


def outline(file: RecipeFile) -> type[Recipe]:
    """Return the recipe's class with its hyperparameters, without running the rest of the file.

    Methods are there by name only and third-party imports are left out, so torch is not
    imported. Where the fields need more than that (a base class from another file, a default
    computed with numpy, an `if` around a constant), the file is loaded in full.

    Raises RecipeError for a syntax error, no recipe or two, or a missing method.
    """
    tree = _parse(file)
    source = _source(file, tree)
    source.refuse_script()
    family = _recipe_family(tree, source)
    if not family or any(map(_checks_itself, family)) or not all(map(_only_names, tree.body)):
        return load(file)
    module = _module(file, tree)
    vars(module)["Recipe"] = Recipe
    try:
        for statement in tree.body:
            if _is_standard_import(statement) or isinstance(statement, ast.Assign | ast.AnnAssign):
                _run_if_possible(statement, file, module)
            elif isinstance(statement, ast.ClassDef) and statement in family:
                _run(_without_bodies(statement), file, module)
                typing.get_type_hints(vars(module)[statement.name])
    except Exception:  # noqa: BLE001  # whatever the outline lacks, the whole file has
        return load(file)
    return _checked(module, file)


def load(file: RecipeFile) -> type[Recipe]:
    """Run a recipe file and return its recipe class.

    It may import what is in the folder of its package, else in its own, then what is in the
    current folder. Raises RecipeError for a syntax error, an error while it runs, no recipe or
    two, or a missing method.
    """
    tree = _parse(file)
    _source(file, tree).refuse_script()
    sys.path[:] = _search_path(file, tree)
    module = _module(file, tree)
    try:
        exec(compile(file.source, str(file.path), "exec"), vars(module))  # noqa: S102  # the user's own program
    except RecipeError:
        raise
    except Exception as error:
        raise RecipeError(
            f"recipe `{file.path}` fails when it is loaded: {type(error).__name__}: {error}",
            hint=_where(error, file),
        ) from error
    except SystemExit as error:
        raise RecipeError(
            f"recipe `{file.path}` ends the program when it is loaded",
            hint='what is only for `python FILE` belongs below `if __name__ == "__main__":`',
        ) from error
    return _checked(module, file)


def _parse(file: RecipeFile) -> ast.Module:
    try:
        compile(file.source, str(file.path), "exec")  # finds more than the parser
        return ast.parse(file.source, filename=str(file.path))
    except (SyntaxError, ValueError) as error:
        if not isinstance(error, SyntaxError) or error.lineno is None:  # a NUL byte
            raise RecipeError(f"{file.path} is not a Python file: {error}") from error
        raise RecipeError(
            f"syntax error in {file.path}, line {error.lineno}: {error.msg}",
            hint=(error.text or "").strip() or None,
        ) from error


def _source(file: RecipeFile, tree: ast.Module) -> Source:
    return Source(file.path, tree, [Path(folder) for folder in _search_path(file, tree)])


def _search_path(file: RecipeFile, tree: ast.Module) -> list[str]:
    """Return `sys.path` with what a recipe may import from: the same for all commands.

    Its own folder comes last where it is in a package: modules there may have any name.
    """
    above, _ = package(file.path, tree)
    first = [folder for folder in (str(above), str(Path.cwd())) if folder not in sys.path]
    return list(dict.fromkeys([*first, *sys.path, str(file.path.parent)]))


def _recipe_family(tree: ast.Module, source: Source) -> list[ast.ClassDef]:
    """Return the classes of a file that inherit from `Recipe`, directly or through each other."""
    family: dict[str, ast.ClassDef] = {}
    for statement in tree.body:
        if isinstance(statement, ast.ClassDef):
            bases = {ast.unparse(base).rpartition(".")[2] for base in statement.bases}
            if bases & {"Recipe", *family} and source.is_recipe(statement):
                family[statement.name] = statement
    return list(family.values())


def _checked(module: ModuleType, file: RecipeFile) -> type[Recipe]:
    """Return the one recipe class that a module defines, complete."""
    own = [
        value
        for value in vars(module).values()
        if isinstance(value, type)
        and issubclass(value, Recipe)
        and value.__module__ == module.__name__
    ]
    leaves = [c for c in dict.fromkeys(own) if not any(c in other.__bases__ for other in own)]
    if not leaves:
        raise RecipeError(
            f"{file.path} has no recipe", hint="a recipe is a class that inherits from `Recipe`"
        )
    if len(leaves) > 1:
        names = ", ".join(c.__name__ for c in leaves)
        raise RecipeError(
            f"{file.path} has {len(leaves)} recipes: {names}", hint="keep one in a file"
        )
    recipe_type = leaves[0]
    if missing := missing_methods(recipe_type):
        raise RecipeError(
            f"recipe `{file.name}` lacks {', '.join(f'the method `{m}`' for m in missing)}",
            hint="`launcher recipes copy digits my_recipe.py` gives an example to start from",
        )
    if "__dataclass_params__" not in vars(recipe_type):
        raise RecipeError(
            f"recipe `{recipe_type.__name__}` is not a dataclass",
            hint="write @dataclass(frozen=True) above the class",
        )
    return recipe_type


def _module(file: RecipeFile, tree: ast.Module) -> ModuleType:
    """Return an empty module for a recipe, known to `sys.modules` so that types resolve."""
    module = ModuleType(f"recipe_{file.name}")
    module.__file__ = str(file.path)
    vars(module)["__recipe__"] = file
    _, module.__package__ = package(file.path, tree)
    sys.modules[module.__name__] = module
    return module


def _only_names(statement: ast.stmt) -> bool:
    """Whether a statement of a file does no more than give a name to something."""
    if isinstance(statement, ast.If):
        guards = ("__name__ == '__main__'", "TYPE_CHECKING", "typing.TYPE_CHECKING")
        return ast.unparse(statement.test) in guards and not statement.orelse
    if isinstance(statement, ast.Expr):
        return isinstance(statement.value, ast.Constant)  # a docstring
    names = (ast.Import, ast.ImportFrom, ast.ClassDef, ast.FunctionDef, ast.Assign, ast.AnnAssign)
    return isinstance(statement, names)


def _checks_itself(statement: ast.ClassDef) -> bool:
    """Whether a class has a `__post_init__`, which may need all that the file has."""
    return any(getattr(member, "name", "") == "__post_init__" for member in statement.body)


def _is_standard_import(statement: ast.stmt) -> bool:
    if isinstance(statement, ast.Import):
        return all(a.name.partition(".")[0] in sys.stdlib_module_names for a in statement.names)
    if isinstance(statement, ast.ImportFrom) and not statement.level:
        return (statement.module or "").partition(".")[0] in sys.stdlib_module_names
    return False


def _without_bodies(statement: ast.ClassDef) -> ast.ClassDef:
    """Return a class whose methods are there by name only."""
    body: list[ast.stmt] = []
    for member in statement.body:
        if isinstance(member, ast.FunctionDef):
            body += ast.parse(f"def {member.name}(self, *args, **kwargs): ...").body
        else:
            body.append(member)
    return ast.ClassDef(**{**vars(statement), "body": body})


def _run_if_possible(statement: ast.stmt, file: RecipeFile, module: ModuleType) -> None:
    try:
        _run(statement, file, module)
    except Exception:  # noqa: BLE001  # a constant that needs torch; the class may not need it
        for node in ast.walk(statement):
            if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
                vars(module).pop(node.id, None)


def _run(statement: ast.stmt, file: RecipeFile, module: ModuleType) -> None:
    tree = ast.fix_missing_locations(ast.Module([statement], type_ignores=[]))
    exec(compile(tree, str(file.path), "exec"), vars(module))  # noqa: S102  # the user's own program


def _where(error: BaseException, file: RecipeFile) -> str | None:
    """Return the line of the recipe that an error passed through last."""
    line = None
    traceback = error.__traceback__
    while traceback:
        if traceback.tb_frame.f_code.co_filename == str(file.path):
            line = traceback.tb_lineno
        traceback = traceback.tb_next
    return f"{file.path}, line {line}" if line else None
