"""A small network learns from the experts or their merge without a label, and what it is worth is counted."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import nn

from apgd_teach.cache import Cache
from apgd_teach.data import Split
from apgd_teach.errors import ApgdTeachError
from apgd_teach.experts import Pool, make_pool
from apgd_teach.merging import merge
from apgd_teach.models import make_encoder
from apgd_teach.own.judging import judge
from apgd_teach.own.noise import of_pool
from apgd_teach.own.student import RECIPE, Student, generated, latency_ms, size_table, student_of, taught

SHORT = replace(RECIPE, steps=120, batch_size=128)


@pytest.fixture(scope="module")
def pool(tmp_path_factory: pytest.TempPathFactory) -> Pool:
    return make_pool(
        "mlp",
        tasks=["digits-upright", "fashion-flipped"],
        base_steps=120,
        expert_steps=60,
        device="cpu",
        cache=Cache(tmp_path_factory.mktemp("trained")),
        progress=False,
    )


@pytest.fixture(scope="module")
def student(pool: Pool) -> Student:
    return student_of(pool, pool.experts, recipe=SHORT, progress=False)


def test_a_student_of_the_experts_comes_near_them(pool: Pool, student: Student) -> None:
    judged = judge(pool.base, pool.experts, {}, of_pool(pool), progress=False)
    for task, verdict in student.verdicts(pool).items():
        assert verdict.labels is not None
        assert verdict.accuracy > judged.experts[task].accuracy - 25
        assert verdict.accuracy > 50
    assert student.learned_from == "an expert for each task, unlabelled training pictures"


def test_no_label_is_read(pool: Pool, student: Student, monkeypatch: pytest.MonkeyPatch) -> None:
    def asked(split: Split) -> torch.Tensor:
        raise AssertionError(f"the labels of {split.task}, {split.name}, were asked for")

    monkeypatch.setattr(Split, "labels", property(asked))
    again = student_of(pool, pool.experts, recipe=SHORT, progress=False)
    for name, tensor in student.state.items():
        assert torch.equal(tensor, again.state[name])


def test_a_student_of_a_merge_has_one_teacher(pool: Pool) -> None:
    merged = merge(pool.base, pool.experts, "average").state_dict
    few = replace(SHORT, steps=10)
    made = student_of(pool, merged, recipe=few, progress=False)
    assert made.learned_from == "one network, unlabelled training pictures"
    same = student_of(pool, dict.fromkeys(pool.tasks, merged), recipe=few, progress=False)
    for name, tensor in made.state.items():
        assert torch.equal(tensor, same.state[name])


def test_a_student_can_learn_from_pictures_of_nothing(pool: Pool) -> None:
    pictures = {task: generated(400, (1, 28, 28), seed) for seed, task in enumerate(pool.tasks)}
    made = student_of(pool, pool.experts, pictures=pictures, recipe=SHORT, progress=False)
    assert made.learned_from == "an expert for each task, given pictures"
    encoder = pool.encoder()
    for task, shown in pictures.items():
        encoder.load_state_dict(pool.experts[task])
        with torch.no_grad():
            taught = pool.head(task)(encoder(shown)).argmax(dim=1)
            learned = made.model(task)(shown).argmax(dim=1)
        # Always naming what the expert names most often would come to that share.
        often = float(taught.bincount().max()) / len(taught)
        assert float((taught == learned).float().mean()) > often + 0.05


def test_generated_pictures_are_pictures() -> None:
    for count in (1, 3, 50):
        made = generated(count, (1, 28, 28))
        assert made.shape == (count, 1, 28, 28)
        assert 0 <= float(made.min()) <= float(made.max()) <= 1
        assert torch.equal(made, generated(count, (1, 28, 28)))
    assert float(generated(50, (1, 28, 28)).std()) > 0.2


def test_size_and_speed_are_counted_before_and_after(pool: Pool, student: Student) -> None:
    big = nn.Sequential(pool.encoder(), pool.head("digits-upright")).eval()
    small = student.model("digits-upright")
    table = size_table({"expert": big, "student": small}, (1, 28, 28))
    counts = [int(str(one).replace(",", "")) for one in table.column("parameters")]
    assert counts == [sum(one.numel() for one in model.parameters()) for model in (big, small)]
    assert counts[1] < counts[0] / 8
    assert all(float(str(one)) > 0 for head in ("ms for one picture", "ms for 64") for one in table.column(head))
    assert latency_ms(make_encoder("mlp", 0), (1, 28, 28), turns=3) > 0


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ({"teachers": {}}, "the teachers and the pool's tasks differ in"),
        ({"pictures": {"digits-upright": torch.rand(3, 1, 28, 28)}}, "the pictures and the pool's tasks differ in"),
        ({"small": "colour-vit"}, r"takes pictures of \(3, 32, 32\)"),
        ({"small": "tiny"}, "there is no network 'tiny'"),
    ],
)
def test_what_cannot_be_is_one_sentence(pool: Pool, given: dict, says: str) -> None:
    arguments = {"teachers": dict.fromkeys(pool.tasks, pool.base), **given}
    if given.get("teachers") == {}:
        arguments["teachers"] = {"digits-upright": pool.base}
    with pytest.raises(ApgdTeachError, match=says):
        student_of(pool, arguments.pop("teachers"), recipe=SHORT, progress=False, **arguments)


# Networks of one's own


class Mixed(nn.Module):
    """A student that is none of the course's: colour, a convolution, a BatchNorm, dropout."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 12, 3, stride=2)
        self.norm = nn.BatchNorm2d(12)
        self.rest = nn.Sequential(nn.ReLU(), nn.Dropout(0.1), nn.Flatten(), nn.Linear(12 * 5 * 5, 24))

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        out: torch.Tensor = self.rest(self.norm(self.conv(images)))
        return out


