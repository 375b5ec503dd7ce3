"""Tier 1: unmodified transformers models, operated on once loaded. Faster parts take the place of whole layers,
or of single modules where a layer is not understood; each is compared with what it replaces. Knows no scheduler."""

from tokenmill_worker.engine.surgery.operation import operate, standard_materials
from tokenmill_worker.engine.surgery.program import Program
from tokenmill_worker.engine.surgery.report import Report

__all__ = ["Program", "Report", "operate", "standard_materials"]
