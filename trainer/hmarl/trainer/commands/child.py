"""hmarl-train as a process that saves and ends when the one that started it is gone."""

from __future__ import annotations

import sys

from hmarl.runtime.orphans import die_with_parent
from hmarl.trainer.commands.train import train_main

if __name__ == "__main__":
    parent = int(sys.argv.pop(1))
    die_with_parent(parent)
    train_main()
