"""Pictures drawn with NumPy alone: a canvas with smooth edges, cameras, and figures of two-dimensional worlds."""
