"""How a refusal reads: one line, with the words that help."""

import pytest

from rub.errors import RubError


@pytest.fixture
def one_line():
    """Call what should be refused; the message is one line with all of these words in it."""

    def call(refused, *words):
        with pytest.raises(RubError) as caught:
            refused()
        message = str(caught.value)
        assert "\n" not in message
        for word in words:
            assert str(word) in message, message
        return message

    return call
