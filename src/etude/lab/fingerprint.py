"""The fingerprint of a claim's code: what its trials depend on, and nothing else.

The claim's function is followed through everything it names. Modules of the paper's method count whole; of the claims
file and of the shared rooms (`nn`, `loop`, `data`) only the definitions that are reached count, so that a new loader
makes no old evidence stale. Docstrings, comments and layout do not count, nor do the words and contrasts of the claim;
its setup is part of each trial's identity instead.
"""

from __future__ import annotations

import ast
import hashlib
import importlib.util
import json
import os
from collections.abc import Sequence
from functools import cache
from pathlib import Path

__all__ = ["cached_fingerprints", "claim_fingerprint", "claim_modules", "own_package"]

_SHARED_ROOMS = ("etude.nn", "etude.loop", "etude.data")
_OUTSIDE = ("etude.lab", "etude.report", "etude.cli")
_DATA_KEYWORDS = ("data",)


class _Module:
    """A module's top-level statements by the names they bind."""

    def __init__(self, name: str, path: Path):
        self.name, self.path = name, path
        self.is_package = path.name == "__init__.py"
        self.statements = ast.parse(path.read_text(encoding="utf-8")).body
        self.bindings: dict[str, list[int]] = {}
        self.loose: list[int] = []
        for position, statement in enumerate(self.statements):
            names = _bound_names(statement)
            for bound in names:
                self.bindings.setdefault(bound, []).append(position)
            if not names and not _is_docstring(statement):
                self.loose.append(position)


def claim_fingerprint(claims_module: str, function: str) -> str:
    """SHA-256, in hex, of the code that the claim's trials depend on."""
    own_package(claims_module)
    digest = hashlib.sha256()
    for module, position in sorted(_closure(claims_module, function)):
        digest.update(f"{module}\0{_canonical_statement(module, position)}\n".encode())
    return digest.hexdigest()


def claim_modules(claims_module: str, function: str) -> list[str]:
    """Names of the modules that the fingerprint covers, wholly or in part."""
    return sorted({module for module, _ in _closure(claims_module, function)})


def _closure(claims_module: str, function: str) -> set[tuple[str, int]]:
    module = _module(claims_module)
    if module is None or function not in module.bindings:
        raise ValueError(f"{claims_module} defines no function {function!r}")
    reached: set[tuple[str, int]] = set()
    seen: set[tuple[str, str | None]] = set()
    pending: list[tuple[str, str | None]] = [(claims_module, function)]
    while pending:
        wanted = pending.pop()
        if wanted in seen:
            continue
        seen.add(wanted)
        name, attribute = wanted
        found = _module(name)
        if found is None:
            continue
        positions: Sequence[int]
        if attribute is None or _counts_whole(name, claims_module):
            positions = range(len(found.statements))
        elif attribute in _imports(found):
            pending.append(_imports(found)[attribute])
            continue
        elif attribute in found.bindings:
            positions = [*found.bindings[attribute], *found.loose]
        elif _module(f"{name}.{attribute}") is not None:
            pending.append((f"{name}.{attribute}", None))
            continue
        else:  # a name made at run time: the whole package may stand behind it
            pending.append((name, None))
            pending.extend((child, None) for child in _children(found))
            continue
        for position in positions:
            statement = found.statements[position]
            if _is_docstring(statement):
                continue
            if not isinstance(statement, (ast.Import, ast.ImportFrom)):
                if (name, position) in reached:
                    continue
                reached.add((name, position))
            pending.extend(_references(found, statement, whole=attribute is None or _counts_whole(name, claims_module)))
    return reached


def _counts_whole(module: str, claims_module: str) -> bool:
    """Method modules count whole; packages only hand names on."""
    if module == claims_module or module.startswith(_SHARED_ROOMS):
        return False
    found = _module(module)
    return found is not None and not found.is_package


