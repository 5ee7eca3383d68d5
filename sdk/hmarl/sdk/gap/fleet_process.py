"""Runs hmarl-fleet so that it ends with whoever has started it, even if that is killed: ``... PARENT ARGUMENTS``."""

from __future__ import annotations

import runpy
import sys

from hmarl.runtime.orphans import die_with_parent

if __name__ == "__main__":
    die_with_parent(int(sys.argv.pop(1)))
    runpy.run_module("hmarl.runtime.commands.fleet", run_name="__main__", alter_sys=True)
