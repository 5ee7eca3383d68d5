"""The control loop: agents asked at a fixed rate, with deadlines, fallbacks, limits and a record of its timing."""
