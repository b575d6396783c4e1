"""Scores of the networks of the stored truth, and how well they rank: everything that is shown of them comes from here.

`scores.jsonl` beside the truth holds what each score says of each network, so that notebooks, tests and benchmarks need
not ask again; only what it lacks is asked for. Each score is then judged by itself, and each set of `SETS` together;
that goes to `nas/evaluation/truths/fashion-mnist.judged.json`, which a search reads to say how good its score is known
to be. One command makes all of it anew, after more networks were trained or a score was added:

    nice python benchmarks/truth/scores.py [SCORE...] [--workers N] [--again] [--band N]

Without names, the scores that take no training; `--again` forgets what the named scores said, where they have changed;
`--band N` asks only for the first N networks of the band, where a score costs minutes of each.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from nas.core.errors import NasError
from nas.core.files import write_text, writing
from nas.evaluation import truth
from nas.search import judging, known, verdicts
from nas.search.predictor import Prior
from nas.search.verdicts import Judged

FILE = Path(__file__).with_name("scores.jsonl")
UNTRAINED = ("size: {of: params}", "size", "naswot", "synflow", "zico", "expressivity", "trainability")
#: judged together, as far as they are in the file
SETS = (
    ("size: {of: params}", "naswot"),
    UNTRAINED,
    ("naswot", "trainability", "supernet"),
    (f"prior {truth.DEFAULT}",),
    (f"prior {truth.DEFAULT}", "naswot", "trainability", "supernet"),
)
LABELS = 8, 20


def lines_of(judged: Judged, networks: Sequence[truth.Known]) -> list[dict[str, Any]]:
    """What a score says, as the file holds it."""
    seconds = iter(judged.seconds)
    found: list[dict[str, Any]] = [{"score": judged.name, "once": round(judged.once, 1)}] if judged.once else []
    for place, each in enumerate(networks):
        line: dict[str, Any] = {"score": judged.name, "arch": each.arch.id}
        value = float(judged.values[place])
        if math.isfinite(value):
            found.append(line | {"value": value, "seconds": round(next(seconds), 4)})
        else:
            found.append(line | {"value": None, "reason": judged.failed[place]})
    return found


def ask(scores: Sequence[str], stored: truth.Truth, file: Path, workers: int, band: int | None = None) -> None:
    """Ask scores for the networks that the file lacks, or for those of the first of the band."""
    if band is not None:
        stored = replace(stored, networks=tuple(each for each in stored.networks if each.set == "band")[:band])
    for text in scores:
        for label, asked in judging.asked_in(text).items():
            there = {(line["score"], line.get("arch")) for line in read(file)}
            lacking = tuple(each for each in stored.networks if (label, each.arch.id) not in there)
            print(f"{label}: {len(stored.networks) - len(lacking)} of {len(stored.networks)} are known", flush=True)
            if not lacking:
                continue
            part = replace(stored, networks=lacking)
            data = judging.images_of(part, None)
            given = judging.score(label, asked, part, data, workers, "cpu", lambda *_: None)
            if not given.seconds:
                raise NasError(f"{label}: no network has a score; {next(iter(given.failed.values()))}")
            lines = lines_of(given, lacking)
            with writing(file), file.open("a", encoding="utf-8") as out:
                out.writelines(json.dumps(line) + "\n" for line in lines)


def read(file: Path) -> list[dict[str, Any]]:
    """The lines of the file."""
    return [json.loads(text) for text in file.read_text(encoding="utf-8").splitlines()] if file.exists() else []


def judged(stored: truth.Truth, file: Path) -> dict[str, Any]:
    """Each score by itself, the prior of all other trainings, and each set together, as `known.read` takes it."""
    scores = verdicts.read_scores(file, stored)
    if len(stored.networks) > verdicts.FEWEST:
        scores.append(replace(judging.expected(Prior(stored.file), stored), name=f"prior {stored.file.stem}"))
    labels = [count for count in LABELS if count <= len(stored.networks) - verdicts.FEWEST]
    found = verdicts.figures(stored, scores)
    alone = [each for each in found["scores"] if not each["of"]]
    combined: list[dict[str, Any]] = []
    predictors: dict[tuple[Any, ...], dict[str, Any]] = {}
    for names in SETS:
        members = [each for each in scores if each.name in names]
        together = verdicts.figures(stored, members, labels)
        combined += [each for each in together["scores"] if each["of"]]
        predictors |= {(each["labels"], each["from"], *each["of"]): each for each in together["predictors"]}
    return found | {"truth": stored.file.name, "scores": [*alone, *combined], "predictors": list(predictors.values())}


def main(
    scores: Sequence[str] = UNTRAINED,
    name: str = truth.DEFAULT,
    file: Path = FILE,
    out: Path = known.FILE,
    workers: int = 1,
    again: bool = False,
    band: int | None = None,
) -> None:
    """Ask what is lacking, judge, and write.

    Args:
        scores: to ask; what else the file knows is judged, too.
        name: of the truth, or its file.
        file: of the scores.
        out: of what is found.
        workers: networks scored at once, one thread each.
        again: whether to ask again for all networks.
        band: ask only for so many networks of the band.
    """
    stored = truth.load(name)
    if again:
        dropped = {label for text in scores for label in judging.asked_in(text)}
        write_text(file, "".join(json.dumps(line) + "\n" for line in read(file) if line["score"] not in dropped))
    ask(scores, stored, file, workers, band)
    found = judged(stored, file)
    write_text(out, json.dumps(found, indent=1, allow_nan=False) + "\n")
    for each in found["scores"]:
        print(f"{each['name']:24} {' + '.join(each['of'])}", *(shown(each, part) for part in ("_band", "")), sep="  ")
    for each in found["predictors"]:
        told = f"{each['labels']} labels, {each['from']:24} {' + '.join(each['of'])}"
        print(told, *(shown(each, part) for part in ("_band", "")), sep="  ")


def shown(each: dict[str, Any], part: str) -> str:
    """Kendall's tau with its interval."""
    values = (each[f"kendall{key}{part}"] for key in ("", "_low", "_high"))
    value, low, high = (math.nan if found is None else found for found in values)
    return f"{'band' if part else 'all'} {value:.2f} [{low:.2f}, {high:.2f}]"


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="Score the networks of the stored truth, and judge the scores.")
    parser.add_argument("scores", nargs="*", metavar="SCORE", help="as nas judge takes them")
    parser.add_argument("--truth", default=truth.DEFAULT, help="another truth")
    parser.add_argument("--scores", dest="file", type=Path, default=FILE, help="another file of scores")
    parser.add_argument("--out", type=Path, default=known.FILE, help="another file of what is found")
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--again", action="store_true")
    parser.add_argument("--band", type=int, metavar="N")
    given = parser.parse_args()
    try:
        main(given.scores or UNTRAINED, given.truth, given.file, given.out, given.workers, given.again, given.band)
    except NasError as error:
        sys.exit(str(error))
