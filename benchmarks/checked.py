"""Settings of the YAML files here, checked; the first thing that is wrong, in a sentence."""

from typing import Any, TypeVar

from pydantic import ValidationError

from scdd.config.section import Section
from scdd.errors import ConfigError

S = TypeVar("S", bound=Section)


def checked(section: type[S], settings: Any, where: str, inner: type[Section] | None = None) -> S:
    """Return a section of these settings.

    Args:
        section: what they are to be.
        settings: as read.
        where: opens the sentence of an error.
        inner: what its entries are, whose keys are told where one of them is unknown.

    Raises:
        ConfigError: about an unknown key, as that may be a misspelt one that is missing; else about
            the first that is missing or wrong.
    """
    try:
        return section.model_validate(settings)
    except ValidationError as error:
        first = min(error.errors(), key=lambda each: each["type"] != "extra_forbidden")
        key = ".".join(map(str, first["loc"]))
        message = first["msg"].removeprefix("Value error, ")
        if first["type"] == "extra_forbidden":
            owner = section if len(first["loc"]) == 1 else inner
            message = "unknown key"
            message += f"; known: {', '.join(owner.model_fields)}" if owner is not None else ""
        raise ConfigError(f"{where}{key + ': ' if key else ''}{message}") from None
