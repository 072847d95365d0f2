"""Which cells are left to measure."""

from bench.passes import Cell
from bench.resume import cells_to_run


def test_resume_makes_up_what_was_never_timed_from_texts():
    several = [Cell("onnx", workers, size, "length") for workers in (1, 2, 3) for size in (1, 2)]
    speeds = dict(zip(several, [5.0, 10, 7, 9, 8], strict=False))
    before = speeds | {Cell("onnx", 2, 2, "length", "texts"): 6.5}
    assert cells_to_run(several, before) == [Cell("onnx", 1, 2, "length", "texts"), several[5]]
