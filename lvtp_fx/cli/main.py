"""The command line, `lvtp-fx`.

Exit codes: 0 done; 1 what was checked does not hold (or a bug, with its traceback); 2 refused, or wrong usage; 130
stopped by Ctrl-C.
"""

from __future__ import annotations

try:
    import typer

    from lvtp_fx.cli import bench, calibrate, demo, eval, explain, predict, transform, verify
    from lvtp_fx.cli.command import Commands
except ImportError as error:
    raise ImportError("the command line needs more than torch: pip install 'lvtp_fx[cli]'") from error

app = typer.Typer(
    cls=Commands,
    no_args_is_help=True, pretty_exceptions_enable=False, rich_markup_mode="rich",
    context_settings={"help_option_names": ["-h", "--help"]},
    help="Prune the tokens of Vision-Transformer segmenters: without retraining, checked against the dense model.\n\n"
         "A model is named bundled, timm:NAME, torchvision:NAME, hf:FOLDER, by a folder (a checkpoint, or one of "
         "transformers), a .pt2 file, or package.module:function. Nothing is downloaded.\n\n"
         "Exit codes: 0 done, 1 what was checked does not hold, 2 refused or wrong usage, 130 stopped.",
)
for function in (
    demo.demo, explain.explain, transform.transform, verify.verify, bench.bench, predict.predict, eval.evaluate,
    calibrate.calibrate,
):
    app.command("eval" if function is eval.evaluate else function.__name__)(function)


if __name__ == "__main__":
    app()
