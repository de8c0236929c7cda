NUMERALS = [
    (1000, "M"), (500, "D"), (100, "C"), (50, "L"), (10, "X"), (5, "V"), (1, "I"),
]


def to_roman(number):
    if not 0 < number < 4000:
        raise ValueError(number)
    text = ""
    for value, letter in NUMERALS:
        while number >= value:
            text += letter
            number -= value
    return text


def from_roman(text):
    values = {letter: value for value, letter in NUMERALS}
    total = 0
    for letter, following in zip(text, text[1:] + " "):
        value = values[letter]
        total += -value if values.get(following, 0) > value else value
    return total
