"""How good is an architecture? One file an evaluator; the file is the registration.

Such a file ends in a constant `EVALUATOR`, a class derived from `Evaluator` whose fields are its settings. It is loaded
before anything runs, so it imports what takes long (PyTorch) where it needs it.
"""

from __future__ import annotations

import functools
import hashlib
import json
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import KW_ONLY, dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from pydantic import TypeAdapter, ValidationError

from nas.core import plugins
from nas.core.errors import InputError, brief, suggest
from nas.core.plain import read_yaml

if TYPE_CHECKING:
    import torch
    from torch import nn

    from nas.core.arch import Arch
    from nas.core.space import Space
    from nas.evaluation.data import Data

LOSS = "val_loss"
"""The name of the value of trainings: cross entropy on the validation split, in nats."""
TITLES = {LOSS: "validation loss"}

Asked = dict[str, dict[str, Any]]
"""An evaluator as a request holds it: its name, with its settings."""
Progress = Callable[..., None]
"""Called with (done, total, seconds left or None, text)."""


@dataclass(frozen=True)
class Score:
    """An estimate of how good an architecture is.

    Attributes:
        value: what candidates are compared by; smaller is better.
        name: of the value, `val_loss` where it is that. It is shown by this name, and never as an accuracy.
        seconds: wall-clock time that it took; None for what whoever asked measures.
        cost: what was spent on it, in words.
        val_loss: cross entropy on the validation split in nats, where there is one.
        val_accuracy: share of right answers there, 0..1, likewise.
    """

    value: float
    name: str
    _: KW_ONLY
    seconds: float | None = None
    cost: str = ""
    val_loss: float | None = None
    val_accuracy: float | None = None


@dataclass(frozen=True)
class Evaluator(ABC):
    """Scores architectures; its fields are its settings, plain data or models of pydantic.

    Attributes:
        trains: whether it trains what it scores. Then finalists are scored again with other seeds, which shows how far
            chance goes; and with a field `epochs`, a candidate tells how long an epoch of the winner's training takes.
        resumes: whether `score` takes a file `checkpoint`, which it leaves after each epoch and goes on from where it
            exists: then a candidate whose worker was lost costs the epoch that it was in.
        late: settings that only `score` reads: evaluators that differ in no other can share what one has prepared.
    """

    trains: ClassVar[bool] = False
    resumes: ClassVar[bool] = False
    late: ClassVar[frozenset[str]] = frozenset()

    def prepare(
        self,
        space: Space,
        feasible: Any,
        data: Data,
        folder: Path,
        *,
        seed: int = 0,
        device: str = "cpu",
        threads: int = 1,
        progress: Progress | None = None,
    ) -> Mapping[str, Any]:
        """Get ready for a search, once, before its first candidate.

        It may be killed at any moment and is then called anew with the same folder, so what takes long is kept there,
        in files that appear whole, and gone on from. Where a file of the folder has gone or changed, it is called
        again; a run whose candidates have scores takes only the same result from it.

        Args:
            space: all networks.
            feasible: those that fit (`nas.search.feasible.FeasibleSet`): counted, drawn from, walked.
            data: images; `test` is not read.
            folder: its own, in the run's; what it leaves there stays.
            seed: of everything random.
            device: of the trainings.
            threads: of the CPU that it may use.
            progress: called with (done, total, seconds left or None, text).

        Returns:
            Plain data (JSON), which every call of `score` gets as `prepared`: a file and its hash, for instance.
        """
        return {}

    @abstractmethod
    def score(
        self,
        build_model: Callable[[], nn.Module],
        data: Data,
        *,
        arch: Arch,
        prepared: Mapping[str, Any],
        seed: int = 0,
        device: torch.device | str = "cpu",
        on_epoch: Callable[[int, int], None] | None = None,
    ) -> Score:
        """Score an arch, in a process of its own.

        Args:
            build_model: gives its model, freshly initialised from `seed`.
            data: `train` and `val` are read, never `test`.
            arch: the architecture.
            prepared: what `prepare` gave.
            seed: of everything random; on one thread, equal seeds give equal scores.
            device: where.
            on_epoch: one that trains calls it with the epochs done and those in all, for whoever waits.

        Raises:
            TrainingDiverged, OutOfMemory: this candidate has no score; others may.
        """


def names() -> list[str]:
    """All evaluators, sorted; see `nas.core.plugins` for where they are found."""
    return plugins.names("evaluators")


def title_of(score: str) -> str:
    """The name of a score as people read it."""
    return TITLES.get(score, score)


