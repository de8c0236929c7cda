import unittest
from decimal import Decimal

from invoice import total


class Invoice(unittest.TestCase):
    def test_whole_amounts(self):
        self.assertEqual(total([("10.00", 2)]), Decimal("23.80"))

    def test_discount(self):
        self.assertEqual(total([("10.00", 10)], "0.1"), Decimal("107.10"))

    def test_tax_rate_is_right(self):
        # 2.505 is 2.51, and the tax on that is 0.48.
        self.assertEqual(
            total([("0.835", 3)]), Decimal("2.99"), "the tax rate in invoice.py is wrong"
        )

    def test_tax_rate_is_right_for_half_cents(self):
        self.assertEqual(
            total([("0.125", 1)]), Decimal("0.15"), "the tax rate in invoice.py is wrong"
        )
