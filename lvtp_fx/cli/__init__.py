"""The command line, `lvtp-fx`."""

from __future__ import annotations

import sys

from lvtp_fx.errors import missing_library, one_line


def run() -> None:
    """Entry point of the installed command: what is missing in a bare installation is a line with a code, too."""
    try:
        from lvtp_fx.cli.main import app
    except ImportError as error:
        if "pip install" not in str(error):
            raise
        print(one_line(missing_library(error)), file=sys.stderr)
        sys.exit(2)
    app()
