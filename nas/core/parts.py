"""Spaces made from a space: the part in which choices are held to some of their values, and the space at another side.

Both keep its name: their networks are networks of that space, with the same ids.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Mapping, Sequence
from typing import Any

from nas.core.errors import InputError, suggest
from nas.core.ops import Block, Choice
from nas.core.space import Either, Space, Stage

Held = tuple[tuple[str, tuple[Any, ...]], ...]


def holding(space: Space, fix: Mapping[str, Any]) -> Space:
    """The part of a space in which choices are held to a value, or to one of several.

    A network is in it where each of these choices that it has is made so, without being moved to another legal value;
    a choice that it does not have, such as one of another kind of stage, does not keep it out.

    Args:
        space: a space, or a part of one.
        fix: value, or values, by the name of a choice: `{"stage1.kind": ["mb4d", "nextvit"], "tokens": 6}`. Values may
            be given as text.

    Raises:
        InputError: an unknown choice or value, naming the legal ones; or no network is left, saying between which.
    """
    return _holding(space, tuple((name, _values(space, name, asked)) for name, asked in fix.items()))


def loosened(space: Space) -> dict[str, Space]:
    """For each choice that is held in a part of a space, by `stage1.kind=mb4d`, the part in which it is free."""
    if space.whole is None:
        return {}
    whole = dataclasses.replace(space.whole, input_shape=space.input_shape, classes=space.classes)
    return {held_text((one,)): _holding(whole, tuple(each for each in space.held if each != one)) for one in space.held}


def held_text(held: Held) -> str:
    """`stage1.kind=mb4d,nextvit tokens=6`; "" where nothing is held."""
    return " ".join(f"{name}={','.join(map(str, values))}" for name, values in held)


def _values(space: Space, name: str, asked: Any) -> tuple[Any, ...]:
    """Values of a choice, found by their text."""
    if name not in space.choices:
        raise InputError(f"fix: space {space.name}: {suggest('choice', name, space.choices)}")
    legal = {_text(value): value for value in space.choices[name].values}
    wanted = asked if isinstance(asked, Sequence) and not isinstance(asked, str) else [asked]
    for value in wanted:
        if _text(value) not in legal:
            shown = ", ".join(map(str, legal.values()))
            raise InputError(f"fix: {name}: expected one or several of {shown}; got {value!r}")
    if not wanted:
        raise InputError(f"fix: {name}: expected one or several of {', '.join(map(str, legal.values()))}; got none")
    known = {_text(value) for value in wanted}
    return tuple(value for text, value in legal.items() if text in known)


def _text(value: Any) -> str:
    return str(value).replace(" ", "").lower()


@functools.lru_cache(maxsize=16)  # the same object, so that its walk is taken once
def _holding(space: Space, held: Held) -> Space:
    if not held:
        return space
    stages, shared, tail = list(space.stages), dict(space.shared), space.tail
    done: list[tuple[str, tuple[Any, ...]]] = []
    for name, values in held:
        done.append((name, values))
        stage, _, choice = name.rpartition(".")
        if stage:
            place = int(stage.removeprefix("stage")) - 1
            narrowed = _narrowed(stages[place], choice, values)
            if narrowed is None:
                raise _nothing_left(space, tuple(each for each in done if each[0].startswith(f"{stage}.")))
            stages[place] = narrowed
        elif name in shared:
            shared[name] = Choice(values)
        else:
            tail = Choice(values)
    part = dataclasses.replace(
        space, stages=tuple(stages), shared=shared, tail=tail, whole=space.whole or space, held=(*space.held, *held)
    )
    if not part._all_shared or not part._walk[0]:
        raise _nothing_left(space, held)
    return part


def _narrowed(stage: Stage, name: str, values: Sequence[Any]) -> Stage | None:
    """A stage with a choice held to these values; None where it has none of them."""
    if isinstance(stage, Either):
        kinds = [(kind, inner) for kind, inner in stage.kinds if name != "kind" or kind in values]
        found = [(kind, inner if name == "kind" else _narrowed(inner, name, values)) for kind, inner in kinds]
        left = tuple((kind, inner) for kind, inner in found if inner is not None)
        return Either(left) if left else None
    if name in stage.fixed:
        return stage if stage.fixed[name] in values else None
    if name not in stage.choices:
        return stage
    kept = [value for value in stage.choices[name].values if value in values]
    return _with_choice(stage, name, Choice(kept)) if kept else None


def _with_choice(stage: Stage, name: str, choice: Choice) -> Stage:
    changed: dict[str, Any] = {}
    for item in dataclasses.fields(stage):
        value = getattr(stage, item.name)
        if item.name == name and isinstance(value, Choice):
            changed[name] = choice
        elif isinstance(value, Block) and name in value.open_fields():
            changed[item.name] = dataclasses.replace(value, **{name: choice})
    return dataclasses.replace(stage, **changed)


def _nothing_left(space: Space, held: Held) -> InputError:
    return InputError(
        f"fix: no network of space {space.name} has {held_text(held)} together; leave one of them out, or allow more "
        "of its values"
    )


def at_side(space: Space, side: int) -> Space:
    """A space for images of another side: the same choices, other rows.

    Args:
        space: at the side that its family has.
        side: height and width of the images in pixels.

    Raises:
        InputError: a block of the space cannot be laid at this side, naming it and sides near it that do.
    """
    return space if space.input_shape[1:] == (side, side) else _at_side(space, side)


@functools.lru_cache(maxsize=16)
def _at_side(space: Space, side: int) -> Space:
    found = _resized(space, side)
    if problem := _problem(found):
        stride = _stride(space)
        near = dict.fromkeys((max(1, (side - 1) // stride) * stride, (side // stride + 1) * stride))
        raise InputError(
            f"space {space.name} cannot be laid at side {side}: {problem}; try {' or '.join(map(str, near))}"
        )
    return found


def _resized(space: Space, side: int) -> Space:
    whole = None if space.whole is None else _resized(space.whole, side)
    return dataclasses.replace(space, input_shape=(space.input_shape[0], side, side), whole=whole)


def _problem(space: Space) -> str:
    """Why some network of a space cannot be laid, "" where all can."""
    try:
        space.all_rows()
    except InputError as error:
        return str(error)
    return ""


def _stride(space: Space) -> int:
    """By how much the deepest maps of a space are smaller than its images."""
    sides = [shape.side for row in space.all_rows() for shape in row.inputs if shape.is_map and shape[2] > 1]
    return max(1, space.input_shape[1] // min(sides, default=1))
