"""Did it forget, or does it only look so? Evidence, a verdict, a certificate."""

from clapforget.verify import statistics
from clapforget.verify.certificate import Certificate
from clapforget.verify.document import certificate_of, check_model, schema
from clapforget.verify.evidence import Evidence
from clapforget.verify.examine import Examination, examine
from clapforget.verify.material import Material, Part, material_from
from clapforget.verify.observe import Observation, Views, observe
from clapforget.verify.reading import WITNESSES, Reading, witness
from clapforget.verify.rules import decide
from clapforget.verify.subject import Subject
from clapforget.verify.verdict import VERDICTS, Judgement
from clapforget.verify.weigh import weigh

__all__ = [
    "VERDICTS",
    "WITNESSES",
    "Certificate",
    "Evidence",
    "Examination",
    "Judgement",
    "Material",
    "Observation",
    "Part",
    "Reading",
    "Subject",
    "Views",
    "certificate_of",
    "check_model",
    "decide",
    "examine",
    "material_from",
    "observe",
    "schema",
    "statistics",
    "weigh",
    "witness",
]
