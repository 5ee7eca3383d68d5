"""The hmarl trainer: learns policies centrally (torch) and exports one local policy per agent."""
