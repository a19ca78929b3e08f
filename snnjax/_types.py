"""Types of arguments that are one of a few words, for editors and type checkers."""

from typing import Literal

Per = Literal["layer", "channel"]
Reset = Literal["subtract", "zero"]
Inputs = Literal["constant", "sequence"]
Execution = Literal["auto", "closed_form"] | int  # or so many steps at a time
