"""Students: local policies, one an agent, that are distilled at export from a team that knows more than one agent can.

``teacher.py``         what an algorithm offers to be distilled; the teachers stand beside their teams
``student.py``         the students' network and policies
``demonstrations.py``  what was seen along episodes, with what the teacher would have done
``dagger.py``          the loop: the students act, the teacher labels, the students learn
``kept.py``            what a distillation keeps on the disk, so that it goes on where it was cut off
``report.py``          how far the students reach
"""
