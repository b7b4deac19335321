"""The command line `cartq`: one file a command, and what they share.

`main` builds the program and formats errors; `options` holds the shared options; `output` holds
tables, JSON and progress. Commands import the package's heavy parts when they run, so that
`cartq --help` is quick.
"""
