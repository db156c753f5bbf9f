"""The passes, one a file; `pipeline` has their order."""
