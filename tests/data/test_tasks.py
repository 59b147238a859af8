from __future__ import annotations

import subprocess
import sys

import pytest
import torch
from torchvision.transforms import v2

from apgd_teach.data import FAMILIES, TASKS, VARIANTS, Source, Task, Variant, card, load_task, open_source, task_names
from apgd_teach.data.tasks import tasks_of
from apgd_teach.errors import DataAccessError, DataError
from apgd_teach.guard import no_data


@pytest.fixture(scope="module")
def source() -> Source:
    return open_source()


def test_there_are_eight_tasks_in_the_order_of_the_course() -> None:
    assert task_names() == [
        "digits-upright",
        "digits-rotated45",
        "digits-inverted",
        "digits-noisy",
        "fashion-upright",
        "fashion-flipped",
        "fashion-inverted",
        "fashion-rotated45",
    ]
    assert TASKS["digits-rotated45"].title == "digits, rotated 45°"


def test_the_pictures_of_a_task_are_kept_once_however_often_it_is_asked_for() -> None:
    source = open_source()
    assert source.task("digits-upright") is source.task(TASKS["digits-upright"])
    assert source.task("digits-upright").test.images is source.task("digits-upright").test.images
    # Of the same name, and not the same: neither is handed out for the other.
    own = Variant("digits", "upright", v2.RandomInvert(p=1.0))
    assert source.task(own) is not source.task("digits-upright")
    assert not torch.equal(source.task(own).test.images, source.task("digits-upright").test.images)
    assert source.task("digits-upright").recipe == TASKS["digits-upright"].recipe


