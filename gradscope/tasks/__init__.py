"""Generated data sets on which the models of `gradscope.models` can be told apart."""

from gradscope.tasks.arrows import Arrows, Scenes

TASKS: dict[str, type[Arrows]] = {"arrows": Arrows}

__all__ = ["TASKS", "Arrows", "Scenes"]
