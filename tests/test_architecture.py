"""Which file imports which: scripts -> utils -> model, and no circles."""

from __future__ import annotations

import ast
from collections.abc import Iterable, Iterator
from functools import cache
from pathlib import Path

import pytest

from tests.commands import REPOSITORY

FOLDERS = ("model", "utils")
SCRIPTS = ("train_ds", "test_sem", "chat", "merge_lora_weights_and_save_hf_model")
Graph = dict[str, set[str]]


def is_type_checking(node: ast.AST) -> bool:
    """Whether the node is `if TYPE_CHECKING:`, whose imports never run."""
    return isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test)


def statements(tree: ast.AST) -> Iterator[ast.Import | ast.ImportFrom]:
    """The import statements that can run, also those inside functions."""
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.Import | ast.ImportFrom):
            yield node
        elif is_type_checking(node):
            for other in node.orelse:
                yield from statements(other)
        else:
            yield from statements(node)


def imported(tree: ast.AST, modules: Iterable[str]) -> set[str]:
    """The modules among `modules` that the file imports; a name of a package's own __init__ counts as the package."""
    found = set()
    for node in statements(tree):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        else:
            assert node.level == 0, f"a relative import: {ast.unparse(node)}"
            names = [f"{node.module}.{alias.name}" for alias in node.names]
            names = [name if name in modules else node.module for name in names]
        found |= set(names) & set(modules)
    return found


@cache
def import_graph() -> Graph:
    """Module -> the modules it imports, of model/, utils/ and the scripts."""
    files = [path for folder in FOLDERS for path in sorted((REPOSITORY / folder).rglob("*.py"))]
    files += [REPOSITORY / f"{script}.py" for script in SCRIPTS]
    names = {path: module_of(path.relative_to(REPOSITORY)) for path in files}
    modules = set(names.values())
    return {
        names[path]: imported(ast.parse(path.read_text(encoding="utf-8")), modules) - {names[path]}
        for path in files
    }


def module_of(path: Path) -> str:
    parts = path.with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def quotient(graph: Graph, folder: str) -> Graph:
    """What lies in `folder`, files and folders, and which of it imports which; each folder is one node."""
    depth = folder.count(".") + 2

    def inside(module: str) -> bool:
        return module.startswith(f"{folder}.")

    def node(module: str) -> str:
        return ".".join(module.split(".")[:depth])

    nodes: Graph = {node(module): set() for module in graph if inside(module)}
    for module, targets in graph.items():
        if inside(module):
            nodes[node(module)] |= {node(target) for target in targets if inside(target)}
    return {name: targets - {name} for name, targets in nodes.items()}


def circles(graph: Graph) -> list[list[str]]:
    """The strongly connected components of more than one node, each sorted (Tarjan)."""
    index: dict[str, int] = {}
    lowest: dict[str, int] = {}
    stack: list[str] = []
    found = []

    def visit(node: str) -> None:
        index[node] = lowest[node] = len(index)
        stack.append(node)
        for target in graph[node]:
            if target not in index:
                visit(target)
                lowest[node] = min(lowest[node], lowest[target])
            elif target in stack:
                lowest[node] = min(lowest[node], index[target])
        if lowest[node] == index[node]:
            component = []
            while not component or component[-1] != node:
                component.append(stack.pop())
            if len(component) > 1:
                found.append(sorted(component))

    for node in graph:
        if node not in index:
            visit(node)
    return found


def packages() -> list[str]:
    """All packages of model/ and utils/."""
    return sorted(
        module_of(path.relative_to(REPOSITORY))
        for folder in FOLDERS
        for path in (REPOSITORY / folder).rglob("__init__.py")
    )


def test_model_imports_nothing_of_utils_or_the_scripts():
    wrong = {
        module: above
        for module, targets in import_graph().items()
        if module.split(".")[0] == "model" and (above := {t for t in targets if t.split(".")[0] != "model"})
    }
    assert wrong == {}


def test_utils_imports_no_script():
    wrong = {
        module: above
        for module, targets in import_graph().items()
        if module.split(".")[0] == "utils" and (above := targets & set(SCRIPTS))
    }
    assert wrong == {}


def test_no_script_imports_another():
    assert {script: import_graph()[script] & set(SCRIPTS) for script in SCRIPTS} == {
        s: set() for s in SCRIPTS
    }


def test_no_circle_between_files():
    assert circles(import_graph()) == []


@pytest.mark.parametrize("folder", packages())
def test_no_circle_between_what_lies_in_one_folder(folder):
    graph = quotient(import_graph(), folder)
    found = circles(graph)
    edges = [
        f"{module} -> {target}"
        for circle in found
        for module, targets in import_graph().items()
        for target in targets
        for a in circle
        for b in circle
        if a != b and f"{module}.".startswith(f"{a}.") and f"{target}.".startswith(f"{b}.")
    ]
    assert found == [], "\n".join(edges)


def test_nothing_lies_flat_in_utils():
    assert [path.name for path in (REPOSITORY / "utils").glob("*.py")] == ["__init__.py"]


def test_a_circle_is_found():
    graph = {
        "utils.a.x": {"utils.b.y"},
        "utils.b.y": set(),
        "utils.b.z": {"utils.a.x"},
        "utils.c": {"utils.a.x"},
    }
    assert circles(graph) == []
    assert circles(quotient(graph, "utils")) == [["utils.a", "utils.b"]]
    assert circles({**graph, "utils.b.y": {"utils.b.z"}}) == [["utils.a.x", "utils.b.y", "utils.b.z"]]
