"""The digest of an upload: the same for the same bytes, however they were cut and whichever zeroes were left out."""

from hypothesis import given
from hypothesis import strategies as st

from volgate.operations.content import ContentDigest

BLOCK = 1 << 16
LENGTHS = st.one_of(st.integers(0, 3), st.integers(BLOCK - 2, BLOCK + 2), st.integers(0, 3 * BLOCK))
PARTS = st.lists(st.tuples(LENGTHS, st.sampled_from([0, 1, 255])), max_size=8)


def content(parts) -> bytes:
    return b"".join(bytes([value]) * length for length, value in parts)


def of(data: bytes) -> ContentDigest:
    digest = ContentDigest()
    digest.add(data)
    return digest


@given(PARTS, st.lists(st.integers(1, BLOCK * 2), max_size=5), st.booleans())
def test_cuts_and_holes_change_nothing(parts, cuts, skips):
    data, digest, at = content(parts), ContentDigest(), 0
    for length in (*cuts, len(data)):
        piece = data[at : at + length]
        if skips and not any(piece):
            digest.skip(len(piece))
        else:
            digest.add(piece)
        at += len(piece)
    assert (digest.length, digest.hexdigest()) == (len(data), of(data).hexdigest())


@given(PARTS, PARTS)
def test_other_bytes_are_another_digest(one, other):
    assert (of(content(one)).hexdigest() == of(content(other)).hexdigest()) is (content(one) == content(other))


@given(PARTS, st.integers(0, 1 << 60))
def test_a_long_hole_counts_by_its_length(parts, length):
    digest, longer = of(content(parts)), of(content(parts))
    digest.skip(length)
    longer.skip(length + 1)
    assert digest.length == len(content(parts)) + length
    assert digest.hexdigest() != longer.hexdigest()
