"""Copied from upstream, version 1.2."""


def slug(text):
    return text.lower().replace(" ", "-")
