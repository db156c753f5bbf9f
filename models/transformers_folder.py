"""Segmenters of transformers, from a local folder."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from safetensors import SafetensorError

from lvtp_fx.models.named import Named
from lvtp_fx.models.preprocess import Preprocess, ProcessorPreprocess
from lvtp_fx.models.request import Request, bad_model, guessed, inferred_size


def load(folder: Path, request: Request) -> Named:
    """A folder that transformers' save_pretrained wrote: a model for semantic or universal segmentation (queries and
    their masks) and its image processor."""
    try:
        import transformers
    except ImportError as error:
        raise ImportError("transformers folders need more: pip install 'transformers>=5'") from error
    if not (folder / "config.json").is_file():
        raise bad_model(request.name, "a folder with config.json and model.safetensors", "no config.json there",
                        "transformers builds the model from it", "model.save_pretrained(FOLDER) writes one")
    library: Any = transformers  # its types come and go from release to release
    try:
        with _quiet(library):
            config = library.AutoConfig.from_pretrained(folder, local_files_only=True)
            universal = type(config) in library.MODEL_FOR_UNIVERSAL_SEGMENTATION_MAPPING
            auto = library.AutoModelForUniversalSegmentation if universal else library.AutoModelForSemanticSegmentation
            model, info = auto.from_pretrained(folder, local_files_only=True, output_loading_info=True)
    except (OSError, ValueError, RuntimeError, SafetensorError) as error:
        raise bad_model(
            request.name, "a model that AutoModelForSemanticSegmentation or AutoModelForUniversalSegmentation can load",
            str(error).strip(), "label maps are made of its output", "a folder of such a model") from error
    if info["missing_keys"]:
        missing = sorted(info["missing_keys"])
        raise bad_model(request.name, f"weights for all of {type(model).__name__}",
                        f"none for {', '.join(missing[:3])}{' and others' if len(missing) > 3 else ''}",
                        "they would be random", "the folder of a segmenter, not of its backbone")
    names = tuple(str(model.config.id2label[i]) for i in range(model.config.num_labels))
    size = request.size or inferred_size(model)
    notes: tuple[str, ...] = ()
    try:
        with _quiet(library):
            processor = library.AutoImageProcessor.from_pretrained(folder, local_files_only=True)
            preprocess: Preprocess = ProcessorPreprocess(processor, size)
        if getattr(processor, "do_split_image", False):
            notes = ("its image processor splits images into windows, which a stride does here",)
    except (OSError, ValueError) as error:
        preprocess, notes = guessed(request, size, f"no image processor ({str(error).splitlines()[0]})")
    return Named(request.name, model, preprocess, names, notes=notes)


@contextmanager
def _quiet(library: Any) -> Iterator[None]:
    """No bars and no remarks: what matters of them is said by the errors above."""
    logging = library.utils.logging
    verbosity, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(verbosity)
        if bars:
            logging.enable_progress_bar()
