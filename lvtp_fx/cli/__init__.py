"""The command line, `lvtp-fx`: one command a file."""
