"""HTML pages from templates."""

from __future__ import annotations

from typing import TYPE_CHECKING

from plastibench.utils.wording import plural

if TYPE_CHECKING:
    from jinja2 import Template


def load_template(package: str, name: str) -> Template:
    """Load a template from the folder ``templates`` of a package.

    Values are escaped, a missing value is an error, and ``count | plural("run")`` gives a count with its noun.
    """
    from jinja2 import Environment, PackageLoader, StrictUndefined

    loader = PackageLoader(package)
    environment = Environment(autoescape=True, loader=loader, undefined=StrictUndefined, trim_blocks=True)
    environment.filters["plural"] = plural
    return environment.get_template(name)
