"""What a job keeps of a command that failed: its own words, whatever it printed them as."""

import pytest

from flows.service.jobs import MOST_ERROR_CHARACTERS, _why


@pytest.mark.parametrize(
    ("code", "said", "why"),
    [
        (1, '{"error": "no model is installed", "exit_code": 1}\n', "no model is installed"),
        (1, 'processing 3/5\n{"error": "a bug", "exit_code": 1}\n', "processing 3/5\na bug"),
        (1, "Fatal Python error\n", "Fatal Python error"),
        (1, "", "it ended with exit code 1"),
        (1, '{"error": "%s!"}' % ("x" * 2 * MOST_ERROR_CHARACTERS), "x" * (MOST_ERROR_CHARACTERS - 1) + "!"),
        (-9, "", "its process was ended from outside by SIGKILL: the machine may have run out of memory"),
    ],
)
def test_a_failed_job_says_why_in_the_words_of_its_command(code: int, said: str, why: str) -> None:
    assert _why(code, said) == why
