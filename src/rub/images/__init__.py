"""Image data sets shared by all tasks: readers of the standard layouts, and the `Samples` they give."""
