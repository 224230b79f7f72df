"""What is in a data set before anyone trains on it: every image looked at once, duplicates, and a verdict."""

from __future__ import annotations

from wideresnet.data.inspection.duplicates import find_duplicates
from wideresnet.data.inspection.findings import describe, give_verdict
from wideresnet.data.inspection.survey import fetch_pictures, survey

__all__ = ["describe", "fetch_pictures", "find_duplicates", "give_verdict", "survey"]
