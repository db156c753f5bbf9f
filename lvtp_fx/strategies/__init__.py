"""."""
NAMES=("lvtp",)
