"""Parts of programs whose process lacks what the system hands out: descriptors, threads."""

from __future__ import annotations

# ``held`` has all descriptors that there were, of the 64 that the process may have.
WITHOUT_DESCRIPTORS = """
resource.setrlimit(resource.RLIMIT_NOFILE, (64, resource.getrlimit(resource.RLIMIT_NOFILE)[1]))
held = []
try:
    while True:
        held.append(os.open("/dev/null", os.O_RDONLY))
except OSError:
    pass
"""
WITH_DESCRIPTORS_AGAIN = """
for each in held:
    os.close(each)
"""
WITHOUT_THREADS = """
def refuse(self):
    raise RuntimeError("can't start new thread")


start, threading.Thread.start = threading.Thread.start, refuse
"""
WITH_THREADS_AGAIN = """
threading.Thread.start = start
"""
