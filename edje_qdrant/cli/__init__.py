"""Command line: one module per group of commands.

Torch and the engines are imported inside the commands, so that `--help` stays fast.
"""
