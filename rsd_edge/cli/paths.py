"""Paths as commands are given them."""

from __future__ import annotations

from typing import Any

import click


class GivenPath(click.Path):
    """As click's, but never empty: a variable that is not set would stand for the current folder."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """Raises BadParameter for ''."""
        if value == "":
            self.fail("it is empty; give a path, or . for the current folder.", param, ctx)
        return super().convert(value, param, ctx)
