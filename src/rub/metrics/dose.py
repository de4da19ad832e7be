"""Dose models: how much of the forget set a model was trained on, as a scale whose truth is known."""

_ROW = "dose-"
_ENDS = {"retrain": 0.0, "original": 100.0}


def dose_row(percent: float) -> str:
    """Row id of the models that were trained on this share of the forget set, in percent.

    Example:
        >>> dose_row(0.5), dose_row(10)
        ('dose-0.5', 'dose-10')
    """
    return f"{_ROW}{percent:g}"


def dose_of(method: str) -> float | None:
    """Percent of the forget set that a row's models were trained on; None of a row of which it is not known.

    Example:
        >>> dose_of("dose-0.5"), dose_of("retrain"), dose_of("original"), dose_of("ft")
        (0.5, 0.0, 100.0, None)
    """
    if method in _ENDS:
        return _ENDS[method]
    head, mark, percent = method.partition(_ROW)
    return float(percent) if mark and not head else None
