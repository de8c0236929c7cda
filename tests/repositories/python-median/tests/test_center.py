import unittest

from stats.center import mean, median, mode


class Center(unittest.TestCase):
    def test_mean(self):
        self.assertEqual(mean([1, 2, 6]), 3)

    def test_median_of_an_odd_count(self):
        self.assertEqual(median([9, 1, 5]), 5)

    def test_median_of_an_even_count(self):
        self.assertEqual(median([1, 2, 3, 10]), 2.5)

    def test_mode(self):
        self.assertEqual(mode([3, 1, 3, 2]), 3)
