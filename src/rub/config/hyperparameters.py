"""Ranges that the hyperparameters of several methods share."""

from typing import Annotated

from pydantic import Field

Rate = Annotated[float, Field(gt=0)]
Epochs = Annotated[int, Field(ge=1)]
Count = Annotated[int, Field(ge=0)]
Fraction = Annotated[float, Field(ge=0, le=1)]
Weight = Annotated[float, Field(ge=0)]
Positive = Annotated[float, Field(gt=0)]
