"""What the user asks a search for: one frozen model; its fields are keys of a YAML file and flags of `nas search`."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator
from pydantic_core import ErrorDetails

from nas.core.errors import HIDDEN, InputError, RunError, brief, suggest, without_passwords

Name = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$", max_length=100)]
Count = Annotated[int, Field(ge=0, le=2**32 - 1)]  # seeds of NumPy end there
Positive = Annotated[int, Field(ge=1, le=1_000_000)]
Evaluators = tuple[dict[str, dict[str, Any]], ...]  # each its name with all its settings; see `read_asked`

#: what may differ when a run is continued; other fields decide what its scores mean (a table is compared by content)
MAY_CHANGE = (
    "out",
    "table",
    "trials",
    "workers",
    "executor",
    "cpus_per_worker",
    "gpus_per_worker",
    "worker_minutes",
    "finalists",
    "repeats",
    "final_epochs",
    "final_threads",
    "final_recipe",
    "final_teacher",
    "final_teacher_weights",
    "minutes",
    "allow_uncalibrated",
)


def _cpus() -> int:
    affinity = getattr(os, "sched_getaffinity", None)
    return min(len(affinity(0)) if affinity else os.cpu_count() or 1, 8)


class Request(BaseModel):
    """A search, with its defaults.

    Raises:
        InputError: naming every field that is unknown or has a bad value, what was expected and what was given.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", strict=False)

    name: Name = Field(default="search", description="Name of the run, and of its study.")
    out: str | None = Field(default=None, description="Folder of the run; by default runs/NAME.")
    space: str | None = Field(default=None, description="The space to search; by default the one the table names.")
    side: int | None = Field(
        default=None, ge=1, le=4096, description="Side of the images in pixels; by default that of the space."
    )
    fix: dict[str, tuple[Any, ...]] = Field(
        default_factory=dict,
        description="Choices held to a value or to several, as in stage3.kind=nextvit,mb3d or tokens=6.",
    )
    table: str | None = Field(
        default=None, description="Latency table, a file or a shipped one; by default this machine is profiled first."
    )
    level: Literal["block", "op"] | None = Field(
        default=None,
        description="Rows to predict from: block or op; op takes the table beside TABLE whose name ends in -op. By "
        "default those that the table has; block where this machine is profiled.",
    )
    runtime: str = Field(default="onnxruntime", description="What runs the networks, where this machine is profiled.")
    threads: Positive = Field(default=1, description="Threads set in that runtime.")
    budgets: tuple[str, ...] = Field(
        default=(),
        description="Hard upper bounds: latency_ms<=5, latency_ms<=p40 (a quantile of the space), latency_ms<=5 @ 0.95 "
        "(met with 95 % confidence), memory_mb<=50, params<=3e6, macs<=1e9, latency_ms[TABLE]<=5.",
    )
    objective: Literal["accuracy", "front"] = Field(
        default="accuracy", description="The most accurate network within the budgets, or the accuracy-latency front."
    )
    dataset: str = Field(
        default="digits", description="Images to train on: digits, cifar10, imagefolder:PATH, hf:NAME, ..."
    )
    limit: int | None = Field(
        default=None, ge=2, description="Most images that each training learns from and is validated on; default: all."
    )
    epochs: Positive | None = Field(
        default=None, exclude=True, description="Epochs of the evaluator, for each candidate; short has 4 by default."
    )
    evaluator: Evaluators = Field(
        default="short",
        validate_default=True,
        description="How candidates are scored: short (a short training), or with settings, {short: {epochs: 2}}. "
        "Several are rungs: all candidates get a score of the first, the best third of each goes on to the next, and a "
        "tenth of the others by chance; only the last gives a candidate its value.",
    )
    features: Evaluators = Field(
        default=(), description="Evaluators whose scores of a few candidates a trial guide the sampler."
    )
    prior: str = Field(
        default="auto",
        description="Trainings of other networks of the space that there were before, which guided learns from, too: "
        "fashion-mnist (80 networks of hybrid-32), or a file of such lines (nas judge --truth); auto: those that come "
        "with nas, where there are any of the space; none.",
    )
    sampler: str = Field(
        default="guided",
        description="How candidates are proposed: guided (a model of what was trained), tpe, nsga2, evolution, local "
        "or random.",
    )
    start: Literal["presets", "none"] = Field(
        default="presets", description="What guided begins with: presets (published networks that fit) or none."
    )
    trials: Positive = Field(
        default=60,
        description="Candidates to evaluate, of several evaluators by the first; those over a budget do not count.",
    )
    minutes: float | None = Field(
        default=None,
        gt=0,
        allow_inf_nan=False,
        description="End about so long after this command's start, with measured and trained finalists: fewer "
        "candidates, repeats and final epochs where they take longer. By default no limit.",
    )
    workers: Positive = Field(default_factory=_cpus, description="Candidates evaluated at once, one thread each.")
    executor: str = Field(
        default="local", description="Where candidates are evaluated: local (processes of this machine), or ray."
    )
    cpus_per_worker: Positive = Field(default=1, description="CPUs that Ray sets aside for a worker.")
    gpus_per_worker: float = Field(
        default=0, ge=0, allow_inf_nan=False, description="GPUs that Ray sets aside for a worker, also a part of one."
    )
    worker_minutes: float | None = Field(
        default=None,
        gt=0,
        allow_inf_nan=False,
        description="End a candidate whose score, of one evaluator, takes longer than that; it has failed. By default "
        "no limit.",
    )
    seed: Count = Field(default=0, description="Seed of everything random.")
    storage: str | None = Field(
        default=None, description="Where the Optuna study is kept: a URL it knows; by default a journal in the folder."
    )
    device: str = Field(default="auto", description="Where networks are trained: auto, cpu, cuda, cuda:1, mps.")
    finalists: Positive = Field(default=3, description="How many of the best candidates are measured.")
    repeats: Count = Field(default=2, description="Further trainings of each finalist, with other seeds.")
    final_recipe: dict[str, Any] = Field(
        default={},
        description="Recipe of the winner's longer training: a name (nas train --recipe), or fields, such as "
        "{name: small, lr: 0.002}.",
    )
    final_epochs: Positive = Field(
        default=None,
        validate_default=True,
        description="Epochs of that training; default: those of final_recipe, or 40.",
    )
    final_threads: Positive = Field(
        default=1,
        description="CPU threads of that training: more are faster only on idle cores, and one repeats exactly.",
    )
    final_teacher: str | None = Field(
        default=None, description="Teacher in that training: a preset, a JSON file of an arch, or a model of timm."
    )
    final_teacher_weights: str | None = Field(
        default=None, description="Its weights, as nas train --weights; by default those that timm publishes."
    )
    allow_uncalibrated: bool = Field(default=False, description="Accept a table without measured networks.")

    def __init__(self, **values: Any) -> None:
        try:
            super().__init__(**values)
        except ValidationError as error:
            raise InputError("\n".join(_problem(item) for item in error.errors())) from None
        self.__dict__["epochs"] = None  # it stands in the evaluator's settings

    @field_validator("fix", mode="before")
    @classmethod
    def _by_choice(cls, given: Any) -> dict[str, tuple[Any, ...]]:
        return read_fix(given)

    @field_validator("budgets", mode="before")
    @classmethod
    def _one_is_a_list(cls, value: Any) -> Any:
        return [value] if isinstance(value, str) else value

    @field_validator("budgets")
    @classmethod
    def _known_budgets(cls, texts: tuple[str, ...]) -> tuple[str, ...]:
        from nas.search.budgets import Budget

        problems, known = [], []
        for number, text in enumerate(texts):
            try:
                budget = Budget.parse(text)
            except InputError as error:
                problems.append(f"[{number}]: {error}")
                continue
            if budget.asked in known:
                problems.append(f"[{number}]: {text!r} stands there twice")
            known.append(budget.asked)
        if problems:
            raise ValueError("\n".join(problems))
        return tuple(known)

    @field_validator("evaluator", "features", mode="before")
    @classmethod
    def _with_settings(cls, value: Any, info: Any) -> Any:
        from nas.evaluation.evaluators import read_asked

        found = read_asked(value, info.data.get("epochs") if info.field_name == "evaluator" else None)
        if info.field_name == "evaluator":
            if not found:
                raise ValueError("expected an evaluator, such as short, got none")
            for place, asked in enumerate(found):
                if asked in found[:place]:
                    raise ValueError(f"{', '.join(asked)}: stands there twice with the same settings")
        elif twice := {name for name, count in Counter(name for asked in found for name in asked).items() if count > 1}:
            raise ValueError(f"{', '.join(sorted(twice))}: stands there twice")
        return found

    @field_validator("final_recipe", mode="before")
    @classmethod
    def _known_recipe(cls, value: Any) -> Any:
        from nas.core.plain import read_yaml
        from nas.evaluation.recipes import read_recipe

        if isinstance(value, str):
            value = read_yaml(value, "recipe")
        if isinstance(value, str):
            value = {"name": value}
        if not isinstance(value, Mapping):
            raise ValueError(f"expected a recipe's name, or its fields, got {brief(value)}")
        fields = {str(key): item for key, item in value.items() if key != "name"}
        return read_recipe(fields, value.get("name")).model_dump(mode="json", exclude_unset=True)

    @field_validator("final_epochs", mode="before")
    @classmethod
    def _of_recipe(cls, value: Any, info: Any) -> Any:
        return info.data.get("final_recipe", {}).get("epochs", 40) if value is None else value

    @field_validator("dataset", "sampler", "executor")
    @classmethod
    def _known_name(cls, value: str, info: Any) -> str:
        from nas.evaluation import datasets
        from nas.search import executors, samplers

        legal = {"dataset": datasets.names, "sampler": samplers.names, "executor": executors.names}[info.field_name]()
        if value.partition(":")[0] not in legal:
            raise ValueError(suggest(info.field_name, value, legal))
        return value

    @property
    def run_dir(self) -> Path:
        """The folder of the run."""
        return Path(self.out) if self.out is not None else Path("runs") / self.name

    @classmethod
    def read(cls, path: str | os.PathLike[str], **changes: Any) -> Request:
        """Read a request from YAML, with some fields replaced.

        Raises:
            InputError: naming file, field, value and what was expected, for all fields at once.
        """
        from nas.core.plain import read_yaml

        try:
            text = Path(path).read_text(encoding="utf-8-sig")
        except (OSError, UnicodeDecodeError) as error:
            raise InputError(f"{path}: cannot be read as YAML: {error}") from error
        data = read_yaml(text, str(path))
        if data is None:
            data = {}
        if not isinstance(data, Mapping):
            raise InputError(f"{path}: expected fields such as `trials: 60`, got {brief(data)}")
        try:
            return cls(**_changed({str(key): value for key, value in data.items()}, changes))
        except InputError as error:
            raise InputError(f"{path}:\n{error}") from error

    def to_yaml(self, notes: Sequence[str] = ()) -> str:
        """The request as YAML, which `read` takes back; `notes` become comments above it. Passwords are hidden."""
        import yaml

        comments = "".join(f"# {note}\n" for note in notes)
        return comments + yaml.safe_dump(self._shown(), sort_keys=False)

    def _shown(self) -> dict[str, Any]:
        """All fields as plain data, without a password in the storage's URL."""
        shown = self.model_dump(mode="json")
        if len(self.evaluator) == 1:
            (shown["evaluator"],) = shown["evaluator"]
        return shown if self.storage is None else shown | {"storage": without_passwords(self.storage)}

    def with_(self, **changes: Any) -> Request:
        """A copy with some fields replaced, checked again."""
        return Request(**_changed(self.model_dump(), changes))

    def begun_with(self) -> dict[str, str]:
        """The sampler and the prior of the run that wrote this request; before there were priors it had none."""
        return {"sampler": self.sampler, "prior": self.prior if "prior" in self.model_fields_set else "none"}

    def require_same(self, stored: Request) -> None:
        """Check that a run begun with `stored` can be continued with this request.

        Raises:
            RunError: naming every field that contradicts, with both values.
        """
        mine, theirs = self._shown(), stored._shown() | stored.begun_with()
        if self.prior == "auto":  # names none
            mine["prior"] = theirs["prior"]
        differing = [
            f"  {name}: {theirs[name]!r} there, {value!r} now"
            for name, value in mine.items()
            if _compared(value) != _compared(theirs[name]) and name not in MAY_CHANGE
        ]
        if self.trials < stored.trials:
            differing.append(f"  trials: {stored.trials} there, {self.trials} now; it can only be raised")
        if differing:
            raise RunError(
                f"the run in {self.run_dir} was begun with another request:\n" + "\n".join(differing) + "\n"
                "Give the new request another name, or delete that folder"
            )