def own_teachers() -> dict[str, nn.Module]:
    """Two networks of four and of three classes, for colour pictures of 12 × 12."""
    torch.manual_seed(4)
    made = {
        task: nn.Sequential(nn.Flatten(), nn.Linear(432, 16), nn.Tanh(), nn.Linear(16, classes)).eval()
        for task, classes in (("animals", 4), ("tools", 3))
    }
    middle = generated(500, (3, 12, 12)).mean(dim=0).flatten()
    with torch.no_grad():
        for teacher in made.values():
            # About a middling picture they are undecided, so that each names all of its classes.
            teacher[1].bias.copy_(-teacher[1].weight @ middle)
            teacher[-1].bias.zero_()
            nn.init.normal_(teacher[-1].weight, std=2.0)
    return made


def own_pictures(count: int = 1500) -> dict[str, torch.Tensor]:
    return {task: generated(count, (3, 12, 12), seed) for seed, task in enumerate(("animals", "tools"))}


def test_any_network_learns_from_any_other_ones_without_the_course_s_pools() -> None:
    teachers, shown = own_teachers(), own_pictures()
    before = {task: [one.clone() for one in teacher.parameters()] for task, teacher in teachers.items()}
    torch.manual_seed(5)
    student, heads = Mixed(), {"animals": nn.Linear(24, 4), "tools": nn.Linear(24, 3)}
    taught(student, heads, teachers, shown, recipe=replace(SHORT, steps=250), progress=False)
    assert not any(module.training for one in (student, *heads.values()) for module in one.modules())
    new = {task: generated(300, (3, 12, 12), 50 + seed) for seed, task in enumerate(teachers)}
    with torch.no_grad():
        for task, teacher in teachers.items():
            wanted, said = teacher(new[task]).argmax(dim=1), heads[task](student(new[task])).argmax(dim=1)
            # Always naming what the teacher names most often would come to that share.
            often = float(wanted.bincount().max()) / len(wanted)
            assert float((wanted == said).float().mean()) > often + 0.15, task
            for one, was in zip(teacher.parameters(), before[task], strict=True):
                assert torch.equal(one, was)
                assert one.grad is None


def test_a_student_that_answers_itself_has_a_head_that_does_nothing() -> None:
    teacher, shown = own_teachers()["animals"], own_pictures()["animals"]
    torch.manual_seed(5)
    student = nn.Sequential(nn.Flatten(), nn.Linear(432, 4))
    first = student[1].weight.clone()
    few = replace(SHORT, steps=20)
    taught(student, {"animals": nn.Identity()}, {"animals": teacher}, {"animals": shown}, recipe=few, progress=False)
    assert not torch.equal(student[1].weight, first)
    assert student(shown[:5]).shape == (5, 4)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"heads": {"animals": nn.Linear(24, 4)}}, "the heads and the pictures differ in the task 'tools'"),
        ({"teachers": {}}, "the teachers and the pictures differ in the task 'animals'"),
        ({"teachers": own_teachers() | {"tools": nn.Flatten().train()}}, "the teacher of 'tools' is in training mode"),
        ({"pictures": own_pictures(2) | {"tools": torch.rand(0, 3, 12, 12)}}, "there are no pictures of 'tools'"),
        (
            {"pictures": own_pictures(2) | {"tools": torch.rand(2, 1, 12, 12)}},
            r"'tools', \(1, 12, 12\), cannot be given",
        ),
        (
            {"heads": {"animals": nn.Linear(24, 4), "tools": nn.Linear(24, 5)}},
            r"about one picture of 'tools' the teacher answers \(1, 3\) and the student \(1, 5\)",
        ),
        (
            {"student": nn.Flatten(), "heads": {"animals": nn.Identity(), "tools": nn.Identity()}},
            "student and heads have no parameter",
        ),
        (
            {
                "student": nn.AdaptiveAvgPool3d((3, 1, 8)),
                "heads": {task: nn.Sequential(nn.Flatten(), nn.Linear(24, 3)) for task in ("animals", "tools")},
                "teachers": {task: lambda images: torch.zeros(len(images), 3) for task in ("animals", "tools")},
                "pictures": own_pictures(2) | {"tools": torch.rand(2, 3, 16, 16)},
            },
            r"have several shapes \(animals \(3, 12, 12\), tools \(3, 16, 16\)\)",
        ),
    ],
)
def test_what_does_not_fit_each_other_is_one_sentence(change: dict, says: str) -> None:
    given = {
        "student": Mixed(),
        "heads": {"animals": nn.Linear(24, 4), "tools": nn.Linear(24, 3)},
        "teachers": own_teachers(),
        "pictures": own_pictures(2),
        **change,
    }
    with pytest.raises(ApgdTeachError, match=says) as caught:
        taught(**given, recipe=SHORT, progress=False)
    assert "\n" not in str(caught.value)


def test_a_student_knows_its_tasks_only(student: Student) -> None:
    with pytest.raises(ApgdTeachError, match="this student has no task 'digits-noisy'; it has: digits-upright, "):
        student.model("digits-noisy")
