"""Exported programs, from a .pt2 file."""

from __future__ import annotations

import zipfile
from pathlib import Path

import torch
from torch.export import ExportedProgram

from lvtp_fx.models.named import Named
from lvtp_fx.models.request import Request, bad_model, guessed


def load(path: Path, request: Request) -> Named:
    """What torch.export.save wrote."""
    try:
        if not zipfile.is_zipfile(path):  # torch would write a traceback to stderr, too
            raise ValueError("no such file" if not path.is_file() else "no archive")
        program = torch.export.load(path)
    except (RuntimeError, ValueError) as error:
        raise bad_model(request.name, "a file that torch.export.save wrote", str(error).splitlines()[0],
                        "its graph is rewritten", "torch.export.save(torch.export.export(model, inputs), FILE)",
                        ) from error
    args, kwargs = program.example_inputs or ((), {})
    images = [a for a in args if isinstance(a, torch.Tensor) and a.ndim == 4]
    if len(images) != 1:
        raise bad_model(request.name, "a program with one input [batch, channels, height, width]",
                        f"{len(images)} such inputs", "images are its input", "the API takes programs of any inputs")
    image = images[0]
    for given, own in ((request.size, tuple(image.shape[2:])), (request.dtype, image.dtype)):
        if given is not None and given != own:
            raise bad_model(request.name, f"{own}, which is what the program was exported with", f"{given}",
                            "an exported program holds one size and dtype", "leave it out, or export it again")
    if torch.device(request.device).type != image.device.type:
        program = _moved(program, request.device)
        args = tuple(a.to(request.device) if isinstance(a, torch.Tensor) else a for a in args)
    preprocess, notes = guessed(request, (image.shape[2], image.shape[3]), "an exported program does not say it")
    return Named(request.name, program, preprocess, notes=notes, device=request.device,
                 dtype=image.dtype, example=(tuple(args), dict(kwargs)))


def _moved(program: ExportedProgram, device: str) -> ExportedProgram:
    from torch.export.passes import move_to_device_pass

    return move_to_device_pass(program, device)
