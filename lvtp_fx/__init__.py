"""lvtp_fx: a torch.fx compiler pass that prunes the tokens of any Vision-Transformer segmenter, without retraining."""

from lvtp_fx.api import explain, transform
from lvtp_fx.config import Config
from lvtp_fx.errors import LvtpError
from lvtp_fx.report import Report

__all__ = ["Config", "LvtpError", "Report", "explain", "transform"]
