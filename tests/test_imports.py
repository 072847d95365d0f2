"""The house: no circle among its rooms, no arrow up."""

import ast
from graphlib import TopologicalSorter

from conftest import ROOT

# from the ground up; a room may import from its own floor and from those below
FLOORS = ("utils", "bench", "bench.tables", "bench.model", "bench.exporters", "runtimes", "runtimes.classifier")
FLOORS += ("bench.report", "bench.export", "bench.measure", "bench.label", "scripts")


def imported_rooms() -> dict[str, set[str]]:
    """Returns name -> the names of our modules that it imports, anywhere in it."""
    files = [*ROOT.glob("*.py"), *ROOT.glob("data/*.py"), *ROOT.glob("bench/**/*.py"), *ROOT.glob("runtimes/*.py")]
    names = {".".join(file.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): file for file in files}
    rooms = {}
    for name, file in names.items():
        nodes = [
            node for node in ast.walk(ast.parse(file.read_text())) if isinstance(node, ast.ImportFrom | ast.Import)
        ]
        asked = {alias.name for node in nodes if isinstance(node, ast.Import) for alias in node.names}
        for node in nodes:
            if isinstance(node, ast.ImportFrom):
                inner = {f"{node.module}.{alias.name}" for alias in node.names} & names.keys()
                asked |= inner or {node.module}
        rooms[name] = (asked & names.keys()) - {name}
    return rooms


def floor_of(name: str) -> int:
    floors = [FLOORS.index(place) for place in (name, name.rpartition(".")[0]) if place in FLOORS]
    return floors[0] if floors else FLOORS.index("scripts")


def test_no_room_imports_one_above_it_and_there_is_no_circle():
    rooms = imported_rooms()
    assert len(rooms) > 40 and "bench.model.model" in rooms["runtimes.classifier"]
    up = [(name, other) for name, others in rooms.items() for other in others if floor_of(other) > floor_of(name)]
    assert up == []
    scripts = {name for name in rooms if floor_of(name) == FLOORS.index("scripts")}
    assert len(scripts) == 6 and not scripts & set().union(*rooms.values()), "a script never imports a script"
    list(TopologicalSorter(rooms).static_order())  # raises CycleError
