"""Configuration of `rlhf report`."""

from pydantic import Field

from policies.config import StrictModel


class ReportConfig(StrictModel):
    """`rlhf report`: a run's page written again, or several runs on one page."""

    runs: tuple[str, ...] = Field(min_length=1)
    """Run folders; the words after `rlhf report`."""
    output: str | None = None
    """The page; null writes report.html into the folder of a single run, and comparison.html here for several."""
