"""Numbers with their nouns, as a person would write them: 1 shard, 2 shards."""


def counted(number: int, noun: str, verb: str = "") -> str:
    """`number` and `noun`, which takes an s unless the number is 1; `verb`, if any, agrees: 1 image stands."""
    one = number == 1
    words = f"{number} {noun}{'' if one else 's'}"
    return f"{words} {verb}{'s' if one else ''}" if verb else words
