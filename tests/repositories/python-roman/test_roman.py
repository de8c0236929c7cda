import unittest

from roman import from_roman, to_roman


class Roman(unittest.TestCase):
    def test_known_numbers(self):
        for number, text in [(1, "I"), (4, "IV"), (9, "IX"), (1994, "MCMXCIV"), (3999, "MMMCMXCIX")]:
            self.assertEqual(to_roman(number), text)

    def test_there_and_back(self):
        for number in range(1, 4000):
            self.assertEqual(from_roman(to_roman(number)), number)
