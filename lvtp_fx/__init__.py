"""lvtp_fx: a torch.fx compiler pass that prunes the tokens of any Vision-Transformer segmenter, without retraining."""

from lvtp_fx.api import explain, transform
from lvtp_fx.by_size import BySize
from lvtp_fx.calibrate import calibrate
from lvtp_fx.config import Config
from lvtp_fx.decisions import Decision, decisions
from lvtp_fx.errors import LvtpError
from lvtp_fx.report import Report
from lvtp_fx.verify import Verification, verify

__all__ = [
    "BySize", "Config", "Decision", "LvtpError", "Report", "Verification", "calibrate", "decisions", "explain",
    "transform", "verify",
]