def _references(module: _Module, statement: ast.stmt, whole: bool) -> list[tuple[str, str | None]]:
    """(module, name) pairs that a statement depends on."""
    imports = _imports(module)
    targets: list[tuple[str, str | None]] = []
    if isinstance(statement, (ast.Import, ast.ImportFrom)):
        if whole or not isinstance(statement, ast.ImportFrom):
            return [target for target in _import_targets(module, statement).values() if target[1] is not None]
        return list(_import_targets(module, statement).values())
    attributed: set[int] = set()
    for node in _walk(statement):
        if isinstance(node, (ast.Import, ast.ImportFrom)):
            targets.extend(_import_targets(module, node).values())
        elif isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id in imports:
            target_module, target_name = imports[node.value.id]
            inner = target_module if target_name is None else f"{target_module}.{target_name}"
            if _module(inner) is not None:
                targets.append((inner, node.attr))
                attributed.add(id(node.value))
    for node in _walk(statement):
        if isinstance(node, ast.Name) and id(node) not in attributed:
            if node.id in imports:
                targets.append(imports[node.id])
            elif node.id in module.bindings:
                targets.append((module.name, node.id))
    return [target for target in targets if not target[0].startswith(_OUTSIDE)]


def _walk(statement: ast.stmt) -> list[ast.AST]:
    """Nodes of a statement; of a claim's decorator only the data loaders."""
    if not isinstance(statement, (ast.FunctionDef, ast.AsyncFunctionDef)):
        return list(ast.walk(statement))
    nodes: list[ast.AST] = []
    for part in _significant_parts(statement):
        nodes.extend(ast.walk(part))
    return nodes


def _is_claim_decorator(node: ast.expr) -> bool:
    return isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr == "claim"


def _significant_parts(function: ast.FunctionDef | ast.AsyncFunctionDef) -> list[ast.AST]:
    parts: list[ast.AST] = [function.args, *function.body]
    for decorator in function.decorator_list:
        if _is_claim_decorator(decorator) and isinstance(decorator, ast.Call):
            parts.extend(keyword.value for keyword in decorator.keywords if keyword.arg in _DATA_KEYWORDS)
        else:
            parts.append(decorator)
    return parts


@cache
def _module(name: str) -> _Module | None:
    """The parsed source of a module, without importing it; None if it is not Python source of ours."""
    top = name.partition(".")[0]
    try:
        root = importlib.util.find_spec(top)
    except (ImportError, ValueError):
        return None
    if root is None or not root.submodule_search_locations:
        path = Path(root.origin) if root is not None and root.origin and name == top else None
        return _Module(name, path) if path is not None and path.suffix == ".py" and _ours(top) else None
    if not _ours(top):
        return None
    for location in root.submodule_search_locations:
        base = Path(location).joinpath(*name.split(".")[1:])
        for path in (base / "__init__.py", base.with_suffix(".py")):
            if path.is_file():
                return _Module(name, path)
    return None


_OWN_PACKAGES = {"etude"}


def _ours(top: str) -> bool:
    return top in _OWN_PACKAGES


def own_package(name: str) -> None:
    """Makes the fingerprint follow the sources of a third-party package that brings papers."""
    top = name.partition(".")[0]
    if top not in _OWN_PACKAGES:
        _OWN_PACKAGES.add(top)
        _module.cache_clear()


@cache
def _imports_of(name: str) -> dict[str, tuple[str, str | None]]:
    module = _module(name)
    assert module is not None
    table: dict[str, tuple[str, str | None]] = {}
    for statement in module.statements:
        for node in ast.walk(statement):
            if isinstance(node, (ast.Import, ast.ImportFrom)):
                table.update(_import_targets(module, node))
    return table


def _imports(module: _Module) -> dict[str, tuple[str, str | None]]:
    return _imports_of(module.name)


def _import_targets(module: _Module, node: ast.Import | ast.ImportFrom) -> dict[str, tuple[str, str | None]]:
    """Local name -> (module, attribute or None for the module itself), for modules of ours."""
    targets: dict[str, tuple[str, str | None]] = {}
    if isinstance(node, ast.Import):
        for alias in node.names:
            if _ours(alias.name.partition(".")[0]):
                local = alias.asname or alias.name.partition(".")[0]
                targets[local] = (alias.name if alias.asname else local, None)
        return targets
    base = node.module or ""
    if node.level:
        package = module.name if module.is_package else module.name.rpartition(".")[0]
        for _ in range(node.level - 1):
            package = package.rpartition(".")[0]
        base = f"{package}.{base}" if base else package
    if _ours(base.partition(".")[0]) and not base.startswith(_OUTSIDE):
        for alias in node.names:
            targets[alias.asname or alias.name] = (base, alias.name)
    return targets


