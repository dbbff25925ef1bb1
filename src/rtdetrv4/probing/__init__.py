"""Which teacher? A linear probe of how well frozen maps separate the objects of a data set, before anything is trained.

References:
    Alain and Bengio: Understanding intermediate layers using linear classifier probes, arXiv 1610.01644.
"""

from rtdetrv4.probing.result import PROBE_FILES, Score, TeacherProbe, TeacherRow
from rtdetrv4.probing.run import probe_teachers

__all__ = ["PROBE_FILES", "Score", "TeacherProbe", "TeacherRow", "probe_teachers"]
