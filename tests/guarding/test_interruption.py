"""An interruption that Python drops is heard by the next look."""

from __future__ import annotations

import signal

import pytest

from autocompress.guarding import interruption

pytestmark = pytest.mark.usefixtures("own_signals")


class Stubborn:
    """Drops what is raised while it ends, as a finalizer does."""

    def __del__(self) -> None:
        signal.raise_signal(signal.SIGTERM)


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_a_signal_in_a_finalizer_is_heard_later() -> None:
    interruption.listen()
    del [Stubborn()][0]
    with pytest.raises(KeyboardInterrupt):
        interruption.check()
    interruption.answered()
    interruption.check()


def test_a_signal_interrupts_at_once() -> None:
    interruption.listen()
    with pytest.raises(KeyboardInterrupt):
        signal.raise_signal(signal.SIGTERM)


def test_an_ignored_ctrl_c_stays_ignored() -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    interruption.listen()
    signal.raise_signal(signal.SIGINT)
    interruption.check()
