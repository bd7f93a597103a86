"""The base of every configuration section: frozen, strict, no conversion that hides a mistake."""

from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field

Probability = Annotated[float, Field(ge=0, le=1)]
Range = Annotated[tuple[float, float], Field(description="low, high")]
Triple = tuple[float, float, float]


class Section(BaseModel):
    """A group of settings; an unknown key is an error and values never change."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)
