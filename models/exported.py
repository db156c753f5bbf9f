"""Exported programs, from a .pt2 file."""

from __future__ import annotations

import zipfile
from dataclasses import replace
from pathlib import Path

import torch
from torch.export import ExportedProgram

from lvtp_fx.models.named import Named
from lvtp_fx.models.request import Request, bad_device, bad_model, guessed


def load(path: Path, request: Request) -> Named:
    """What torch.export.save wrote."""
    try:
        if not zipfile.is_zipfile(path):  # torch would write a traceback to stderr, too
            raise ValueError("no such file" if not path.is_file() else "no archive")
        with zipfile.ZipFile(path) as archive:
            if not any(name.endswith("archive_format") for name in archive.namelist()):
                raise ValueError("an archive of something else")
        program = torch.export.load(path)
    except (RuntimeError, ValueError, zipfile.BadZipFile) as error:
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
    try:
        device = torch.device(request.device)
        if device.type != image.device.type or device.index not in (None, image.device.index):
            program = _moved(program, request.device)
            args = tuple(a.to(request.device) if isinstance(a, torch.Tensor) else a for a in args)
    except (RuntimeError, AssertionError) as error:  # torch raises the second without CUDA
        raise bad_device(request.device, error) from error
    preprocess, notes = guessed(request, (image.shape[2], image.shape[3]), "an exported program does not say it")
    named = Named(request.name, program, preprocess, notes=notes, device=request.device, dtype=image.dtype)
    if len(args) == 1 and not kwargs and image.shape[1] == 3 and _free_batch(program):
        return named  # it takes images of noise, as many as are wanted
    fixed = f"the program is run on the inputs that it was exported with, a batch of {len(image)}"
    return replace(named, example=(tuple(args), dict(kwargs)), notes=(*notes, fixed))


def _free_batch(program: ExportedProgram) -> bool:
    inputs = [n.meta["val"] for n in program.graph.nodes
              if n.op == "placeholder" and n.name in program.graph_signature.user_inputs]
    return isinstance(inputs[0].shape[0], torch.SymInt)


def _moved(program: ExportedProgram, device: str) -> ExportedProgram:
    from torch.export.passes import move_to_device_pass

    return move_to_device_pass(program, device)
