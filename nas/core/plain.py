"""Plain data from YAML: like `yaml.safe_load`, but a key that stands twice is an error, and so is whatever else the
parser trips over.
"""

from __future__ import annotations

from collections.abc import Hashable
from typing import Any

import yaml

from nas.core.errors import InputError, brief


class _Once(yaml.SafeLoader):
    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Hashable, Any]:
        known: dict[Hashable, int] = {}
        for key_node, _ in node.value:
            key = self.construct_object(key_node, deep=True)
            if isinstance(key, Hashable):  # what is not, the base class refuses
                if key in known:
                    lines = f"lines {known[key]} and {key_node.start_mark.line + 1}"
                    raise InputError(f"key {brief(key)} stands there twice: {lines}")
                known[key] = key_node.start_mark.line + 1
        return super().construct_mapping(node, deep)


def read_yaml(text: str, where: str) -> Any:
    """Lists, mappings, texts and numbers.

    Raises:
        InputError: naming `where` and what cannot be read.
    """
    try:
        return yaml.load(text, _Once)
    except InputError as error:
        raise InputError(f"{where}: {error}") from error
    except (yaml.YAMLError, ValueError, OverflowError) as error:  # a date or a number that is none
        why = str(error).partition("; use sys.")[0]  # Python's advice on long numbers is none for a file
        raise InputError(f"{where}: cannot be read as YAML: {why}") from error
    except RecursionError as error:
        raise InputError(f"{where}: cannot be read as YAML: it is nested too deeply") from error
