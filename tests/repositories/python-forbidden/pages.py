from vendor.slug import slug


def address(title):
    """The address of a page: lower case, words joined by single dashes."""
    return "/" + slug(title)
