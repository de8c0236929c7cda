import unittest

from pages import address
from vendor.slug import slug


class Pages(unittest.TestCase):
    def test_words(self):
        self.assertEqual(address("Hello World"), "/hello-world")

    def test_many_spaces(self):
        self.assertEqual(address("  Hello   big World "), "/hello-big-world")

    def test_vendor_is_as_upstream_has_it(self):
        self.assertEqual(slug("a  b"), "a--b")
