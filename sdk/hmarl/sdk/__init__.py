"""The hmarl SDK: environments, clients of served policies, closed-loop evaluation."""
