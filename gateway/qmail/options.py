"""Options as getopt reads them: letters in one word, values glued or in the next, `--` ends them. Pure."""


class OptionError(Exception):
    """An option that is unknown, or lacks its value."""


def options(arguments: list[bytes], known: str) -> tuple[list[tuple[str, bytes]], list[bytes]]:
    """Give (letter, value) of each option in order, and the other arguments.

    A letter with a colon behind it in `known` has a value. Raises OptionError.
    """
    found: list[tuple[str, bytes]] = []
    left = list(arguments)
    while left and left[0].startswith(b"-") and left[0] != b"-":
        word = left.pop(0)[1:]
        if word == b"-":
            break
        while word:
            letter, word = word[:1].decode("latin-1"), word[1:]
            at = known.find(letter)
            if at < 0 or letter == ":":
                raise OptionError(f"illegal option -- {letter}")
            if known[at + 1 : at + 2] != ":":
                found.append((letter, b""))
                continue
            if not word and not left:
                raise OptionError(f"option requires an argument -- {letter}")
            found.append((letter, word or left.pop(0)))
            word = b""
    return found, left
