"""The steps of a run. One file a step; the file is the registration.

Such a file ends in a constant `STEP`, an instance of a class derived from `Step`. A step stands directly after the one
it names; of several after one, that which others wait for comes last.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

from nas.core import plugins
from nas.core.errors import InputError, suggest
from nas.search.context import Context


class Step(ABC):
    """A part of a run that is done once, and again when what it reads has changed.

    It may be killed at any moment and is then carried out anew, so it keeps what takes long where it finds it again: in
    the study, or in a file of the folder that appears whole.

    Attributes:
        name: of the step, that of its file.
        after: the step whose output must be there before; "" for the first.
        every_time: whether it is done whenever the run's command is given; it then does not keep a run from being
            finished.
    """

    name: ClassVar[str]
    after: ClassVar[str]
    every_time: ClassVar[bool] = False

    @abstractmethod
    def inputs(self, run: Context) -> Mapping[str, Any]:
        """What it reads, as plain data: fields of the request, outputs of steps before. Anything else means again."""

    @abstractmethod
    def carry_out(self, run: Context) -> Mapping[str, Any]:
        """Do it.

        Returns:
            Its output, plain data, for steps after it: `run.output(name)`.
        """

    def is_intact(self, run: Context) -> bool:
        """Whether what it left when it was done is still there."""
        return True

    def is_due(self, run: Context) -> bool:
        """Whether it must be carried out; the steps before it are done."""
        return not run.is_kept(self, self.inputs(run)) or not self.is_intact(run)


def load_steps() -> list[Step]:
    """All steps, in the order in which they are carried out; see `nas.core.plugins` for where they are found."""
    return in_order([plugins.load("steps", name) for name in plugins.names("steps")])


def in_order(steps: Sequence[Step]) -> list[Step]:
    """Steps in the order in which they are carried out, each directly after the one that it names.

    Raises:
        InputError: a step stands after one that does not exist, or after itself.
    """
    names = {step.name for step in steps}
    for step in steps:
        if step.after and step.after not in names:
            raise InputError(f"step {step.name}: {suggest('step to stand after', step.after, names - {step.name})}")

    def following(name: str) -> list[Step]:
        branches = [[step, *following(step.name)] for step in steps if step.after == name]
        branches.sort(key=lambda branch: (branch[0].every_time, len(branch), branch[0].name))
        return [step for branch in branches for step in branch]

    ordered = following("")
    if len(ordered) < len(steps):
        circle = sorted(names - {step.name for step in ordered})
        raise InputError(f"steps {', '.join(circle)} stand after each other in a circle")
    return ordered
