"""Imports between modules: no cycles, and none from a lower layer to a higher one."""

import ast
from graphlib import TopologicalSorter

from conftest import ROOT

# the lowest first; a module may import from its own layer and from lower ones
LAYERS = (
    "utils",
    "bench",
    "bench.tables",
    "bench.model",
    "bench.exporters",
    "runtimes",
    "runtimes.classifier",
)
LAYERS += ("bench.report", "bench.export", "bench.measure", "bench.label", "scripts")


def imported_modules() -> dict[str, set[str]]:
    """Return module -> the modules of this project that it imports, also inside functions."""
    files = [*ROOT.glob("*.py"), *ROOT.glob("data/*.py"), *ROOT.glob("bench/**/*.py"), *ROOT.glob("runtimes/*.py")]
    names = {".".join(file.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): file for file in files}
    imports = {}
    for name, file in names.items():
        nodes = [
            node for node in ast.walk(ast.parse(file.read_text())) if isinstance(node, ast.ImportFrom | ast.Import)
        ]
        asked = {alias.name for node in nodes if isinstance(node, ast.Import) for alias in node.names}
        for node in nodes:
            if isinstance(node, ast.ImportFrom):
                inner = {f"{node.module}.{alias.name}" for alias in node.names} & names.keys()
                asked |= inner or {node.module}
        imports[name] = (asked & names.keys()) - {name}
    return imports


def layer_of(name: str) -> int:
    layers = [LAYERS.index(layer) for layer in (name, name.rpartition(".")[0]) if layer in LAYERS]
    return layers[0] if layers else LAYERS.index("scripts")


def test_no_module_imports_a_higher_layer_and_there_is_no_cycle():
    imports = imported_modules()
    assert len(imports) > 40 and "bench.model.model" in imports["runtimes.classifier"]
    pairs = [(name, other) for name, others in imports.items() for other in others]
    assert [(name, other) for name, other in pairs if layer_of(other) > layer_of(name)] == []
    scripts = {name for name in imports if layer_of(name) == LAYERS.index("scripts")}
    assert len(scripts) == 8 and not scripts & set().union(*imports.values()), "a script never imports a script"
    list(TopologicalSorter(imports).static_order())  # raises CycleError
