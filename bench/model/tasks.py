"""The tasks there are, and which of them a model is for."""

from bench.model.classification import Classification
from bench.model.task import Task
from utils import UserError

TASKS = {"classification": Classification}


def choose_task(config: dict, model_id: str) -> type[Task]:
    """Return the task of a model by the content of its config.json. Raises UserError if there is none."""
    architectures = config.get("architectures")
    if not architectures:  # as in some older models
        return Classification
    if matching := [task for task in TASKS.values() if task.matches(config)]:
        return matching[0]
    wanted = " or ".join(f"...{task.class_suffix}" for task in TASKS.values())
    raise UserError(f"{model_id} is a {', '.join(map(str, architectures))}; a model of class {wanted} is needed")
