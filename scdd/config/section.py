"""The base of every configuration section: frozen, strict, no conversion that hides a mistake."""

from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationInfo, field_validator


def _positive_and_in_order(value: tuple[float, float]) -> tuple[float, float]:
    low, high = value
    if not 0 < low <= high:
        raise ValueError(f"wants 0 < low <= high, found [{low}, {high}]")
    return value


def _share(value: tuple[float, float]) -> tuple[float, float]:
    if value[1] > 1:
        raise ValueError(f"is a share of the image, so at most 1, found {value[1]}")
    return value


Probability = Annotated[float, Field(ge=0, le=1)]
Range = Annotated[
    tuple[float, float], Field(description="low, high"), AfterValidator(_positive_and_in_order)
]
Shares = Annotated[Range, AfterValidator(_share)]
Triple = tuple[float, float, float]
Switch = Literal["auto", "on", "off"]
"""YAML takes a bare `on` for a truth value; a section takes it for what was written."""
Teachers = Literal["teacher", "labellers", "all"]
"""The probed backbone, the networks of `squeeze_labellers`, or both."""


class Section(BaseModel):
    """A group of settings; an unknown key is an error and values never change."""

    model_config = ConfigDict(
        extra="forbid", frozen=True, allow_inf_nan=False, use_attribute_docstrings=True
    )

    @field_validator("*", mode="before")
    @classmethod
    def _no_truth_value_is_a_number(cls, value: Any, info: ValidationInfo) -> Any:
        assert info.field_name is not None
        wanted = cls.model_fields[info.field_name].annotation
        if isinstance(value, bool) and wanted == Switch:
            return "on" if value else "off"
        if isinstance(value, bool) and wanted is not bool:
            raise ValueError(f"wants no truth value, found {str(value).lower()}")
        return value
