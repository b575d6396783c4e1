"""Evaluators get ready for the candidates: what they train or look up once, before the first score."""

from __future__ import annotations

import functools
import json
from collections.abc import Mapping
from typing import Any

from nas.core.errors import RunError
from nas.core.files import hash_of
from nas.evaluation.evaluators import Asked, Evaluator, key_of, load_asked
from nas.search.context import PREPARE, Context
from nas.search.steps import Step
from nas.search.trials import so_far

FOLDER = "prepared"  # of a run: a folder for each evaluator


class Prepare(Step):
    """Lets each evaluator of the request prepare in a folder of its own; there is nothing to do for most of them."""

    name = PREPARE
    after = "profile"

    def inputs(self, run: Context) -> Mapping[str, Any]:
        asked = ("dataset", "limit", "seed", "device", "evaluator", "features")
        found = {name: getattr(run.request, name) for name in asked}
        return found | {"data": dict(run.named.data), "table": run.found.estimator.table.hash}

    def is_due(self, run: Context) -> bool:
        return bool(_preparing(run)) and super().is_due(run)

    def is_intact(self, run: Context) -> bool:
        kept = run.output(self.name)["files"]
        return all((run.folder / name).is_file() and hash_of(run.folder / name) == kept[name] for name in kept)

    def carry_out(self, run: Context) -> Mapping[str, Any]:
        request, found = run.request, run.found
        prepared: dict[str, Any] = {}
        files: dict[str, str] = {}
        for key, asked in _preparing(run).items():
            (name,) = asked
            folder = run.folder / FOLDER / key
            folder.mkdir(parents=True, exist_ok=True)
            run.progress(0, 1, None, f"{name} gets ready")
            given = load_asked(asked).prepare(
                found.space,
                found.fits,
                run.data,
                folder.resolve(),
                seed=request.seed,
                device=request.device,
                threads=request.workers,
                progress=functools.partial(_show, run, name),
            )
            prepared[key] = run.in_folder(_plain(name, given))
            paths = (path for path in sorted(folder.rglob("*")) if path.is_file())
            files |= {str(path.relative_to(run.folder)): hash_of(path) for path in paths}
        _require_same(run, prepared)
        return {"prepared": prepared, "files": files}


def _preparing(run: Context) -> dict[str, Asked]:
    """The evaluators of the request that have something to prepare, by name and settings."""
    asked = {key_of(item): item for item in (*run.request.features, *run.request.evaluator)}
    return {key: item for key, item in asked.items() if type(load_asked(item)).prepare is not Evaluator.prepare}


def _show(
    run: Context, name: str, done: float, total: float, seconds_left: float | None = None, text: str = ""
) -> None:
    run.progress(done, total, seconds_left, f"{name} gets ready{': ' if text else ''}{text}")


def _plain(name: str, given: Any) -> dict[str, Any]:
    try:
        found = json.loads(json.dumps(given, allow_nan=False))
    except (TypeError, ValueError) as error:
        raise RunError(f"evaluator {name}: what it prepared is no plain data (JSON): {error}") from error
    if not isinstance(found, dict):
        raise RunError(f"evaluator {name}: what it prepared is no mapping, but {type(given).__name__}")
    return found


def _require_same(run: Context, prepared: Mapping[str, Any]) -> None:
    """Scores rest on what was prepared: once there are some, only the same can take its place.

    Args:
        run: the run.
        prepared: for each evaluator, see `Context.in_folder`.

    Raises:
        RunError: it is another.
    """
    known = run.study.user_attrs.get(PREPARE)
    records = filter(None, map(so_far, run.study.get_trials(deepcopy=False)))
    if known not in (None, prepared) and any(record.rungs or record.value is not None for record in records):
        names = ", ".join(name for name in prepared if known.get(name) != prepared[name])
        raise RunError(
            f"evaluator {names}: what it prepared now is not what the scores of the run in {run.folder} rest on, so "
            f"they would not compare. Put the files in {run.folder / FOLDER} back, or give the request another name"
        )
    run.study.set_user_attr(PREPARE, dict(prepared))


STEP = Prepare()
