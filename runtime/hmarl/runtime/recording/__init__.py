"""Black boxes: what an agent or a client was given and did, in MCAP files, to be run again. The extra ``record``.

``settings`` bounds the files, ``recorder`` takes records without waiting and writes them from a thread of its own into
``box_files``, of which ``kept_files`` deletes the oldest; ``agent`` records the sessions of a policy. ``reader`` reads
files whatever became of their writer, and ``replay`` runs them again and compares bit for bit.
"""
