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
from apgd_teach.own.student import RECIPE, Student, generated, latency_ms, size_table, student_of

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


def test_a_student_knows_its_tasks_only(student: Student) -> None:
    with pytest.raises(ApgdTeachError, match="this student has no task 'digits-noisy'; it has: digits-upright, "):
        student.model("digits-noisy")
