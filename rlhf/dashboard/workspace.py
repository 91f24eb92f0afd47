"""The layout as saved views of a W&B project. The only file that imports wandb_workspaces.

Views are built, written and read back through the library's `_to_model` and `_from_model`: 0.4 has no public way that
needs no login. Drop this note when it has one.
"""

import hashlib
from collections.abc import Mapping, Sequence
from typing import Any

import wandb_workspaces.reports.v2 as panels
import wandb_workspaces.workspaces as workspaces
from wandb_workspaces import expr
from wandb_workspaces.reports.v2.interface import Panel, ParallelCoordinatesPlotColumn
from wandb_workspaces.workspaces import internal

from rlhf.dashboard.layout import FRONTIER, Plot, Section, dashboard_sections
from rlhf.runtime.sinks.weights_and_biases import SAMPLE_TABLE, STEP_AXIS

SWEPT = ("optimizer.learning_rate", "algorithm.kl.coefficient", "algorithm.epochs", "rollout.prompts_per_step")
"""Settings that people sweep, as axes of the sweep view."""
OUTCOMES = ("objective/scores", "objective/kl", "eval/score", "rollout/response_length_mean")
"""Last values by which runs are told apart."""

Views = Sequence[workspaces.Workspace]


class DashboardError(RuntimeError):
    """W&B does not take a view."""


def build_views(project: str, *, entity: str = "", sent_before: Mapping[str, Mapping[str, Any]] | None = None) -> Views:
    """The saved views of a project: `RLHF` while a run trains, `RLHF sweep`, and `RLHF compare` for finished runs.

    Args:
        project: W&B project.
        entity: Its owner; may be empty in a view that is not sent.
        sent_before: Of views that W&B has already, by name, what `views_to_json` wrote of them.
    """
    settings = workspaces.WorkspaceSettings(x_axis=STEP_AXIS, max_runs=20)
    by_sweep: list[expr.MetricType] = [expr.Metric("Sweep")]
    views = [
        workspaces.Workspace(
            entity=entity,
            project=project,
            name=name,
            sections=sections,
            settings=settings,
            runset_settings=workspaces.RunsetSettings(
                groupby=groups, pinned_columns=["run:displayName", *(f"summary:{key}" for key in OUTCOMES)]
            ),
        )
        for name, sections, groups in (
            ("RLHF", [*map(_section, dashboard_sections())], []),
            ("RLHF sweep", _sweep_sections(), by_sweep),
            ("RLHF compare", _comparison_sections(), []),
        )
    ]
    for view in views:
        _give_names(view, (sent_before or {}).get(view.name, {}))
    return views


def views_to_json(views: Views) -> list[dict[str, Any]]:
    """The views as W&B's own specification, plain JSON values."""
    return [view._to_model().model_dump(mode="json", by_alias=True, exclude_none=True) for view in views]


def views_from_json(entries: Sequence[Mapping[str, Any]]) -> Views:
    """What `views_to_json` wrote."""
    return [workspaces.Workspace._from_model(internal.View.model_validate(entry)) for entry in entries]


def send_view(view: workspaces.Workspace) -> str:
    """Saves a view under its name in W&B and returns its address; the view then knows the id that W&B gave it.

    Raises:
        DashboardError: W&B cannot be reached, or refuses.
    """
    try:
        return str(view.save().url)
    except Exception as error:  # the library passes on whatever its HTTP client raises
        reason = next(iter(str(error).splitlines()), type(error).__name__)
        remedy = "check WANDB_API_KEY, the network, and that the project exists (a first run makes it)"
        raise DashboardError(f"W&B does not take the view '{view.name}': {reason}; {remedy}") from error


def _sweep_sections() -> list[workspaces.Section]:
    columns = [ParallelCoordinatesPlotColumn(panels.Config(key)) for key in SWEPT]
    columns += [ParallelCoordinatesPlotColumn(panels.SummaryMetric(key)) for key in OUTCOMES]
    outcome = [
        panels.ParallelCoordinatesPlot(columns=columns, title="Settings and what came of them"),
        panels.ParameterImportancePlot(with_respect_to=OUTCOMES[0]),
        _scatter("objective/kl", "objective/scores"),
    ]
    return [workspaces.Section(name="sweep", panels=outcome, is_open=True), *map(_section, dashboard_sections())]


def _comparison_sections() -> list[workspaces.Section]:
    outcome = [
        _line(FRONTIER),
        _scatter("objective/kl", "eval/score"),
        *(panels.BarPlot(title=f"Last {key}", metrics=[key]) for key in OUTCOMES),
        panels.RunComparer(diff_only="split"),
    ]
    return [workspaces.Section(name="comparison", panels=outcome, is_open=True), *map(_section, dashboard_sections())]


def _section(section: Section) -> workspaces.Section:
    plots: list[Any] = [_line(plot) for plot in section.plots]
    if section.name == "evaluation":
        plots.insert(0, panels.WeavePanelSummaryTable(table_name=SAMPLE_TABLE))
    return workspaces.Section(name=section.name, panels=plots, is_open=section.is_open)


def _line(plot: Plot) -> panels.LinePlot:
    return panels.LinePlot(
        title=plot.heading,
        x=plot.x,
        y=list(plot.metrics),
        metric_regex=plot.family or None,
        log_y=plot.is_log or None,
        plot_type="stacked-area" if plot.is_stacked else "line",
    )


def _scatter(x: str, y: str) -> panels.ScatterPlot:
    return panels.ScatterPlot(title=f"Last {y} over last {x}", x=panels.SummaryMetric(x), y=panels.SummaryMetric(y))


def _give_names(view: workspaces.Workspace, sent: Mapping[str, Any]) -> None:
    """Names that are the same every time, where the library draws them; those that W&B knows, where it does."""
    view._internal_name, view._internal_id = sent.get("name", ""), sent.get("id", "")
    view._internal_runset_id = _stable_id(view.name)
    for section in view.sections:
        for index, panel in enumerate(section.panels):
            assert isinstance(panel, Panel), "all of them are made here"
            panel._id = _stable_id(view.name, section.name, str(index))


def _stable_id(*parts: str) -> str:
    return hashlib.blake2s("/".join(parts).encode(), digest_size=6).hexdigest()
