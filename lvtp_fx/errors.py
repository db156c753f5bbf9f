"""Errors that teach: a stable code, where it happened, what was expected and found, why it matters, what to try."""

from __future__ import annotations

from enum import Enum


class Code(Enum):
    """The stable codes: number, slug, what it means, what to try. A number never changes its meaning."""

    CAPTURE_FAILED = (
        "LVTP101", "cannot-capture",
        "torch.export cannot turn the model into a graph, or the model cannot be copied. Usually a Python "
        "branch on a tensor's value; the message names the line.",
        "torch.where or torch.cond in its place",
    )
    ATTENTION_NOT_MATCHED = (
        "LVTP102", "attention-not-matched",
        "No attention over one grid of patch tokens was found. The nearest misses are named, with what "
        "was expected of them.",
        "lvtp_fx.explain(model, inputs) lists every miss; windowed, linear and hierarchical attention is "
        "left dense",
    )
    SHAPE_NOT_INFERABLE = (
        "LVTP103", "shape-not-inferable",
        "No example inputs were given, and the model does not say what size of image it takes.",
        "pass example_inputs, e.g. (torch.rand(1, 3, 512, 512),)",
    )
    MIXED_DEVICES = (
        "LVTP104", "parameters-on-several-devices",
        "The model's parameters are on several devices.",
        "move the model to one device first",
    )
    BAD_EXAMPLE = (
        "LVTP105", "bad-example-inputs",
        "Example inputs, images, labels or folders of these that cannot be used: no tensor, a batch of 0, inputs on "
        "which the model itself fails or gives NaN, nothing to compare, another layout.",
        "the call that the message shows",
    )
    BAD_MODEL = (
        "LVTP106", "not-a-model-to-transform",
        "Not a module, GraphModule or ExportedProgram, or one that was transformed already; of a model that is asked "
        "for by name, a name, size, device or file of weights that it cannot be had with.",
        "pass the original model, or what the message names",
    )
    CONFIG_OUT_OF_RANGE = (
        "LVTP201", "config-out-of-range",
        "An option is unknown or out of its range.",
        "the range that the message names",
    )
    CUT_UNREACHABLE = (
        "LVTP202", "flops-cut-unreachable",
        "The model and the sites do not allow the wanted share of FLOPs, or scoring would cost more than "
        "is saved.",
        "a smaller flops_cut, or earlier sites",
    )
    SITES_OUT_OF_RANGE = (
        "LVTP203", "sites-out-of-range",
        "Sites that the encoder does not have, of which two lie at one point of the stream, or that have a keep ratio "
        "each and are not in rising order.",
        'sites="auto", or lvtp_fx.explain to see the blocks',
    )
    TOO_LITTLE_TIME_SAVED = (
        "LVTP204", "too-little-time-saved",
        "The probe expects the pruned graph to take as long as the dense one, or the wanted share of the "
        "time is out of reach.",
        "a larger image or batch, a smaller latency_cut; or leave the model dense",
    )
    VERIFY_MISMATCH = (
        "LVTP301", "verify-mismatch",
        "The pruned graph differs from the dense oracle by more than rounding.",
        "report it: with the model's code this is a defect of the pass",
    )
    NOT_TRANSFORMED = (
        "LVTP302", "not-a-transformed-module",
        "A function that needs the decisions was given a module that transform did not make, or that lost "
        "its graph.",
        "pass what lvtp_fx.transform returned",
    )
    BAD_INPUT = (
        "LVTP401", "input-does-not-fit",
        "An input has another shape, dtype or value than the graph was made for.",
        "resize it, transform for its size or value, or use lvtp_fx.BySize",
    )
    DEVICE_BAKED_IN = (
        "LVTP402", "graph-holds-another-device",
        "An input is on another device than the tensors in the graph.",
        "move the model first, then transform it",
    )
    CANNOT_SHIP = (
        "LVTP501", "cannot-write-file",
        "The graph cannot be written in the wanted format.",
        "the format that the message names",
    )
    FILE_NOT_USABLE = (
        "LVTP502", "file-not-usable",
        "The command line could not read or write a file: no such file, a folder in its place, no permission, a full "
        "disk.",
        "another path",
    )
    WRONG_USAGE = (
        "LVTP503", "wrong-usage",
        "An option or argument of the command line is missing, unknown, or cannot be read.",
        "--help, which lists them",
    )
    LIBRARY_MISSING = (
        "LVTP504", "library-missing",
        "What was asked for needs a library that is not installed.",
        "pip install, with the extra that the message names",
    )

    @property
    def number(self) -> str:
        return self.value[0]

    @property
    def slug(self) -> str:
        return self.value[1]

    @property
    def meaning(self) -> str:
        return self.value[2]

    @property
    def remedy(self) -> str:
        return self.value[3]


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


def one_line(error: LvtpError | str) -> str:
    """Code, place, what was expected and found, and what to try, of an error or its text."""
    place, _, rest = str(error).partition("\n  expected: ")
    expected, _, rest = rest.partition("\n  got: ")
    rest, _, hint = rest.rpartition("\n  try: ")  # from the right: what was got may be an error itself
    got, _, _ = rest.rpartition("\n  why: ")
    text = f"{place}: expected {expected}; got {got}; try {hint}"
    return " ".join(text.split())


def missing_library(error: ImportError) -> LvtpError:
    """LVTP504, of an ImportError whose message ends with what to install."""
    needs, _, install = str(error).partition("pip install")
    return LvtpError(
        Code.LIBRARY_MISSING, where="lvtp-fx", expected="the libraries that this needs", got=needs.rstrip(" :"),
        why="they are not part of the core", hint=f"pip install{install}")


def catalogue() -> str:
    """All codes as Markdown: `docs/errors.md`."""
    head = (
        "# Errors\n\nGenerated by `lvtp_fx.errors.catalogue()`. What the pass, the checks and the command line refuse "
        "is an `lvtp_fx.LvtpError`\nwith `.code`, `.where`, `.expected`, `.got`, `.why` and `.hint`. Functions of "
        "`lvtp_fx.models` and `lvtp_fx.pictures` that\nare called with wrong arguments raise Python's own ValueError, "
        "as their docstrings say.\n"
    )
    return head + "".join(f"\n## {c.number} {c.slug}\n\n{c.meaning}\n\n*Try:* {c.remedy}.\n" for c in Code)
