"""What a team tells of itself: in the film's pictures, in the report's figures, and that nothing changes without."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from counting_environment import CountingEnvironment, StepTeam
from hmarl.sdk.drawing.canvas import Canvas
from hmarl.sdk.environment import LocatesAgents
from hmarl.sdk.errors import UsageError
from hmarl.sdk.evaluation.annotation import Explains, TeamAnnotation
from hmarl.sdk.evaluation.closed_loop import evaluate
from hmarl.sdk.reports.annotation_plots import annotation_plots
from hmarl.sdk.reports.goal_colours import GoalColours, PrincipalComponents, choice_colours, cluster_colour
from hmarl.sdk.reports.overlay import draw_over
from hmarl.sdk.reports.report import ReportContent, write_report
from hmarl.sdk.reports.video import record_episode

SEED = 3
PLACES = np.array([[60.0, 60.0, 16.0], [260.0, 60.0, 16.0], [160.0, 260.0, 16.0]])
GREY = np.full((320, 320, 3), 128, np.uint8)


def told(**changes: Any) -> TeamAnnotation:
    """Three agents: 0 and 1 are one cluster, 2 another; no agent says anything."""
    known: dict[str, Any] = {
        "edges": np.zeros((0, 2), np.int64),
        "active": np.ones(3, bool),
        "cluster": np.array([0, 0, 1]),
        "goals": np.array([[1.0, 0.0], [1.0, 0.0], [0.0, 3.0]], np.float32),
        "goals_set": np.ones(3, bool),
    }
    return TeamAnnotation(**{**known, **changes})


def drawn(annotation: TeamAnnotation, places: npt.NDArray[np.float64] = PLACES) -> npt.NDArray[np.uint8]:
    (picture,) = draw_over([GREY], [annotation], [places])
    assert (picture.shape, picture.dtype) == (GREY.shape, np.uint8)
    return picture


def has(picture: npt.NDArray[np.uint8], colour: npt.ArrayLike, rows: slice, columns: slice) -> bool:
    """Whether a colour in [0, 1] is somewhere in a part of a picture."""
    difference = np.abs(picture[rows, columns] - 255.0 * np.asarray(colour))
    return bool((difference.max(-1) < 1.5).any())


class Square(CountingEnvironment):
    """Draws two discs and knows where they are."""

    def render(self, index: int = 0) -> npt.NDArray[np.uint8]:
        return GREY.copy()

    def agent_pixels(self, index: int = 0) -> npt.NDArray[np.float64]:
        return PLACES[:2]


class OpenTeam(StepTeam):
    """``StepTeam`` whose second agent hears the first; goals and clusters as the settings say."""

    def __init__(self, **annotation: Any) -> None:
        super().__init__()
        self._annotation = annotation

    def explain(self, index: int = 0) -> TeamAnnotation | None:
        return TeamAnnotation(np.array([[1, 0]]), np.ones(2, bool), **self._annotation)


CONTINUOUS = {
    "goals": np.array([[1, 0, 2], [0, 1, 1]], np.float32),
    "goals_set": np.ones(2, bool),
    "cluster": np.array([0, 1]),
}
SUB_GOALS = {"sub_goals": np.array([[1, 0, 2], [0, 5, 1]], np.float32), "sub_goals_set": np.array([True, False])}
DISCRETE = {"goals": np.eye(2, dtype=np.float32), "goals_set": np.ones(2, bool), "discrete": True}


# --- canvas ----------------------------------------------------------------------------------------------------------


def test_shapes_cover_as_many_pixels_as_their_area_has() -> None:
    def covered(method: str, *arguments: Any) -> float:
        canvas = Canvas(np.zeros((60, 60, 3), np.uint8))
        getattr(canvas, method)(*arguments, (1.0, 1.0, 1.0))
        return float(canvas.picture()[..., 0].sum()) / 255

    assert covered("disc", (30.2, 29.7), 10.0) == pytest.approx(100 * np.pi, rel=0.01)
    assert covered("ring", (30.2, 29.7), 20.0, 3.0) == pytest.approx(120 * np.pi, rel=0.01)
    assert covered("square", (30.0, 30.0), 8.0) == pytest.approx(64)
    assert covered("line", (10.0, 12.0), (50.0, 42.0), 3.0) == pytest.approx(150 + 2.25 * np.pi, rel=0.01)
    assert covered("arrowhead", (40.0, 30.0), (1.0, 0.0), 20.0) == pytest.approx(200, rel=0.06)
    assert covered("disc", (0.0, 0.0), 10.0) == pytest.approx(25 * np.pi, rel=0.02)
    assert covered("disc", (-50.0, 30.0), 10.0) == covered("line", (-9.0, -9.0), (70.0, -9.0), 3.0) == 0


def test_an_arrowhead_points_and_what_is_drawn_over_shines_through() -> None:
    canvas = Canvas(np.zeros((40, 40, 3), np.uint8))
    canvas.arrowhead((20.0, 20.0), (0.0, -1.0), 10.0, (1.0, 0.0, 0.0), 0.5)
    picture = canvas.picture()
    assert picture[25, 20].tolist() == [128, 0, 0]
    assert not picture[:19].any()
    assert not picture[31:].any()


def test_numbers_are_drawn_whole_also_at_the_edge() -> None:
    for centre in ((30.0, 30.0), (0.0, 0.0), (60.0, 60.0)):
        canvas = Canvas(np.full((60, 60, 3), 128, np.uint8))
        canvas.number(17, centre, 2, (0.0, 0.0, 0.0), (1.0, 1.0, 1.0))
        picture = canvas.picture()[..., 0]
        assert (picture == 0).sum() == 4 * (8 + 7)
        assert (picture != 128).sum() == 4 * 9 * 7


# --- colours ---------------------------------------------------------------------------------------------------------


def test_principal_components_hand_computed() -> None:
    points = np.array([[3.0, 1.0], [-1.0, 1.0], [1.0, 2.0], [1.0, 0.0]])
    found = PrincipalComponents.of(points)
    np.testing.assert_allclose(found.mean, [1, 1])
    np.testing.assert_allclose(np.abs(found.directions), [[1, 0], [0, 1], [0, 0]], atol=1e-12)
    np.testing.assert_allclose(found.shares, [0.8, 0.2, 0])
    np.testing.assert_allclose(np.abs(found.project([3.0, 2.0])), [2, 1, 0], atol=1e-12)


@pytest.mark.parametrize("size", [1, 2, 3, 8])
def test_equal_goals_have_equal_colours_and_different_ones_others(size: int) -> None:
    goals = np.random.default_rng(0).normal(size=(20, size)).astype(np.float32)
    colours = GoalColours(goals, discrete=False)(goals)
    assert colours.shape == (20, 3)
    assert ((colours >= 0) & (colours <= 1)).all()
    again = GoalColours(goals, discrete=False)(goals[[4, 4]])
    np.testing.assert_array_equal(again, colours[[4, 4]])
    by_distance = np.argsort(np.abs(goals - goals[0]).sum(-1))
    near, far = (np.abs(colours[other] - colours[0]).max() for other in (by_distance[1], by_distance[-1]))
    assert near < far


def test_goals_that_do_not_differ_are_grey_and_discrete_ones_have_a_colour_each() -> None:
    same = np.ones((5, 4), np.float32)
    same[0, 0] += 1e-7
    colours = GoalColours(same, discrete=False)(same)
    np.testing.assert_allclose(colours, np.broadcast_to(colours[:1, :1], colours.shape), atol=1e-3)
    for count in (2, 8, 16):
        apart = np.abs(choice_colours(count)[:, None] - choice_colours(count)[None]).max(-1)
        assert (apart + np.eye(count)).min() > 0.05
    one_hot = np.eye(8, dtype=np.float32)[[2, 5]]
    np.testing.assert_array_equal(GoalColours(one_hot, discrete=True)(one_hot), choice_colours(8)[[2, 5]])


def test_annotations_whose_arrays_do_not_fit_are_refused() -> None:
    with pytest.raises(UsageError, match=r"annotation 'goals_set': got None, expected 3 entries"):
        told(goals_set=None)
    with pytest.raises(UsageError, match=r"annotation 'cluster': got array\(\[0, 0\]\), expected 3 entries"):
        told(cluster=np.zeros(2, int))
    for edge in ([0, 3], [-1, 0]):
        with pytest.raises(UsageError, match=r"annotation 'edges': got .*, expected 0 to below 3"):
            told(edges=np.array([edge]))
    with pytest.raises(UsageError, match=r"annotation 'cluster': got .*, expected 0 to below 1"):
        told(sub_goals=np.zeros((1, 2), np.float32), sub_goals_set=np.ones(1, bool))
    with pytest.raises(UsageError, match="'sub_goals_set'"):
        told(sub_goals=np.zeros((2, 2)))


# --- pictures --------------------------------------------------------------------------------------------------------


def test_agents_have_rings_in_their_clusters_colours() -> None:
    picture = drawn(told())
    for x, y, cluster in ((60, 60, 0), (260, 60, 0), (160, 260, 1)):
        around = slice(y - 20, y + 20), slice(x - 20, x + 20)
        assert has(picture, cluster_colour(cluster), *around)
        assert not has(picture, cluster_colour(1 - cluster), *around)
    assert not has(picture, cluster_colour(0), slice(y - 20, y + 20), slice(x - 14, x + 14)), "the agent stays visible"


def test_equal_goals_are_equal_patches_and_the_sub_managers_lie_in_the_middle() -> None:
    annotation = told()
    colours = GoalColours.of([annotation])
    assert colours is not None
    assert annotation.goals is not None
    first, second, third = colours(annotation.goals)
    np.testing.assert_array_equal(first, second)
    picture = drawn(annotation)
    for x, y, colour in ((60, 60, first), (260, 60, second), (160, 260, third)):
        assert has(picture, colour, slice(y - 30, y), slice(x, x + 30))
        assert not has(picture, colour, slice(y - 30, y), slice(x - 30, x))
    sub_goals = np.array([[2.0, 0.0], [0.0, 1.0]], np.float32)
    with_manager = told(sub_goals=sub_goals, sub_goals_set=np.ones(2, bool))
    above = GoalColours.of_sub_goals([with_manager])
    assert above is not None
    picture = drawn(with_manager)
    assert has(picture, above(sub_goals)[0], slice(55, 65), slice(155, 165))
    assert has(picture, above(sub_goals)[1], slice(230, 250), slice(130, 150)), "beside an agent that is alone"


def test_messages_are_lines_and_arrows_where_only_one_hears() -> None:
    silent = drawn(told(cluster=None))
    pairs = {"none": [], "mutual": [[0, 1], [1, 0]], "one hears": [[0, 1]], "the other hears": [[1, 0]]}
    pictures = {name: drawn(told(cluster=None, edges=np.array(edges).reshape(-1, 2))) for name, edges in pairs.items()}
    np.testing.assert_array_equal(pictures["none"], silent)
    thickness = {name: (picture != silent).any(-1).sum(0) for name, picture in pictures.items()}
    assert (thickness["mutual"][90:230] > 0).all()
    first, second = slice(75, 90), slice(230, 245)
    assert thickness["one hears"][first].max() > thickness["mutual"][first].max() > 0
    assert thickness["one hears"][second].max() == thickness["mutual"][second].max()
    assert thickness["the other hears"][second].max() > thickness["mutual"][second].max()


def test_who_is_not_there_is_not_drawn() -> None:
    gone = told(active=np.array([True, True, False]))
    assert (drawn(gone)[200:] == 128).all()
    unseen = PLACES.copy()
    unseen[2] = np.nan
    assert (drawn(told(), unseen)[200:] == 128).all()


def test_what_is_drawn_grows_with_the_picture_and_stays_in_it() -> None:
    large = np.full((640, 640, 3), 128, np.uint8)
    places = np.array([[639.0, 0.0, 30.0], [0.0, 639.0, 30.0], [320.0, 320.0, 30.0]])
    (picture,) = draw_over([large], [told()], [places])
    (normal,) = draw_over([GREY], [told()], [places / 2])
    changed, changed_normally = (int(np.abs(each - 128.0).sum()) for each in (picture, normal))
    assert changed == pytest.approx(4 * changed_normally, rel=0.15)


# --- films -----------------------------------------------------------------------------------------------------------


def test_a_film_shows_what_the_team_tells() -> None:
    assert isinstance(Square(1), LocatesAgents)
    assert isinstance(OpenTeam(), Explains)
    recording = record_episode(Square(2), OpenTeam(**CONTINUOUS), SEED)
    assert len(recording.annotations) == len(recording.rewards) == len(recording.frames) == 4
    assert recording.drawn_over
    assert all(frame.shape == GREY.shape and (frame != GREY).any() for frame in recording.frames)
    few = record_episode(Square(2), OpenTeam(**CONTINUOUS), SEED, max_frames=2)
    assert (len(few.frames), len(few.annotations)) == (2, 4)


class LateTeam(OpenTeam):
    """``OpenTeam`` that tells nothing of its first two steps."""

    def explain(self, index: int = 0) -> TeamAnnotation | None:
        return None if len(self.running) <= 2 else super().explain(index)


def test_what_is_told_late_stays_beside_its_step() -> None:
    recording = record_episode(Square(2), LateTeam(**CONTINUOUS, **SUB_GOALS), SEED)
    assert len(recording.annotations) == len(recording.frames) == 4
    assert [each.active.tolist() for each in recording.annotations] == [[False] * 2] * 2 + [[True] * 2] * 2
    assert [bool((frame != GREY).any()) for frame in recording.frames] == [False, False, True, True]
    assert next(plot.title for plot in annotation_plots(recording.annotations)) == "Goals over time"


def test_teams_that_tell_nothing_and_pictures_of_unknown_places_are_filmed_as_before() -> None:
    for environment, team in ((Square(2), StepTeam()), (CountingEnvironment(2), OpenTeam(**CONTINUOUS))):
        recording = record_episode(environment, team, SEED)
        environment.reset(np.full(2, SEED))
        assert not recording.drawn_over
        assert bool(recording.annotations) == isinstance(team, Explains)
        np.testing.assert_array_equal(recording.frames[0], environment.render(0))


# --- report ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("annotation", "titles"),
    [
        (None, []),
        ({}, ["Messages"]),
        (CONTINUOUS, ["Goals over time", "Goals", "Clusters and messages"]),
        ({**CONTINUOUS, **SUB_GOALS}, ["Goals over time", "Goals", "Clusters and messages"]),
        (DISCRETE, ["Goals over time", "Use of the goals", "Messages"]),
    ],
    ids=["nothing", "messages", "vectors", "two levels", "discrete"],
)
def test_the_report_holds_the_figures_of_what_was_told(
    annotation: dict[str, Any] | None, titles: list[str], tmp_path: Path
) -> None:
    pytest.importorskip("matplotlib")
    team = StepTeam() if annotation is None else OpenTeam(**annotation)
    recording = record_episode(Square(2), team, SEED)
    evaluation = evaluate(Square(2), StepTeam(), 4, 5)
    write_report(tmp_path / "report.html", ReportContent(evaluation, "hmarl-eval", recording=recording))
    page = (tmp_path / "report.html").read_text()
    for title in ("Goals over time", "Goals", "Use of the goals", "Messages", "Clusters and messages"):
        assert (f"<h3>{title}</h3>" in page) == (title in titles)
    assert page.count("data:image/png;base64,") == 4 + len(titles)
