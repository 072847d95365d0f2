"""Which cells are still to be measured."""

from bench.measure.cells import Cell, cells_to_run
from bench.model.batches import Batching


def test_resume_adds_the_missing_end_to_end_cells():
    several = [Cell("onnx", workers, 1, Batching("sorted", size)) for workers in (1, 2, 3) for size in (1, 2)]
    speeds = dict(zip(several, [5.0, 10, 7, 9, 8], strict=False))
    before = speeds | {Cell("onnx", 2, 1, Batching("sorted", 2), "end-to-end"): 6.5}
    assert cells_to_run(several, before) == [Cell("onnx", 1, 1, Batching("sorted", 2), "end-to-end"), several[5]]
