"""The promise: text events, less what was discarded, concatenate to the answer."""

from hypothesis import given
from hypothesis import strategies as st

from session_supervisor.answer import Answer, Correction


class Reader:
    """A client that keeps text events and obeys discards."""

    def __init__(self) -> None:
        self.answer = Answer()
        self.seq = 0
        self.kept: list[tuple[int, str]] = []

    def publish(self, correction: Correction) -> None:
        if correction.discard_after is not None:
            self.seq += 1
            after = correction.discard_after
            self.kept = [(seq, text) for seq, text in self.kept if seq <= after]
        if correction.content:
            self.seq += 1
            self.kept.append((self.seq, correction.content))

    def delta(self, text: str) -> None:
        self.publish(Correction(content=self.answer.delta(text, last_seq=self.seq)))

    def confirm(self, text: str) -> None:
        self.publish(self.answer.confirm(text, last_seq=self.seq))

    def withdraw(self, blocks: int) -> None:
        self.publish(self.answer.withdraw(blocks))

    def other_event(self) -> None:
        self.seq += 1

    @property
    def text(self) -> str:
        return "".join(text for _, text in self.kept)


texts = st.text(alphabet="ab\n ", max_size=4)
steps = st.lists(
    st.one_of(
        st.tuples(st.just("delta"), texts),
        st.tuples(st.just("confirm"), texts),
        st.tuples(st.just("confirm_streamed"), st.none()),
        st.tuples(st.just("withdraw"), st.integers(0, 3)),
        st.tuples(st.just("other_event"), st.none()),
    ),
    max_size=30,
)


@given(steps)
def test_what_a_reader_keeps_is_the_answer_after_every_step(
    script: list[tuple[str, str | int | None]],
) -> None:
    reader = Reader()
    streamed = ""
    for step, argument in script:
        if step == "delta" and isinstance(argument, str):
            streamed += argument
            reader.delta(argument)
        elif step == "confirm" and isinstance(argument, str):
            reader.confirm(argument)
            streamed = ""
        elif step == "confirm_streamed":
            reader.confirm(streamed)
            streamed = ""
        elif step == "withdraw" and isinstance(argument, int):
            reader.withdraw(argument)
            streamed = ""
        else:
            reader.other_event()
        assert reader.text == reader.answer.text


@given(st.lists(st.lists(st.text(min_size=1, max_size=3), min_size=1, max_size=4), max_size=5))
def test_blocks_are_joined_by_a_blank_line_that_the_stream_carries_too(
    blocks: list[list[str]],
) -> None:
    reader = Reader()
    for deltas in blocks:
        for delta in deltas:
            reader.delta(delta)
        reader.confirm("".join(deltas))
    assert reader.text == "\n\n".join("".join(deltas) for deltas in blocks)


def test_a_block_that_says_more_than_was_streamed_is_completed_without_a_discard() -> None:
    answer = Answer()
    assert answer.delta("ab", last_seq=3) == "ab"
    assert answer.confirm("abc", last_seq=4) == Correction(content="c")


def test_a_block_that_says_something_else_withdraws_what_was_streamed() -> None:
    answer = Answer()
    answer.confirm("first", last_seq=1)
    answer.delta("ab", last_seq=5)
    assert answer.confirm("xy", last_seq=6) == Correction(discard_after=5, content="\n\nxy")
    assert answer.text == "first\n\nxy"


def test_nothing_is_discarded_when_nothing_was_said() -> None:
    assert Answer().withdraw() == Correction()
