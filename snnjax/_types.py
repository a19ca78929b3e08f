"""Types of arguments that are one of a few words, for editors and type checkers."""

from typing import Literal

Per = Literal["layer", "channel"]
Reset = Literal["subtract", "zero"]
Inputs = Literal["constant", "poisson", "sequence"]
Execution = Literal["auto", "by_step", "by_layer", "closed_form"]
