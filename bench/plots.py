"""What the plots of the benches share."""

from __future__ import annotations

from textwrap import fill

from matplotlib.axes import Axes
from matplotlib.ticker import NullLocator

LINEAR = 1.0  # points up to which the axis is linear; below, a bad strategy would squeeze the good ones into a line
TICKS = (-50, -20, -10, -5, -2, -1, -0.5, 0, 0.5, 1, 2, 5)
LETTERS_AN_INCH = 13  # at 9 pt


def scale_points(ax: Axes) -> None:
    """Make y an axis of changes in points, marked with numbers as they are read, once all is drawn."""
    ax.set_yscale("symlog", linthresh=LINEAR)
    bottom, top = ax.get_ylim()
    ax.set_yticks([tick for tick in TICKS if bottom <= tick <= top], minor=False)
    ax.yaxis.set_major_formatter(lambda value, _: f"{value:+g}" if value else "0")
    ax.yaxis.set_minor_locator(NullLocator())


def wrapped(title: str, inches: float) -> str:
    """A title at 9 pt in as many lines as a figure of this width needs, which would cut it off."""
    return fill(title, int(LETTERS_AN_INCH * inches))
