"""Did it forget, or does it only look so? Evidence, a verdict, a certificate."""

from clapforget.verify import statistics
from clapforget.verify.certificate import Certificate
from clapforget.verify.evidence import Evidence, collect_evidence
from clapforget.verify.observe import Observation, Views, observe
from clapforget.verify.verdict import VERDICTS, Judgement, judge

__all__ = [
    "VERDICTS",
    "Certificate",
    "Evidence",
    "Judgement",
    "Observation",
    "Views",
    "collect_evidence",
    "judge",
    "observe",
    "statistics",
]
