"""Reference segmenter, procedural scenes, decoders, adapters and the bundled checkpoint.

Needs `lvtp_fx[models]`.
"""