@pytest.mark.parametrize("name", task_names())
def test_every_task_has_pictures_in_range_with_their_labels(name: str, source: Source) -> None:
    task = source.task(name)
    assert (len(task.train), len(task.validation), len(task.test)) == (9000, 1000, 2000)
    assert task.classes == FAMILIES[task.family].classes
    assert task.tier == "bundled"
    for split in (task.validation, task.test):
        assert split.images.shape == (len(split), 1, 28, 28)
        assert split.images.dtype == torch.float32
        assert split.images.min() >= 0
        assert split.images.max() <= 1
        assert split.labels.dtype == torch.int64
        assert split.labels.bincount().tolist() == [len(split) // 10] * 10


def test_validation_never_overlaps_training(source: Source) -> None:
    task = source.task("fashion-upright")
    trained = {image.numpy().tobytes() for image in task.train.images}
    assert not any(image.numpy().tobytes() in trained for image in task.validation.images)
    assert not any(image.numpy().tobytes() in trained for image in task.test.images)


def test_the_variants_are_what_they_are_called(source: Source) -> None:
    upright = source.task("digits-upright").test.images
    fashion = source.task("fashion-upright").test.images
    # The published pixels, divided by 255.
    published = torch.from_numpy(source.family("digits").test_images.copy())
    assert torch.equal((upright * 255).round().to(torch.uint8)[:, 0], published)
    assert torch.allclose(source.task("digits-inverted").test.images, 1 - upright)
    assert torch.equal(source.task("fashion-flipped").test.images, fashion.flip(-2))
    noise = source.task("digits-noisy").test.images - upright
    inner = noise[(upright > 0.45) & (upright < 0.55)]
    assert 0.2 < inner.std() < 0.3  # 0.3, less what is cut off at 0 and 1


def test_rotated_means_by_45_degrees_counter_clockwise(source: Source) -> None:
    upright, turned = source.task("digits-upright").test.images, source.task("digits-rotated45").test.images
    # Twice 45° is 90°: compare with an exact quarter turn, away from what interpolation blurs.
    twice = v2.functional.rotate(turned, 45, interpolation=v2.InterpolationMode.BILINEAR)
    quarter, wrong_way = upright.rot90(1, (-2, -1)), upright.rot90(-1, (-2, -1))
    assert (twice - quarter).abs().mean() < 0.05
    assert (twice - wrong_way).abs().mean() > 0.1


def test_the_noise_differs_from_image_to_image_and_from_split_to_split(source: Source) -> None:
    black = torch.full((6, 1, 28, 28), 0.5)
    task = TASKS["digits-noisy"]
    train, test = task.apply(black, "train"), task.apply(black, "test")
    assert len({image.numpy().tobytes() for image in torch.cat([train, test])}) == 12
    again = Task(Variant("digits", "noisy", v2.GaussianNoise(sigma=0.3), seed=1)).apply(black, "train")
    assert not torch.equal(train, again)


def test_the_pictures_are_the_same_in_every_process() -> None:
    program = (
        "import hashlib, torch; from apgd_teach.data import load_task; torch.manual_seed({seed});"
        "s = load_task('digits-noisy').validation;"
        "print(hashlib.sha256(s.images.numpy().tobytes()).hexdigest())"
    )
    seen = {
        subprocess.run(
            [sys.executable, "-c", program.format(seed=seed)], capture_output=True, text=True, check=True
        ).stdout
        for seed in (1, 2)
    }
    assert len(seen) == 1
    assert len(seen.pop().strip()) == 64


def test_making_a_task_leaves_the_callers_random_numbers_alone(source: Source) -> None:
    torch.manual_seed(7)
    expected = torch.rand(3)
    torch.manual_seed(7)
    assert len(source.task("digits-noisy").test.images) == 2000
    assert torch.equal(torch.rand(3), expected)


def test_adding_a_task_is_one_entry(source: Source) -> None:
    blurred = Variant("fashion", "blurred", v2.GaussianBlur(kernel_size=5, sigma=1.5))
    tasks = tasks_of([*VARIANTS, blurred])
    assert list(tasks) == [*task_names(), "fashion-blurred"]
    task = load_task(blurred, source)
    assert task.title == "fashion, blurred"
    assert task.test.images.std() < source.task("fashion-upright").test.images.std()


def test_a_transform_that_draws_once_per_call_can_be_given_each_image_alone() -> None:
    same = torch.zeros(5, 1, 28, 28)
    same[..., 4:24, 13:15] = 1
    turn = v2.RandomRotation(80)
    together = Task(Variant("digits", "tilted", turn)).apply(same, "train")
    alone = Task(Variant("digits", "tilted", turn, each=True)).apply(same, "train")
    assert len({image.numpy().tobytes() for image in together}) == 1
    assert len({image.numpy().tobytes() for image in alone}) == 5


def test_two_variants_of_one_name_or_of_no_family_are_refused() -> None:
    with pytest.raises(DataError, match="Two variants make the task 'digits-upright'"):
        tasks_of([*VARIANTS, Variant("digits", "upright", v2.Identity())])
    with pytest.raises(DataError, match="no family 'digit'; did you mean 'digits'"):
        tasks_of([Variant("digit", "upright", v2.Identity())])
    with pytest.raises(DataError, match="no family 'digit'; did you mean 'digits'"):
        load_task(Variant("digit", "upright", v2.Identity()))


@pytest.mark.parametrize("name", ["upright2", "7", "Shift-left_3.5px", "x" * 60])
def test_a_variant_may_be_called_whatever_can_be_part_of_a_files_name(name: str) -> None:
    assert Task(Variant("digits", name, v2.Identity())).name == f"digits-{name}"


@pytest.mark.parametrize(
    "name", ["../../esc", "a/b", "a\\b", "", ".hidden", "-x", "x[1]", "noise: 0.3", "straße", "x\n", "x" * 300, 7, None]
)
def test_a_variant_whose_name_could_not_be_a_files_everywhere_is_refused(name: object) -> None:
    with pytest.raises(DataError, match=r"^A variant of 'digits' cannot be called .+; make its name of at most 60 of "):
        Variant("digits", name, v2.Identity())


@pytest.mark.parametrize(
    ("wrong", "sentence"),
    [
        ({"family": 3}, "A variant's family is of type int; give its name, as in 'digits'."),
        ({"transform": 0.3}, "The transform of variant 'mine' is of type float; give a transform of torchvision or a"),
        ({"seed": "one"}, "The seed of variant 'mine' is 'one'; give a whole number, or None."),
        ({"seed": 0.5}, "The seed of variant 'mine' is 0.5; give a whole number, or None."),
    ],
)
def test_a_variant_of_wrong_parts_is_refused(wrong: dict[str, object], sentence: str) -> None:
    with pytest.raises(DataError) as caught:
        Variant(**{"family": "digits", "name": "mine", "transform": v2.Identity(), **wrong})
    assert str(caught.value).startswith(sentence)


def test_a_transform_that_breaks_the_pictures_is_refused(source: Source) -> None:
    with pytest.raises(DataError, match=r"'digits-cut' turns \(2000, 1, 28, 28\) float32 into \(2000, 1, 20, 20\)"):
        assert source.task(Variant("digits", "cut", v2.CenterCrop(20))).test
    with pytest.raises(DataError, match=r"'digits-loud' leaves the range 0 to 1 \(0 to 2\)"):
        assert source.task(Variant("digits", "loud", v2.Lambda(lambda x: x * 2))).test
    with pytest.raises(DataError, match="leaves the range"):
        assert source.task(Variant("digits", "lost", v2.Lambda(lambda x: x * float("nan")))).test


def test_an_unknown_task_is_one_sentence_with_the_nearest_names() -> None:
    with pytest.raises(DataError, match=r"^There is no task 'digits-rotate'; did you mean 'digits-rotated45'.*\?$"):
        load_task("digits-rotate")
    with pytest.raises(DataError, match=r"^There is no task 'zzz'; there are digits-upright, .*\.$"):
        load_task("zzz")


@pytest.mark.parametrize("nothing", [3, None, b"digits-upright", ["digits-upright"]])
def test_what_is_no_task_at_all_is_one_sentence(nothing: object) -> None:
    said = f"^A task cannot be of type {type(nothing).__name__}; give its name, as in 'digits-upright', or a Variant"
    with pytest.raises(DataError, match=said):
        load_task(nothing)


@pytest.mark.parametrize("name", ["MNIST", "digit", 3, ["digits"]])
def test_a_card_of_no_family_is_one_sentence(name: object) -> None:
    with pytest.raises(
        DataError, match=r"^There is no family '.+'; (did you mean 'digits'\?|there are digits, fashion)"
    ):
        card(name)


def test_a_split_is_cut_from_the_front(source: Source) -> None:
    split = source.task("digits-upright").test
    few = split.first(30)
    assert len(few) == 30
    assert torch.equal(few.images, split.images[:30])
    assert few.labels.bincount().tolist() == [3] * 10
    assert len(split.first(10**6)) == 2000
    assert few.to("cpu").images.device.type == "cpu"
    with pytest.raises(ValueError, match="at least one image"):
        split.first(0)


def test_no_picture_is_handed_out_while_a_merge_runs(source: Source) -> None:
    split = source.task("digits-upright").test
    with no_data("merge(…, method='peeking')"):
        with pytest.raises(DataAccessError, match="asked for the images of digits-upright, test"):
            assert split.images is None
        with pytest.raises(DataAccessError, match="the labels of digits-upright, test"):
            assert split.labels is None
        with pytest.raises(DataAccessError, match="peeking"):
            split.to("cpu")
        with pytest.raises(DataAccessError, match="a data source"):
            open_source()
        with pytest.raises(DataAccessError, match="the family digits"):
            source.task("digits-upright")
    assert len(split.images) == 2000


def test_a_source_is_known_by_its_contents(source: Source) -> None:
    assert source.sha256 == open_source().sha256
    assert len(source.sha256) == 64
    assert source.task("digits-noisy").sha256 == source.task("digits-upright").sha256
    assert source.task("fashion-upright").sha256 != source.task("digits-upright").sha256
    assert source.note.startswith("Bundled data are used")
