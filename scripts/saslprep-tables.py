#!/usr/bin/env python3
"""Prints src/connectors/postgres/auth/saslprep-tables.ts.

The tables of RFC 3454 are frozen at Unicode 3.2; Python's stringprep module carries that version of the
Unicode database, JavaScript does not. Run: python3 scripts/saslprep-tables.py > src/connectors/postgres/auth/saslprep-tables.ts
"""

import stringprep

TABLES = [
    (
        "spaces",
        "C.1.2: spaces outside ASCII.",
        stringprep.in_table_c12,
    ),
    (
        "nothing",
        "B.1: characters that are commonly mapped to nothing.",
        stringprep.in_table_b1,
    ),
    (
        "refused",
        "C.2.1, C.2.2, C.3 to C.9: characters that SASLprep prohibits. A.1: those that Unicode 3.2 does not know.",
        lambda c: (
            stringprep.in_table_c21_c22(c)
            or stringprep.in_table_c3(c)
            or stringprep.in_table_c4(c)
            or stringprep.in_table_c5(c)
            or stringprep.in_table_c6(c)
            or stringprep.in_table_c7(c)
            or stringprep.in_table_c8(c)
            or stringprep.in_table_c9(c)
            or stringprep.in_table_a1(c)
        ),
    ),
    (
        "rightToLeft",
        "D.1: characters with the bidirectional property R or AL.",
        stringprep.in_table_d1,
    ),
    (
        "leftToRight",
        "D.2: characters with the bidirectional property L.",
        stringprep.in_table_d2,
    ),
]

HEADER = """// Printed by scripts/saslprep-tables.py from Unicode 3.2; do not edit.

/** A set of code points: sorted, even places hold the first of a range and odd places its last. */
export type CodePoints = Uint32Array;

function ranges(text: string): CodePoints {
  const pairs = text.trim().split(/\\s+/);
  const points = pairs.flatMap((pair) => pair.split('-')).map((digits) => Number.parseInt(digits, 16));
  return Uint32Array.from(points);
}
"""


def ranges_of(contains):
    """Pairs (first, last) of the code points for which contains() holds."""
    first = None
    for point in range(0x110000):
        inside = contains(chr(point))
        if inside and first is None:
            first = point
        if not inside and first is not None:
            yield first, point - 1
            first = None
    if first is not None:
        yield first, 0x10FFFF


def wrapped(words, width=106):
    """The words in lines of at most that width."""
    line = ""
    for word in words:
        if line and len(line) + 1 + len(word) > width:
            yield line
            line = ""
        line = f"{line} {word}" if line else word
    yield line


print(HEADER, end="")
for name, sentence, contains in TABLES:
    print(f"\n/** RFC 3454, {sentence} */")
    print(f"export const {name} = ranges(`")
    for line in wrapped(f"{first:x}-{last:x}" for first, last in ranges_of(contains)):
        print(f"  {line}")
    print("`);")
