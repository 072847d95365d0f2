"""The output of an embedding job: one column of vectors, whose memory is numpy's own."""

import numpy as np
import pyarrow as pa

from bench.label.rows import OutputSpec
from bench.model.task import Task


class VectorSpec(OutputSpec):
    """What the parts contain: a fixed-size list of float32 or float16 for each row, null if there is no vector."""

    @property
    def answer_columns(self) -> list[str]:
        return [f"{self.prefix}embedding"]

    @property
    def tolerates_rounding(self) -> bool:
        return True  # by far less than the margin between two anchors

    def decisions(self, task: Task) -> Task:
        return task

    def to_columns(self, values: np.ndarray, missing: np.ndarray) -> list[pa.Array]:
        values[missing] = 0  # else a null would have bytes that no other row has
        numbers = values.astype(np.float16 if self.float16 else np.float32, copy=False)
        mask = pa.array(missing)
        return [pa.FixedSizeListArray.from_arrays(pa.array(numbers.reshape(-1)), numbers.shape[1], mask=mask)]

    def to_answers(self, table: pa.Table, reference: np.ndarray) -> np.ndarray:
        [name] = self.answer_columns
        column = table[name].combine_chunks()
        answers = np.full(reference.shape, np.nan)
        answers[column.is_valid().to_numpy(zero_copy_only=False)] = (
            column.flatten().to_numpy().reshape(-1, reference.shape[1])
        )
        return answers
