"""The tasks there are, and which of them a model is for."""

from bench.model.classification import Classification
from bench.model.task import Task
from utils import UserError

TASKS = {"classification": Classification}


def choose_task(architectures: list[str] | None, model_id: str) -> type[Task]:
    """Return the task of a model by the `architectures` of its config. Raises UserError if there is none."""
    architectures = architectures or [Classification.head]  # older configs name none
    for task in TASKS.values():
        if any(str(name).endswith(task.head) for name in architectures):
            return task
    wanted = " or ".join(f"...{task.head}" for task in TASKS.values())
    raise UserError(f"{model_id} is a {', '.join(map(str, architectures))}; a model of class {wanted} is needed")
