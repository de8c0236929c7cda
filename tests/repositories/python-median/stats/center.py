"""Measures of the center of some numbers."""


def mean(values):
    values = list(values)
    if not values:
        raise ValueError("no values")
    return sum(values) / len(values)


def median(values):
    values = sorted(values)
    if not values:
        raise ValueError("no values")
    middle = len(values) // 2
    return values[middle]


def mode(values):
    values = list(values)
    if not values:
        raise ValueError("no values")
    return max(sorted(set(values)), key=values.count)
