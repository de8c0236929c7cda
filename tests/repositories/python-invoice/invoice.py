from decimal import Decimal

from money import cents

TAX = Decimal("0.19")


def line(price, count):
    return cents(Decimal(price) * count)


def total(lines, discount="0"):
    net = sum((line(price, count) for price, count in lines), Decimal(0))
    net -= cents(net * Decimal(discount))
    return net + tax(net)


def tax(net):
    return cents(net * TAX)
