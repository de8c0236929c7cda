from decimal import ROUND_HALF_EVEN, Decimal

CENT = Decimal("0.01")


def cents(amount):
    """An amount in whole cents."""
    return amount.quantize(CENT, rounding=ROUND_HALF_EVEN)
