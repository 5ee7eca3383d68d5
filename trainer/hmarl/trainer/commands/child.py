"""hmarl-train as a process that saves and ends when the one that started it is gone."""

from __future__ import annotations

import signal
import sys

from hmarl.runtime.orphans import die_with_parent
from hmarl.trainer.commands.train import train_main
from hmarl.trainer.runs.stopping import SIGNALS

if __name__ == "__main__":
    parent = int(sys.argv.pop(1))
    signal.pthread_sigmask(signal.SIG_UNBLOCK, SIGNALS)  # who has started it may take none, and that is inherited
    die_with_parent(parent)
    train_main()
