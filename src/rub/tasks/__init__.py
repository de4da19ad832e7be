"""The three tasks: a folder of the same file names each."""