def load_evaluator(name: str, **settings: Any) -> Evaluator:
    """The evaluator `name` with these settings, its defaults for the rest.

    Raises:
        InputError: unknown evaluator or setting, or a bad value, naming the legal ones; or a file that cannot be
            loaded, naming it.
    """
    kind: type[Evaluator] = plugins.load("evaluators", name)
    legal = [field.name for field in fields(kind)]
    for setting in settings:
        if setting not in legal:
            raise InputError(suggest(f"setting of evaluator {name}", setting, legal))
    try:
        return _adapter(kind).validate_python(settings)
    except ValidationError as error:
        problems = [f"{_place(item['loc'])}: {item['msg']}, got {brief(item['input'])}" for item in error.errors()]
        raise InputError(f"evaluator {name}: {'; '.join(problems)}") from error


@functools.lru_cache(maxsize=64)
def _adapter(kind: type[Evaluator]) -> TypeAdapter[Evaluator]:
    return TypeAdapter(kind)


def _place(loc: Sequence[int | str]) -> str:
    return "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in loc).lstrip(".")


def read_asked(spelled: Any, epochs: int | None = None) -> tuple[Asked, ...]:
    """Evaluators as requests spell them: a name, `{name: settings}`, or a list of these; a text is read as YAML.

    Args:
        spelled: as above.
        epochs: a setting of the last of them, as requests spell it beside them.

    Returns:
        Each with all its settings, those that have defaults among them, as plain data.

    Raises:
        InputError: unknown evaluators or settings, or `epochs` that do not fit.
    """
    asked = _listed(spelled)
    if epochs is not None and asked:
        ((name, settings),) = asked[-1].items()
        if settings.get("epochs", epochs) != epochs:
            raise InputError(
                f"{name} has epochs: {settings['epochs']}, and epochs: {epochs} stands beside it; choose one"
            )
        if "epochs" not in (field.name for field in fields(plugins.load("evaluators", name))):
            raise InputError(f"evaluator {name} has no epochs, but epochs: {epochs} is asked for; leave it out")
        asked[-1] = {name: settings | {"epochs": epochs}}
    return tuple({name: _filled(name, settings)} for item in asked for name, settings in item.items())


def without_epochs(spelled: Any) -> Any:
    """Evaluators as requests spell them, the last one without `epochs` among its settings."""
    asked = _listed(spelled)
    ((name, settings),) = asked[-1].items()
    return [*asked[:-1], {name: {key: value for key, value in settings.items() if key != "epochs"}}]


def _listed(spelled: Any) -> list[Asked]:
    if isinstance(spelled, str):
        spelled = read_yaml(spelled, "evaluator")
    return [_one(item) for item in (spelled if isinstance(spelled, list | tuple) else [spelled])]


def _one(spelled: Any) -> Asked:
    if isinstance(spelled, str):
        spelled = {spelled: {}}
    if not isinstance(spelled, Mapping) or len(spelled) != 1:
        raise InputError(
            f"expected a name, such as short, or a name with settings {{short: {{epochs: 2}}}}, got {brief(spelled)}"
        )
    ((name, settings),) = spelled.items()
    if str(name) not in names():
        raise InputError(suggest("evaluator", str(name), names()))
    if not isinstance(settings or {}, Mapping):
        raise InputError(f"{name}: expected its settings, such as {{epochs: 2}}, got {brief(settings)}")
    return {str(name): {str(key): value for key, value in (settings or {}).items()}}


def _filled(name: str, settings: Mapping[str, Any]) -> dict[str, Any]:
    evaluator = load_evaluator(name, **settings)
    filled: dict[str, Any] = _adapter(type(evaluator)).dump_python(evaluator, mode="json", exclude_unset=True)
    return filled


def titles_of(asked: Sequence[Asked]) -> list[str]:
    """Evaluators of a list as people read them: `naswot`, or `short (epochs 2)` by what tells those of a name apart."""
    found = []
    for item in asked:
        ((name, settings),) = item.items()
        alike = [other[name] for other in asked if name in other]
        differ = [key for key, value in settings.items() if any(other.get(key) != value for other in alike)]
        shown = ", ".join(f"{key} {brief(settings[key])}" for key in differ)
        found.append(f"{name} ({shown})" if shown else name)
    return found


def key_of(asked: Asked) -> str:
    """A name for an evaluator with its settings, as files can have it."""
    (name,) = asked
    return f"{name}-{hashlib.sha256(json.dumps(asked, sort_keys=True).encode()).hexdigest()[:8]}"


def load_asked(asked: Asked) -> Evaluator:
    """The evaluator that a request holds; raises as `load_evaluator`."""
    ((name, settings),) = asked.items()
    return load_evaluator(name, **settings)


def epochs_of(evaluator: Evaluator) -> int | None:
    """Epochs that it trains a candidate for; None where it does not train, or counts otherwise."""
    return getattr(evaluator, "epochs", None) if evaluator.trains else None
