"""Errors that teach: a stable code, where it happened, what was expected and found, why it matters, what to try."""

from __future__ import annotations

from enum import Enum


class Code(Enum):
    """The stable codes. The number never changes its meaning; the slug says it in words."""

    CAPTURE_FAILED = ("LVTP101", "cannot-capture")
    ATTENTION_NOT_MATCHED = ("LVTP102", "attention-not-matched")
    SHAPE_NOT_INFERABLE = ("LVTP103", "shape-not-inferable")
    MIXED_DEVICES = ("LVTP104", "parameters-on-several-devices")
    BAD_EXAMPLE = ("LVTP105", "bad-example-inputs")
    BAD_MODEL = ("LVTP106", "not-a-model-to-transform")
    CONFIG_OUT_OF_RANGE = ("LVTP201", "config-out-of-range")
    CUT_UNREACHABLE = ("LVTP202", "flops-cut-unreachable")
    SITES_OUT_OF_RANGE = ("LVTP203", "sites-out-of-range")
    TOO_LITTLE_TIME_SAVED = ("LVTP204", "too-little-time-saved")
    VERIFY_MISMATCH = ("LVTP301", "verify-mismatch")
    NOT_TRANSFORMED = ("LVTP302", "not-a-transformed-module")
    BAD_INPUT = ("LVTP401", "input-does-not-fit")
    DEVICE_BAKED_IN = ("LVTP402", "graph-holds-another-device")

    @property
    def number(self) -> str:
        return self.value[0]

    @property
    def slug(self) -> str:
        return self.value[1]


class LvtpError(Exception):
    """A refusal.

    Args:
        code: one of `Code`.
        where: the module path, node and source line, or the argument, that it is about.
        expected: what the rule asks for.
        got: what was found.
        why: why it matters.
        hint: what to try.
    """

    def __init__(self, code: Code, *, where: str, expected: str, got: str, why: str, hint: str) -> None:
        self.code = code.number
        self.slug = code.slug
        self.where, self.expected, self.got, self.why, self.hint = where, expected, got, why, hint
        super().__init__(
            f"{code.number} {code.slug} at {where}\n"
            f"  expected: {expected}\n  got: {got}\n  why: {why}\n  try: {hint}"
        )

    def __reduce__(self) -> tuple[object, ...]:
        # The default would call __init__ with the message alone; worker processes must be able to send errors home.
        fields = {"where": self.where, "expected": self.expected, "got": self.got, "why": self.why, "hint": self.hint}
        code = next(c for c in Code if c.number == self.code)
        return _rebuild, (code, fields)


def _rebuild(code: Code, fields: dict[str, str]) -> LvtpError:
    return LvtpError(code, **fields)
