"""Judges that RUB does not train.

A judge has the signature ``judge(files, context, *, settings) -> Judge``: `files` is its folder, or its file of
weights, or None where none was given, `context` a `JudgeContext`, and what it returns a `Judge`, such as an `Argmax`.
"""