def _children(module: _Module) -> list[str]:
    if not module.is_package:
        return []
    names = []
    for path in sorted(module.path.parent.iterdir()):
        if path.suffix == ".py" and path.name != "__init__.py":
            names.append(f"{module.name}.{path.stem}")
        elif (path / "__init__.py").is_file():
            names.append(f"{module.name}.{path.name}")
    return names


def _bound_names(statement: ast.stmt) -> list[str]:
    if isinstance(statement, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)):
        return [statement.name]
    if isinstance(statement, (ast.Import, ast.ImportFrom)):
        return [alias.asname or alias.name.partition(".")[0] for alias in statement.names]
    if isinstance(statement, (ast.Assign, ast.AnnAssign, ast.AugAssign)):
        targets = statement.targets if isinstance(statement, ast.Assign) else [statement.target]
        return [node.id for target in targets for node in ast.walk(target) if isinstance(node, ast.Name)]
    return []


def _is_docstring(statement: ast.stmt) -> bool:
    return (
        isinstance(statement, ast.Expr)
        and isinstance(statement.value, ast.Constant)
        and isinstance(statement.value.value, str)
    )


@cache
def _canonical_statement(module: str, position: int) -> str:
    found = _module(module)
    assert found is not None
    statement = found.statements[position]
    if isinstance(statement, (ast.FunctionDef, ast.AsyncFunctionDef)):
        return statement.name + "".join(_canonical(part) for part in _significant_parts(statement))
    return _canonical(statement)


def _canonical(node: object) -> str:
    """Text of a syntax tree that is the same on every Python: empty fields and docstrings left out."""
    if isinstance(node, ast.AST):
        if isinstance(node, ast.stmt) and _is_docstring(node):
            return ""
        fields = []
        for name, value in ast.iter_fields(node):
            if name in ("ctx", "kind", "type_comment", "type_params", "type_ignores") or value is None or value == []:
                continue
            fields.append(f"{name}={_canonical(value)}")
        return f"{type(node).__name__}({','.join(fields)})"
    if isinstance(node, list):
        return f"[{','.join(filter(None, (_canonical(entry) for entry in node)))}]"
    return repr(node)


def cached_fingerprints(claims: list[tuple[str, str]], cache_file: Path) -> dict[tuple[str, str], str]:
    """Fingerprints of (claims module, function) pairs, remembered in `cache_file` until a source file changes."""
    state = hashlib.sha256()
    for top in sorted(_OWN_PACKAGES):
        spec = importlib.util.find_spec(top)
        for location in (spec.submodule_search_locations or []) if spec is not None else []:
            for folder, folders, files in sorted(os.walk(location)):
                folders[:] = sorted(name for name in folders if name != "__pycache__")
                for file in sorted(files):
                    if file.endswith(".py"):
                        stat = os.stat(os.path.join(folder, file))
                        state.update(f"{folder}/{file}\0{stat.st_mtime_ns}\0{stat.st_size}\n".encode())
    key = state.hexdigest()
    try:
        stored = json.loads(cache_file.read_text(encoding="utf-8"))
        known = stored["fingerprints"] if stored["key"] == key else {}
    except (OSError, ValueError, KeyError, TypeError):
        known = {}
    missing = [(module, function) for module, function in claims if f"{module}:{function}" not in known]
    for module, function in missing:
        known[f"{module}:{function}"] = claim_fingerprint(module, function)
    if missing:
        try:
            cache_file.parent.mkdir(parents=True, exist_ok=True)
            temporary = cache_file.with_suffix(f".{os.getpid()}")
            temporary.write_text(json.dumps({"key": key, "fingerprints": known}), encoding="utf-8")
            os.replace(temporary, cache_file)
        except OSError:
            pass  # a read-only home only costs time
    return {(module, function): known[f"{module}:{function}"] for module, function in claims}