def _changed(fields: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    """Fields with some replaced; `epochs` that belong to what is replaced go with it."""
    fields = dict(fields)
    if "evaluator" in changes:
        fields.pop("epochs", None)
    elif changes.get("epochs") is not None and "evaluator" in fields:
        from nas.evaluation.evaluators import without_epochs

        fields["evaluator"] = without_epochs(fields["evaluator"])
    return {**fields, **changes}


def read_fix(given: Any) -> dict[str, tuple[Any, ...]]:
    """Values by choice, from a mapping of a request or from texts of a command: `stage3.kind=nextvit,mb3d`.

    Raises:
        ValueError: saying what was expected.
    """
    if given is None:
        return {}
    found: dict[str, tuple[Any, ...]] = {}
    if isinstance(given, Mapping):
        for name, value in given.items():
            found[str(name)] = tuple(value) if isinstance(value, (list, tuple)) else (value,)
    elif isinstance(given, (list, tuple)) and all(isinstance(text, str) for text in given):
        for text in given:
            name, equals, values = text.partition("=")
            if not (name.strip() and equals and all(map(str.strip, values.split(",")))):
                raise ValueError(f"expected choices and values such as stage3.kind=nextvit,mb3d, got {brief(text)}")
            found[name.strip()] = (*found.get(name.strip(), ()), *map(str.strip, values.split(",")))
    else:
        raise ValueError(f"expected values by choice such as {{stage1.kind: mb4d, tokens: 6}}, got {brief(given)}")
    for name, values in found.items():
        if not values or not all(isinstance(value, (str, int, float)) for value in values):
            raise ValueError(f"{name}: expected a value or several, got {brief(given)}")
    return found


def _compared(value: Any) -> Any:
    """A field's value as it has to be the same; a password may come from the URL or from where its driver looks."""
    return value.replace(f":{HIDDEN}@", "@") if isinstance(value, str) else value


_EXPECTED = {
    "int_type": "a whole number",
    "int_parsing": "a whole number",
    "int_from_float": "a whole number",
    "string_type": "text",
    "float_type": "a number",
    "float_parsing": "a number",
    "finite_number": "a finite number",
    "bool_type": "true or false",
    "bool_parsing": "true or false",
    "tuple_type": "a list",
    "string_pattern_mismatch": "letters, digits, '.', '_' and '-'",
}


def _problem(item: ErrorDetails) -> str:
    """One problem as `path: what is wrong`; several budgets are one line each."""
    where = "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in item["loc"]).lstrip(".")
    kind, context = item["type"], item.get("ctx", {})
    if kind == "extra_forbidden":
        return suggest("field", where, Request.model_fields)
    if kind == "value_error":
        lines = str(context["error"]).splitlines()
        return "\n".join(where + (line if line.startswith("[") else f": {line}") for line in lines)
    if kind == "greater_than_equal":
        expected = f"at least {context['ge']}"
    elif kind == "greater_than":
        expected = f"more than {context['gt']}"
    elif kind == "less_than_equal":
        expected = f"at most {context['le']}"
    elif kind == "string_too_long":
        expected = f"at most {context['max_length']} characters"
    elif kind == "literal_error":
        expected = str(context["expected"])
    else:
        expected = _EXPECTED.get(kind, item["msg"])
    return f"{where}: expected {expected}, got {brief(item['input'])}"
